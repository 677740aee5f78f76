"""Kill fits with SIGKILL at random moments, start them again, and compare with one that nobody disturbed.

``python killed.py FOLDER SEED ROUNDS``: each round is one fit, killed again and again until it ends. Prints JSON: how
often fits were killed, how often there was a checkpoint then, and how many rounds ended with other bits.

Fits run in forks of this process, which has imported everything and started no thread.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

import fastcnn.kernels.cpu.backend  # noqa: F401, before the forks
from fastcnn import CNNClassifier
from fastcnn.layers import BatchNorm, Conv2D, Dropout, Flatten, MaxPool2D, ReLU
from fastcnn.training.augment import RandomShift

rng = np.random.default_rng(0)
X = rng.integers(0, 256, (600, 8, 8), np.uint8)
y = np.array(["a", "b", "c"])[rng.integers(0, 3, len(X))]
X[y == "b", :3] = 255
LAYERS = [Conv2D(8), BatchNorm(), ReLU(), MaxPool2D(), Flatten(), Dropout(0.3)]
SETTINGS = [
    {"solver": "adam", "ema_decay": 0.9},
    {"solver": "muon", "early_stopping": True},
    {"solver": "sgd", "learning_rate_init": 0.05, "augment": [RandomShift(1)]},
]


def fit(settings: dict, n_jobs: int, checkpoint: Path | None, result: Path) -> None:
    """Fit, and leave the bits that came out in `result`."""
    clf = CNNClassifier(
        layers=LAYERS, batch_size=16, max_iter=24, random_state=3, n_jobs=n_jobs, checkpoint=checkpoint, **settings
    ).fit(X, y)
    bits = {name: value.tobytes().hex() for name, value in clf.network_.params.items()}
    bits |= {"moments": [v.tobytes().hex() for k, v in clf.network_.optimizer.state_dict().items() if k != "t"]}
    bits |= {"losses": clf.loss_curve_, "scores": clf.validation_scores_, "best": clf.best_iter_, "t": clf.t_}
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(bits))
    partial.rename(result)


def start(*args) -> int:
    child = os.fork()
    if child:
        return child
    try:
        fit(*args)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)


def main(folder: Path, seed: int, rounds: int) -> None:
    moments = random.Random(seed)
    kills = found = other = 0
    for number in range(rounds):
        settings = SETTINGS[number % len(SETTINGS)]
        plain, result, checkpoint = folder / f"{number}.plain", folder / f"{number}.json", folder / f"{number}.ckpt"
        _, status = os.waitpid(start(settings, 2, None, plain), 0)  # compiles what there is to compile
        assert status == 0
        begin = time.perf_counter()
        os.waitpid(start(settings, 1, None, plain), 0)
        seconds = time.perf_counter() - begin
        while not result.exists():
            child = start(settings, moments.choice([1, 2]), checkpoint, result)
            time.sleep(moments.uniform(0, 0.8 * seconds))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert status in (0, signal.SIGKILL), "a fit could not go on"
            killed = status == signal.SIGKILL
            kills += killed
            found += killed and checkpoint.exists()
            if checkpoint.exists():
                CNNClassifier.load(checkpoint)
        other += json.loads(result.read_text()) != json.loads(plain.read_text())
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        assert len(left) <= 1, left  # of the last kill, at most
    print(json.dumps({"kills": kills, "with_checkpoint": found, "other_bits": other}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
