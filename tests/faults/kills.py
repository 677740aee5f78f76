"""SIGKILL at random moments: ``python -m tests.faults.kills fits|saves TIMES SEED``.

fits: of training with a checkpoint; every fit is started again until it ends, with the bits of one that nobody
disturbed (`tests/persistence/killed.py` does it). saves: of a process that writes two models by turns to one file,
which must hold one of them, whole, whenever that process ends.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastcnn import CNNClassifier
from tests.faults.children import X, bits, report, small, y
from tests.faults.tally import Tally

KILLED = Path(__file__).parents[1] / "persistence" / "killed.py"


def fits(times: int, seed: int) -> Tally:
    tally = Tally("SIGKILL while training with a checkpoint")
    while tally.tried < times:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, KILLED, folder, str(seed + tally.tried), "3"]
            env = os.environ | {"PYTHONPATH": str(KILLED.parents[2])}
            done = subprocess.run(command, capture_output=True, text=True, env=env)
        if done.returncode:
            tally.failed(done.stderr[-500:] or f"ended with {done.returncode}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        tally.outcomes["resumed from the checkpoint"] += found["with_checkpoint"]
        tally.outcomes["began anew, killed before the first checkpoint"] += found["kills"] - found["with_checkpoint"]
        tally.failures += ["other bits"] * found["other_bits"]
        tally.outcomes["failed"] += found["other_bits"]
    return tally


def saves(times: int, seed: int) -> Tally:
    tally = Tally("SIGKILL while a model is written")
    moments = random.Random(seed)
    models = [small(random_state=i).fit(X, y) for i in range(2)]
    learnt = [bits(clf) for clf in models]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        models[0].save(path)
        for number in range(times):
            child = os.fork()
            if child == 0:
                while True:
                    for clf in models:
                        clf.save(path)
            time.sleep(moments.uniform(0.002, 0.1))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            try:
                tally.survived(("one model", "the other")[learnt.index(bits(CNNClassifier.load(path)))])
            except ValueError as error:
                tally.failed(f"number {number}: {error}")
    return tally


if __name__ == "__main__":
    report({"fits": fits, "saves": saves}[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3])))
