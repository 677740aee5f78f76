"""Tensor cores: how operands lie in shared memory for them, and the multiplication by warps.

A warp computes 32 or 64 rows x 32 columns in 16 terms of the sum at a time, with the instruction `mma.sync` of PTX.
Rows, columns and terms are dealt out to its lanes so that a lane reads four numbers at once, without conflicts of
banks, and ends with quads of neighbouring rows and columns, as the other multiplication does.

What the instruction takes has 11 bits of precision (8 in bfloat16); it adds up in float32. For "float32" a number
is the sum of two such parts, and a product three products: what is left out is 2^-20 of it at most (after Ootomo and
Yokota 2022).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from math import log
from typing import Any

import numpy as np

from fastcnn.kernels.cuda.driver import SIMULATED, device_function, intrinsic, types
from fastcnn.kernels.cuda.intrinsics import fetch1, fetch4, narrow

__all__ = ["DEPTH", "corner", "fragment_multiplier", "putter"]

# Reading a TF32 leaves out bits: of numbers whose logarithms are spread evenly 0.5 / (2 ln 2) of the last place on
# average, which this makes up for. Rounding each one takes as long as multiplying it.
_CUT_EVENLY = float(np.float32(1 + 2.0**-10 * 0.25 / log(2)))
DEPTH = 16  # terms of the sum in one part of shared memory


@device_function
def place_deep(row, term, length):
    """Where a number lies that was read along the sum: lines of 16 terms; in every second quad of rows, neighbours
    change places.
    """
    return (row ^ ((row >> 2) & 1)) * 16 + term


@device_function
def place_along(row, term, length):
    """Where a number lies that was read along the rows (of A; the columns of B): lines of `length` rows, whose quads
    change places with the term.
    """
    return term * length + ((row >> 2) ^ (((term >> 2) & 3) * 2)) * 4 + (row & 3)


@cache
def putter(length: int, threads: int, width: int, deep: bool) -> Any:
    """The device function that brings an operand into shared memory; see `tiles.operand`."""
    part_size, place = length * DEPTH, place_deep if deep else place_along
    lanes, fetch = DEPTH // 4 if deep else length // width, fetch4 if width == 4 else fetch1

    @device_function
    def put(tile, part, t, i, source, index, inside):
        e = narrow(t + i * threads)
        row, term = (
            (narrow(e // lanes), narrow(e % lanes * 4)) if deep else (narrow(e % lanes * width), narrow(e // lanes))
        )
        fetch(tile, part * part_size + place(row, term, length), source, index, inside)

    return put


@cache
def fragment_multiplier(rows: int, columns: int, per_rows: int, a_deep: bool, b_deep: bool, precision: str) -> Any:
    """The device function that multiplies what lies in shared memory; see `tiles.multiplier`."""
    across, row_quads = columns // 32, per_rows // 4
    a_size, b_size = rows * DEPTH, columns * DEPTH
    if SIMULATED:
        scaled = precision == "fp16"
        a_place, b_place = (place_deep if deep else place_along for deep in (a_deep, b_deep))

        def simulated(a_tile, b_tile, part, t, a, b, sums, a_scale, b_scale):
            first_row, first_column = corner(t, across, per_rows)
            for i in range(row_quads):
                for m in range(4):
                    for n in range(8):
                        for d in range(DEPTH):
                            at_a = part * a_size + a_place(first_row + i * 32 + m, d, rows)
                            at_b = part * b_size + b_place(first_column + n, d, columns)
                            product = a_tile[at_a] * b_tile[at_b]
                            sums[(i * 4 + m) * 8 + n] += product * a_scale * b_scale if scaled else product

        return simulated

    multiply = _emitted(rows, columns, row_quads, a_deep, b_deep, precision)

    @device_function
    def multiplied(a_tile, b_tile, part, t, a, b, sums, a_scale, b_scale):
        lane = t & 31
        high, low = lane >> 2, lane & 3
        row, column = (t >> 5) // across * (8 * per_rows), (t >> 5) % across * 32
        # Of the even and of the odd lines that a lane reads: see `place_deep`; `place_along` has one kind only.
        if a_deep:
            a_at = part * a_size + (row + 4 * high) * 16 + 4 * low
            a_even, a_odd = a_at + (high & 1) * 16, a_at - (high & 1) * 16
        else:
            a_even = a_odd = part * a_size + 4 * low * rows + row + 4 * (high ^ (2 * low))
        if b_deep:
            b_at = part * b_size + (column + 4 * high) * 16 + 4 * low
            b_even, b_odd = b_at + (high & 1) * 16, b_at - (high & 1) * 16
        else:
            b_even = b_odd = part * b_size + 4 * low * columns + column + 4 * (high ^ (2 * low))
        multiply(a_tile, b_tile, a_even, a_odd, b_even, b_odd, sums, a_scale, b_scale)

    return multiplied


@device_function
def corner(t, across, per_rows):
    """A thread's first row and column; its quads of rows lie 32 apart, its two quads of columns side by side."""
    warp, lane = t >> 5, t & 31
    return warp // across * (8 * per_rows) + (lane >> 2) * 4, warp % across * 32 + (lane & 3) * 8


def _emitted(rows: int, columns: int, row_quads: int, a_deep: bool, b_deep: bool, precision: str) -> Any:
    """The instructions of `fragment_multiplier`, one after the other.

    A lane has for A and for B four lines (rows, columns) x four terms: of rows 4g to 4g + 3, terms 4q to 4q + 3 for
    lane 4g + q. Two rows of A and one column of B go into one instruction, which takes half of the terms (all, in half
    precision); which terms those are does not matter, as long as A and B agree.
    """
    from llvmlite import ir

    i32, f32 = ir.IntType(32), ir.FloatType()
    half = precision in ("bf16", "fp16")
    kind, size = {"bf16": ("bf16", 16), "fp16": ("f16", 16)}.get(precision, ("tf32", 8))
    mma_type = ir.FunctionType(ir.LiteralStructType([f32] * 4), [i32] * 6 + [f32] * 4)
    mma = ir.InlineAsm(
        mma_type,
        f"mma.sync.aligned.m16n8k{size}.row.col.f32.{kind}.{kind}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        side_effect=True,
    )
    packed = ir.InlineAsm(
        ir.FunctionType(i32, [f32, f32]), f"cvt.rn.{kind}x2.f32 $0, $2, $1;", "=r,f,f", side_effect=False
    )

    @intrinsic
    def multiply(typing_context, a_tile, b_tile, a_even, a_odd, b_even, b_odd, sums, a_scale, b_scale):
        def code(context, builder, signature, args):
            types_ = signature.args

            def data(i):
                return context.make_array(types_[i])(context, builder, args[i]).data

            def lines(tile, even, odd, deep, length, block):
                """Four lines x four terms, [line][term]."""
                found = []
                for i in range(4):
                    step = (block * 32 + i) * 16 if deep else i * length + block * 32
                    index = builder.add(odd if i % 2 else even, ir.Constant(ir.IntType(64), step))
                    pointer = builder.bitcast(builder.gep(tile, [index]), ir.VectorType(f32, 4).as_pointer())
                    vector = builder.load(pointer, align=16)
                    found.append([builder.extract_element(vector, ir.Constant(i32, n)) for n in range(4)])
                return found if deep else [list(line) for line in zip(*found, strict=True)]

            def split(value):
                """The parts of a number: the larger one first. Of each the instruction reads the upper 19 bits."""
                if precision == "tf32":
                    return [builder.bitcast(builder.fmul(value, ir.Constant(f32, _CUT_EVENLY)), i32)]
                upper = builder.and_(builder.bitcast(value, i32), ir.Constant(i32, 0xFFFFE000))
                rest = builder.fsub(value, builder.bitcast(upper, f32))
                # `upper` itself would be taken for `value`, whose last bits are not read, and moved to where its
                # instruction wants it in twice the time.
                return [builder.bitcast(part, i32) for part in (builder.fsub(value, rest), rest)]

            def pieces(line, scale):
                """[half of the terms][part][slot] of what instructions take of a line."""
                if kind == "f16":
                    line = [builder.fmul(value, scale) for value in line]
                if half:
                    return [[[builder.call(packed, line[n : n + 2]) for n in (0, 2)]]]
                both = [[split(value) for value in line[n : n + 2]] for n in (0, 2)]
                return [[[slot[part] for slot in pair] for part in range(len(pair[0]))] for pair in both]

            def sums_at(m):
                """Where the four sums are: two columns of a row, which lie in quads of their own; the next row."""
                return [builder.gep(total, [ir.Constant(ir.IntType(64), m + step)]) for step in (0, 4, 8, 12)]

            a, b, total = data(0), data(1), data(6)
            of_b = [pieces(line, args[8]) for line in lines(b, args[4], args[5], b_deep, columns, 0)]
            for i in range(row_quads):
                of_a = [pieces(line, args[7]) for line in lines(a, args[2], args[3], a_deep, rows, i)]
                # Sixteen rows and eight columns have four sums of a lane's. An instruction on the same sums waits for
                # the one before: so all of them take their turns.
                tiles = [(pair, n) for pair in range(2) for n in range(4)]
                places = {(pair, n): sums_at((i * 4 + 2 * pair) * 8 + n) for pair, n in tiles}
                values = {tile: [builder.load(place) for place in places[tile]] for tile in tiles}
                for terms in range(len(of_b[0])):
                    parts = len(of_b[0][terms])
                    for pa, pb in ((1, 0), (0, 1), (0, 0)) if parts == 2 else ((0, 0),):  # the small products first
                        for pair, n in tiles:
                            u, v = of_a[2 * pair][terms][pa], of_a[2 * pair + 1][terms][pa]
                            operands = [u[0], v[0], u[1], v[1], *of_b[n][terms][pb], *values[pair, n]]
                            result = builder.call(mma, operands)
                            values[pair, n] = [builder.extract_value(result, c) for c in range(4)]
                for tile in tiles:
                    for place, value in zip(places[tile], values[tile], strict=True):
                        builder.store(value, place)
            return context.get_dummy_value()

        return types.void(a_tile, b_tile, *[types.int64] * 4, sums, types.float32, types.float32), code

    return multiply
