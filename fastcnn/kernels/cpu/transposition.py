"""Squares of numbers, as wide as a vector, turned about their diagonal in registers.

Number by number, transposing takes as long as a good part of the product that wants it so; in registers, a tenth of it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastcnn.kernels.cpu.microkernel import VECTOR_BYTES
from fastcnn.kernels.cpu.runtime import U, jit
from fastcnn.kernels.cpu.vectors import vector_size


@intrinsic
def _turn(typingctx, x, at, pitch, count, out, to, out_pitch):
    """out[to + j * out_pitch + i] = x[at + i * pitch + j] for i < count, 0 for the i from there on, and all j: i and j
    are smaller than the vector's size.
    """
    i64 = types.int64
    signature = types.void(x, i64, i64, i64, out, i64, i64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x_, at_, pitch_, count_, out_, to_, out_pitch_ = args
        itemsize = x.dtype.bitwidth // 8
        size = VECTOR_BYTES // itemsize
        source, target = (context.make_array(k)(context, builder, v).data for k, v in ((x, x_), (out, out_)))
        vector = ir.VectorType(source.type.pointee, size)
        nothing = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * size))

        def word(value: int) -> Any:
            return ir.Constant(ir.IntType(64), value)

        rows = []
        for i in range(size):
            place = builder.gep(source, [builder.add(at_, builder.mul(pitch_, word(i)))])
            there = builder.bitcast(place, vector.as_pointer())
            row = builder.load(builder.select(builder.icmp_signed("<", word(i), count_), there, nothing))
            row.align = itemsize
            rows.append(row)
        half = 1
        while half < size:  # rows that lie `half` apart exchange their squares of that size
            first = [j + size - half if j & half else j for j in range(size)]
            second = [j + size if j & half else j + half for j in range(size)]
            for i in (i for i in range(size) if not i & half):
                pair = rows[i], rows[i + half]
                rows[i], rows[i + half] = (
                    builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), size), mask))
                    for mask in (first, second)
                )
            half *= 2
        for j, column in enumerate(rows):
            place = builder.gep(target, [builder.add(to_, builder.mul(out_pitch_, word(j)))])
            builder.store(column, builder.bitcast(place, vector.as_pointer())).align = itemsize
        return context.get_dummy_value()

    return signature, codegen


def _turn_twin(x, at, pitch, count, out, to, out_pitch):
    """What `_turn` computes, in NumPy: runs where Numba is switched off."""
    size = vector_size(x)
    square = np.zeros((size, size), x.dtype)
    for i in range(min(count, size)):
        square[i] = x[at + i * pitch : at + i * pitch + size]
    for j in range(size):
        out[to + j * out_pitch : to + j * out_pitch + size] = square[:, j]


if numba.config.DISABLE_JIT:
    _turn = _turn_twin


@jit
def transpose(x, at, rows, columns, pitch, out, to, out_pitch):
    """out[to + j * out_pitch + i] = x[at + i * pitch + j] for i < rows and j < columns.

    Writes zeros after the last i, up to a whole number of vectors.
    """
    size = vector_size(x)
    whole = columns // size * size
    for i in range(0, rows, size):
        for j in range(0, whole, size):
            _turn(x, at + i * pitch + j, pitch, rows - i, out, to + j * out_pitch + i, out_pitch)
    for j in range(whole, columns):
        source, target = at + j, to + j * out_pitch
        for i in range(rows):
            out[U(target + i)] = x[U(source + i * pitch)]
        for i in range(rows, (rows + size - 1) // size * size):
            out[U(target + i)] = 0
