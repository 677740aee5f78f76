"""Eight threads predict and fit at once in one process: ``python -m tests.faults.threads TIMES``.

Every result must have the bits that it has alone.
"""

from __future__ import annotations

import os
import sys
import threading

import numpy as np

from tests.faults.children import X, bits, report, small, y
from tests.faults.tally import Tally

N_THREADS = 8
N_MODELS = 4


def run(times: int) -> Tally:
    layer = os.environ.get("NUMBA_THREADING_LAYER", "not set")
    tally = Tally(f"{N_THREADS} threads predict and fit, NUMBA_THREADING_LAYER {layer}")
    shared = [small(random_state=seed).fit(X, y) for seed in range(N_MODELS)]
    learnt = [bits(clf) for clf in shared]
    proba = [clf.predict_proba(X) for clf in shared]
    lock, ready = threading.Lock(), threading.Barrier(N_THREADS)

    def work(thread: int) -> None:
        ready.wait()
        for number in range(times):
            seed = (thread + number) % N_MODELS
            kind = ("predict", "fit")[number % 2]
            try:
                if kind == "fit":
                    right = bits(small(random_state=seed).fit(X, y)) == learnt[seed]
                else:
                    right = np.array_equal(shared[seed].predict_proba(X), proba[seed])
                problem = "" if right else "other bits"
            except Exception as error:
                problem = repr(error)
            with lock:
                if problem:
                    tally.failed(f"thread {thread}, number {number}, {kind}: {problem}")
                else:
                    tally.survived(f"{kind}: the bits it has alone")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(N_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


if __name__ == "__main__":
    report(run(int(sys.argv[1])))
