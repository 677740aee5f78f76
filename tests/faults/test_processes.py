"""Kills, Ctrl-C, threads and forks: short; the long versions are in soak.py."""

import os
import signal
import sys

import numba
import pytest

from tests.faults.children import run_in_child

pytestmark = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT) or sys.platform != "linux", reason="about compiled kernels, threads and signals"
)


def test_interrupts():
    tally = run_in_child("tests.faults.interrupts", "warm", 25, 0)
    assert not tally.failures and any("KeyboardInterrupt" in outcome for outcome in tally.outcomes)


def test_interrupts_while_kernels_are_compiled(tmp_path):
    tally = run_in_child("tests.faults.interrupts", "few", 1.5, 0, FASTCNN_CACHE_DIR=str(tmp_path))
    assert not tally.failures and tally.tried == 1


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_many_threads(layer):
    tally = run_in_child("tests.faults.threads", 6, NUMBA_THREADING_LAYER=layer)
    assert not tally.failures and tally.tried == 48


def test_forks_beside_busy_threads():
    tally = run_in_child("tests.faults.forks", 4)
    assert not tally.failures and tally.tried == 4


def test_pools():
    tally = run_in_child("tests.faults.forks", "pools")
    assert not tally.failures and tally.tried >= 4


def test_kills_while_a_model_is_written():
    tally = run_in_child("tests.faults.kills", "saves", 8, 0)
    assert not tally.failures and tally.tried == 8


def test_a_fork_waits_for_the_compiler():
    """And finds its lock open, in the parent and in the child."""
    from fastcnn.kernels.cpu import objects

    child = os.fork()
    if child == 0:
        os._exit(0 if objects._lock.acquire(timeout=1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert objects._lock.acquire(timeout=1)
    objects._lock.release()


def test_the_lanes_survive_what_interrupts_a_call(monkeypatch):
    """An interrupt that comes between waking a lane and the program it is woken for."""
    import numpy as np

    from fastcnn.kernels.cpu import crew
    from tests.faults.interrupts import crew_is_whole

    if int(numba.config.NUMBA_NUM_THREADS) < 2:
        pytest.skip("needs two threads")
    ours = crew.Crew()
    monkeypatch.setattr(crew, "_crew", ours)
    rows = np.zeros((1, crew.ROW), np.int64)  # a program of one call without items
    ours.run(rows.ctypes.data, 1, 2, 0)
    lead = crew._lead

    def interrupt(*args):
        signal.raise_signal(signal.SIGINT)

    assert crew_is_whole()
    monkeypatch.setattr(crew, "_lead", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background ignore it
    try:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                ours.run(rows.ctypes.data, 1, 2, 0)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.setattr(crew, "_lead", lead)
    assert crew_is_whole()
    ours.run(rows.ctypes.data, 1, 2, 0)
    assert crew_is_whole()
