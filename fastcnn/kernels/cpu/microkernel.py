"""The register-tiled micro-kernel under convolution and dense layers: one small matrix product, kept in
vector registers.

    C[i, j] (+)= sum over g < n_seg, l < seg_len of A[row_i + segment_g + l * a_step] * B[g * (seg_len *
    b_step + b_skip) + l * b_step + j]

for a tile of `rows` rows times `vecs` vectors. Rows of A and C and the segments are *offset tables*, so
im2col needs no matrix: a row is an output pixel, a segment a stretch of the window that lies in one piece in
the (padded) image. A scalar of A is broadcast, vectors of B are read in sequence. It is emitted as LLVM IR,
because neither Numba nor the auto-vectoriser keeps such a tile in registers; the IR is generic, so that LLVM
lowers it on any host, and only the tile's size is chosen by the host's features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastcnn.kernels.cpu.launch import Kernel, address_for, empty, unpack


class Isa(NamedTuple):
    """What the tile's size follows from."""

    name: str
    vector_bytes: int
    max_rows: int  # rows x 2 vectors of C, two vectors of B and a broadcast fill the registers


def host_isa() -> Isa:
    """The widest vectors this host has. An unknown host gets 16-byte vectors, which LLVM splits where there
    are none.
    """
    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        return Isa("avx512", 64, 12)
    if features.get("avx2") and features.get("fma"):
        return Isa("avx2", 32, 6)
    if features.get("neon"):
        return Isa("neon", 16, 12)
    return Isa("portable", 16, 4)


ISA = host_isa()
VECTOR_BYTES = ISA.vector_bytes
MAX_ROWS = ISA.max_rows


def panel_width(itemsize: int) -> int:
    """Columns of C that a full tile has: two vectors."""
    return 2 * VECTOR_BYTES // itemsize


@intrinsic(prefer_literal=True)
def _tile(typingctx, rows, vecs, a, a0, a_rows, c, c0, c_rows, row0, segments, n_seg, seg_len, a_step, b, b0, b_step,
          b_skip, valid, accumulate):  # fmt: skip
    """`rows` and `vecs` are literals; the rest as `multiply_rows` documents."""
    if not isinstance(rows, types.IntegerLiteral) or not isinstance(vecs, types.IntegerLiteral):
        return None
    integers = (a0, c0, row0, n_seg, seg_len, a_step, b0, b_step, b_skip, valid)
    if not all(isinstance(t, types.Integer) for t in integers):
        return None
    n_rows, n_vecs = rows.literal_value, vecs.literal_value
    i64 = types.int64
    signature = types.void(rows, vecs, a, i64, a_rows, c, i64, c_rows, i64, segments, i64, i64, i64, b, i64, i64, i64,
                           i64, types.boolean)  # fmt: skip

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (_, _, a_, a0_, a_rows_, c_, c0_, c_rows_, row0_, segments_, n_seg_, seg_len_, a_step_, b_, b0_, b_step_,
         b_skip_, valid_, accumulate_) = args  # fmt: skip

        def data(index: int, value: Any) -> Any:
            return context.make_array(sig.args[index])(context, builder, value).data

        element = context.get_data_type(a.dtype)
        lanes = VECTOR_BYTES // (a.dtype.bitwidth // 8)
        vector = ir.VectorType(element, lanes)
        word = ir.IntType(64)
        a_ptr, b_ptr, c_ptr = data(2, a_), data(13, b_), data(5, c_)
        a_rows_ptr, c_rows_ptr, seg_ptr = data(4, a_rows_), data(7, c_rows_), data(9, segments_)

        def load_int(base: Any, index: Any) -> Any:
            return builder.load(builder.gep(base, [index]))

        def broadcast(value: Any) -> Any:
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), mask)

        def as_vectors(pointer: Any) -> Any:
            return builder.bitcast(pointer, vector.as_pointer())

        # Tables are read once, before the loops: one pointer for each row.
        starts = []
        for i in range(n_rows):
            place = builder.add(row0_, ir.Constant(word, i))
            starts.append(builder.gep(a_ptr, [builder.add(a0_, load_int(a_rows_ptr, place))]))

        zero = ir.Constant(vector, [ir.Constant(element, 0.0)] * lanes)
        tile = [[cgutils.alloca_once_value(builder, zero) for _ in range(n_vecs)] for _ in range(n_rows)]
        b_now = cgutils.alloca_once_value(builder, builder.gep(b_ptr, [b0_]))

        with cgutils.for_range(builder, n_seg_) as outer:
            offset = cgutils.alloca_once(builder, word)
            builder.store(load_int(seg_ptr, outer.index), offset)
            with cgutils.for_range(builder, seg_len_):
                at, b_at = builder.load(offset), builder.load(b_now)
                columns = []
                for v in range(n_vecs):
                    piece = as_vectors(builder.gep(b_at, [ir.Constant(word, v * lanes)]))
                    load = builder.load(piece)
                    load.align = a.dtype.bitwidth // 8
                    columns.append(load)
                for i in range(n_rows):
                    scalar = broadcast(builder.load(builder.gep(starts[i], [at])))
                    for v in range(n_vecs):
                        # "contract" alone: one fused multiply-add where the host has it, in this order of
                        # sums.
                        product = builder.fmul(scalar, columns[v], flags=["contract"])
                        total = builder.fadd(builder.load(tile[i][v]), product, flags=["contract"])
                        builder.store(total, tile[i][v])
                builder.store(builder.add(at, a_step_), offset)
                builder.store(builder.gep(b_at, [b_step_]), b_now)
            builder.store(builder.gep(builder.load(b_now), [b_skip_]), b_now)

        _store_tile(builder, tile, c_ptr, c0_, c_rows_ptr, row0_, valid_, accumulate_, vector, element)
        return context.get_dummy_value()

    return signature, codegen


def _store_tile(builder, tile, c_ptr, c0, c_rows_ptr, row0, valid, accumulate, vector, element):
    """C[rows] = or += the tile, its first `valid` columns only."""
    word, lanes = ir.IntType(64), vector.count
    size = 4 if isinstance(element, ir.FloatType) else 8
    width = len(tile[0]) * lanes

    def put(pointer: Any, value: Any) -> None:
        with builder.if_else(accumulate) as (add, write):
            with add:
                old = builder.load(pointer)
                old.align = size
                builder.store(builder.fadd(old, value), pointer).align = size
            with write:
                builder.store(value, pointer).align = size

    def row_start(i: int) -> Any:
        place = builder.load(builder.gep(c_rows_ptr, [builder.add(row0, ir.Constant(word, i))]))
        return builder.gep(c_ptr, [builder.add(c0, place)])

    with builder.if_else(builder.icmp_signed("==", valid, ir.Constant(word, width))) as (whole, edge):
        with whole:
            for i, row in enumerate(tile):
                start = row_start(i)
                for v, cell in enumerate(row):
                    place = builder.gep(start, [ir.Constant(word, v * lanes)])
                    put(builder.bitcast(place, vector.as_pointer()), builder.load(cell))
        with edge:
            spill = cgutils.alloca_once(builder, ir.ArrayType(element, width))
            first = builder.bitcast(spill, element.as_pointer())
            for i, row in enumerate(tile):
                start = row_start(i)
                for v, cell in enumerate(row):
                    place = builder.gep(first, [ir.Constant(word, v * lanes)])
                    builder.store(builder.load(cell), builder.bitcast(place, vector.as_pointer())).align = size
                with cgutils.for_range(builder, valid) as loop:
                    put(builder.gep(start, [loop.index]), builder.load(builder.gep(first, [loop.index])))


def _tile_twin(rows, vecs, a, a0, a_rows, c, c0, c_rows, row0, segments, n_seg, seg_len, a_step, b, b0, b_step,
               b_skip, valid, accumulate):  # fmt: skip
    """What `_tile` computes, in NumPy: runs where Numba is switched off."""
    total = np.zeros((rows, valid), c.dtype)
    steps = np.arange(seg_len)
    for g in range(n_seg):
        columns = b0 + (g * (seg_len * b_step + b_skip) + steps * b_step)[:, None] + np.arange(valid)
        places = (a0 + a_rows[row0 : row0 + rows] + segments[g])[:, None] + steps * a_step
        total += a[places] @ b[columns]
    for i in range(rows):
        start = c0 + c_rows[row0 + i]
        c[start : start + valid] = total[i] + (c[start : start + valid] if accumulate else 0)


if numba.config.DISABLE_JIT:
    _tile = _tile_twin


@Kernel
def multiply_rows(row0, row1, lane, args):
    """C[row, :valid] = (or +=, with `accumulate`) A * B for the rows row0 <= row < row1 of the tables, one
    panel of columns.

    Arguments
    ---------
    a, b, c : flat arrays of one float dtype; a0, b0, c0 : where their first element lies
    a_rows, c_rows : int64 tables, the offset of each row in a and c
    segments : int64 table, the offset of each stretch of `seg_len` elements that a row multiplies
    a_step, b_step : distance between neighbours within a stretch, in a and (row by row) in b
    b_skip : what b is ahead by at each stretch's end
    valid : columns of c to write, at most a panel's width; b must be readable over the whole width
    """
    (a, a0, a_rows, c, c0, c_rows, segments, seg_len, a_step, b, b0, b_step, b_skip, valid, accumulate) = unpack(args)
    lanes = VECTOR_BYTES // a.itemsize
    n_seg = segments.shape[0]
    i = row0
    if valid > lanes:
        while row1 - i >= MAX_ROWS + 3 or row1 - i == MAX_ROWS:
            _tile(MAX_ROWS, 2, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step, b_skip,
                  valid, accumulate)  # fmt: skip
            i += MAX_ROWS
        while i < row1:
            left = row1 - i
            if left >= 6 and left != 7 and left != 8:
                _tile(6, 2, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step, b_skip,
                      valid, accumulate)  # fmt: skip
                i += 6
            elif left >= 4 and left != 5:
                _tile(4, 2, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step, b_skip,
                      valid, accumulate)  # fmt: skip
                i += 4
            elif left >= 3:
                _tile(3, 2, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step, b_skip,
                      valid, accumulate)  # fmt: skip
                i += 3
            else:
                _tile(1, 2, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step, b_skip,
                      valid, accumulate)  # fmt: skip
                i += 1
    else:
        while row1 - i >= 6:
            _tile(6, 1, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step, b_skip, valid,
                  accumulate)  # fmt: skip
            i += 6
        while i < row1:
            _tile(1, 1, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step, b_skip, valid,
                  accumulate)  # fmt: skip
            i += 1


def multiply_rows_address(dtype: Any) -> Any:
    """What `call` takes to run `multiply_rows` on arrays of `dtype`."""
    x, table = empty(dtype), empty(np.int64)
    return address_for(multiply_rows, x, 0, table, x, 0, table, table, 0, 0, x, 0, 0, 0, 0, False)
