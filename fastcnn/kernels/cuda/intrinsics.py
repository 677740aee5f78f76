"""Four numbers at once, and division without a sign: what Python has no words for.

Each has a twin in plain Python, which the simulator runs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import Any

from fastcnn.kernels.cuda.driver import SIMULATED, device_function, intrinsic, types

__all__ = ["load4", "quotient", "store4", "vectors"]


def _load4(array, index):
    """array[index : index + 4]; index is a multiple of four, the array begins at a multiple of 16 (32) bytes."""
    return array[index], array[index + 1], array[index + 2], array[index + 3]


def _store4(array, index, a, b, c, d):
    """array[index : index + 4] = a, b, c, d; see `load4`."""
    array[index] = a
    array[index + 1] = b
    array[index + 2] = c
    array[index + 3] = d


def _quotient(a, b):
    """a // b of numbers from 0 up to 2^31 - 1, b > 0: without a sign and in 32 bits it is many times faster."""
    return a // b


if SIMULATED:
    load4, store4, quotient = _load4, _store4, _quotient
else:
    from llvmlite import ir

    def _pointer(context, builder, array_type, array, index):
        array = context.make_array(array_type)(context, builder, array)
        vector = ir.VectorType(context.get_value_type(array_type.dtype), 4)
        return builder.bitcast(builder.gep(array.data, [index]), vector.as_pointer()), vector

    def _lane(i):
        return ir.Constant(ir.IntType(32), i)

    def _alignment(array_type):
        """Of four numbers; vectors of 32 bytes are read as two of 16."""
        return min(4 * array_type.dtype.bitwidth // 8, 16)

    @intrinsic
    def load4(typing_context, array, index):
        def code(context, builder, signature, args):
            pointer, _ = _pointer(context, builder, array, *args)
            vector = builder.load(pointer, align=_alignment(array))
            lanes = [builder.extract_element(vector, _lane(i)) for i in range(4)]
            return context.make_tuple(builder, signature.return_type, lanes)

        return types.UniTuple(array.dtype, 4)(array, types.int64), code

    @intrinsic
    def store4(typing_context, array, index, a, b, c, d):
        def code(context, builder, signature, args):
            pointer, vector_type = _pointer(context, builder, array, *args[:2])
            vector = ir.Constant(vector_type, ir.Undefined)
            for i, value in enumerate(args[2:]):
                vector = builder.insert_element(vector, value, _lane(i))
            builder.store(vector, pointer, align=_alignment(array))
            return context.get_dummy_value()

        d_ = array.dtype
        return types.void(array, types.int64, d_, d_, d_, d_), code

    @intrinsic
    def quotient(typing_context, a, b):
        def code(context, builder, signature, args):
            narrow = ir.IntType(32)
            a, b = (builder.trunc(value, narrow) for value in args)
            return builder.zext(builder.udiv(a, b), ir.IntType(64))

        return types.int64(types.int64, types.int64), code


@cache
def vectors(width: int) -> tuple[Any, Any]:
    """The device functions that read `width` numbers (4 or 1) of an array into a thread's own, and write them."""

    @device_function
    def read(array, at, numbers):
        if width == 4:
            numbers[0], numbers[1], numbers[2], numbers[3] = load4(array, at)
        else:
            numbers[0] = array[at]

    @device_function
    def write(array, at, numbers):
        if width == 4:
            store4(array, at, numbers[0], numbers[1], numbers[2], numbers[3])
        else:
            array[at] = numbers[0]

    return read, write
