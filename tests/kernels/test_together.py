"""Kernels compiled by copies of the process: what they leave, and what happens when they fail."""

import os
import signal
import sys
import time

import pytest
from numba import types

from fastcnn.kernels.cpu import objects, runtime, together
from fastcnn.kernels.cpu.objects import Code, machine_code
from tests.kernels.test_runtime import run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are copied on Linux alone")


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path)
    return tmp_path


def make(n):
    def function(x):
        return x + n

    return Code(function, "int64", lambda: (types.int64,))


def no_child_is_left():
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def compiled(directory, monkeypatch):
    """Call it for the processes that have compiled something since the last time, one for each kernel."""
    log, compile_ = directory / "log", objects._compile

    def noting(*args):
        time.sleep(0.2)  # so that nobody takes all
        with log.open("a") as file:
            print(os.getpid(), file=file)
        return compile_(*args)

    monkeypatch.setattr(objects, "_compile", noting)

    def found():
        pids = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return pids

    return found


def test_each_is_compiled_once(compiled):
    codes = [make(n) for n in range(6)]
    together.compile_together([*codes, *map(make, range(6))], 3)
    pids = compiled()
    assert len(pids) == 6 and len(set(pids)) == 3 and str(os.getpid()) in pids
    assert len({machine_code(code) for code in codes}) == 6
    together.compile_together(codes, 3)
    assert compiled() == []
    no_child_is_left()


@pytest.mark.parametrize("processes", [1, 2])
def test_alone_where_nothing_can_be_shared(compiled, monkeypatch, processes):
    if processes == 2:
        monkeypatch.setattr(runtime, "cache_dir", lambda: None)
    together.compile_together([make(n) for n in range(3)], processes)
    assert compiled() == []  # each where it is needed


def test_without_a_copy(compiled, monkeypatch):
    def fails():
        raise BlockingIOError("no process more")

    monkeypatch.setattr(os, "fork", fails)
    codes = [make(n) for n in range(3)]
    together.compile_together(codes, 2)
    assert compiled() == [str(os.getpid())] * 3 and all(code.path.exists() for code in codes)


@pytest.mark.parametrize("way", [lambda: os.kill(os.getpid(), 9), lambda: 1 / 0, lambda: time.sleep(600)])
def test_a_copy_that_fails(directory, monkeypatch, capfd, way):
    here, compile_ = os.getpid(), objects._compile
    monkeypatch.setattr(together, "PATIENCE", 0.5)
    monkeypatch.setattr(objects, "_compile", lambda *args: compile_(*args) if os.getpid() == here else way())
    codes = [make(n) for n in range(4)]
    together.compile_together(codes, 2)
    assert sum(code.path.exists() for code in codes) == 3
    assert len({machine_code(code) for code in codes}) == 4
    no_child_is_left()
    assert capfd.readouterr() == ("", "")


def test_an_error_here_ends_the_copies(directory, monkeypatch):
    here = os.getpid()

    def interrupted(*args):
        if os.getpid() == here:
            raise KeyboardInterrupt
        time.sleep(600)

    monkeypatch.setattr(objects, "_compile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        together.compile_together([make(n) for n in range(4)], 4)
    no_child_is_left()


def test_a_copy_is_not_interrupted_before_it_has_begun(directory, monkeypatch):
    here, fork, astray = os.getpid(), os.fork, directory / "astray"

    def fork_and_interrupt():
        copy = fork()
        if copy == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return copy

    monkeypatch.setattr(os, "fork", fork_and_interrupt)
    codes = [make(n) for n in range(3)]
    try:
        together.compile_together(codes, 2)
    finally:
        if os.getpid() != here:
            astray.touch()
            os._exit(1)
    assert all(code.path.exists() for code in codes) and not astray.exists()


TRAIN = """
import numpy as np
from fastcnn import Network
from fastcnn.kernels.cpu import together
from fastcnn.layers import Dense

together.MOST = {}
net = Network([Dense(8, activation="relu"), Dense(3)], (16,), random_state=0, n_jobs=2)
x = np.random.default_rng(0).standard_normal((64, 16))
print([net.train_step(x, np.arange(64) % 3) for _ in range(3)])
"""


def test_a_network_has_the_same_bits(tmp_path):
    alone, copied = (run(TRAIN.format(most), FASTCNN_CACHE_DIR=str(tmp_path / str(most))) for most in (1, 2))
    assert alone == copied
    names = [{path.name for path in (tmp_path / str(most)).rglob("*.o")} for most in (1, 2)]
    assert names[0] == names[1] and len(names[0]) > 10
