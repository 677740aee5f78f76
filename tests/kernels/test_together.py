"""Kernels compiled by several processes: what they leave, and what happens when the others fail."""

import gc
import os
import pickle
import subprocess
import sys
import threading
import time

import numba
import numpy as np
import pytest

from fastcnn import Network
from fastcnn.kernels.cpu import epilogue, launch, objects, runtime, together
from fastcnn.kernels.cpu.objects import Code, machine_code
from fastcnn.layers import AvgPool2D, BatchNorm, Conv2D, Dense, Dropout, MaxPool2D, ReLU, Residual, Tanh
from tests.kernels.test_runtime import run

pytestmark = pytest.mark.skipif(os.name != "posix" or numba.config.DISABLE_JIT, reason="starts compilers")


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """An empty cache, here and in other processes."""
    monkeypatch.setenv("FASTCNN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(runtime, "_cache_known", False)
    monkeypatch.setattr(runtime, "_cache_dir", None)
    yield runtime.cache_dir()
    assert not list(tmp_path.rglob("tmp*"))


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """The processes that a test has started."""
    found, popen = [], subprocess.Popen

    def noted(*args, **settings):
        found.append(popen(*args, **settings))
        return found[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    return found


def no_child_is_left(started):
    assert started and all(process.returncode is not None for process in started)


@pytest.fixture
def codes(monkeypatch):
    """Some small kernels, which this process does not know."""
    wanted = launch.Wanted()
    with runtime.recording_into(wanted):
        for number in range(4):
            kernel = epilogue.activate_kernel(number)
            monkeypatch.setattr(kernel, "_addresses", {})
            for dtype in (np.float32, np.float64):
                epilogue.activate_address(dtype, (number, 0.0))
    assert len(wanted.code) == 8
    return wanted.code


@pytest.fixture
def compiled_here(monkeypatch):
    """The functions that this process compiles, slowly: the others get their turns."""
    found, compile_ = [], objects._compile

    def slowly(function, *rest):
        found.append(function)
        time.sleep(0.3)
        return compile_(function, *rest)

    monkeypatch.setattr(objects, "_compile", slowly)
    return found


def stored(codes):
    return sum(code.path.exists() for code in codes)


def test_every_process_compiles(codes, compiled_here, started):
    together.compile_together([*codes, *codes], 2)
    here = len(compiled_here)
    assert stored(codes) == 8 and 0 < here < 8
    assert len({machine_code(code) for code in codes}) == 8
    together.compile_together(codes, 2)
    assert len(compiled_here) == here  # none of what there is
    no_child_is_left(started)


@pytest.mark.parametrize("why", ["one process", "few kernels", "no Python", "nowhere to write", "another thread does"])
def test_alone(codes, compiled_here, monkeypatch, why):
    """Each kernel is compiled where it is needed."""
    if why == "no Python":
        monkeypatch.setattr(sys, "executable", "/opt/editor/bin/editor")
    if why == "nowhere to write":
        monkeypatch.setattr(runtime, "cache_dir", lambda: None)
        codes = [Code(c.function, c.kinds, c.signature, origin=c.origin) for c in codes]
    if why == "another thread does":
        monkeypatch.setattr(together, "_busy", threading.Lock())
        together._busy.acquire()
    together.compile_together(codes[:2] if why == "few kernels" else codes, 1 if why == "one process" else 4)
    assert compiled_here == []


def test_no_process_more(codes, compiled_here, monkeypatch):
    def fails(*args, **settings):
        raise BlockingIOError("no process more")

    monkeypatch.setattr(subprocess, "Popen", fails)
    together.compile_together(codes, 2)
    assert stored(codes) == len(compiled_here) == 8


@pytest.mark.parametrize("instead", ["raise SystemExit(1)", "os.read(0, 1)", "os.read(0, 1); time.sleep(600)"])
def test_a_process_that_fails(codes, compiled_here, monkeypatch, capfd, instead, started):
    monkeypatch.setattr(together, "PATIENCE", 0.5)
    monkeypatch.setattr(together, "START", "{!r}; import os, time; " + instead)
    together.compile_together(codes, 2)
    taken = "read" in instead
    assert stored(codes) == len(compiled_here) == 8 - taken
    assert len({machine_code(code) for code in codes}) == 8
    no_child_is_left(started)
    assert capfd.readouterr() == ("", "")


def test_an_error_here_ends_the_others(codes, monkeypatch, started):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(objects, "_compile", interrupted)
    monkeypatch.setattr(together, "START", "{!r}; import time; time.sleep(600)")
    with pytest.raises(KeyboardInterrupt):
        together.compile_together(codes, 2)
    no_child_is_left(started)
    assert together._busy.acquire(blocking=False)
    together._busy.release()


def test_nobody_goes_on_for_a_process_that_is_gone(codes, tmp_path):
    path = tmp_path / "todo"
    path.write_bytes(pickle.dumps([(code.origin, code.kinds, code.signature(), code.path) for code in codes]))
    command = [sys.executable, "-c", together.START.format(sys.path), str(path)]
    for parent, count in (("1", 0), (str(os.getpid()), 2)):
        subprocess.run([*command, parent], input=bytes([0, 1]), check=True, timeout=60)
        assert stored(codes) == count


def test_nothing_is_compiled_for_other_sources(codes):
    code = codes[0]
    assert Code.at(code.origin, code.kinds, code.signature(), code.path).function is code.function
    with pytest.raises(ValueError, match="settings or sources differ"):
        Code.at(code.origin, code.kinds, code.signature(), code.path.parent / "other.o")


class Enough(Exception):
    pass


def test_other_processes_find_every_kernel(monkeypatch):
    """Whatever a program of many layers needs."""
    found = []

    def note(wanted, processes):
        found.extend(wanted)
        raise Enough

    monkeypatch.setattr(launch, "compile_together", note)
    for kernel in [thing for thing in gc.get_objects() if issubclass(type(thing), launch.Kernel)]:
        monkeypatch.setattr(kernel, "_addresses", {})
    layers = [
        Conv2D(16, activation="relu"), BatchNorm(), ReLU(), MaxPool2D(), Residual([Conv2D(16), BatchNorm()]), ReLU(),
        Conv2D(16, groups=16), Conv2D(24, 5), BatchNorm(), AvgPool2D(), Dropout(0.1), Dense(32), Tanh(), Dense(3),
    ]  # fmt: skip
    net = Network(layers, (28, 28, 3), random_state=0, dtype="float64")
    with pytest.raises(Enough):
        net.train_step(np.zeros((32, 28, 28, 3)), np.zeros(32, np.int64))
    assert len(found) > 30
    for code in found:
        origin, signature = pickle.loads(pickle.dumps((code.origin, code.signature())))
        assert Code.at(origin, code.kinds, signature, code.path).function is code.function


TRAIN = """
import numpy as np
from fastcnn import Network
from fastcnn.layers import Dense

net = Network([Dense(8, activation="relu"), Dense(3)], (16,), random_state=0, n_jobs=2)
x = np.random.default_rng(0).standard_normal((64, 16))
losses = [net.train_step(x, np.arange(64) % 3) for _ in range(3)]
"""


def test_a_network_has_the_same_bits(directory, tmp_path):
    together_ = run(TRAIN + "print(losses)")
    assert len(list(directory.glob("*.o"))) > 10
    alone = "from fastcnn.kernels.cpu import together\ntogether.MOST = 1\n" + TRAIN + "print(losses)"
    assert together_ == run(alone, FASTCNN_CACHE_DIR=str(tmp_path / "alone"))
