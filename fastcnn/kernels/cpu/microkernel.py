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

import os
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
    are none; so does any with the environment variable FASTCNN_ISA=portable.
    """
    features = {} if os.environ.get("FASTCNN_ISA") == "portable" else llvm.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        return Isa("avx512", 64, 12)
    if features.get("avx2") and features.get("fma"):
        return Isa("avx2", 32, 6)
    if features.get("neon"):
        return Isa("neon", 16, 12)
    return Isa("portable", 16, 4)


ISA = host_isa()
llvm.initialize_native_asmparser()  # for the assembly loop
VECTOR_BYTES = ISA.vector_bytes
MAX_ROWS = ISA.max_rows


def panel_width(itemsize: int) -> int:
    """Columns of C that a full tile has: two vectors."""
    return 2 * VECTOR_BYTES // itemsize


@intrinsic(prefer_literal=True)
def _tiles(typingctx, rows, vecs, count, a, a0, a_rows, c, c0, c_rows, row0, segments, n_seg, seg_len, a_step, b, b0,
           b_step, b_skip, valid, accumulate):  # fmt: skip
    """`count` tiles, one below the other. `rows` and `vecs` are literals; the rest as `multiply_rows` documents."""
    if not isinstance(rows, types.IntegerLiteral) or not isinstance(vecs, types.IntegerLiteral):
        return None
    integers = (count, a0, c0, row0, n_seg, seg_len, a_step, b0, b_step, b_skip, valid)
    if not all(isinstance(t, types.Integer) for t in integers):
        return None
    n_rows, n_vecs = rows.literal_value, vecs.literal_value
    i64 = types.int64
    signature = types.void(rows, vecs, i64, a, i64, a_rows, c, i64, c_rows, i64, segments, i64, i64, i64, b, i64, i64,
                           i64, i64, types.boolean)  # fmt: skip

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (_, _, count_, a_, a0_, a_rows_, c_, c0_, c_rows_, row0_, segments_, n_seg_, seg_len_, a_step_, b_, b0_,
         b_step_, b_skip_, valid_, accumulate_) = args  # fmt: skip

        def data(index: int, value: Any, start: Any = None) -> Any:
            pointer = context.make_array(sig.args[index])(context, builder, value).data
            return pointer if start is None else builder.gep(pointer, [start])

        element = context.get_data_type(a.dtype)
        function = _tiles_function(builder.module, element, n_rows, n_vecs)
        values = (
            count_, data(3, a_, a0_), data(5, a_rows_, row0_), data(10, segments_), n_seg_, seg_len_, a_step_,
            data(14, b_, b0_), b_step_, b_skip_, data(6, c_, c0_), data(8, c_rows_, row0_), valid_, accumulate_,
        )  # fmt: skip
        builder.call(function, values)
        return context.get_dummy_value()

    return signature, codegen


def _tiles_function(module: Any, element: Any, n_rows: int, n_vecs: int) -> Any:
    """The LLVM function of tiles of one size: a function of its own, not inlined, so that its loop has all
    registers to itself.
    """
    size = 4 if isinstance(element, ir.FloatType) else 8
    lanes = VECTOR_BYTES // size
    name = f"fastcnn_tiles_{n_rows}x{n_vecs}x{lanes}_{size}"
    if name in module.globals:
        return module.globals[name]
    word, vector, numbers = ir.IntType(64), ir.VectorType(element, lanes), element.as_pointer()
    table = word.as_pointer()
    kinds = [word, numbers, table, table, word, word, word, numbers, word, word, numbers, table, word, ir.IntType(1)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    count, a, a_rows, segments, n_seg, seg_len, a_step, b, b_step, b_skip, c, c_rows, valid, accumulate = function.args
    zero = ir.Constant(vector, [ir.Constant(element, 0.0)] * lanes)
    tile = [[cgutils.alloca_once(builder, vector) for _ in range(n_vecs)] for _ in range(n_rows)]
    b_now = cgutils.alloca_once(builder, numbers)
    multiply_segment = _segment_avx2 if ISA.name == "avx2" else _segment
    with cgutils.for_range(builder, count) as loop:
        row = builder.mul(loop.index, _word(n_rows))
        rows = [builder.load(builder.gep(a_rows, [builder.add(row, _word(i))])) for i in range(n_rows)]
        starts = [builder.gep(a, [start]) for start in rows]
        for cell in (cell for cells in tile for cell in cells):
            builder.store(zero, cell)
        builder.store(b, b_now)
        with cgutils.for_range(builder, n_seg) as outer:
            offset = builder.load(builder.gep(segments, [outer.index]))
            multiply_segment(builder, tile, starts, offset, a_step, b_now, b_step, seg_len)
            builder.store(builder.gep(builder.load(b_now), [b_skip]), b_now)
        _store_tile(builder, tile, c, builder.gep(c_rows, [row]), valid, accumulate, vector, element)
    builder.ret_void()
    return function


def _word(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)


def _segment(builder, tile, starts, offset, a_step, b_now, b_step, seg_len):
    """One segment into the tile: in LLVM's own terms, for any host."""
    vector = tile[0][0].type.pointee
    lanes, size = vector.count, 4 if isinstance(vector.element, ir.FloatType) else 8
    undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    at = cgutils.alloca_once(builder, ir.IntType(64))
    builder.store(offset, at)
    with cgutils.for_range(builder, seg_len):
        place, b = builder.load(at), builder.load(b_now)
        columns = []
        for v in range(len(tile[0])):
            load = builder.load(builder.bitcast(builder.gep(b, [_word(v * lanes)]), vector.as_pointer()))
            load.align = size
            columns.append(load)
        for start, row in zip(starts, tile, strict=True):
            single = builder.insert_element(undefined, builder.load(builder.gep(start, [place])), first)
            scalar = builder.shuffle_vector(single, undefined, everywhere)
            for column, cell in zip(columns, row, strict=True):
                # "contract" alone: one fused multiply-add where the host has it, in this order of sums.
                product = builder.fmul(scalar, column, flags=["contract"])
                builder.store(builder.fadd(builder.load(cell), product, flags=["contract"]), cell)
        builder.store(builder.add(place, a_step), at)
        builder.store(builder.gep(b, [b_step]), b_now)


_UNROLL = 4  # steps of the assembly loop between two tests for its end


def _segment_avx2(builder, tile, starts, offset, a_step, b_now, b_step, seg_len):
    """The same as an assembly loop: LLVM's own spills pointers or sums to the stack, whichever way it is
    written, and loses a quarter of the speed. Steps of one element in A and one panel in B have a loop with
    constant offsets.
    """
    vector = tile[0][0].type.pointee
    kind, size = ("s", 4) if isinstance(vector.element, ir.FloatType) else ("d", 8)
    n_rows, n_vecs, word = len(tile), len(tile[0]), ir.IntType(64)
    panel = 2 * VECTOR_BYTES
    # Operands: the sums, B's vectors and two broadcasts; where A, B and the counts are; then the rows and steps.
    n_sums = n_rows * n_vecs
    b_regs = range(n_sums, n_sums + n_vecs)
    scalars = (n_sums + n_vecs, n_sums + n_vecs + 1)
    at, b, rest, blocks = range(scalars[1] + 1, scalars[1] + 5)
    rows = range(blocks + 1, blocks + 1 + n_rows)
    step_a, step_b = rows[-1] + 1, rows[-1] + 2

    def step(shift_a: int, shift_b: int) -> list[str]:
        lines = [f"vmovup{kind} {shift_b + v * VECTOR_BYTES}(${b}), ${b_regs[v]}" for v in range(n_vecs)]
        for i in range(n_rows):
            scalar = scalars[i % 2]
            lines.append(f"vbroadcasts{kind} {shift_a}(${rows[i]},${at}), ${scalar}")
            lines += [f"vfmadd231p{kind} ${b_regs[v]}, ${scalar}, ${i * n_vecs + v}" for v in range(n_vecs)]
        return lines

    def advance(bytes_a: str, bytes_b: str) -> list[str]:
        return [f"addq {bytes_a}, ${at}", f"addq {bytes_b}, ${b}"]

    one_by_one = [*step(0, 0), *advance(f"${step_a}", f"${step_b}")]
    lines = [
        f"movq ${rest}, ${blocks}", f"shrq $${_UNROLL.bit_length() - 1}, ${blocks}", "je 3f",
        f"cmpq $${size}, ${step_a}", "jne 2f", f"cmpq $${panel}, ${step_b}", "jne 2f",
        ".p2align 5", "1:",
        *(line for u in range(_UNROLL) for line in step(u * size, u * panel)),
        *advance(f"$${_UNROLL * size}", f"$${_UNROLL * panel}"), f"decq ${blocks}", "jne 1b", "jmp 3f",
        ".p2align 5", "2:", *one_by_one * _UNROLL, f"decq ${blocks}", "jne 2b",
        "3:", f"andq $${_UNROLL - 1}, ${rest}", "je 5f",
        "4:", *one_by_one, f"decq ${rest}", "jne 4b", "5:",
    ]  # fmt: skip
    outputs = [vector] * n_sums + [vector] * (n_vecs + 2) + [word] * 4
    constraints = (
        ["=&x"] * (n_sums + n_vecs + 2) + ["=&r"] * 4 + ["r"] * (n_rows + 2)
        + [str(i) for i in (*range(n_sums), at, b, rest)]
        + ["~{memory}", "~{flags}"]
    )  # fmt: skip
    scale = _word(size.bit_length() - 1)
    sums = [cell for row in tile for cell in row]
    inputs = [
        *(builder.ptrtoint(start, word) for start in starts), builder.shl(a_step, scale), builder.shl(b_step, scale),
        *(builder.load(cell) for cell in sums), builder.shl(offset, scale),
        builder.ptrtoint(builder.load(b_now), word), seg_len,
    ]  # fmt: skip
    function = ir.FunctionType(ir.LiteralStructType(outputs), [value.type for value in inputs])
    result = builder.asm(function, "\n".join(lines), ",".join(constraints), inputs, True)
    for i, cell in enumerate(sums):
        builder.store(builder.extract_value(result, i), cell)
    builder.store(builder.inttoptr(builder.extract_value(result, b), b_now.type.pointee), b_now)


def _store_tile(builder, tile, c_ptr, c_rows_ptr, valid, accumulate, vector, element):
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

    def row_offset(i: int) -> Any:
        return builder.load(builder.gep(c_rows_ptr, [ir.Constant(word, i)]))

    def row_start(i: int) -> Any:
        return builder.gep(c_ptr, [row_offset(i)])

    with builder.if_else(builder.icmp_signed("==", valid, ir.Constant(word, width))) as (whole, edge):
        with whole:
            for i, row in enumerate(tile):
                start = row_start(i)
                for v, cell in enumerate(row):
                    place = builder.gep(start, [ir.Constant(word, v * lanes)])
                    put(builder.bitcast(place, vector.as_pointer()), builder.load(cell))
        with edge:
            # Rows that lie side by side are written whole, in order: each next one sets right what the one before
            # wrote past its end, if that is no more than the next one's length. Not so the last.
            reach = builder.sub(row_offset(len(tile) - 1), row_offset(0))
            touching = builder.icmp_signed("==", reach, builder.mul(valid, ir.Constant(word, len(tile) - 1)))
            long = builder.icmp_signed(">=", builder.add(valid, valid), ir.Constant(word, width))
            whole_rows = builder.and_(builder.and_(touching, long), builder.not_(accumulate))
            with builder.if_then(whole_rows):
                for i, row in enumerate(tile[:-1]):
                    start = row_start(i)
                    for v, cell in enumerate(row):
                        place = builder.gep(start, [ir.Constant(word, v * lanes)])
                        builder.store(builder.load(cell), builder.bitcast(place, vector.as_pointer())).align = size
            spill = cgutils.alloca_once(builder, ir.ArrayType(element, width))
            first = builder.bitcast(spill, element.as_pointer())
            for i, row in enumerate(tile):
                careful = ir.Constant(ir.IntType(1), 1) if i == len(tile) - 1 else builder.not_(whole_rows)
                with builder.if_then(careful):
                    start = row_start(i)
                    for v, cell in enumerate(row):
                        place = builder.gep(first, [ir.Constant(word, v * lanes)])
                        builder.store(builder.load(cell), builder.bitcast(place, vector.as_pointer())).align = size
                    with cgutils.for_range(builder, valid) as loop:
                        put(builder.gep(start, [loop.index]), builder.load(builder.gep(first, [loop.index])))


def _tiles_twin(rows, vecs, count, a, a0, a_rows, c, c0, c_rows, row0, segments, n_seg, seg_len, a_step, b, b0, b_step,
               b_skip, valid, accumulate):  # fmt: skip
    """What `_tiles` computes, in NumPy: runs where Numba is switched off."""
    rows *= count
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
    _tiles = _tiles_twin


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
    i, left = row0, row1 - row0
    if valid > lanes:
        # As many of the highest tiles as leave no rest, or one that lower tiles fill well.
        count = left // MAX_ROWS if left % MAX_ROWS == 0 else max(0, (left - 3) // MAX_ROWS)
        _tiles(MAX_ROWS, 2, count, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step,
               b_skip, valid, accumulate)  # fmt: skip
        i += count * MAX_ROWS
        while i < row1:
            left = row1 - i
            if left >= 6 and left != 7 and left != 8:
                _tiles(6, 2, 1, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step,
                       b_skip, valid, accumulate)  # fmt: skip
                i += 6
            elif left >= 4 and left != 5:
                _tiles(4, 2, 1, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step,
                       b_skip, valid, accumulate)  # fmt: skip
                i += 4
            elif left >= 3:
                _tiles(3, 2, 1, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step,
                       b_skip, valid, accumulate)  # fmt: skip
                i += 3
            else:
                _tiles(1, 2, left, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step,
                       b_skip, valid, accumulate)  # fmt: skip
                i += left
    else:
        count = left // 6
        _tiles(6, 1, count, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step, b_skip,
               valid, accumulate)  # fmt: skip
        i += 6 * count
        _tiles(1, 1, row1 - i, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step, b_skip,
               valid, accumulate)  # fmt: skip


def multiply_rows_address(dtype: Any) -> Any:
    """What `call` takes to run `multiply_rows` on arrays of `dtype`."""
    x, table = empty(dtype), empty(np.int64)
    return address_for(multiply_rows, x, 0, table, x, 0, table, table, 0, 0, x, 0, 0, 0, 0, False)
