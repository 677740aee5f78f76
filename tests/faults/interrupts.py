"""Ctrl-C at random moments: ``python -m tests.faults.interrupts warm|cold TIMES SEED``.

warm: of fits, predictions, writes and reads in one process, whose state must stay whole all the while. cold: of the
first fit of a process, which compiles every kernel (each time a new process, with an empty cache).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastcnn import CNNClassifier
from fastcnn.kernels.cpu import crew
from tests.faults.children import X, bits, report, run_in_child, small, y
from tests.faults.tally import Tally

_armed = False


def _interrupt(signum: int, frame: Any) -> None:
    """Python's own handler, while something is to be interrupted."""
    global _armed
    if _armed:
        _armed = False
        raise KeyboardInterrupt


def interrupted(action: Callable[[], Any], delay: float) -> str:
    """Do `action`, with a SIGINT after `delay` seconds; what the caller sees."""
    global _armed
    sender = threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGINT)))
    outcome = "ended before"
    try:
        _armed = True
        sender.start()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            action()
        _armed = False
        if any("interrupted by user" in str(warning.message) for warning in caught):
            outcome = "warning, what was learnt is kept"
    except KeyboardInterrupt:
        outcome = "KeyboardInterrupt"
    _armed = False
    sender.join()
    return outcome


def crew_is_whole(patience: float = 5.0) -> bool:
    """Whether every lane goes to sleep within `patience` seconds, can be woken then, and nobody holds the crew."""
    end = time.monotonic() + patience
    while not _crew_is_asleep():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def _crew_is_asleep() -> bool:
    lanes = range(1, len(crew._crew._alarms))
    alive = {thread.name for thread in threading.enumerate()}
    return (
        len(lanes) == 1
        and not crew._crew._inside
        and not crew._crew._lock.locked()
        and all(crew._is_asleep(crew._crew._board.address, lane) for lane in lanes)
        and all(f"fastcnn-{lane}" in alive for lane in lanes)
    )


def warm(times: int, seed: int) -> Tally:
    tally = Tally("SIGINT at a random moment")
    moments = random.Random(seed)
    folder = Path(tempfile.mkdtemp())
    path = folder / "model.safetensors"
    clf = small().fit(X, y)
    expected, other = bits(clf), bits(small(random_state=1).fit(X, y))
    proba = clf.predict_proba(X)
    clf.save(path)

    def fit() -> None:
        clf.set_params(random_state=1).fit(X, y)

    actions: dict[str, Callable[[], Any]] = {
        "fit": fit,
        "predict": lambda: clf.predict(X),
        "save": lambda: clf.save(path),
        "load": lambda: CNNClassifier.load(path),
        "partial_fit": lambda: clf.partial_fit(X, y),
        "checkpointed fit": lambda: clf.set_params(checkpoint=folder / "run.ckpt").fit(X, y),
    }
    durations = {}
    for name, action in actions.items():
        for _ in range(2):  # the second time nothing is compiled any more
            start = time.perf_counter()
            action()
            durations[name] = time.perf_counter() - start
            (folder / "run.ckpt").unlink(missing_ok=True)
    small().fit(X, y).save(path)
    for number in range(times):
        name = moments.choice(list(actions))
        clf = small().fit(X, y)
        outcome = interrupted(actions[name], moments.uniform(0, 1.1 * durations[name]))
        clf.set_params(checkpoint=None)
        (folder / "run.ckpt").unlink(missing_ok=True)
        wrong = []
        trained = name in ("fit", "partial_fit", "checkpointed fit")
        if bits(clf) == expected:
            if not np.array_equal(clf.predict_proba(X), proba):
                wrong.append("other predictions")
        elif not trained or outcome == "KeyboardInterrupt":
            # The signal may come when training is over and the estimator has become what was trained.
            if not (trained and np.isfinite(clf.predict_proba(X)).all()):
                wrong.append("the estimator changed")
        elif not np.isfinite(clf.predict_proba(X)).all() or (
            name == "fit" and outcome == "ended before" and bits(clf) != other
        ):
            wrong.append("a wrong fit")
        if not np.array_equal(CNNClassifier.load(path).predict_proba(X), proba):
            wrong.append("the file is damaged")
        if left := sorted(item.name for item in folder.iterdir() if item != path):
            wrong.append(f"left behind: {left}")
        if not crew_is_whole():
            wrong.append("the crew is not whole")
        if bits(small().fit(X, y)) != expected:
            wrong.append("a later fit gives other bits")
        if wrong:
            tally.failed(f"number {number}, {name}, {outcome}: {'; '.join(wrong)}")
        else:
            tally.survived(f"{name}: {outcome}")
    return tally


def cold(times: int, seed: int) -> Tally:
    """First fits: one of all moments in `times` equal parts of the time that it takes."""
    moments, total = random.Random(seed), Tally("SIGINT while kernels are compiled")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        total.failures += run_in_child("tests.faults.interrupts", "first", 1e9, 0, FASTCNN_CACHE_DIR=cache).failures
    seconds = time.perf_counter() - start
    for number in range(times):
        with tempfile.TemporaryDirectory() as cache:
            delay = seconds * (number + moments.random()) / times
            total.add(run_in_child("tests.faults.interrupts", "first", delay, 0, FASTCNN_CACHE_DIR=cache))
    return total


def first(delay: float, **few: Any) -> Tally:
    tally = Tally("SIGINT while kernels are compiled")
    if delay > 1e6:
        small(**few).fit(X, y)
        return tally
    outcome = interrupted(lambda: small(**few).fit(X, y), delay)
    again = small(**few).fit(X, y)
    # Float sums have one order whatever was compiled when, so a second, untouched fit must have the same bits.
    if bits(again) != bits(small(**few).fit(X, y)) or again.score(X, y) < 0.3 or not crew_is_whole():
        tally.failed(f"after {delay:.2f} s, {outcome}: a later fit is wrong")
    else:
        tally.survived(outcome)
    return tally


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _interrupt)
    kind, number, seed_ = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    if kind == "few":  # kernels
        report(first(number, conv_channels=()))
    else:
        report(first(number) if kind == "first" else {"warm": warm, "cold": cold}[kind](int(number), seed_))
