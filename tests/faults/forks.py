"""Forks of a process whose other threads train, predict and compile: ``python -m tests.faults.forks TIMES``.

Each child predicts with what it has inherited, fits, and compiles something new; it must end, with the right bits.
``python -m tests.faults.forks pools``: pools of processes, started in every way, after a fit.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from typing import Any

import numpy as np

from fastcnn.kernels.cpu.objects import Code, machine_code
from tests.faults.children import X, bits, report, small, y
from tests.faults.tally import Tally

PATIENCE = 60  # seconds that a child may take


def fit_bits(seed: int) -> bytes:
    return bits(small(random_state=seed).fit(X, y))


def _compile_again() -> int:
    """The address of code that is in no cache."""
    from numba import types

    secret = int.from_bytes(os.urandom(6), "little")

    def function(a: Any) -> Any:
        return a + secret

    return machine_code(Code(function, f"int64, {secret}", lambda: (types.int64,)))


def forks(times: int) -> Tally:
    tally = Tally("fork while threads train, predict and compile")
    clf = small().fit(X, y)
    proba, learnt = clf.predict_proba(X), fit_bits(1)
    over = threading.Event()

    def keep(action: Any) -> None:
        while not over.is_set():
            action()

    actions = [lambda: clf.predict_proba(X), lambda: small(random_state=2).fit(X, y), _compile_again]
    threads = [threading.Thread(target=keep, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        for number in range(times):
            time.sleep(np.random.default_rng(number).uniform(0, 0.02))
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    right = np.array_equal(clf.predict_proba(X), proba)
                    status = 0 if right and fit_bits(1) == learnt and _compile_again() else 2
                finally:
                    os._exit(status)
            outcome = _wait(child)
            if outcome == 0:
                tally.survived("the child predicts, fits and compiles")
            else:
                tally.failed(f"fork {number}: {outcome}")
    over.set()
    for thread in threads:
        thread.join()
    if not np.array_equal(clf.predict_proba(X), proba):
        tally.failed("the parent predicts other bits")
    return tally


def _wait(child: int) -> int | str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"no end within {PATIENCE} s"


def pools() -> Tally:
    import joblib

    tally = Tally("pools of processes after a fit")
    expected = [fit_bits(seed) for seed in range(4)]
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(2) as pool:
            _count(tally, f"multiprocessing, {method}", pool.map(fit_bits, range(4)) == expected)
    for backend in ("loky", "threading", "multiprocessing"):
        with joblib.parallel_backend(backend, n_jobs=2):
            _count(
                tally,
                f"joblib, {backend}",
                joblib.Parallel()(joblib.delayed(fit_bits)(i) for i in range(4)) == expected,
            )
    return tally


def _count(tally: Tally, name: str, right: bool) -> None:
    if right:
        tally.survived(f"{name}: the same bits")
    else:
        tally.failed(f"{name}: other bits")


if __name__ == "__main__":
    from tests.faults import forks as module  # by its name, so that other processes find its functions

    report(module.pools() if sys.argv[1] == "pools" else module.forks(int(sys.argv[1])))
