"""Four numbers at once, copies that nobody waits for, division without a sign: what Python has no words for.

Each has a twin in plain Python, which the simulator runs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import Any

from fastcnn.kernels.cuda.driver import SIMULATED, device_function, has_tensor_cores, intrinsic, types

__all__ = ["arrive", "commit", "fetch1", "fetch4", "load4", "narrow", "quotient", "store4", "vectors"]


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


def _narrow(a):
    """A number that fits 32 bits, in 32 bits: the GPU computes with 64 in two to four times as many instructions."""
    return a


def _fetch4(shared, at, source, index, inside):
    """shared[at : at + 4] = source[index : index + 4] if `inside`, else 0; both lie as for `load4`. The copy goes on
    beside what the thread does next, where the GPU can do that.
    """
    for n in range(4):
        _fetch1(shared, at + n, source, index + n, inside)


def _fetch1(shared, at, source, index, inside):
    """The same for one number."""
    if inside:
        shared[at] = source[index]
    else:
        shared[at] = 0


def _commit():
    """End a group of copies."""


def _arrive(newest):
    """Wait until this thread's copies are there, but for those of the `newest` groups (a constant)."""


if SIMULATED:
    load4, store4, quotient, narrow = _load4, _store4, _quotient, _narrow
    fetch4, fetch1, commit, arrive = _fetch4, _fetch1, _commit, _arrive
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

    @intrinsic
    def narrow(typing_context, a):
        def code(context, builder, signature, args):
            return builder.trunc(args[0], ir.IntType(32))

        return types.int32(types.int64), code

    def _fetch(width):
        """The copies in PTX, 16 bytes at a time at most; and by way of registers for GPUs before 8.0."""

        @intrinsic
        def fetch(typing_context, shared, at, source, index, inside):
            def code(context, builder, signature, args):
                shared_type, source_type = signature.args[0], signature.args[2]
                narrow_, wide = ir.IntType(32), ir.IntType(64)
                item = shared_type.dtype.bitwidth // 8
                to = context.make_array(shared_type)(context, builder, args[0]).data
                to = builder.addrspacecast(to, ir.PointerType(to.type.pointee, 3))
                at_ = builder.mul(builder.trunc(args[1], narrow_), ir.Constant(narrow_, item))
                to = builder.add(builder.ptrtoint(to, narrow_), at_)
                of = context.make_array(source_type)(context, builder, args[2]).data
                of = builder.ptrtoint(builder.gep(of, [args[3]]), wide)  # where nothing is read it may lie anywhere
                n_bytes = width * item
                piece = min(n_bytes, 16)
                size = builder.select(args[4], ir.Constant(narrow_, piece), ir.Constant(narrow_, 0))
                copy = ir.InlineAsm(
                    ir.FunctionType(ir.VoidType(), [narrow_, wide, narrow_]),
                    f"cp.async.ca.shared.global [$0], [$1], {piece}, $2;",
                    "r,l,r,~{memory}",
                    side_effect=True,
                )
                for start in range(0, n_bytes, piece):
                    of_piece = builder.add(of, ir.Constant(wide, start))
                    builder.call(copy, [builder.add(to, ir.Constant(narrow_, start)), of_piece, size])
                return context.get_dummy_value()

            return types.void(shared, types.int64, source, types.int64, types.boolean), code

        return fetch

    def _told(text):
        """An instruction without operands."""

        @intrinsic
        def told(typing_context):
            def code(context, builder, signature, args):
                asm = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), text, "~{memory}", side_effect=True)
                builder.call(asm, [])
                return context.get_dummy_value()

            return types.void(), code

        return told

    if has_tensor_cores():
        fetch4, fetch1, commit = _fetch(4), _fetch(1), _told("cp.async.commit_group;")
        _arrive_0, _arrive_1 = _told("cp.async.wait_group 0;"), _told("cp.async.wait_group 1;")

        @device_function
        def arrive(newest):
            if newest == 0:
                _arrive_0()
            else:
                _arrive_1()
    else:

        @device_function
        def fetch4(shared, at, source, index, inside):
            if inside:
                a, b, c, d = load4(source, index)
                store4(shared, at, a, b, c, d)
            else:
                for n in range(4):
                    shared[at + n] = 0

        fetch1, commit, arrive = (device_function(f) for f in (_fetch1, _commit, _arrive))


@cache
def vectors(width: int) -> tuple[Any, Any]:
    """The device functions that read `width` numbers (4 or 1) of an array into a thread's own, from `start` on, and
    write them.
    """

    @device_function
    def read(array, at, numbers, start):
        if width == 4:
            numbers[start], numbers[start + 1], numbers[start + 2], numbers[start + 3] = load4(array, at)
        else:
            numbers[start] = array[at]

    @device_function
    def write(array, at, numbers, start):
        if width == 4:
            store4(array, at, numbers[start], numbers[start + 1], numbers[start + 2], numbers[start + 3])
        else:
            array[at] = numbers[start]

    return read, write
