"""Vectors of as many elements as a register holds, for loops over channels.

LLVM makes vectors of plain loops over many channels, not of those over few, such as the 6 of LeNet's first layer.
A kernel that says `load`, `+` and `store` itself runs whole vectors over any number: what it writes past a
pixel's last channel, the next pixel's own values then replace.

Without Numba a vector is an array of `vector_size(x)` elements.
"""

from __future__ import annotations

import operator
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic, overload

from fastcnn.kernels.cpu.microkernel import VECTOR_BYTES


class Vector(types.Type):
    """Numba's type of a vector of `dtype`."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.size = dtype, VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector({dtype})")


@register_default(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(manager[kind.dtype].get_value_type(), kind.size))


def vector_size(x: Any) -> int:
    """Elements of a vector of the array x's dtype."""
    return VECTOR_BYTES // x.itemsize


@overload(vector_size)
def _vector_size(x):
    size = VECTOR_BYTES * 8 // x.dtype.bitwidth
    return lambda x: size


def _pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any, size: int | None = None) -> Any:
    """Where the vector of `size` elements at `at` of the array lies; checked where Numba checks bounds."""
    made = context.make_array(kind)(context, builder, array)
    size = VECTOR_BYTES * 8 // kind.dtype.bitwidth if size is None else size
    if context.enable_boundscheck:
        cgutils.do_boundscheck(context, builder, at, made.nitems)
        last = builder.add(at, ir.Constant(at.type, size - 1))
        cgutils.do_boundscheck(context, builder, last, made.nitems)
    return builder.bitcast(builder.gep(made.data, [at]), ir.VectorType(made.data.type.pointee, size).as_pointer())


@intrinsic
def load(typingctx, x, at):
    """The vector at x[at]."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = builder.load(_pointer(context, builder, x, *args))
        value.align = x.dtype.bitwidth // 8
        return value

    return Vector(x.dtype)(x, types.uintp), codegen


@intrinsic
def store(typingctx, x, at, value):
    """x[at : at + vector_size(x)] = value."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, x, *args[:2])).align = x.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(x, types.uintp, value), codegen


@intrinsic
def store_past(typingctx, x, at, value):
    """The same past the caches. x[at] lies at a multiple of a vector's bytes; others read it after a `fence`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        stored = builder.store(args[2], _pointer(context, builder, x, *args[:2]))
        stored.align = VECTOR_BYTES
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(x, types.uintp, value), codegen


@intrinsic
def fence(typingctx):
    """What was stored before is seen before what is stored after."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def spread(typingctx, x, number):
    """A vector of `number`, of the array x's dtype."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _everywhere(builder, context.get_value_type(sig.return_type), args[1])

    return Vector(x.dtype)(x, x.dtype), codegen


def _everywhere(builder: Any, kind: Any, number: Any) -> Any:
    if isinstance(number.type, ir.IntType) and number.type != kind.element:
        number = builder.trunc(number, kind.element)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        single, single, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    )


@intrinsic
def element(typingctx, value, i):
    """The vector's element i."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(*args)

    return value.dtype(value, types.int64), codegen


def _operation(name: str) -> Any:
    @intrinsic
    def operation(typingctx, a, b):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return getattr(builder, name)(*args, flags=["contract"])

        return a(a, a), codegen

    return operation


_add, _subtract, _multiply = _operation("fadd"), _operation("fsub"), _operation("fmul")


@overload(operator.add)
def _plus(a, b):
    if isinstance(a, Vector) and a == b:
        return lambda a, b: _add(a, b)


@overload(operator.sub)
def _minus(a, b):
    if isinstance(a, Vector) and a == b:
        return lambda a, b: _subtract(a, b)


@overload(operator.mul)
def _times(a, b):
    if isinstance(a, Vector) and a == b:
        return lambda a, b: _multiply(a, b)


@intrinsic
def add_to(typingctx, x, at, value):
    """x[at : at + size of the vector] += value, for an array of another dtype."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array, at, value = args
        pointer = _pointer(context, builder, x, array, at, value.type.count)
        before, wide = builder.load(pointer), pointer.type.pointee
        before.align = x.dtype.bitwidth // 8
        more = value if wide == value.type else builder.fpext(value, wide)
        builder.store(builder.fadd(before, more), pointer).align = x.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(x, types.uintp, value), codegen


@intrinsic
def where_positive(typingctx, gate, value):
    """`value` where `gate` is above 0 or NaN, else 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        gate, value = args
        zero = ir.Constant(gate.type, None)
        return builder.select(builder.fcmp_unordered(">", gate, zero), value, zero)

    return value(gate, value), codegen


@intrinsic
def larger(typingctx, best, value):
    """The larger of two vectors, element by element; NaN is larger than anything."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(_wins(builder, *args), args[1], args[0])

    return best(best, value), codegen


def _wins(builder: Any, best: Any, value: Any) -> Any:
    return builder.or_(builder.fcmp_ordered(">", value, best), builder.fcmp_unordered("uno", value, value))


def _integers(kind: Any) -> Any:
    """The vector type of as many places as `kind` has numbers."""
    return Vector(types.int32 if kind.dtype == types.float32 else types.int64)


@intrinsic
def places(typingctx, x, place):
    """A vector of `place`, for as many elements as the array x's vectors have."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _everywhere(builder, context.get_value_type(sig.return_type), args[1])

    return _integers(x)(x, types.int64), codegen


@intrinsic
def larger_place(typingctx, best, place, value, new):
    """`new` where `value` is larger than `best`, else `place`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        best_, place_, value_, new_ = args
        return builder.select(_wins(builder, best_, value_), _everywhere(builder, place_.type, new_), place_)

    return place(best, place, value, types.int64), codegen


@intrinsic
def store_places(typingctx, x, at, place):
    """x[at : at + size of the vector] = place, for an array of unsigned integers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array, at, value = args
        pointer = _pointer(context, builder, x, array, at, value.type.count)
        builder.store(builder.trunc(value, pointer.type.pointee), pointer).align = x.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(x, types.uintp, place), codegen


if numba.config.DISABLE_JIT:

    def load(x, at):
        return x[at : at + vector_size(x)].copy()

    def store(x, at, value):
        x[at : at + vector_size(x)] = value

    store_past = store

    def fence():
        pass

    def element(value, i):
        return value[i]

    def spread(x, number):
        return np.full(vector_size(x), number, x.dtype)

    def add_to(x, at, value):
        x[at : at + len(value)] += value

    def where_positive(gate, value):
        return np.where(gate <= 0, gate.dtype.type(0), value)

    def larger(best, value):
        return np.where((value > best) | (value != value), value, best)

    def places(x, place):
        return np.full(vector_size(x), place)

    def larger_place(best, place, value, new):
        return np.where((value > best) | (value != value), new, place)

    def store_places(x, at, place):
        x[at : at + len(place)] = place
