"""The default `CNNClassifier` on Fashion-MNIST: test accuracy and the seconds of each epoch, for some seeds.

Every run is a process of its own. `python -m bench.accuracy [--seeds 0 1 2]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from bench.machine import save, versions


def run(seed: int) -> dict[str, object]:
    """Fit on the 60,000 training images and score the 10,000 test images once."""
    from fastcnn import CNNClassifier
    from fastcnn.datasets import fetch_fashion_mnist
    from fastcnn.training.callbacks import EpochInfo

    X, y = fetch_fashion_mnist("train")
    X_test, y_test = fetch_fashion_mnist("test")
    seconds: list[float] = []

    class Clock:
        def on_epoch_end(self, info: EpochInfo) -> None:
            seconds.append(info.seconds)
            print(f"seed {seed} epoch {len(seconds)}: loss {info.loss:.4f}, {seconds[-1]:.1f} s", file=sys.stderr)

    start = time.perf_counter()
    clf = CNNClassifier(random_state=seed, callbacks=[Clock()]).fit(X, y)
    fit_seconds = time.perf_counter() - start
    return {
        "seed": seed,
        "test_accuracy": clf.score(X_test, y_test),
        "epoch_seconds": seconds,
        "fit_seconds": fit_seconds,
        "parameters": clf.network_.n_params,
        "loss": clf.loss_,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        print(json.dumps(run(args.worker)))
        return
    runs = []
    for seed in args.seeds:
        command = [sys.executable, "-m", "bench.accuracy", "--worker", str(seed)]
        runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        print(f"seed {seed}: {runs[-1]['test_accuracy']:.4f} in {runs[-1]['fit_seconds']:.0f} s", flush=True)
    mean = statistics.mean(run["test_accuracy"] for run in runs)
    print(f"mean {mean:.4f}")
    path = save(
        "accuracy", {"versions": versions("fastcnn", "numpy", "numba", "scikit-learn"), "mean": mean, "runs": runs}
    )
    print(f"written: {path}")


if __name__ == "__main__":
    main()
