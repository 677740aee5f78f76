"""A pytest plugin: kernels' arrays lie right against pages of memory that nobody may touch.

    python -m pytest -p tests.kernels.guard_pages --guard end tests/kernels

Inputs, outputs and scratch of every kernel that the tests call through `harness` then end (or start) where a page
without any permission starts (or ends). One element too far, read or written, by whatever code, and the process dies
with SIGSEGV. Numba's bounds checks see neither the micro-kernel's own LLVM IR nor its assembly; this does.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import mmap
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
PROT_NONE = 0


def guarded(shape: Any, dtype: Any, side: str) -> np.ndarray:
    """An array of zeros whose last element (side "end") or first ("start") is the neighbour of a forbidden page."""
    dtype = np.dtype(dtype)
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    inside = -(-n_bytes // PAGE) * PAGE
    memory = np.frombuffer(mmap.mmap(-1, inside + 2 * PAGE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for at in (0, PAGE + inside):
        if libc.mprotect(ctypes.c_void_p(memory.ctypes.data + at), ctypes.c_size_t(PAGE), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = PAGE if side == "start" else PAGE + inside - n_bytes
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


def guarded_copy(value: Any, side: str) -> Any:
    """`value`; if it is an array that kernels would take as it is, a guarded copy."""
    if not isinstance(value, np.ndarray) or not (value.flags.c_contiguous and value.flags.writeable):
        return value
    copy = guarded(value.shape, value.dtype, side)
    copy[...] = value
    return copy


def _with_guarded_arrays(function: Any, side: str) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs = {name: guarded_copy(value, side) for name, value in kwargs.items()}
        return function(*(guarded_copy(value, side) for value in args), **kwargs)

    return call


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--guard", choices=("end", "start"), default="end", help="the side with the forbidden page")


def pytest_configure(config: Any) -> None:
    from tests.kernels import harness

    side = config.getoption("--guard")

    def output(self: Any, shape: Any, dtype: Any, wanted: bool = True) -> np.ndarray:
        array = guarded(shape if wanted else (0,) * len(shape), dtype, side)
        array[...] = np.nan if array.dtype.kind == "f" else harness.INT_GUARD + 1
        return array

    harness.Outputs.__call__ = output  # type: ignore[method-assign]
    for name, function in inspect.getmembers(harness, inspect.isfunction):
        if next(iter(inspect.signature(function).parameters), None) == "backend":
            setattr(harness, name, _with_guarded_arrays(function, side))
