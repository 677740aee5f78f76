"""What each feature is worth on Fashion-MNIST: a recipe without it, or with it, beside the recipe as it is.

Trained on 55,000 of the training images and judged by the other 5,000; no test image is read. Accuracy is all that is
measured, so each run has one thread and as many run at once as there are cores. Runs are added to what
bench/results/features.json has. `python -m bench.features [--recipe fast] [--seeds 0 1 2] [--only NAME ...]`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np

from bench.machine import RESULTS, cpu_name, save, usable_cores, versions
from bench.recipes import load
from bench.report_recipes import AS_IT_IS
from fastcnn import CNNClassifier
from fastcnn.layers import AdaptiveMaxPool2D, BatchNorm, Conv2D, Dropout, GlobalAvgPool2D, Layer, ReLU, Residual, SiLU
from fastcnn.recipes import RECIPES
from fastcnn.training.augment import (
    Cutout,
    MixUp,
    RandomAffine,
    RandomBrightness,
    RandomContrast,
    RandomErasing,
    RandomHorizontalFlip,
    RandomShift,
)

Settings = dict[str, Any]


def replaced(settings: Settings, change: Callable[[Layer], list[Layer]]) -> Settings:
    """Other layers in place of each one, those within a `Residual` too."""

    def changed(layers: Iterable[Layer]) -> list[Layer]:
        found: list[Layer] = []
        for layer in layers:
            if isinstance(layer, Residual):
                layer = Residual(changed(layer.layers), changed(layer.skip))
            found += change(layer)
        return found

    return {"layers": changed(settings["layers"])}


def augmented(*more: Any, but: tuple[type, ...] = ()) -> Callable[[Settings], Settings]:
    """With `more`, in place of what the recipe has of these kinds and of `but`."""
    kinds = *map(type, more), *but
    return lambda settings: {"augment": [*[a for a in settings["augment"] if not isinstance(a, kinds)], *more]}


def _without_norm(layer: Layer) -> list[Layer]:
    if isinstance(layer, BatchNorm):
        return []
    return [Conv2D(layer.filters, layer.kernel_size)] if isinstance(layer, Conv2D) else [layer]


def _silu(layer: Layer) -> list[Layer]:
    return [SiLU() if isinstance(layer, ReLU) else layer]


def _mean_at_the_end(layer: Layer) -> list[Layer]:
    return [GlobalAvgPool2D() if isinstance(layer, AdaptiveMaxPool2D) else layer]


def _long_memory(layer: Layer) -> list[Layer]:
    return [BatchNorm() if isinstance(layer, BatchNorm) else layer]


CHANGES: dict[str, Callable[[Settings], Settings]] = {  # what is changed, from the recipe's settings
    AS_IT_IS: lambda s: {},
    "without mirror images, in training and at prediction": lambda s: {"augment": None},
    "without mirror images at prediction": lambda s: {"tta": None},
    "without label smoothing": lambda s: {"label_smoothing": 0.0},
    "without weight decay": lambda s: {"alpha": 0.0},
    "without batch normalisation": lambda s: replaced(s, _without_norm),
    "mean over the image at the end, not four maxima": lambda s: replaced(s, _mean_at_the_end),
    "batch normalisation with momentum 0.99": lambda s: replaced(s, _long_memory),
    "constant learning rate of 0.001": lambda s: {"learning_rate": "constant", "learning_rate_init": 1e-3},
    "AdamW at 0.005, not Muon": lambda s: {"solver": "adamw", "learning_rate_init": 5e-3, "alpha": 0.02},
    "cosine with warm-up of 5 %": lambda s: {"learning_rate": "cosine", "warmup": 0.05},
    "SGD (0.1, Nesterov, L2 5e-4)": lambda s: {
        "solver": "sgd",
        "learning_rate_init": 0.1,
        "momentum": 0.9,
        "alpha": 5e-4,
    },
    "with shifts of 2": augmented(RandomShift(2)),
    "with shifts of 1": augmented(RandomShift(1)),
    "without erasing": augmented(but=(RandomErasing,)),
    "with erasing, a quarter": augmented(RandomErasing(0.25)),
    "with cutout of 8, a half": augmented(Cutout(8, 0.5), but=(RandomErasing,)),
    "with turns of 5 degrees, sizes 0.95 to 1.05": augmented(RandomAffine(5, (0.95, 1.05))),
    "with contrast 0.2": augmented(RandomContrast(0.2)),
    "with brightness 0.1": augmented(RandomBrightness(0.1)),
    "with mixup 0.2": augmented(MixUp(0.2)),
    "with averaged parameters, 0.999": lambda s: {"ema_decay": 0.999},
    "with dropout 0.3 at the end": lambda s: {"layers": [*s["layers"], Dropout(0.3)]},
    "with gradients clipped at 1": lambda s: {"clip_norm": 1.0},
    "with orthogonal initial weights": lambda s: {"weight_init": "orthogonal"},
    "SiLU for ReLU": lambda s: replaced(s, _silu),
}


def work(recipe: str, change: str, seed: int) -> dict[str, Any]:
    """One run."""
    (X, y), (X_val, y_val) = load(split=True)
    settings = RECIPES[recipe](random_state=seed, n_jobs=1).get_params()
    clf = CNNClassifier(**settings | CHANGES[change](settings)).fit(X, y)
    if not any(isinstance(a, RandomHorizontalFlip) for a in clf.augment or ()):
        clf.set_params(tta=None)
    proba = clf.predict_proba(X_val)
    return {
        "accuracy": float(np.mean(proba.argmax(axis=1) == y_val)),
        "loss": float(-np.mean(np.log(np.maximum(proba[np.arange(len(y_val)), y_val], 1e-12)))),
        "epochs": clf.n_iter_,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=list(RECIPES), default="fast")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(CHANGES), default=list(CHANGES), metavar="NAME")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.recipe, args.worker, args.seeds[0])))
        return
    path = RESULTS / "features.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    cpu = cpu_name()
    done = {(run["recipe"], run["change"], run["seed"], run["epochs"]) for run in runs if run["cpu"] == cpu}
    lock = Lock()

    def run(change: str, seed: int) -> None:
        command = [sys.executable, "-m", "bench.features", "--worker", change]
        command += ["--recipe", args.recipe, "--seeds", str(seed)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result = {"recipe": args.recipe, "change": change, "seed": seed, "cpu": cpu} | json.loads(answer)
        with lock:
            runs.append(result)
            save("features", {"versions": versions("fastcnn", "numpy", "numba"), "runs": runs}, of_all=True)
            print(f"seed {seed}, {change}: {result['accuracy']:.4f}, loss {result['loss']:.4f}", flush=True)

    settings = RECIPES[args.recipe]().get_params()
    changing = [c for c in args.only if c == AS_IT_IS or any(settings[k] != v for k, v in CHANGES[c](settings).items())]
    todo = [(change, seed) for seed in args.seeds for change in changing]
    todo = [(change, seed) for change, seed in todo if (args.recipe, change, seed, settings["max_iter"]) not in done]
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(run, *zip(*todo, strict=True)) if todo else [])
    print(f"written: {path}")


if __name__ == "__main__":
    main()
