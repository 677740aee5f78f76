"""The recipes on Fashion-MNIST: accuracy and training time, beside the same recipe in PyTorch.

Every run is a process of its own. Two sides take turns, epoch by epoch, and the other one waits: a machine that becomes
slower while they train does so for both. A run trains on the 60,000 training images and uses the 10,000 test images
once, after training; with --split it trains on 55,000 of the training images and is judged by the other 5,000, and no
test image is read. Results are added to what bench/results/recipes.json has; those of another processor stand beside
them. With --keep a run that was ended goes on after its last whole epoch when the same command is given again.
`python -m bench.recipes [--recipes fast balanced best] [--sides fastcnn torch] [--seeds 0 1 2] [--epochs N ...]
[--keep FOLDER]`
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bench.machine import RESULTS, cpu_name, save, versions
from bench.process import Process, answers
from fastcnn import CNNClassifier
from fastcnn.datasets import fetch_fashion_mnist
from fastcnn.recipes import RECIPES

VALIDATION = 5_000
KEYS = ("recipe", "side", "epochs", "seed", "split", "cpu", "parameters")  # what tells runs apart
Data = tuple[np.ndarray, np.ndarray]


def load(split: bool) -> tuple[Data, Data]:
    """What to train on, and what to judge by."""
    X, y = fetch_fashion_mnist("train")
    if not split:
        return (X, y), fetch_fashion_mnist("test")
    order = np.random.default_rng(0).permutation(len(X))
    held_out, training = order[:VALIDATION], order[VALIDATION:]
    return (X[training], y[training]), (X[held_out], y[held_out])


EpochEnd = Callable[[int, float], None]  # told the number of the epoch and its seconds


class FastCNN:
    """This package's side."""

    def __init__(self, clf: CNNClassifier) -> None:
        self.clf = clf
        self.mode = ""
        self.tried: dict[str, Any] = {}  # modes: seconds of a step, or why they do not run

    def prepare(self, X: np.ndarray, y: np.ndarray, rest: int) -> None:
        """Compile what is to be compiled, on a batch or so of images."""
        self.clf.set_params(max_iter=1).fit(X, y)
        self.clf.predict(X)

    def fit(self, X: np.ndarray, y: np.ndarray, epochs: int, at_end_of: EpochEnd, kept: Path | None = None) -> None:
        """Train, or go on from what `kept` has, and tell when an epoch has ended."""
        self.clf.set_params(max_iter=epochs, callbacks=[_Epochs(at_end_of)], checkpoint=kept).fit(X, y)

    @property
    def n_params(self) -> int:
        return self.clf.network_.n_params

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.clf.predict(X)


class _Epochs:
    """The callback that passes on what an epoch took, once its checkpoint is written."""

    def __init__(self, at_end_of: EpochEnd) -> None:
        self.at_end_of = at_end_of
        self.ended: tuple[int, float] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Epochs:
        return self  # `fit` copies callbacks; who is told stays the same

    def on_epoch_end(self, info: Any) -> None:
        self.ended = info.epoch, info.seconds

    def on_epoch_begin(self, epoch: int) -> None:
        self._pass_on()

    def on_fit_end(self, history: Any) -> None:
        if history.reason not in ("error", "interrupted"):  # else the checkpoint may not be written
            self._pass_on()

    def _pass_on(self) -> None:
        ended, self.ended = self.ended, None
        if ended:
            self.at_end_of(*ended)


SIDES = {"fastcnn": "bench.recipes.FastCNN", "torch": "bench.recipes_torch.Torch"}


def trainer_of(side: str, clf: CNNClassifier) -> Any:
    """The side's trainer of a recipe."""
    module, _, name = SIDES[side].rpartition(".")
    return getattr(import_module(module), name)(clf)


class Turns:
    """The seconds of epochs, each of which begins with a line of input and ends with a line of output.

    `file` keeps them for the next process of the same run, which is another part of it; `part`: what is known of this
    one.
    """

    def __init__(self, out: TextIO, epochs: int, file: Path | None, part: dict[str, Any]) -> None:
        self.out, self.epochs, self.file = out, epochs, file
        self.seconds: list[float] = []
        self.parts, self.before = [part], 0.0
        if file is not None and file.exists():
            kept = json.loads(file.read_text())
            self.seconds, self.parts, self.before = kept["seconds"], [*kept["parts"], part], kept["fit_seconds"]
            if any(earlier["cpu"] != part["cpu"] for earlier in self.parts):
                raise SystemExit(f"{file}: of another processor")
        self.start = time.perf_counter()

    @property
    def fit_seconds(self) -> float:
        """Of training so far, all parts of the run together, without waiting."""
        return self.before + time.perf_counter() - self.start

    def wait(self) -> None:
        """Until it is this side's turn."""
        before = time.perf_counter()
        if not sys.stdin.readline():
            raise SystemExit("nobody asks any more")
        self.start += time.perf_counter() - before

    def at_end_of(self, epoch: int, seconds: float) -> None:
        if epoch != len(self.seconds) + 1:
            raise SystemExit(f"epoch {epoch} has ended, {len(self.seconds)} are known: {self.file} must be removed")
        self.seconds.append(seconds)
        if self.file is not None:
            kept = {"seconds": self.seconds, "parts": self.parts, "fit_seconds": self.fit_seconds}
            new = self.file.with_suffix(".new")
            new.write_text(json.dumps(kept))
            new.replace(self.file)
        if epoch < self.epochs:  # after the last one comes the result
            print(json.dumps(seconds), file=self.out)
            self.wait()


def work(recipe: str, side: str, epochs: int, seed: int, split: bool, keep: Path | None) -> None:
    """One run: an epoch for each line of the input. What `keep` has of it is not done again."""
    out = answers()
    (X, y), (X_test, y_test) = load(split)
    clf = RECIPES[recipe](random_state=seed)
    trainer = trainer_of(side, clf)
    some = np.arange(clf.batch_size * 2)
    start = time.perf_counter()
    trainer.prepare(X[some], y[some], len(X) % clf.batch_size)
    prepare_seconds = time.perf_counter() - start
    part = {"mode": trainer.mode, "versions": versions("fastcnn", "numpy", "numba", "torch")}
    turns = Turns(out, epochs, None if keep is None else keep / f"{side}.json", part | {"cpu": cpu_name()})
    about = {
        "prepare_seconds": prepare_seconds,
        "parameters": trainer.n_params,
        "batch": clf.batch_size,
        "tried": trainer.tried,
        "parts": turns.parts,
    } | part
    print(json.dumps(about | {"done": len(turns.seconds)}), file=out)
    turns.wait()
    trainer.fit(X, y, epochs, turns.at_end_of, None if keep is None else keep / side)
    fit_seconds = turns.fit_seconds
    accuracy = float(np.mean(trainer.predict(X_test) == y_test))
    print(json.dumps({"accuracy": accuracy, "fit_seconds": fit_seconds, "epoch_seconds": turns.seconds}), file=out)


def run(
    recipe: str, sides: list[str], epochs: int, seed: int, split: bool, keep: Path | None
) -> dict[str, dict[str, Any]]:
    """`work` of each side in a process of its own, in turns."""
    command = [sys.executable, "-m", "bench.recipes", "--recipes", recipe, "--seeds", str(seed)]
    command += ["--epochs", str(epochs), *["--split"] * split]
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        command += ["--keep", str(keep)]
    processes = {side: Process(*command, "--worker", side) for side in sides}
    done = {side: processes[side].about.pop("done") for side in sides}
    answer: dict[str, Any] = {}
    for epoch in range(epochs):
        last = epoch + 1 == epochs
        for side in sides[:: -1 if epoch % 2 else 1]:
            if epoch >= done[side] or last:
                answer[side] = processes[side].ask()
            if epoch >= done[side] and not last:
                print(f"epoch {epoch + 1}/{epochs}, {side}: {answer[side]:.1f} s", file=sys.stderr)
    for process in processes.values():
        process.close()
    together = f"{time.time():.0f}" if len(sides) > 1 else ""  # tells runs that took turns with each other
    return {side: processes[side].about | answer[side] | {"turns": together} for side in sides}


def compile_seconds(recipe: str) -> float:
    """What compiling a recipe's kernels takes, on a machine that has none of them."""
    script = (
        "import sys, numpy as np; from bench.recipes import FastCNN, RECIPES; import time;"
        "t = time.perf_counter(); X = np.arange(256 * 784).reshape(-1, 28, 28).astype('uint8');"
        "FastCNN(RECIPES[sys.argv[1]]()).prepare(X, np.arange(256) % 10, 0); print(time.perf_counter() - t)"
    )
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in ("empty", "full"):
            env = os.environ | {"FASTCNN_CACHE_DIR": cache}
            command = [sys.executable, "-c", script, recipe]
            answer = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
            seconds.append(float(answer))
    return seconds[0] - seconds[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=["fastcnn"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs="+", default=[0], help="0: the recipe's (the default)")
    parser.add_argument("--split", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for what it takes to go on with a run that was ended")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        (recipe,), (epochs,), (seed,) = args.recipes, args.epochs, args.seeds
        work(recipe, args.worker, epochs, seed, args.split, args.keep)
        return
    path = RESULTS / "recipes.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    found = {"compile_seconds": known.get("compile_seconds", {}), "runs": known.get("runs", [])}
    cpu = cpu_name()
    for recipe in args.recipes:
        for asked in args.epochs:
            epochs = asked or RECIPES[recipe]().max_iter
            for seed in args.seeds:
                of_run = "-".join([recipe, str(epochs), str(seed), *["split"] * args.split, *args.sides])
                keep = None if args.keep is None else args.keep.absolute() / of_run
                for side, result in run(recipe, args.sides, epochs, seed, args.split, keep).items():
                    result |= dict(zip(KEYS[:-1], (recipe, side, epochs, seed, args.split, cpu), strict=True))
                    others = [r for r in found["runs"] if any(r[k] != result[k] for k in KEYS)]
                    found["runs"] = sorted([*others, result], key=lambda r: [r[k] for k in KEYS])
                    print(
                        f"{recipe}, {epochs} epochs, seed {seed}, {side} {result['mode']}: {result['accuracy']:.4f} "
                        f"in {result['fit_seconds']:.0f} s",
                        flush=True,
                    )
                save("recipes", found, of_all=True)
                if keep is not None:  # or else the next run would train nothing
                    shutil.rmtree(keep)
        if "fastcnn" in args.sides:
            found["compile_seconds"].setdefault(cpu, {})[recipe] = compile_seconds(recipe)
            save("recipes", found, of_all=True)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
