"""What the system does not give: memory, disk, a home, threads, OpenMP. Short; the long versions are in soak.py."""

import os
import subprocess
import sys

import pytest

from tests.faults.children import run_in_child
from tests.faults.mounts import small_file_system

FIT = """
from tests.faults.children import X, bits, small, y
from fastcnn.kernels.cpu import runtime
clf = small(conv_channels=()).fit(X, y)  # few kernels: all are compiled
print(runtime.cache_dir(), clf.score(X, y) > 0.5)
"""


def python(code, **environment):
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), "NUMBA_NUM_THREADS": "2"} | environment
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_memory_limit():
    tally = run_in_child("tests.faults.limits", "memory", 12, 0)
    assert not tally.failures and any("MemoryError" in outcome for outcome in tally.outcomes)


def test_disk_full_while_writing():
    tally = run_in_child("tests.faults.limits", "disk", 12, 0)
    assert not tally.failures and any("OSError" in outcome for outcome in tally.outcomes)


def test_full_file_system():
    with small_file_system(1 << 20) as folder:
        if folder is None:
            pytest.skip("may not mount a file system")
        tally = run_in_child("tests.faults.limits", "full", folder)
    assert not tally.failures and any("No space left on device" in outcome for outcome in tally.outcomes)


def test_a_home_that_may_only_be_read(tmp_path):
    """The cache is in the temporary directory then."""
    with small_file_system(1 << 20) as home:
        if home is None:
            pytest.skip("may not mount a file system")
        subprocess.run(["mount", "-o", "remount,ro", home], check=True)
        code = "from fastcnn.kernels.cpu import runtime; print(runtime.cache_dir())"
        (where,) = python(code, HOME=str(home), TMPDIR=str(tmp_path))
    assert where.startswith(str(tmp_path / f"fastcnn-{os.getuid()}"))


def test_no_file_can_be_written_anywhere():
    """No home, no temporary directory: nothing is kept, everything is compiled."""
    code = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n" + FIT
    assert python(code, HOME="/proc/self", PYTHONDONTWRITEBYTECODE="1") == ["None", "True"]


def test_no_more_threads_are_to_be_had():
    """Neither lanes nor the batch builder's thread: the caller does it all, with the same bits."""
    code = """
import threading
import numpy as np
from fastcnn.kernels.cpu import crew
from fastcnn.training import batches
from tests.faults.children import X, bits, small, y

batches._THREAD_PAYS = 0  # a thread for the smallest of batches
expected = bits(small().fit(X, y))
def refuse(*args, **kwargs):
    raise RuntimeError("can't start new thread")
for name in ("_start_new_thread", "_start_joinable_thread"):
    if hasattr(threading, name):
        setattr(threading, name, refuse)
crew._crew = crew.Crew()
print(bits(small().fit(X, y)) == expected, len(crew._crew._alarms))
"""
    assert python(code, HOME=os.path.expanduser("~")) == ["True", "1"]


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_numbas_threading_layers_are_not_used(layer):
    """None of them is imported or could be; so nothing depends on OpenMP's library."""
    code = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.rpartition(".")[2] in ("omppool", "workqueue", "tbbpool"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
from tests.faults.children import X, small, y
small().fit(X, y).predict(X)
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print("omppool" in maps, "libtbb" in maps, any(name in sys.modules for name in ("numba.np.ufunc.omppool",)))
"""
    assert python(code, HOME=os.path.expanduser("~"), NUMBA_THREADING_LAYER=layer) == ["False"] * 3


def test_the_package_loads_no_openmp_of_its_own():
    """libgomp is there because scikit-learn's wheel carries one; without scikit-learn a `Network` trains without it."""
    code = """
import sys
import numpy as np
from fastcnn import Network
from fastcnn.layers import Conv2D, Dense
net = Network([Conv2D(4), Dense(3)], (8, 8, 1), n_jobs=2)
net.train_step(np.zeros((16, 8, 8, 1)), np.arange(16) % 3)
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print("sklearn" in sys.modules, "gomp" in maps, "libomp" in maps)
"""
    assert python(code, HOME=os.path.expanduser("~")) == ["False"] * 3
