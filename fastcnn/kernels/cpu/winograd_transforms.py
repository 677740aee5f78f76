"""Winograd's transforms: kernels that carry the formulas over tiles of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastcnn.kernels.cpu.caches import LINE
from fastcnn.kernels.cpu.launch import Kernel, address_for, empty, family, unpack
from fastcnn.kernels.cpu.microkernel import VECTOR_BYTES
from fastcnn.kernels.cpu.winograd_formulas import NAMES, Tile, both_ways, formula_of


class _Lanes:
    """Arithmetic on LLVM vectors, in the operators that the formulas are written with."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def _number(self, number: float) -> Any:
        kind = self.value.type
        return ir.Constant(kind, [ir.Constant(kind.element, number)] * kind.count)

    def _new(self, value: Any) -> _Lanes:
        return _Lanes(self.builder, value)

    def __add__(self, other: _Lanes) -> _Lanes:
        return self._new(self.builder.fadd(self.value, other.value, flags=["contract"]))

    def __sub__(self, other: _Lanes) -> _Lanes:
        return self._new(self.builder.fsub(self.value, other.value, flags=["contract"]))

    def __mul__(self, number: float) -> _Lanes:
        return self._new(self.builder.fmul(self.value, self._number(number), flags=["contract"]))

    def __neg__(self) -> _Lanes:
        return self._new(self.builder.fneg(self.value))


def _tile_pointer(
    context: Any, builder: Any, kind: Any, array: Any, start: Any, row: Any, column: Any, lanes: int
) -> Any:
    """A function (i, j) -> pointer to the vector of `lanes` elements at that place of a tile."""
    data = context.make_array(kind)(context, builder, array).data
    vector = ir.VectorType(data.type.pointee, lanes)

    def place(i: Any, j: Any) -> Any:
        i, j = (ir.Constant(start.type, n) if isinstance(n, int) else n for n in (i, j))
        at = builder.add(builder.add(start, builder.mul(row, i)), builder.mul(column, j))
        return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())

    return place


def _load(builder: Any, pointer: Any, itemsize: int) -> Any:
    value = builder.load(pointer)
    value.align = itemsize
    return value


FROM_POINTS = ("input gradient", "weight gradient")  # that read points; the others of NAMES write them
UNROLLED = 6  # points of a tile's side: more leave the registers, and are as fast, and sooner compiled, in loops


def _fetch(builder: Any, pointers: list[Any], write: bool) -> None:
    """Have these lines brought into the first-level cache, to be written if `write`."""
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    for pointer in pointers:
        builder.call(function, [builder.bitcast(pointer, byte), word(int(write)), word(3), word(1)])


@contextmanager
def _rows_in_loops(
    builder: Any, formula: Any, load: Any, size: int, vector: Any, before: Any = lambda column: None
) -> Iterator[tuple[Any, list[Any]]]:
    """`both_ways` with a loop over the columns, which begins with `before`, and one over the rows: within the block,
    the number of a row and its results.
    """
    count = len(formula([0.0] * size))
    between = cgutils.alloca_once(builder, ir.ArrayType(vector, count * size))

    def place(i: Any, j: Any) -> Any:
        number = builder.add(builder.mul(i, ir.Constant(i.type, size)), j)
        return builder.gep(between, [ir.Constant(i.type, 0), number])

    with cgutils.for_range(builder, ir.Constant(ir.IntType(64), size)) as column:
        before(column.index)
        for i, cell in enumerate(formula([load(i, column.index) for i in range(size)])):
            builder.store(cell.value, place(ir.Constant(column.index.type, i), column.index))
    with cgutils.for_range(builder, ir.Constant(ir.IntType(64), count)) as row:
        places = [place(row.index, ir.Constant(row.index.type, j)) for j in range(size)]
        yield row.index, formula([_Lanes(builder, builder.load(where)) for where in places])


@intrinsic(prefer_literal=True)
def _transform(typingctx, place, m, r, src, src0, src_row, src_col, dst, dst0, dst_row, dst_col, channels, ahead):
    """The formula number `place` of NAMES (a literal, as m and r) on one tile, for `channels` (a multiple of the
    vector's lanes); added to dst for the input gradient, whose tiles overlap.

    Points lie far apart, too many streams for the hardware to see. So those of the tile `ahead`, where they are read or
    written, are fetched meanwhile.
    """
    if not all(isinstance(t, types.IntegerLiteral) for t in (place, m, r)):
        return None
    i64 = types.int64
    signature = types.void(place, m, r, src, i64, i64, i64, dst, i64, i64, i64, i64, i64)
    name, side = NAMES[place.literal_value], m.literal_value + r.literal_value - 1
    formula, size = formula_of(name, m.literal_value, r.literal_value)
    reads = name in FROM_POINTS

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        src_, src0_, src_row_, src_col_, dst_, dst0_, dst_row_, dst_col_, channels_, ahead_ = args[3:]
        itemsize = src.dtype.bitwidth // 8
        lanes = VECTOR_BYTES // itemsize
        width = ir.Constant(ir.IntType(64), lanes)
        with cgutils.for_range(builder, builder.udiv(channels_, width)) as loop:
            shift = builder.mul(loop.index, width)
            source = _tile_pointer(context, builder, src, src_, builder.add(src0_, shift), src_row_, src_col_, lanes)
            target = _tile_pointer(context, builder, dst, dst_, builder.add(dst0_, shift), dst_row_, dst_col_, lanes)

            def load(i: int, j: int) -> _Lanes:
                return _Lanes(builder, _load(builder, source(i, j), itemsize))

            points = (src, src_, src0_, src_row_, src_col_) if reads else (dst, dst_, dst0_, dst_row_, dst_col_)
            kind, array, first, row_stride, column_stride = points
            first = builder.add(builder.add(first, shift), ahead_)
            following = _tile_pointer(context, builder, kind, array, first, row_stride, column_stride, lanes)
            in_line = ir.Constant(width.type, max(1, LINE // VECTOR_BYTES) - 1)
            begins_line = builder.icmp_unsigned("==", builder.and_(loop.index, in_line), ir.Constant(width.type, 0))

            def fetch(places: list[tuple[Any, Any]]) -> None:
                with builder.if_then(begins_line):
                    _fetch(builder, [following(i, j) for i, j in places], not reads)

            def before(j: Any) -> None:
                if reads:
                    fetch([(i, j) for i in range(size)])

            def put(i: Any, row: Any) -> None:
                if not reads:
                    fetch([(i, j) for j in range(len(row))])
                for j, cell in enumerate(row):
                    value = cell.value
                    if name == "input gradient":
                        value = builder.fadd(_load(builder, target(i, j), itemsize), value)
                    builder.store(value, target(i, j)).align = itemsize

            if side > UNROLLED:
                with _rows_in_loops(builder, formula, load, size, target(0, 0).type.pointee, before) as (i, row):
                    put(i, row)
            else:
                for j in range(size):
                    before(j)
                for i, row in enumerate(both_ways(formula, load, size)):
                    put(i, row)
        return context.get_dummy_value()

    return signature, codegen


def _transform_twin(place, m, r, src, src0, src_row, src_col, dst, dst0, dst_row, dst_col, channels, ahead):
    """What `_transform` computes, in NumPy: runs where Numba is switched off."""
    name = NAMES[place]
    formula, size = formula_of(name, m, r)

    def load(i: int, j: int) -> np.ndarray:
        start = src0 + i * src_row + j * src_col
        return src[start : start + channels].copy()

    for i, row in enumerate(both_ways(formula, load, size)):
        for j, cell in enumerate(row):
            start = dst0 + i * dst_row + j * dst_col
            if name == "input gradient":
                dst[start : start + channels] += cell
            else:
                dst[start : start + channels] = cell


def _pooled(builder: Any, grid: Tile) -> tuple[Tile, Tile]:
    """2x2 maxima of a tile of `_Lanes` and the winners' places: the first of equals, and NaN, win."""
    number = ir.VectorType(ir.IntType(32), grid[0][0].value.type.count)

    def place(k: int) -> Any:
        return ir.Constant(number, [k] * number.count)

    def better(new: tuple[Any, Any], old: tuple[Any, Any]) -> tuple[Any, Any]:
        larger = builder.fcmp_ordered(">", new[0], old[0])
        wins = builder.or_(larger, builder.fcmp_unordered("uno", new[0], new[0]))
        return builder.select(wins, new[0], old[0]), builder.select(wins, new[1], old[1])

    values, places = [], []
    for i in range(0, len(grid), 2):
        row = []
        for j in range(0, len(grid), 2):
            a, b, c, d = ((grid[i + k // 2][j + k % 2].value, place(k)) for k in range(4))
            row.append(better(better(d, c), better(b, a)))
        values.append([value for value, _ in row])
        places.append([where for _, where in row])
    return values, places


@intrinsic(prefer_literal=True)
def _finish(typingctx, m, r, pooled, wants, src, src0, src_row, src_col, dst, argmax, dst0, dst_row, dst_col, rows,
            columns, channels):  # fmt: skip
    """The outputs of one tile of points, and (if `pooled`) 2x2 max-pooling of the outputs, for `channels` (a
    multiple of the vector's lanes): the first `rows` times `columns` results into dst, and (if `wants`) the
    winners' places into argmax. m, r, pooled and wants are literals.
    """
    if not all(isinstance(t, types.IntegerLiteral) for t in (m, r, pooled, wants)):
        return None
    i64 = types.int64
    formula, points = formula_of("output", m.literal_value, r.literal_value)
    signature = types.void(m, r, pooled, wants, src, i64, i64, i64, dst, argmax, *[i64] * 6)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        src_, src0_, src_row_, src_col_, dst_, argmax_, dst0_, dst_row_, dst_col_, rows_, columns_, channels_ = args[4:]
        itemsize = src.dtype.bitwidth // 8
        lanes = VECTOR_BYTES // itemsize
        width = ir.Constant(ir.IntType(64), lanes)
        with cgutils.for_range(builder, builder.udiv(channels_, width)) as loop:
            shift = builder.mul(loop.index, width)
            source = _tile_pointer(context, builder, src, src_, builder.add(src0_, shift), src_row_, src_col_, lanes)
            first = builder.add(dst0_, shift)
            target = _tile_pointer(context, builder, dst, dst_, first, dst_row_, dst_col_, lanes)
            winner = _tile_pointer(context, builder, argmax, argmax_, first, dst_row_, dst_col_, lanes)

            def load(i: int, j: int) -> _Lanes:
                return _Lanes(builder, _load(builder, source(i, j), itemsize))

            if points > UNROLLED:  # an odd number of outputs, which are not pooled here
                with _rows_in_loops(builder, formula, load, points, target(0, 0).type.pointee) as (row, cells):
                    with builder.if_then(builder.icmp_signed("<", row, rows_)):
                        for j, cell in enumerate(cells):
                            with builder.if_then(builder.icmp_signed(">", columns_, ir.Constant(columns_.type, j))):
                                builder.store(cell.value, target(row, j)).align = itemsize
            else:
                grid = both_ways(formula, load, points)
                values: Tile = [[cell.value for cell in row] for row in grid]
                places: Tile = ()
                if pooled.literal_value:
                    values, places = _pooled(builder, grid)

                def store(i: int, j: int) -> None:
                    builder.store(values[i][j], target(i, j)).align = itemsize
                    if wants.literal_value:
                        pointer = winner(i, j)
                        builder.store(builder.trunc(places[i][j], pointer.type.pointee), pointer).align = 1

                size = len(values)
                whole = builder.and_(
                    builder.icmp_signed(">=", rows_, ir.Constant(rows_.type, size)),
                    builder.icmp_signed(">=", columns_, ir.Constant(rows_.type, size)),
                )
                with builder.if_else(whole) as (inside, edge):
                    with inside:
                        for place in range(size * size):
                            store(place // size, place % size)
                    with edge:
                        for i in range(size):
                            with builder.if_then(builder.icmp_signed(">", rows_, ir.Constant(rows_.type, i))):
                                for j in range(size):
                                    with builder.if_then(
                                        builder.icmp_signed(">", columns_, ir.Constant(rows_.type, j))
                                    ):
                                        store(i, j)
        return context.get_dummy_value()

    return signature, codegen


def _finish_twin(m, r, pooled, wants, src, src0, src_row, src_col, dst, argmax, dst0, dst_row, dst_col, rows, columns,
                 channels):  # fmt: skip
    """What `_finish` computes, in NumPy: runs where Numba is switched off."""

    def load(i: int, j: int) -> np.ndarray:
        start = src0 + i * src_row + j * src_col
        return src[start : start + channels]

    formula, points = formula_of("output", m, r)
    grid = np.array([list(row) for row in both_ways(formula, load, points)])
    places = np.zeros(grid.shape, int)
    if pooled:
        windows = grid.reshape(m // 2, 2, m // 2, 2, channels).swapaxes(1, 2).reshape(m // 2, m // 2, 4, channels)
        places = windows.argmax(2)  # NumPy's argmax takes the first of equals, and NaN, too
        grid = np.take_along_axis(windows, places[:, :, None], 2)[:, :, 0]
    for i in range(min(rows, len(grid))):
        for j in range(min(columns, len(grid))):
            start = dst0 + i * dst_row + j * dst_col
            dst[start : start + channels] = grid[i, j]
            if wants:
                argmax[start : start + channels] = places[i, j]


if numba.config.DISABLE_JIT:
    _transform, _finish = _transform_twin, _finish_twin


@family
def transform_kernel(name: str, m: int, r: int) -> Kernel:
    """A kernel that applies the formula `name` of F(m x m, r x r) to the tiles start..stop.

    Its arguments: (src, dst, source, target, channels, width): `source` and `target` are (start, row, column,
    tile, block): the place of the first tile in the flat array, and the distances between rows, columns, tiles
    and blocks of `width` channels.
    """
    place, from_points = NAMES.index(name), name in FROM_POINTS

    @Kernel
    def transform(start, stop, lane, args):
        src, dst, source, target, channels, width = unpack(args)
        src0, src_row, src_col, src_tile, src_block = source
        dst0, dst_row, dst_col, dst_tile, dst_block = target
        ahead = src_tile if from_points else dst_tile
        for tile in range(start, stop):
            a, b = src0 + tile * src_tile, dst0 + tile * dst_tile
            for c in range(0, channels, width):
                count = min(width, channels - c)
                _transform(place, m, r, src, a, src_row, src_col, dst, b, dst_row, dst_col, count, ahead)
                a += src_block
                b += dst_block

    return transform


def transform_address(name: str, m: int, r: int, dtype: Any) -> Any:
    """What `call` takes to run that kernel on arrays of `dtype`."""
    x, places = empty(dtype), (0, 0, 0, 0, 0)
    return address_for(transform_kernel(name, m, r), x, x, places, places, 0, 0)


@family
def output_kernel(m: int, r: int, pooled: bool, wants: bool) -> Kernel:
    """A kernel that turns the tiles of points start..stop of one row of tiles into outputs, max-pooled in
    windows of 2x2 if `pooled`, with their winners if `wants`.

    Its arguments: (src, dst, argmax, source, target, rows, columns, channels): source and target as above, and how
    many rows of this row of tiles, and columns of the whole row, there are to write.
    """
    pool, want, size = int(pooled), int(wants), m // 2 if pooled else m

    @Kernel
    def finish(start, stop, lane, args):
        src, dst, argmax, source, target, rows, columns, channels = unpack(args)
        src0, src_row, src_col, src_tile = source
        dst0, dst_row, dst_col, dst_tile = target
        for tile in range(start, stop):
            a, b = src0 + tile * src_tile, dst0 + tile * dst_tile
            left = columns - tile * size
            _finish(m, r, pool, want, src, a, src_row, src_col, dst, argmax, b, dst_row, dst_col, rows, left, channels)

    return finish


def output_address(m: int, r: int, pooled: bool, wants: bool, dtype: Any, argmax_dtype: Any) -> Any:
    """What `call` takes to run that kernel on arrays of these dtypes."""
    x, places = empty(dtype), (0, 0, 0, 0)
    return address_for(output_kernel(m, r, pooled, wants), x, x, empty(argmax_dtype), places, places, 0, 0, 0)
