"""scikit-learn's meta-estimators under every backend of joblib, each in its own process: a hang is a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numba
import pytest

SCRIPT = Path(__file__).with_name("meta_estimators.py")
SECONDS = 240


@cache
def results(backend, n_jobs, start_method=""):
    done = subprocess.run(
        [sys.executable, SCRIPT, backend, str(n_jobs)],
        env=os.environ | {"JOBLIB_START_METHOD": start_method, "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_everything_learns_alone():
    found = results("loky", 1)
    assert found["threads"] == [numba.config.NUMBA_NUM_THREADS]
    assert max(found["grid"]) > 0.6 and min(found["cross_val_score"]) > 0.5


@pytest.mark.parametrize(
    ("backend", "n_jobs", "start_method"),
    [
        ("threading", 1, ""),
        ("threading", 2, ""),
        ("loky", 2, ""),
        pytest.param("multiprocessing", 2, "fork", marks=pytest.mark.skipif(os.name != "posix", reason="no fork")),
        ("multiprocessing", 2, "spawn"),
    ],
)
def test_same_bits_under_every_backend(backend, n_jobs, start_method):
    found, alone = results(backend, n_jobs, start_method), results("loky", 1)
    differ = [name for name in alone if name != "threads" and found[name] != alone[name]]
    assert not differ
    if backend != "threading":  # threads of one process share one crew: see test_crew
        assert max(found["threads"]) * n_jobs <= max(numba.config.NUMBA_NUM_THREADS, n_jobs)
