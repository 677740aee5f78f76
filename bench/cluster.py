"""Two workers of Dask against one process, on one machine: images a second, accuracy, and what a round costs.

Sides: `CNNClassifier(n_jobs=1)` in one process, and `DaskCNNClassifier` on a `LocalCluster` of two processes with one
thread each, every worker with half of the images and mini-batches of 128; Dask is told to look at itself less often
(`QUIET`). Every run is a process of its own; the sides
alternate, seed by seed. Kernels come from the cache and a short fit goes before: compiling and starting processes is
not timed. Each side trains the same number of epochs on the training images; the test images are used once, after
training.

`rates`: the accuracy of two workers on 5,000 training images set aside, for several learning rates, seed 0; the best
one is what `fits` should be given. `fits`: speeds and accuracies. `rounds`: what a round takes for several
`sync_every`. `constants`: what `bench.cluster_model` is calibrated with. Results are added to what
bench/results/cluster.json has.
`python -m bench.cluster [--parts rates fits rounds constants] [--seeds 0 1 2] [--epochs 12] [--images 60000]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import save, saved, versions
from bench.recipes import Data, load
from fastcnn import CNNClassifier
from fastcnn.datasets import fetch_fashion_mnist

WORKERS, BATCH, SYNC_EVERY = 2, 128, 32
# On the cluster an epoch has half as many steps, which want to be longer.
LEARNING_RATE, CLUSTER_LEARNING_RATE = 0.003, 0.006
RATES = (0.003, 0.0045, 0.006, 0.009)
KEYS = ("side", "seed", "epochs", "images", "sync_every", "learning_rate", "block_momentum")  # what tells fits apart
SWEEP = (1, 4, 16, 64, 128)
SWEEP_STEPS = 128  # of each worker, in one run of the sweep
SIZES = (1 << 10, 1 << 20, 1 << 22, 1 << 24)  # bytes sent from worker to worker
REPEATS = 15
# What Dask does beside, many times a second, when both cores have other work: it looks at its event loops, at where its
# threads are, at memory, and at who could take work from whom.
QUIET = {
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.scheduler.work-stealing": False,
}
PACKAGES = ("fastcnn", "dask", "distributed", "numpy", "numba")


class Clock:
    """The callback that notes the seconds of epochs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_end(self, info: Any) -> None:
        self.seconds.append(info.seconds)


@contextmanager
def cluster(n_workers: int = WORKERS) -> Iterator[Any]:
    """A client of a local cluster: processes with one thread each."""
    import dask
    from distributed import Client, LocalCluster

    with (
        dask.config.set(QUIET),
        LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None) as local,
        Client(local) as client,
    ):
        yield client


def mapped(path: str, start: int, stop: int) -> np.ndarray:
    """Images of a .npy file; read from it when they are used."""
    return np.load(path, mmap_mode="r")[start:stop]


def on_disk(X: np.ndarray, folder: str, n_chunks: int) -> Any:
    """`X` as a dask array whose workers read it from a file."""
    import dask
    import dask.array as da

    path = str(Path(folder) / f"images-{len(X)}.npy")
    np.save(path, X)
    edges = np.linspace(0, len(X), n_chunks + 1).astype(int).tolist()
    parts = [
        da.from_delayed(dask.delayed(mapped)(path, a, b), shape=(b - a, *X.shape[1:]), dtype=X.dtype)
        for a, b in pairwise(edges)
    ]
    return da.concatenate(parts)


def one_process(seed: int, epochs: int, images: int, **unused: Any) -> dict[str, Any]:
    """Fit with one thread, here."""
    (X, y), judge = load(split=False)
    CNNClassifier(n_jobs=1, batch_size=BATCH, max_iter=1, random_state=0).fit(X[: 2 * BATCH], y[: 2 * BATCH])
    clf = CNNClassifier(
        n_jobs=1,
        batch_size=BATCH,
        max_iter=epochs,
        random_state=seed,
        learning_rate_init=LEARNING_RATE,
        callbacks=[Clock()],
    )
    return _fitted(clf, X[:images], y[:images], judge)


def two_workers(
    seed: int,
    epochs: int,
    images: int,
    sync_every: int,
    learning_rate: float,
    block_momentum: float,
    split: bool = False,
) -> dict[str, Any]:
    """Fit on two workers with one thread each."""
    from fastcnn.distributed import DaskCNNClassifier

    (X, y), judge = load(split)
    with cluster() as client, tempfile.TemporaryDirectory() as folder:
        client.wait_for_workers(WORKERS)
        some = 4 * BATCH
        DaskCNNClassifier(batch_size=BATCH, max_iter=1, random_state=0).fit(
            on_disk(X[:some], folder, WORKERS), y[:some]
        )
        clf = DaskCNNClassifier(
            batch_size=BATCH,
            max_iter=epochs,
            random_state=seed,
            sync_every=sync_every,
            learning_rate_init=learning_rate,
            block_momentum=block_momentum,
            callbacks=[Clock()],
        )
        found = _fitted(clf, on_disk(X[:images], folder, WORKERS), y[:images], judge)
        return found | {"rounds": clf.n_rounds_}


def _fitted(clf: Any, X: Any, y: np.ndarray, judge: Data) -> dict[str, Any]:
    start = time.perf_counter()
    clf.fit(X, y)
    fit_seconds = time.perf_counter() - start
    seconds = clf.callbacks_[0].seconds
    return {
        "images_per_second": len(y) * len(seconds) / sum(seconds),
        "epoch_seconds": seconds,
        "fit_seconds": fit_seconds,
        "accuracy": float(np.mean(clf.predict(judge[0]) == judge[1])),
    }


SIDES: dict[str, Callable[..., dict[str, Any]]] = {"one process": one_process, "two workers": two_workers}


def run(side: str, key: dict[str, Any]) -> dict[str, Any]:
    """A fit in a process of its own."""
    command = [sys.executable, "-m", "bench.cluster", "--worker", side, json.dumps(key)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(answer.splitlines()[-1])


def rates(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Accuracies on images set aside."""
    runs = []
    for rate in RATES:
        key = {"sync_every": args.sync_every, "learning_rate": rate, "block_momentum": args.block_momentum}
        found = run("two workers", {"seed": 0, "epochs": args.epochs, "images": args.images, "split": True, **key})
        runs.append({**key, "accuracy": found["accuracy"]})
        print(f"sync_every={args.sync_every}, learning rate {rate}: {found['accuracy']:.4f} set aside", flush=True)
    return runs


def fits(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Sides and seeds, in alternating processes."""
    runs = []
    for seed in args.seeds:
        for side in args.sides:
            key = {"seed": seed, "epochs": args.epochs, "images": args.images}
            key |= {  # of the two workers
                "sync_every": args.sync_every,
                "learning_rate": args.learning_rate,
                "block_momentum": args.block_momentum,
            }
            runs.append({"side": side, **key, **run(side, key)})
            r = runs[-1]
            print(f"{side}, seed {seed}: {r['images_per_second']:,.0f} images/s, {r['accuracy']:.4f}", flush=True)
    return runs


def rounds(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds a round, by the number of workers and the steps in it."""
    from fastcnn.distributed import DaskCNNClassifier

    X, y = fetch_fashion_mnist("train")
    found: dict[int, dict[int, float]] = {}
    images = SWEEP_STEPS * BATCH
    for n_workers in (1, WORKERS):
        found[n_workers] = {}
        with cluster(n_workers) as client, tempfile.TemporaryDirectory() as folder:
            client.wait_for_workers(n_workers)
            data = on_disk(X[: images * n_workers], folder, n_workers), y[: images * n_workers]
            for sync_every in SWEEP:
                seconds = {}
                for epochs in (1, 3):  # plans are made in the first one, and the next one may begin before one ends
                    clf = DaskCNNClassifier(
                        batch_size=BATCH, max_iter=epochs, random_state=0, sync_every=sync_every, callbacks=[Clock()]
                    ).fit(*data)
                    seconds[epochs] = sum(clf.callbacks_[0].seconds)
                of_epoch = (seconds[3] - seconds[1]) / 2
                found[n_workers][sync_every] = of_epoch / (SWEEP_STEPS / sync_every)
                print(f"{n_workers} workers, sync_every={sync_every}: {of_epoch:.2f} s an epoch", flush=True)
    return {
        "steps_per_round": list(SWEEP),
        "batch": BATCH,
        "state_bytes": sum(a.nbytes for a in _state_arrays(clf)),
        "seconds_per_round": found,
    }


def _state_arrays(clf: Any) -> list[np.ndarray]:
    from fastcnn.distributed.rounds import read_state

    return list(read_state(clf.network_, None).arrays.values())


def constants(args: argparse.Namespace) -> dict[str, Any]:
    """What tasks, messages and bytes cost: medians of some repeats."""
    from fastcnn.distributed.rounds import Part, State, average_parts

    with cluster() as client:
        client.wait_for_workers(WORKERS)
        first, second = sorted(client.nthreads())
        transfer = {}
        for size in SIZES:
            seconds = []
            for _ in range(REPEATS):
                made = client.submit(np.ones, size, dtype=np.uint8, workers=first, pure=False)
                made.result()
                start = time.perf_counter()
                client.submit(len, made, workers=second, pure=False).result()
                seconds.append(time.perf_counter() - start)
            transfer[size] = statistics.median(seconds)
        start = time.perf_counter()
        futures = [client.submit(int, n, pure=False) for n in range(2000)]
        client.gather(futures)
        per_task = (time.perf_counter() - start) / len(futures)
    arrays = {"x": np.ones(1 << 20, np.float32)}
    part = Part(State(arrays, 1, 0, []), np.ones((1, 2)), np.ones(1, np.int64))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        average_parts(part, part)
        seconds.append(time.perf_counter() - start)
    slope, latency = np.polyfit(list(transfer), list(transfer.values()), 1)
    print(f"latency {latency * 1e3:.2f} ms, {1e-6 / slope:,.0f} MB/s, {per_task * 1e3:.2f} ms a task", flush=True)
    return {
        "transfer_seconds": transfer,
        "latency": float(latency),
        "bytes_per_second": float(1 / slope),
        "seconds_per_task": per_task,
        "average_seconds_per_byte": statistics.median(seconds) / (2 * arrays["x"].nbytes),
    }


def _setting(one: dict[str, Any]) -> tuple[Any, ...]:
    return one["sync_every"], one.get("block_momentum", 0.0), one["learning_rate"]


def _key(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run.get(name, 0.0) for name in KEYS)  # earlier ones do not tell their momentum


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "rates": rates,
    "fits": fits,
    "rounds": rounds,
    "constants": constants,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--sync-every", type=int, default=SYNC_EVERY)
    parser.add_argument("--learning-rate", type=float, default=CLUSTER_LEARNING_RATE, help="of the two workers")
    parser.add_argument("--block-momentum", type=float, default=0.0, help="of the two workers")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        side, key = args.worker
        print(json.dumps(SIDES[side](**json.loads(key))))
        return
    found = saved("cluster")
    for part in args.parts:
        measured = PARTS[part](args)
        if part == "fits":
            known = {_key(run): run for run in found.get("fits", [])} | {_key(run): run for run in measured}
            measured = [known[key] for key in sorted(known)]
        if part == "rates":
            this = args.sync_every, args.block_momentum
            others = [one for one in found.get("rates", []) if _setting(one)[:2] != this]
            measured = sorted([*others, *measured], key=_setting)
        found[part] = measured
        path = save("cluster", {**found, "versions": versions(*PACKAGES)})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
