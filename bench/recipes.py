"""The recipes on Fashion-MNIST: accuracy and training time, beside the same recipe in PyTorch.

Every run is a process of its own, and with two sides they alternate, seed by seed. A run trains on the 60,000 training
images and uses the 10,000 test images once, after training; with --split it trains on 55,000 of the training images and
is judged by the other 5,000, and no test image is read. Results are added to what bench/results/recipes.json has.
`python -m bench.recipes [--recipes fast balanced best] [--sides fastcnn torch] [--seeds 0 1 2] [--epochs N ...]`
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from typing import Any

import numpy as np

from bench.machine import RESULTS, cpu_name, save, versions
from fastcnn import CNNClassifier
from fastcnn.datasets import fetch_fashion_mnist
from fastcnn.recipes import RECIPES

VALIDATION = 5_000
KEYS = ("recipe", "side", "epochs", "seed", "split")  # what tells runs apart
Data = tuple[np.ndarray, np.ndarray]


def load(split: bool) -> tuple[Data, Data]:
    """What to train on, and what to judge by."""
    X, y = fetch_fashion_mnist("train")
    if not split:
        return (X, y), fetch_fashion_mnist("test")
    order = np.random.default_rng(0).permutation(len(X))
    held_out, training = order[:VALIDATION], order[VALIDATION:]
    return (X[training], y[training]), (X[held_out], y[held_out])


class Clock:
    """The callback that notes the seconds of epochs and shows them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_end(self, info: Any) -> None:
        self.seconds.append(info.seconds)
        print(f"epoch {info.epoch}/{info.max_iter}: loss {info.loss:.4f}, {info.seconds:.1f} s", file=sys.stderr)


class FastCNN:
    """This package's side."""

    def __init__(self, clf: CNNClassifier) -> None:
        self.clf = clf.set_params(callbacks=[Clock()])
        self.mode = ""

    def prepare(self, X: np.ndarray, y: np.ndarray, rest: int) -> None:
        """Compile what is to be compiled, on a batch or so of images."""
        self.clf.set_params(max_iter=1).fit(X, y)
        self.clf.predict(X)

    def fit(self, X: np.ndarray, y: np.ndarray, epochs: int) -> list[float]:
        """Train, and give the seconds of each epoch."""
        self.clf.set_params(max_iter=epochs).fit(X, y)
        return self.clf.callbacks_[0].seconds

    @property
    def n_params(self) -> int:
        return self.clf.network_.n_params

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.clf.predict(X)


SIDES = {"fastcnn": "bench.recipes.FastCNN", "torch": "bench.recipes_torch.Torch"}


def trainer_of(side: str, clf: CNNClassifier) -> Any:
    """The side's trainer of a recipe."""
    module, _, name = SIDES[side].rpartition(".")
    return getattr(import_module(module), name)(clf)


def work(recipe: str, side: str, epochs: int, seed: int, split: bool) -> dict[str, Any]:
    """One run."""
    (X, y), (X_test, y_test) = load(split)
    clf = RECIPES[recipe](random_state=seed)
    trainer = trainer_of(side, clf)
    some = np.arange(clf.batch_size * 2)
    start = time.perf_counter()
    trainer.prepare(X[some], y[some], len(X) % clf.batch_size)
    prepared = time.perf_counter()
    epoch_seconds = trainer.fit(X, y, epochs)
    fitted = time.perf_counter()
    accuracy = float(np.mean(trainer.predict(X_test) == y_test))
    return {
        "accuracy": accuracy,
        "fit_seconds": fitted - prepared,
        "epoch_seconds": epoch_seconds,
        "prepare_seconds": prepared - start,
        "parameters": trainer.n_params,
        "mode": trainer.mode,
        "versions": versions("fastcnn", "numpy", "numba", "torch"),
    }


def run(recipe: str, side: str, epochs: int, seed: int, split: bool, cache: str | None = None) -> dict[str, Any]:
    """`work` in a process of its own; with kernels compiled anew if `cache` is an empty folder."""
    command = [sys.executable, "-m", "bench.recipes", "--worker", side, "--recipes", recipe, "--seeds", str(seed)]
    command += ["--epochs", str(epochs), *["--split"] * split]
    env = os.environ | ({"FASTCNN_CACHE_DIR": cache} if cache else {})
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return json.loads(answer.splitlines()[-1])


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
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        (recipe,), (epochs,), (seed,) = args.recipes, args.epochs, args.seeds
        print(json.dumps(work(recipe, args.worker, epochs, seed, args.split)))
        return
    path = RESULTS / "recipes.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    found = {"compile_seconds": known.get("compile_seconds", {}), "runs": known.get("runs", [])}
    for recipe in args.recipes:
        for asked in args.epochs:
            epochs = asked or RECIPES[recipe]().max_iter
            for seed in args.seeds:
                for side in args.sides:
                    key = dict(zip(KEYS, (recipe, side, epochs, seed, args.split), strict=True))
                    result = key | run(**key) | {"cpu": cpu_name()}
                    others = [r for r in found["runs"] if {k: r[k] for k in KEYS} != key]
                    runs = sorted([*others, result], key=lambda r: [r[k] for k in KEYS])
                    found["runs"] = runs
                    save("recipes", found)
                    print(
                        f"{recipe}, {epochs} epochs, seed {seed}, {side} {result['mode']}: {result['accuracy']:.4f} "
                        f"in {result['fit_seconds']:.0f} s",
                        flush=True,
                    )
        if "fastcnn" in args.sides:
            found["compile_seconds"][recipe] = compile_seconds(recipe)
            save("recipes", found)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
