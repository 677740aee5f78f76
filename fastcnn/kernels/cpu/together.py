"""Kernels that one program needs, compiled in several processes at once.

Numba compiles under one lock for all threads. So this process is forked, and each copy takes the next kernel that
nobody has taken yet, compiles it and leaves it in the directory of compiled code, where it is then read. A copy touches
nothing else, and what comes of it is a file or none: whatever is missing in the end is compiled where it is needed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from numba.core.compiler_lock import global_compiler_lock

from fastcnn.kernels.cpu.objects import Code

MOST = 4  # processes: a copy needs about 100 MB, and kernels come in tens
PATIENCE = 30.0  # seconds that a copy may go on alone; the largest kernel takes a few


def compile_together(wanted: Sequence[Code], processes: int) -> None:
    """Store the compiled code of all `wanted`, in up to `processes` processes, this one among them (Linux)."""
    missing = {code.path: code for code in wanted if code.path and not code.path.exists()}
    # The longest first, so that all end at about the same time. A number of a turn is one byte.
    todo = sorted(missing.values(), key=lambda code: -_length(code.function))[:256]
    processes = min(processes, len(todo), MOST)
    if processes < 2 or not sys.platform.startswith("linux"):
        return
    turns, written = os.pipe()
    copies: list[int] = []
    try:
        with os.fdopen(written, "wb") as file:
            file.write(bytes(range(len(todo))))

        def work() -> None:
            while turn := os.read(turns, 1):
                todo[turn[0]].compile()

        for _ in range(processes - 1):
            with suppress(OSError):  # no memory, or no process more
                copies.append(_copy_that(work))
        work()
        _wait_for(copies)
    finally:
        os.close(turns)
        for copy in copies:  # after an exception, or at the end of patience
            _end(copy)


def _length(function: Callable[..., Any]) -> int:
    """Of its byte code, with that of what is inlined into it."""
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    inlined = [getattr(part, "py_func", None) for part in named]
    return len(function.__code__.co_code) + sum(_length(part) for part in inlined if part)


def _copy_that(work: Callable[[], None]) -> int:
    """A copy of this process that does `work` and ends; its number."""
    # A copy must not be interrupted before it has begun: it would go on with what called this.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with global_compiler_lock, warnings.catch_warnings():  # else a compiling thread is missing in the copy
            warnings.simplefilter("ignore", DeprecationWarning)  # of newer Pythons, of forks beside threads
            copy = os.fork()
        if copy == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                work()
            finally:
                os._exit(0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return copy


def _wait_for(copies: list[int]) -> None:
    """Wait until they have ended, and forget them."""
    until = time.monotonic() + PATIENCE
    while copies and time.monotonic() < until:
        if _has_ended(copies[0]):
            copies.pop(0)
        else:
            time.sleep(0.002)


def _has_ended(copy: int) -> bool:
    try:
        return os.waitpid(copy, os.WNOHANG)[0] == copy
    except ChildProcessError:  # somebody else has waited for it
        return True


def _end(copy: int) -> None:
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(copy, signal.SIGKILL)
        os.waitpid(copy, 0)
