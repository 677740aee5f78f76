"""Numbers too small for all their digits (denormal: below 1.2e-38 in float32) are zeros while kernels run.

On Intel's processors an operation on one takes about a hundred times as long. They come by themselves: where a filter
no longer learns, momentum shrinks by a factor with every step, and ends among them for good.

A setting of each processor's core says so, which belongs to the thread: bits FTZ and DAZ of x86's MXCSR (Intel 64 and
IA-32 Architectures Software Developer's Manual, volume 1, 10.2.3), FZ of ARM's FPCR (Arm Architecture Reference Manual,
C5.2.8). `flush` sets it and returns what `restore` puts back, so that the caller's own arithmetic stays what it was.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastcnn.kernels.cpu.objects import Entry

_REGISTER = ir.IntType(64)
_MXCSR = ir.IntType(32)
_X86 = platform.machine() in ("x86_64", "AMD64")
_ARM = platform.machine() in ("aarch64", "arm64")
_FLUSH = 1 << 15 | 1 << 6 if _X86 else 1 << 24  # FTZ and DAZ; FZ


def _read(builder: Any) -> Any:
    """Emit the reading of the register; a number of 64 bits."""
    if _X86:
        place = cgutils.alloca_once(builder, _MXCSR)
        _call_with_pointer(builder, "llvm.x86.sse.stmxcsr", place)
        return builder.zext(builder.load(place), _REGISTER)
    if _ARM:
        return builder.asm(ir.FunctionType(_REGISTER, []), "mrs $0, fpcr", "=r,~{memory}", (), True)
    return _REGISTER(0)


def _write(builder: Any, value: Any) -> None:
    if _X86:
        place = cgutils.alloca_once(builder, _MXCSR)
        builder.store(builder.trunc(value, _MXCSR), place)
        _call_with_pointer(builder, "llvm.x86.sse.ldmxcsr", place)
    if _ARM:
        builder.asm(ir.FunctionType(ir.VoidType(), [_REGISTER]), "msr fpcr, $0", "r,~{memory}", (value,), True)


def _call_with_pointer(builder: Any, name: str, place: Any) -> None:
    byte = ir.IntType(8).as_pointer()
    function = builder.module.declare_intrinsic(name, (), ir.FunctionType(ir.VoidType(), [byte]))
    builder.call(function, [builder.bitcast(place, byte)])


@intrinsic
def flush(typingctx):
    """From here on denormal numbers are zeros in this thread; the setting before."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        before = _read(builder)
        _write(builder, builder.or_(before, _REGISTER(_FLUSH)))
        return before

    return types.int64(), codegen


@intrinsic
def restore(typingctx, before):
    """The setting that `flush` returned."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _write(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@Entry
def _flush():
    return flush()


@Entry
def _restore(before):
    restore(before)
    return 0


@contextmanager
def flushed() -> Iterator[None]:
    """Within the block denormal numbers are zeros for this thread, in code that is not a kernel's."""
    if numba.config.DISABLE_JIT:
        yield
        return
    before = _flush()
    try:
        yield
    finally:
        _restore(before)
