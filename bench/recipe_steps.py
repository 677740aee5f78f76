"""A training step of each recipe beside PyTorch's, on this machine: the ratio of a whole training, in minutes.

Each side trains in a process of its own that lives through all rounds, its augmentation included, and they take turns.
A round is two epochs over a few batches of Fashion-MNIST's training images, of which the second counts. PyTorch checks
first that its losses are fastcnn's, and takes the fastest of its modes. A processor's results replace those that
bench/results/recipe_steps.json has of it.
`python -m bench.recipe_steps [--recipes fast balanced best] [--rounds 7] [--batches 16]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

import numpy as np

from bench.machine import RESULTS, cpu_name, save, versions
from bench.process import Process, answers
from bench.recipes import SIDES, load, trainer_of
from fastcnn.recipes import RECIPES


def work(recipe: str, side: str, batches: int) -> None:
    """Answer each line of the input with the milliseconds of a step."""
    out = answers()
    (X, y), _ = load(split=True)
    clf = RECIPES[recipe](random_state=0)
    trainer = trainer_of(side, clf)
    some = np.arange(clf.batch_size * 2)
    trainer.prepare(X[some], y[some], 0)
    n = clf.batch_size * batches
    about = {"mode": trainer.mode, "tried": trainer.tried}
    about |= {"parameters": trainer.n_params, "batch": clf.batch_size}
    print(json.dumps(about | {"versions": versions("fastcnn", "numpy", "numba", "torch")}), file=out)
    for _ in sys.stdin:
        seconds: dict[int, float] = {}
        trainer.fit(X[:n], y[:n], 2, seconds.__setitem__)
        print(1e3 * seconds[2] / batches, file=out)


def start(recipe: str, side: str, batches: int) -> Process:
    """The process of a side."""
    command = [sys.executable, "-m", "bench.recipe_steps", "--worker", side, "--recipes", recipe]
    return Process(*command, "--batches", str(batches))


def measure(recipe: str, rounds: int, batches: int) -> dict[str, Any]:
    """Both sides' milliseconds by round."""
    sides = {name: start(recipe, name, batches) for name in SIDES}
    found: dict[str, Any] = {"batches": batches, "sides": {name: side.about for name, side in sides.items()}}
    for name in ("parameters", "batch"):
        (found[name],) = {side.about.pop(name) for side in sides.values()}
    found["ms"] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            found["ms"][name].append(sides[name].ask())
    for side in sides.values():
        side.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--worker", choices=list(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.recipes[0], args.worker, args.batches)
        return
    path = RESULTS / "recipe_steps.json"
    machines = json.loads(path.read_text())["machines"] if path.exists() else {}
    mine = machines.setdefault(cpu_name(), {})
    for recipe in args.recipes:
        mine[recipe] = measure(recipe, args.rounds, args.batches)
        save("recipe_steps", {"machines": machines}, of_all=True)
        ms = mine[recipe]["ms"]
        times = statistics.median(b / a for a, b in zip(ms["fastcnn"], ms["torch"], strict=True))
        told = ", ".join(f"{name} {statistics.median(values):.1f} ms" for name, values in ms.items())
        print(f"{recipe}: {told}, PyTorch takes {times:.2f} times as long", flush=True)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
