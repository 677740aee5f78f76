"""Training steps and predictions side by side with PyTorch, Keras and JAX: the same networks, parameters, batches,
optimiser and dropout, float32, the same threads.

Each side runs in a process of its own, alternating in rounds of short turns. Before a cell (a network, a batch size,
training or predicting) is timed, every mode of every side must give the same logits, or the same losses without
dropout. A mode of a peer that does not run, or differs where another of its modes agrees, is left out. A peer runs in
its best mode: all its modes are screened, the best and those near it take part in the rounds, and the best of each
round counts. `python -m bench.peers --torch-python PATH --keras-python PATH --jax-python PATH`, each a Python that
has the framework. Cells are merged into bench/results/peers.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import cpu_name, save, saved, usable_cores
from bench.networks import CLASSES, DROPOUT, NETWORKS, fastcnn_layers
from bench.process import Process

PEERS = ("torch", "keras", "jax")
MODULES = {"torch": "torch", "keras": "tensorflow", "jax": "jax"}
NAMES = {"fastcnn": "fastcnn", "torch": "PyTorch", "keras": "Keras", "jax": "JAX"}
TOLERANCES = {"train": {"rtol": 2e-3}, "predict": {"rtol": 1e-3, "atol": 1e-4}}
BATCHES = (32, 128, 512)
KEPT = 0.9  # of the best screened rate: modes from here on take part in the rounds
SCREENING_TURNS = 3
BUSY = 0.1  # of the machine, by other processes: from here on a cell is suspect
# On the CPU, and quietly. What threads do between two operations stays the frameworks' own choice: measured, the
# idle processes use no core as they are.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3",
}  # fmt: skip


class Side(Process):
    """A framework in a process of its own, with one network."""

    def __init__(self, framework: str, python: str, network: str, threads: int, folder: str) -> None:
        self.framework, self.batch = framework, 0
        self.steps: dict[str, int] = {}  # a turn's, by mode
        command = [python, "-m", "bench.sides", framework, network, str(threads), str(Path(folder) / f"{network}.npz")]
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor")}
        super().__init__(*command, env=cache | os.environ | ENVIRONMENT)
        self.versions: dict[str, str] = self.about

    def open(self, what: str, batch: int) -> dict[str, Any]:
        """Build the cell; what is to be compared, by mode, or a text where a mode does not run."""
        self.batch, self.steps = batch, {}
        return self.ask(f"open {what} {batch}")

    def rate(self, mode: str, steps: int | None = None) -> float:
        """Images a second in one turn."""
        steps = steps or self.steps[mode]
        return self.batch * steps / self.ask(f"run {mode} {steps}")

    def calibrate(self, mode: str, seconds: float) -> float:
        """Choose the steps of a turn; images a second."""
        steps = 1
        while (elapsed := self.ask(f"run {mode} {steps}")) < seconds / 5:
            steps *= 4 if elapsed < seconds / 20 else 2
        self.steps[mode] = max(1, round(seconds * steps / elapsed))
        return self.batch * steps / elapsed


def busy_share(seconds: float = 0.25) -> float:
    """The share of the machine that is busy while all sides wait: other processes' (0 where Linux does not tell)."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0

    def times() -> tuple[int, int]:
        words = [int(word) for word in path.read_text().splitlines()[0].split()[1:]]
        return sum(words), words[3] + words[4]

    total, idle = times()
    time.sleep(seconds)
    later, idle_later = times()
    return 1 - (idle_later - idle) / (later - total) if later > total else 0.0


def settle(patience: float = 3.0) -> float:
    """Wait until a peer's threads have stopped looking for work, which some do long after a turn; the share of the
    machine that is still busy then.
    """
    start = time.perf_counter()
    while (busy := busy_share(0.1)) > BUSY and time.perf_counter() - start < patience:
        pass
    return busy


def check(what: str, answers: dict[str, dict[str, Any]], cell: str) -> dict[str, str]:
    """Compare all modes of all sides with fastcnn; the modes to leave out, with the reason."""
    (ours,) = answers["fastcnn"].values()
    if isinstance(ours, str):
        raise SystemExit(f"{cell}: fastcnn does not run: {ours}")
    failed = {}
    for framework, modes in answers.items():
        wrong = {}
        for mode, theirs in modes.items():
            if isinstance(theirs, str):
                failed[f"{framework} {mode}"] = theirs
            elif not np.allclose(theirs, ours, **TOLERANCES[what]):
                values = f": {theirs}, not {ours}" if what == "train" else ""
                wrong[f"{framework} {mode}"] = ("losses" if what == "train" else "logits") + f" differ{values}"
        failed |= wrong
        # Where all that runs differs, nothing says that it is the peer who is wrong.
        if wrong and all(f"{framework} {mode}" in failed for mode in modes):
            raise SystemExit(f"{cell}: {framework} and fastcnn do not compute the same: {wrong}")
    for mode, reason in failed.items():
        print(f"{cell}: {mode} is left out: {reason}", flush=True)
    return failed


def screen(side: Side, modes: list[str], seconds: float) -> dict[str, float]:
    """The best rate of some turns of each mode; a mode half as fast as another gets no more than the first."""
    rates = {mode: side.calibrate(mode, seconds) for mode in modes}
    hopeful = [mode for mode in modes if rates[mode] > max(rates.values()) / 2]
    if len(hopeful) > 1:
        for _ in range(SCREENING_TURNS):
            for mode in hopeful:
                rates[mode] = max(rates[mode], side.rate(mode, max(1, side.steps[mode] // 2)))
    return rates


def measure(sides: dict[str, Side], network: str, what: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """One cell: check, screen, rounds in alternating order."""
    cell = f"{network} {what} {batch}"
    start = time.perf_counter()
    answers = {name: side.open(what, batch) for name, side in sides.items()}
    failed = check(what, answers, cell)
    screening, turns = {}, []
    for name, side in sides.items():
        modes = [mode for mode in answers[name] if f"{name} {mode}" not in failed]
        if modes:
            rates = screening[name] = screen(side, modes, args.seconds)
            turns += [(name, mode) for mode in modes if rates[mode] >= KEPT * max(rates.values())]
    rates: dict[str, list[float]] = {f"{name} {mode}": [] for name, mode in turns}
    busy = []
    for i in range(args.rounds):
        for name, mode in turns[:: 1 if i % 2 == 0 else -1]:
            busy.append(settle())
            rates[f"{name} {mode}"].append(sides[name].rate(mode))

    def best(framework: str) -> list[float]:
        return [max(turn) for turn in zip(*(rates[f"{n} {m}"] for n, m in turns if n == framework), strict=True)]

    ours = best("fastcnn")
    ratios = {name: [a / b for a, b in zip(ours, best(name), strict=True)] for name in screening if name != "fastcnn"}
    busy.append(settle())
    print(f"{cell:<20} {statistics.median(ours):>9,.0f} images/s ", end=" ")
    print(*(f"{name} x{statistics.median(ratio):.2f}" for name, ratio in ratios.items()), sep=", ", end="; ")
    print(*(mode for name, mode in turns if name == "torch"), f"({time.perf_counter() - start:.0f} s)", flush=True)
    if statistics.median(busy) > BUSY:
        print(
            f"{cell}: other processes keep {statistics.median(busy):.0%} of the machine busy; do not trust it",
            flush=True,
        )
    return {
        "network": network, "what": what, "batch": batch,
        "run": {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "cpu": cpu_name(), "threads": args.threads,
            "rounds": args.rounds, "seconds": args.seconds,
        },
        "versions": {name: side.versions for name, side in sides.items()},
        "screening": {name: rates for name, rates in screening.items() if name != "fastcnn"},
        "failed": failed, "busy": busy, "rates": rates, "ratios": ratios,
    }  # fmt: skip


def write_data(network: str, folder: str) -> None:
    """Images, labels and fastcnn's parameters, for all sides of a network."""
    from fastcnn import Network

    net, rng = NETWORKS[network], np.random.default_rng(0)
    data = {}
    for name, value in Network(fastcnn_layers(net), net.input_shape, random_state=0).params.items():
        # Vectors start as zeros and ones, which would hide a mix-up.
        shaken = value * rng.uniform(0.8, 1.2, value.shape) + rng.uniform(-0.1, 0.1, value.shape)
        data[name] = (shaken if value.ndim == 1 else value).astype(np.float32)
    n = max(BATCHES)
    data["x"] = rng.standard_normal((n, *net.input_shape)).astype(np.float32)
    data["labels"] = rng.integers(0, CLASSES, n)
    np.savez(Path(folder) / f"{network}.npz", **data)


def available(pythons: dict[str, str]) -> list[str]:
    """The peers that their Python has."""
    found = []
    for name, python in pythons.items():
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({MODULES[name]!r}) is None)"
        try:
            missing = subprocess.run([python, "-c", code], check=False).returncode
        except OSError as error:
            missing = error.errno
        if missing:
            print(f"{NAMES[name]} is left out: {python} has no {MODULES[name]} (give --{name}-python PATH)", flush=True)
        else:
            found.append(name)
    return found


def place(cell: dict[str, Any]) -> tuple[int, str, int]:
    """Of a cell in the table; no two have the same."""
    return list(NETWORKS).index(cell["network"]), cell["what"], cell["batch"]


def merged(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells measured so far with this one in its place; of peers that did not take part this time, what there was.

    A ratio is of rounds in which both took part, so it stays good beside others.
    """
    cells = saved("peers").get("cells", [])
    for old in (c for c in cells if place(c) == place(cell)):
        for peer in old["ratios"].keys() - cell["ratios"].keys():
            for part in ("ratios", "screening", "versions"):
                if peer in old[part]:
                    cell[part][peer] = old[part][peer]
            cell["rates"] |= {mode: rate for mode, rate in old["rates"].items() if mode.split()[0] == peer}
    return sorted([c for c in cells if place(c) != place(cell)] + [cell], key=place)


def suspect(cell: dict[str, Any]) -> bool:
    """Whether other processes were at work beside this cell."""
    return statistics.median(cell["busy"]) > BUSY


def summary(cells: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each peer: the geometric mean of the cells' median ratios, and the smallest cell; one image apart.

    Suspect cells do not count: threads that wait for each other in a loop suffer most from a busy machine.
    """
    kinds = {
        "train": lambda c: c["what"] == "train",
        "predict": lambda c: c["what"] == "predict" and c["batch"] > 1,
        "predict one": lambda c: c["what"] == "predict" and c["batch"] == 1,
    }
    result: dict[str, dict[str, Any]] = {}
    for peer in PEERS:
        for kind, belongs in kinds.items():
            medians = {
                f"{c['network']} {c['batch']}": statistics.median(c["ratios"][peer])
                for c in cells if belongs(c) and peer in c["ratios"] and not suspect(c)
            }  # fmt: skip
            if medians:
                least = min(medians, key=lambda name: medians[name])
                result.setdefault(peer, {})[kind] = {
                    "geometric mean": statistics.geometric_mean(medians.values()), "cells": len(medians),
                    "least": medians[least], "least cell": least,
                }  # fmt: skip
    return result


def show(cells: list[dict[str, Any]]) -> None:
    """The table of all cells: rates of the best modes, ratios with their quartiles."""
    print("\n" + " " * 20 + "".join(f"{name:>10}" for name in NAMES.values()), "  fastcnn / peer (quartiles)")
    for c in cells:
        best: dict[str, float] = {}
        for mode, rates in c["rates"].items():
            name = mode.split()[0]
            best[name] = max(best.get(name, 0), statistics.median(rates))
        row = "".join(f"{best[name]:>10,.0f}" if name in best else f"{'-':>10}" for name in NAMES)
        ratios = []
        for name, values in c["ratios"].items():
            low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
            ratios.append(f"{name} {middle:.2f} ({low:.2f}-{high:.2f})")
        ratios += ["SUSPECT: busy"] * suspect(c)
        print(f"{c['network']:<8}{c['what']:<8}{c['batch']:>4}{row}   {'  '.join(ratios)}")
    print()
    for peer, kinds in summary(cells).items():
        for kind, s in kinds.items():
            print(
                f"{NAMES[peer]:<8} {kind:<12} geometric mean {s['geometric mean']:.2f} of {s['cells']} cells, "
                f"least {s['least']:.2f} ({s['least cell']})"
            )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, choices=(1, *BATCHES), default=[1, *BATCHES])
    parser.add_argument("--what", nargs="+", choices=("train", "predict"), default=["train", "predict"])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.35, help="of a turn, about")
    for name in PEERS:
        parser.add_argument(f"--{name}-python", default=sys.executable, metavar="PATH")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    pythons = {name: getattr(args, f"{name}_python") for name in PEERS}
    peers = available(pythons)
    if not peers:
        print("no peer is there: nothing measured")
        return
    setting = {
        "adam": 1e-3,
        "dropout": DROPOUT,
        "threads": args.threads,
        "rounds": args.rounds,
        "seconds": args.seconds,
    }
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for network in args.networks:
            write_data(network, folder)
            sides: dict[str, Side] = {}
            try:
                for name in ("fastcnn", *peers):
                    sides[name] = Side(name, pythons.get(name, sys.executable), network, args.threads, folder)
                for what in args.what:
                    # Training one image at a time is nobody's way to train.
                    for batch in (b for b in args.batches if b > 1 or what == "predict"):
                        cells = merged(measure(sides, network, what, batch, args))
                        path = save("peers", {"setting": setting, "cells": cells})
            finally:
                for side in sides.values():
                    side.close()
    if cells:
        show(cells)
        print(f"written: {path}")


if __name__ == "__main__":
    main()
