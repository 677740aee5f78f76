"""What a user of scikit-learn waits for: `fit` and `GridSearchCV` against skorch with the same networks, and `fit`
against scikit-learn's own `MLPClassifier`, which is another model.

Each side runs in a process of its own, in alternating rounds. The clock starts after the imports and a small fit;
fastcnn's kernels come from a full cache. skorch runs without callbacks and validation, in the best of its settings:
they are screened, and of the best and those near it the best of each round counts. Accuracies are compared before
anything is timed. Sections are merged into bench/results/estimators.json.
`python -m bench.estimators --torch-python PATH`, a Python that has skorch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import save, saved, usable_cores, versions
from bench.networks import DROPOUT, NETWORKS, fastcnn_layers
from bench.process import Process, answers

BATCH, LEARNING_RATE = 128, 1e-3
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of the grid
FOLDS, GRID_EPOCHS = 3, 10
MLP_EPOCHS, CNN_EPOCHS, SETTLED = 40, 6, 10  # the MLP has settled in its last epochs
SCREENED = 2560  # images
KEPT = 0.9  # of the best screened speed: settings from here on take part in the rounds
LONG_ROUNDS = 5  # at most, of the sections that take longer
LEAST, LEAST_GRID = 0.75, 0.95  # accuracies that count as having learnt
CLOSE, CLOSE_GRID = 0.04, 0.02  # accuracies that count as the same


# ---------------------------------------------------------------------------------------- in the process of a side


class FastCNN:
    packages = ("fastcnn", "numba", "numpy", "scikit-learn")
    modes = ("default",)
    rate = "learning_rate_init"

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def estimator(self, network: str, mode: str, epochs: int, seed: int, threads: int) -> Any:
        from fastcnn import CNNClassifier

        return CNNClassifier(
            layers=fastcnn_layers(NETWORKS[network])[:-1], scale=None, learning_rate="constant", alpha=0.0, tol=0,
            n_iter_no_change=np.inf, learning_rate_init=LEARNING_RATE, batch_size=BATCH, max_iter=epochs,
            random_state=seed, n_jobs=threads,
        )  # fmt: skip

    def default(self, seed: int) -> Any:
        """What is trained against the other model."""
        from fastcnn import CNNClassifier

        return CNNClassifier(random_state=seed, n_jobs=self.threads)


class Skorch:
    packages = ("skorch", "torch", "numpy", "scikit-learn")
    rate = "lr"

    def __init__(self, threads: int) -> None:
        import torch

        from bench.estimators_skorch import MODES

        self.modes = tuple(MODES)
        torch.set_flush_denormal(True)
        torch.set_num_threads(threads)

    def estimator(self, network: str, mode: str, epochs: int, seed: int, threads: int) -> Any:
        """The threads are the process's: where search has workers, joblib gives each its share."""
        import torch

        from bench.estimators_skorch import estimator

        torch.manual_seed(seed)
        return estimator(network, mode, DROPOUT, lr=LEARNING_RATE, batch_size=BATCH, max_epochs=epochs)


class MLP:
    packages = ("scikit-learn", "numpy")
    modes = ()

    def __init__(self, threads: int) -> None:
        from threadpoolctl import threadpool_limits

        self.limits = threadpool_limits(threads)

    def default(self, seed: int) -> Any:
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier(hidden_layer_sizes=(128,), random_state=seed)


SIDES: dict[str, Any] = {"fastcnn": FastCNN, "skorch": Skorch, "MLPClassifier": MLP}


class Work:
    """What a side is asked to do; each gives seconds and how well it went."""

    def __init__(self, side: Any, data: dict[str, np.ndarray], threads: int) -> None:
        self.side, self.data, self.threads = side, data, threads

    def fit(self, network: str, mode: str, epochs: int, images: int, seed: int) -> dict[str, float]:
        X, y, X_test, y_test = (self.data[f"{network} {name}"] for name in ("X", "y", "X_test", "y_test"))
        clf = self.side.estimator(network, mode, epochs, seed, self.threads)
        X, y = X[:images], y[:images]
        start = time.perf_counter()
        clf.fit(X, y)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "accuracy": float(np.mean(clf.predict(X_test) == y_test))}

    def grid(self, mode: str, jobs: int, epochs: int, seed: int) -> dict[str, float]:
        from joblib.externals.loky import get_reusable_executor
        from sklearn.model_selection import GridSearchCV, StratifiedKFold

        clf = self.side.estimator("digits", mode, epochs, seed, max(1, self.threads // jobs))
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        search = GridSearchCV(clf, {self.side.rate: list(RATES)}, cv=folds, refit=False, n_jobs=jobs)
        start = time.perf_counter()
        search.fit(self.data["digits X"], self.data["digits y"])
        seconds = time.perf_counter() - start
        if jobs > 1:
            get_reusable_executor().shutdown(wait=True)  # the next search starts its workers anew
        return {"seconds": seconds, "accuracy": float(search.cv_results_["mean_test_score"].max())}

    def curve(self, epochs: int, seed: int, flat: bool) -> dict[str, list[float]]:
        """Seconds of each epoch, and the test accuracy after it."""
        X, y, X_test, y_test = (self.data[f"seed {name}"] for name in ("X", "y", "X_test", "y_test"))
        if flat:
            X, X_test = X.reshape(len(X), -1), X_test.reshape(len(X_test), -1)
        clf, result = self.side.default(seed), {"seconds": [], "accuracy": []}
        for _ in range(epochs):
            start = time.perf_counter()
            clf.partial_fit(X, y, classes=np.arange(10))
            result["seconds"].append(time.perf_counter() - start)
            result["accuracy"].append(float(np.mean(clf.predict(X_test) == y_test)))
        return result


def serve(name: str, path: str, threads: int) -> None:
    """Answer each line of the input, a task and its arguments, with a line of JSON."""
    out = answers()
    side = SIDES[name](threads)
    work = Work(side, dict(np.load(path)), threads)
    if name == "MLPClassifier":
        work.curve(1, 0, True)
    else:
        for network in ("seed", "digits"):
            work.fit(network, side.modes[0], 1, 2 * BATCH, 0)
    print(json.dumps({"versions": versions(*side.packages), "modes": side.modes}), file=out)
    for line in sys.stdin:
        task, arguments = json.loads(line)
        print(json.dumps(getattr(work, task)(**arguments)), file=out)


# --------------------------------------------------------------------------------------------------- the comparison


class Side(Process):
    """The process of a side."""

    def __init__(self, name: str, python: str, path: str, threads: int) -> None:
        self.name = name
        super().__init__(python, "-m", "bench.estimators", "--worker", name, "--data", path, "--threads", str(threads))
        self.versions, self.modes = self.about["versions"], self.about["modes"]

    def do(self, task: str, **arguments: Any) -> Any:
        return self.ask(json.dumps([task, arguments]))


Turn = tuple[str, str, dict[str, Any]]  # side, name of its setting, arguments


def near_best(side: str, seconds: dict[str, float]) -> list[str]:
    """The settings that take part in the rounds, with a line about all."""
    print(f"{side} screened: " + ", ".join(f"{name} {s:.2f} s" for name, s in seconds.items()), flush=True)
    return [name for name, s in seconds.items() if KEPT * s <= min(seconds.values())]


def check(task: str, accuracy: dict[str, float], least: float, close: float) -> None:
    """All have learnt, and about the same."""
    print("accuracy: " + ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items()), flush=True)
    if min(accuracy.values()) < least or max(accuracy.values()) - min(accuracy.values()) > close:
        raise SystemExit(f"{task}: accuracies must be at least {least} and within {close}: {accuracy}")


def compare(sides: dict[str, Side], task: str, turns: list[Turn], rounds: int) -> dict[str, Any]:
    """Rounds in alternating order; the best setting of a side in each round counts."""
    names = [f"{side} {name}" for side, name, _ in turns]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    accuracy: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for side, name, how in turns[:: 1 if i % 2 == 0 else -1]:
            answer = sides[side].do(task, seed=i + 1, **how)
            seconds[f"{side} {name}"].append(answer["seconds"])
            accuracy[f"{side} {name}"].append(answer["accuracy"])
    best = {
        side: [min(turn) for turn in zip(*(s for name, s in seconds.items() if name.split()[0] == side), strict=True)]
        for side in dict.fromkeys(side for side, _, _ in turns)
    }
    ratios = [theirs / ours for ours, theirs in zip(best["fastcnn"], best["skorch"], strict=True)]
    for name, values in seconds.items():
        print(f"  {name:52s} {statistics.median(values):7.2f} s, accuracy {statistics.median(accuracy[name]):.3f}")
    print(f"  skorch / fastcnn {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    return {"seconds": seconds, "ratios": ratios, "accuracy": accuracy}


def screen(side: Side, **how: Any) -> dict[str, float]:
    """Seconds of a small fit in each setting of the classifier."""
    turns = [{m: side.do("fit", mode=m, seed=0, **how)["seconds"] for m in side.modes} for _ in range(3)]
    return {mode: min(turn[mode] for turn in turns) for mode in side.modes}


def fit(sides: dict[str, Side], args: argparse.Namespace) -> dict[str, Any]:
    """The seed network on Fashion-MNIST."""
    turns: list[Turn] = []
    for side in (sides["fastcnn"], sides["skorch"]):
        seconds = screen(side, network="seed", epochs=1, images=min(SCREENED, args.images))
        how = {"network": "seed", "epochs": args.epochs, "images": args.images}
        turns += [(side.name, mode, how | {"mode": mode}) for mode in near_best(side.name, seconds)]
    accuracy = {f"{side} {mode}": sides[side].do("fit", seed=0, **how)["accuracy"] for side, mode, how in turns}
    if not args.quick:
        check("fit", accuracy, LEAST, CLOSE)
    setting = {"images": args.images, "epochs": args.epochs}
    return compare(sides, "fit", turns, args.rounds) | {"setting": setting}


def grid_search(sides: dict[str, Side], args: argparse.Namespace) -> dict[str, Any]:
    """Four learning rates, three folds, digits; one process with all threads, or a process for each."""
    epochs = 2 if args.quick else GRID_EPOCHS
    turns: list[Turn] = []
    found: dict[str, dict[str, float]] = {}
    for side in (sides["fastcnn"], sides["skorch"]):
        seconds = screen(side, network="digits", epochs=2, images=SCREENED)
        mode = min(seconds, key=lambda name: seconds[name])
        setups = {f"{mode}, n_jobs={n}": {"mode": mode, "jobs": n, "epochs": epochs} for n in sorted({1, args.threads})}
        screened = {name: side.do("grid", seed=0, **how) for name, how in setups.items()}
        found |= {f"{side.name} {name}": answer for name, answer in screened.items()}
        best = near_best(side.name, {name: answer["seconds"] for name, answer in screened.items()})
        turns += [(side.name, name, setups[name]) for name in best]
    if not args.quick:
        check("grid_search", {name: answer["accuracy"] for name, answer in found.items()}, LEAST_GRID, CLOSE_GRID)
    result = compare(sides, "grid", turns, min(args.rounds, LONG_ROUNDS))
    setting = {"learning_rates": RATES, "folds": FOLDS, "epochs": epochs}
    return result | {"screening": {name: answer["seconds"] for name, answer in found.items()}, "setting": setting}


def mlp(sides: dict[str, Side], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of training until the test accuracy is what the MLP settles at."""
    names = ("fastcnn", "MLPClassifier")
    result: dict[str, Any] = {key: {name: [] for name in names} for key in ("seconds", "epoch_seconds", "epochs")}
    result |= {"accuracy": {name: [] for name in names}, "target": [], "ratios": []}
    mlp_epochs, cnn_epochs = (4, 6) if args.quick else (MLP_EPOCHS, CNN_EPOCHS)
    for i in range(min(args.rounds, LONG_ROUNDS)):
        found = {}
        for name in names[:: 1 if i % 2 == 0 else -1]:
            flat = name == "MLPClassifier"
            found[name] = sides[name].do("curve", epochs=mlp_epochs if flat else cnn_epochs, seed=i, flat=flat)
        target = statistics.median(found["MLPClassifier"]["accuracy"][-SETTLED:])
        result["target"].append(target)
        for name, curve in found.items():
            reached = next((k for k, a in enumerate(curve["accuracy"], 1) if a >= target), None)
            if reached is None:
                raise SystemExit(f"{name} does not reach {target:.3f}: {curve['accuracy']}")
            result["epochs"][name].append(reached)
            result["seconds"][name].append(sum(curve["seconds"][:reached]))
            result["epoch_seconds"][name].append(statistics.median(curve["seconds"]))
            result["accuracy"][name].append(curve["accuracy"][-1])
        ours, theirs = (result["seconds"][name][-1] for name in names)
        result["ratios"].append(theirs / ours)
    for name in names:
        seconds, epoch, epochs, accuracy = (
            statistics.median(result[key][name]) for key in ("seconds", "epoch_seconds", "epochs", "accuracy")
        )
        print(
            f"  {name:14s} {seconds:6.2f} s to the MLP's accuracy ({epochs:.0f} epochs), {epoch:.3f} s an epoch,",
            end="",
        )
        print(f" {accuracy:.3f} in the end")
    print(f"  MLPClassifier / fastcnn {statistics.median(result['ratios']):.2f}", flush=True)
    return result | {"setting": {"images": args.images, "epochs": {"fastcnn": cnn_epochs, "MLPClassifier": mlp_epochs}}}


SECTIONS = {"fit": (fit, "skorch"), "grid_search": (grid_search, "skorch"), "mlp": (mlp, "MLPClassifier")}


def write_data(path: Path, images: int) -> None:
    """Float32 from 0 to 1, channels last."""
    from sklearn.datasets import load_digits

    from fastcnn.datasets import fetch_fashion_mnist

    data: dict[str, np.ndarray] = {}

    def add(name: str, X: np.ndarray, y: np.ndarray, largest: float) -> None:
        data[name.format(" X")] = (X[..., None] / largest).astype(np.float32)
        data[name.format(" y")] = y.astype(np.int64)

    digits = load_digits()
    for part, which in (("", "train"), ("_test", "test")):
        X, y = fetch_fashion_mnist(which)
        n = images if which == "train" else len(X)
        add(f"seed{{}}{part}", X[:n], y[:n], 255)
        # A search scores on its own folds; what a fit on all of them scores is not used.
        add(f"digits{{}}{part}", digits.images, digits.target, 16)
    np.savez(path, **data)


def merged(name: str, section: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """The sections measured so far, with this one in its place."""
    result = {key: value for key, value in saved("estimators").items() if key in SECTIONS} | {name: section}
    return setting | {key: result[key] for key in SECTIONS if key in result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH", help="a Python that has skorch")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--images", type=int, default=10_000, help="of Fashion-MNIST")
    parser.add_argument("--epochs", type=int, default=1, help="of the fit against skorch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--quick", action="store_true", help="little work, to see that it runs; nothing is written")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(args.worker, args.data, args.threads)
        return
    if args.quick:
        args.images, args.rounds = min(args.images, 1000), min(args.rounds, 2)
    pythons = {"fastcnn": sys.executable, "MLPClassifier": sys.executable}
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('skorch') is None)"
    if subprocess.run([args.torch_python, "-c", code], check=False).returncode == 0:
        pythons["skorch"] = args.torch_python
    else:
        print(f"skorch is left out: {args.torch_python} does not have it (give --torch-python PATH)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        write_data(path, args.images)
        wanted = {"fastcnn", *(SECTIONS[name][1] for name in args.sections)}
        sides = {
            name: Side(name, python, str(path), args.threads) for name, python in pythons.items() if name in wanted
        }
        try:
            for name in args.sections:
                section, peer = SECTIONS[name]
                if peer in sides:
                    print(f"{name}:", flush=True)
                    result = section(sides, args)
                    versions_of = {side: sides[side].versions for side in ("fastcnn", peer)}
                    if not args.quick:
                        about = {"threads": args.threads, "batch": BATCH, "dropout": DROPOUT}
                        save("estimators", merged(name, result | {"versions": versions_of}, about))
        finally:
            for side in sides.values():
                side.close()


if __name__ == "__main__":
    main()
