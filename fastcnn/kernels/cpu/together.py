"""Kernels that one program needs, compiled by several processes at once.

Numba compiles under one lock for all threads. So other Pythons are started, and each, like this process, takes the next
kernel that nobody has taken yet, compiles it and leaves it in the directory of compiled code, where it is then found.
Kernels are told by the names under which a fresh Python finds them. Nothing depends on the others: whatever is missing
in the end is compiled where it is needed.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastcnn.kernels.cpu.objects import Code

MOST = 4  # processes: each needs about 200 MB
EACH = 3  # kernels at least: a Python takes about as long to start
PATIENCE = 30.0  # seconds that the others may go on alone; the largest kernel takes a few
START = "import sys; sys.path[:] = {!r}; from fastcnn.kernels.cpu.together import help_out; help_out(*sys.argv[1:])"

_busy = threading.Lock()


def compile_together(wanted: Iterable[Code], processes: int) -> None:
    """Store the compiled code of all `wanted`, in up to `processes` processes, this one among them."""
    missing = {code.path: code for code in wanted if code.path and code.origin and not code.path.exists()}
    # The longest first, so that all end at about the same time. The number of a turn is one byte.
    todo = sorted(missing.values(), key=lambda code: -_length(code.function))[:256]
    processes = min(processes, MOST, len(todo) // EACH)
    if processes < 2 or not _python_can_be_started() or not _busy.acquire(blocking=False):
        return
    try:
        with suppress(OSError):  # no file, pipe or process more
            _share(todo, processes)
    finally:
        _busy.release()


def _share(todo: Sequence[Code], processes: int) -> None:
    others: list[subprocess.Popen[bytes]] = []
    turns, written = os.pipe()
    try:
        os.write(written, bytes(range(len(todo))))
        os.close(written)
        with tempfile.NamedTemporaryFile(dir=todo[0].path.parent) as file:  # type: ignore[union-attr]
            pickle.dump([(code.origin, code.kinds, code.signature(), code.path) for code in todo], file)
            file.flush()
            command = [sys.executable, "-c", START.format(sys.path), file.name, str(os.getpid())]
            quiet = subprocess.DEVNULL
            with suppress(OSError):
                while len(others) < processes - 1:
                    others.append(subprocess.Popen(command, stdin=turns, stdout=quiet, stderr=quiet))
            _take_turns(turns, todo)
            _wait_for(others)
    finally:
        os.close(turns)
        for other in others:  # after an exception, or at the end of patience
            other.kill()
            other.wait()


def help_out(path: str, parent: str) -> None:
    """What the other processes do: take turns while process `parent` lives. `path` has what there is to compile."""
    with open(path, "rb") as file:
        todo = [Code.at(*described) for described in pickle.load(file)]
    _take_turns(0, todo, lambda: os.getppid() == int(parent))


def _take_turns(turns: int, todo: Sequence[Code], wanted: Callable[[], bool] = lambda: True) -> None:
    while wanted() and (turn := os.read(turns, 1)):
        code = todo[turn[0]]
        assert code.path is not None
        if not code.path.exists():  # as far as it can be told, nobody else has done it
            code.compile()
        if not code.path.exists():  # the disk is full: for nothing
            return


def _wait_for(others: Sequence[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + PATIENCE
    for other in others:
        with suppress(subprocess.TimeoutExpired):
            other.wait(max(0.0, until - time.monotonic()))


def _python_can_be_started() -> bool:
    """Whether `sys.executable` is a Python: it may be a program that has one inside."""
    name = Path(sys.executable or "").name.lower()
    return os.name == "posix" and not hasattr(sys, "frozen") and name.startswith("python")


def _length(function: Callable[..., Any]) -> int:
    """Of its byte code, with that of what is inlined into it."""
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    inlined = [getattr(part, "py_func", None) for part in named]
    return len(function.__code__.co_code) + sum(_length(part) for part in inlined if part)
