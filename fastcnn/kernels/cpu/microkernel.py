"""The register-tiled micro-kernel under convolution and dense layers: one small matrix product, kept in
vector registers.

    C[i, j] = start[i, j] + sum over g < n_seg, l < seg_len of A[row_i + segment_g + l * a_step] * B[g * (seg_len *
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
    are none; so does any with the environment variable FASTCNN_ISA=portable. Where Numba was told which features to
    compile for (NUMBA_CPU_FEATURES; none with NUMBA_CPU_NAME=generic), those count.
    """
    features = dict(llvm.get_host_cpu_features())
    if numba.config.CPU_FEATURES is not None:
        features = {feature[1:]: feature[0] == "+" for feature in numba.config.CPU_FEATURES.split(",") if feature}
    if os.environ.get("FASTCNN_ISA") == "portable":
        features = {}
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
WIDE_ROWS = 8 if MAX_ROWS >= 12 else 2  # of tiles of three vectors


def panel_width(itemsize: int) -> int:
    """Columns of C that a panel has by default: two vectors."""
    return 2 * VECTOR_BYTES // itemsize


ZERO, BIAS, ADD = 0, 1, 2  # what the product is added to


@intrinsic(prefer_literal=True)
def _tiles(typingctx, rows, vecs, count, a, a0, a_rows, c, c0, c_rows, row0, segments, n_seg, seg_len, a_step, b, b0,
           b_step, b_skip, valid, start):  # fmt: skip
    """`count` tiles, one below the other. `rows` and `vecs` are literals; the rest as `multiply_rows` documents."""
    if not isinstance(rows, types.IntegerLiteral) or not isinstance(vecs, types.IntegerLiteral):
        return None
    integers = (count, a0, c0, row0, n_seg, seg_len, a_step, b0, b_step, b_skip, valid, start)
    if not all(isinstance(t, types.Integer) for t in integers):
        return None
    n_rows, n_vecs = rows.literal_value, vecs.literal_value
    i64 = types.int64
    signature = types.void(rows, vecs, i64, a, i64, a_rows, c, i64, c_rows, i64, segments, i64, i64, i64, b, i64, i64,
                           i64, i64, i64)  # fmt: skip

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (_, _, count_, a_, a0_, a_rows_, c_, c0_, c_rows_, row0_, segments_, n_seg_, seg_len_, a_step_, b_, b0_,
         b_step_, b_skip_, valid_, start_) = args  # fmt: skip

        def data(index: int, value: Any, place: Any = None) -> Any:
            pointer = context.make_array(sig.args[index])(context, builder, value).data
            return pointer if place is None else builder.gep(pointer, [place])

        element = context.get_data_type(a.dtype)
        function = _tiles_function(builder.module, element, n_rows, n_vecs)
        values = (
            count_, data(3, a_, a0_), data(5, a_rows_, row0_), data(10, segments_), n_seg_, seg_len_, a_step_,
            data(14, b_, b0_), b_step_, b_skip_, data(6, c_, c0_), data(8, c_rows_, row0_), valid_, start_,
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
    kinds = [word, numbers, table, table, word, word, word, numbers, word, word, numbers, table, word, word]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    count, a, a_rows, segments, n_seg, seg_len, a_step, b, b_step, b_skip, c, c_rows, valid, start_with = function.args
    zero = ir.Constant(vector, [ir.Constant(element, 0.0)] * lanes)
    tile = [[cgutils.alloca_once(builder, vector) for _ in range(n_vecs)] for _ in range(n_rows)]
    multiply = _multiply_avx2 if ISA.name == "avx2" else _multiply
    with cgutils.for_range(builder, count) as loop:
        row = builder.mul(loop.index, _word(n_rows))
        rows = [builder.load(builder.gep(a_rows, [builder.add(row, _word(i))])) for i in range(n_rows)]
        starts = [builder.gep(a, [start]) for start in rows]
        for column in range(n_vecs):
            for cells in tile:
                builder.store(zero, cells[column])
        with builder.if_then(builder.icmp_signed("==", start_with, _word(BIAS))):
            for column in range(n_vecs):
                bias = builder.load(builder.bitcast(builder.gep(b, [_word((column - 2) * lanes)]), vector.as_pointer()))
                bias.align = size
                for cells in tile:
                    builder.store(bias, cells[column])
        multiply(builder, tile, starts, segments, n_seg, seg_len, a_step, b, b_step, b_skip)
        accumulate = builder.icmp_signed("==", start_with, _word(ADD))
        _store_tile(builder, tile, c, builder.gep(c_rows, [row]), valid, accumulate, vector, element)
    builder.ret_void()
    return function


def _word(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)


def _multiply(builder, tile, starts, segments, n_seg, seg_len, a_step, b, b_step, b_skip):
    """The product, added to the tile: in LLVM's own terms, for any host."""
    vector = tile[0][0].type.pointee
    lanes, size = vector.count, 4 if isinstance(vector.element, ir.FloatType) else 8
    undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    at, b_now = cgutils.alloca_once(builder, ir.IntType(64)), cgutils.alloca_once(builder, b.type)
    builder.store(b, b_now)
    with cgutils.for_range(builder, n_seg) as outer:
        builder.store(builder.load(builder.gep(segments, [outer.index])), at)
        with cgutils.for_range(builder, seg_len):
            place, line = builder.load(at), builder.load(b_now)
            columns = []
            for v in range(len(tile[0])):
                load = builder.load(builder.bitcast(builder.gep(line, [_word(v * lanes)]), vector.as_pointer()))
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
            builder.store(builder.gep(line, [b_step]), b_now)
        builder.store(builder.gep(builder.load(b_now), [b_skip]), b_now)


_UNROLL = 4  # steps of the assembly loops between two tests for their end


def _multiply_avx2(builder, tile, starts, segments, n_seg, seg_len, a_step, b, b_step, b_skip):
    """The same as an assembly loop: LLVM's own spills pointers or sums to the stack, whichever way it is
    written, and loses a quarter of the speed. Steps of one element in A and one panel in B have a loop with
    constant offsets.
    """
    vector = tile[0][0].type.pointee
    kind, size = ("s", 4) if isinstance(vector.element, ir.FloatType) else ("d", 8)
    n_rows, n_vecs, word = len(tile), len(tile[0]), ir.IntType(64)
    panel = 2 * VECTOR_BYTES
    # Operands: the sums, B's vectors and two broadcasts; places in A (elements from a row's start) and B, the
    # table of segments and two counts; then the rows, and what changes only between calls, in memory.
    n_sums = n_rows * n_vecs
    b_regs = range(n_sums, n_sums + n_vecs)
    scalars = (n_sums + n_vecs, n_sums + n_vecs + 1)
    at, b_at, table, left, count = range(scalars[1] + 1, scalars[1] + 6)
    rows = range(count + 1, count + 1 + n_rows)
    fixed = [seg_len, a_step, *(builder.shl(step, _word(size.bit_length() - 1)) for step in (b_step, b_skip))]
    memory = cgutils.alloca_once(builder, ir.ArrayType(word, len(fixed)))
    for i, value in enumerate(fixed):
        builder.store(value, builder.gep(memory, [_word(0), _word(i)]))
    length, step_a, step_b, skip = (f"{8 * i}(${rows[-1] + 1})" for i in range(len(fixed)))

    def step(shift_a: int = 0, shift_b: int = 0) -> list[str]:
        lines = [f"vmovup{kind} {shift_b + v * VECTOR_BYTES}(${b_at}), ${b_regs[v]}" for v in range(n_vecs)]
        for i in range(n_rows):
            scalar = scalars[i % 2]
            lines.append(f"vbroadcasts{kind} {shift_a}(${rows[i]},${at},{size}), ${scalar}")
            lines += [f"vfmadd231p{kind} ${b_regs[v]}, ${scalar}, ${i * n_vecs + v}" for v in range(n_vecs)]
        return lines

    def segments_loop(steps: Any) -> list[str]:
        """All segments; `steps(n)` are the lines of n steps with the places moved on."""
        return [
            ".p2align 5", "2:", f"movq (${table}), ${at}", f"movq {length}, ${count}",
            f"shrq $${_UNROLL.bit_length() - 1}, ${count}", "je 4f",
            ".p2align 5", "3:", *steps(_UNROLL), f"decq ${count}", "jne 3b",
            "4:", f"movq {length}, ${count}", f"andq $${_UNROLL - 1}, ${count}", "je 6f",
            "5:", *steps(1), f"decq ${count}", "jne 5b",
            "6:", f"addq {skip}, ${b_at}", f"addq $$8, ${table}", f"decq ${left}", "jne 2b",
        ]  # fmt: skip

    def near(n: int) -> list[str]:
        lines = [line for u in range(n) for line in step(u * size, u * panel)]
        return [*lines, f"addq $${n}, ${at}", f"addq $${n * panel}, ${b_at}"]

    def far(n: int) -> list[str]:
        return [*step(), f"addq {step_a}, ${at}", f"addq {step_b}, ${b_at}"] * n

    lines = [
        f"testq ${left}, ${left}", "je 9f", f"cmpq $$1, {step_a}", "jne 8f", f"cmpq $${panel}, {step_b}", "jne 8f",
        *segments_loop(near), "jmp 9f", "8:", *segments_loop(far), "9:",
    ]  # fmt: skip
    outputs = [vector] * n_sums + [vector] * (n_vecs + 2) + [word] * 5
    constraints = (
        ["=&x"] * (n_sums + n_vecs + 2) + ["=&r"] * 5 + ["r"] * (n_rows + 1)
        + [str(i) for i in (*range(n_sums), b_at, table, left)]
        + ["~{memory}", "~{flags}"]
    )  # fmt: skip
    sums = [cell for row in tile for cell in row]
    inputs = [
        *(builder.ptrtoint(start, word) for start in starts), builder.ptrtoint(memory, word),
        *(builder.load(cell) for cell in sums),
        builder.ptrtoint(b, word), builder.ptrtoint(segments, word), n_seg,
    ]  # fmt: skip
    function = ir.FunctionType(ir.LiteralStructType(outputs), [value.type for value in inputs])
    result = builder.asm(function, "\n".join(lines), ",".join(constraints), inputs, True)
    for i, cell in enumerate(sums):
        builder.store(builder.extract_value(result, i), cell)


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
               b_skip, valid, start):  # fmt: skip
    """What `_tiles` computes, in NumPy: runs where Numba is switched off."""
    rows *= count
    total = np.zeros((rows, valid), c.dtype)
    if start == BIAS:
        before = b0 - panel_width(b.itemsize)
        total += b[before : before + valid]
    steps = np.arange(seg_len)
    for g in range(n_seg):
        columns = b0 + (g * (seg_len * b_step + b_skip) + steps * b_step)[:, None] + np.arange(valid)
        places = (a0 + a_rows[row0 : row0 + rows] + segments[g])[:, None] + steps * a_step
        total += a[places] @ b[columns]
    for i in range(rows):
        place = slice(c0 + c_rows[row0 + i], c0 + c_rows[row0 + i] + valid)
        c[place] = total[i] + (c[place] if start == ADD else 0)


if numba.config.DISABLE_JIT:
    _tiles = _tiles_twin


@Kernel
def multiply_rows(row0, row1, lane, args):
    """C[row, :valid] = start + A * B for the rows row0 <= row < row1 of the tables, one panel of columns.

    Arguments
    ---------
    a, b, c : flat arrays of one float dtype; a0, b0, c0 : where their first element lies
    a_rows, c_rows : int64 tables, the offset of each row in a and c
    segments : int64 table, the offset of each stretch of `seg_len` elements that a row multiplies
    a_step, b_step : distance between neighbours within a stretch, in a and (row by row) in b
    b_skip : what b is ahead by at each stretch's end
    valid : columns of c to write, at most three vectors; b must be readable over whole vectors
    start : ZERO; BIAS, the panel's width of b that lies before b0; or ADD, what c holds
    """
    (a, a0, a_rows, c, c0, c_rows, segments, seg_len, a_step, b, b0, b_step, b_skip, valid, start) = unpack(args)
    lanes = VECTOR_BYTES // a.itemsize
    n_seg = segments.shape[0]
    i, left = row0, row1 - row0
    if valid > 2 * lanes:
        count = left // WIDE_ROWS
        _tiles(WIDE_ROWS, 3, count, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step,
               b_skip, valid, start)  # fmt: skip
        i += WIDE_ROWS * count
        _tiles(1, 3, row1 - i, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step, b_skip,
               valid, start)  # fmt: skip
    elif valid > lanes:
        # As many of the highest tiles as leave no rest, or one that lower tiles fill well.
        count = left // MAX_ROWS if left % MAX_ROWS == 0 else max(0, (left - 3) // MAX_ROWS)
        _tiles(MAX_ROWS, 2, count, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step,
               b_skip, valid, start)  # fmt: skip
        i += count * MAX_ROWS
        while i < row1:
            left = row1 - i
            if left >= 6 and left != 7 and left != 8:
                _tiles(6, 2, 1, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step,
                       b_skip, valid, start)  # fmt: skip
                i += 6
            elif left >= 4 and left != 5:
                _tiles(4, 2, 1, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step,
                       b_skip, valid, start)  # fmt: skip
                i += 4
            elif left >= 3:
                _tiles(3, 2, 1, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step,
                       b_skip, valid, start)  # fmt: skip
                i += 3
            else:
                _tiles(1, 2, left, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step,
                       b_skip, valid, start)  # fmt: skip
                i += left
    else:
        count = left // MAX_ROWS  # a tile of few rows and one vector has too few sums to hide their latency
        _tiles(MAX_ROWS, 1, count, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step,
               b_skip, valid, start)  # fmt: skip
        i += MAX_ROWS * count
        count = (row1 - i) // 6
        _tiles(6, 1, count, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step, b_skip,
               valid, start)  # fmt: skip
        i += 6 * count
        _tiles(1, 1, row1 - i, a, a0, a_rows, c, c0, c_rows, i, segments, n_seg, seg_len, a_step, b, b0, b_step, b_skip,
               valid, start)  # fmt: skip


def multiply_rows_address(dtype: Any) -> Any:
    """What `call` takes to run `multiply_rows` on arrays of `dtype`."""
    x, table = empty(dtype), empty(np.int64)
    return address_for(multiply_rows, x, 0, table, x, 0, table, table, 0, 0, x, 0, 0, 0, 0, ZERO)
