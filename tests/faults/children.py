"""Faults are tried in processes of their own, which say as JSON on their last line what happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np

from fastcnn import CNNClassifier
from tests.faults.tally import Tally

X = np.random.default_rng(0).integers(0, 256, (96, 12, 12, 2)).astype(np.uint8)
y = np.arange(96) % 3
X[y == 1, :4] = 255
X[y == 2, 8:] = 255


def small(**parameters: Any) -> CNNClassifier:
    """A classifier that two lanes and the thread of the batch builder take part in."""
    given = {"conv_channels": (8, 16), "dense_units": (16,), "batch_size": 32, "max_iter": 3, "random_state": 0}
    return CNNClassifier(n_jobs=2, **given | parameters)


def bits(clf: CNNClassifier) -> bytes:
    """All that was learnt."""
    return b"".join(value.tobytes() for value in clf.network_.params.values())


def run_in_child(module: str, *arguments: Any, seconds: float = 600, **environment: str) -> Tally:
    """What ``python -m module arguments`` counted; the end of the process, if it did not end well, is a failure."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    tally = Tally(module)
    env = os.environ | {"NUMBA_NUM_THREADS": "2"} | environment
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        tally.failed(f"{command[2:]} did not end within {seconds} seconds")
        return tally
    if done.returncode:
        tally.failed(f"{command[2:]} ended with {done.returncode}: {done.stderr[-1000:]}")
        return tally
    found = json.loads(done.stdout.splitlines()[-1])
    return Tally(found["fault"], Counter(found["outcomes"]), found["failures"])


def report(tally: Tally) -> None:
    """Say, from a child, what happened."""
    print(json.dumps(tally.to_json()), flush=True)
