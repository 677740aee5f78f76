"""scikit-learn's meta-estimators under every backend of joblib, each in its own process: a hang is a failure."""

from __future__ import annotations

import json
import os
import re
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
    # Under spawn each call of a meta-estimator starts two Pythons anew.
    some = ["some"] if start_method == "spawn" else []
    done = subprocess.run(
        [sys.executable, SCRIPT, backend, str(n_jobs), *some],
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
        ("threading", 2, ""),
        ("loky", 2, ""),
        pytest.param("multiprocessing", 2, "fork", marks=pytest.mark.skipif(os.name != "posix", reason="no fork")),
        ("multiprocessing", 2, "spawn"),
    ],
)
def test_same_bits_under_every_backend(backend, n_jobs, start_method):
    found, alone = results(backend, n_jobs, start_method), results("loky", 1)
    expected = {"threads", "grid", "best"} if start_method == "spawn" else alone.keys()
    differ = [name for name in expected if name != "threads" and found[name] != alone[name]]
    assert not differ
    if backend != "threading":  # threads of one process share one crew: see test_crew
        assert max(found["threads"]) * n_jobs <= max(numba.config.NUMBA_NUM_THREADS, n_jobs)


SEARCH = """
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from joblib import parallel_config
from fastcnn import CNNClassifier

if __name__ == "__main__":
    X, y = load_digits(return_X_y=True)
    clf = CNNClassifier(conv_channels=4, dense_units=(), max_iter=2, random_state=0, verbose=2)
    with parallel_config(backend="BACKEND"):
        GridSearchCV(clf, {"dropout": [0, 0.1]}, cv=2, n_jobs=2, refit=False).fit(X[:400], y[:400])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs pseudo-terminals")
@pytest.mark.parametrize(("backend", "name"), [("loky", r"LokyProcess-\d+ \d+"), ("threading", r"[\w-]+(?: \(\w+\))?")])
def test_workers_of_a_search_write_whole_lines_to_a_terminal(tmp_path, backend, name):
    import pty

    script = tmp_path / "search.py"
    script.write_text(SEARCH.replace("BACKEND", backend))
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, script], stdout=theirs, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(theirs)
        written = b""
        try:
            while part := os.read(ours, 4096):
                written += part
        except OSError:  # nobody writes any more
            pass
        assert process.wait(SECONDS) == 0
    os.close(ours)
    lines = written.decode().replace("\r\n", "\n").splitlines()
    epochs = [line for line in lines if "batch" not in line]
    assert len(epochs) == 2 * 2 * 2, written
    part = r"(batch +\d+/\d+  )?loss \d\.\d{4}  (acc \d\.\d{4}  )?"
    pattern = rf"\[{name}\] epoch [12]/2  {part}[^\r\x1b]*images/s(  \d:\d\d left)?"
    assert all(re.fullmatch(pattern, line) for line in lines), written
