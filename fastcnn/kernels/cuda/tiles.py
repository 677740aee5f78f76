"""Tiles of a matrix product: which block of threads computes how much of it, and the code that all products share.

A block of threads computes `rows` x `columns` numbers of C = A B, `depth` terms of the sum at a time. Parts of both
operands lie in shared memory: while one is multiplied, the next are on their way. A thread keeps `per_rows` x
`per_columns` sums in registers: quads of rows and columns that lie apart, so that a warp reads shared memory without
conflicts. Tiles with `cores` are multiplied by tensor cores (`tensor.py`), the others number by number.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastcnn.kernels.contract import PRECISIONS
from fastcnn.kernels.cuda import tensor
from fastcnn.kernels.cuda.driver import SIMULATED, device_function, has_tensor_cores
from fastcnn.kernels.cuda.intrinsics import fetch1, fetch4, load4, narrow

__all__ = [
    "ALIGNMENT",
    "TENSOR_TILES",
    "TILES",
    "Operand",
    "Shape",
    "Tile",
    "choose_splits",
    "choose_tile",
    "corner",
    "matrix_putter",
    "multiplier",
    "operand",
    "parts_of",
    "precise",
]

ALIGNMENT = None if SIMULATED else 16  # bytes, of shared memory that is read in quads
_GAP = 4  # numbers between two rows in shared memory, against conflicts of its banks
_MOST_PARTS = 1024  # that a sum is cut into
_BUSY = 264 * 256  # threads that keep a large GPU busy: two blocks of 256 for each of its 132 multiprocessors


class Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    per_rows: int
    per_columns: int
    cores: str = ""  # the precision of tensor cores, if they multiply

    @property
    def threads(self) -> int:
        return (self.rows // self.per_rows) * (self.columns // self.per_columns)

    @property
    def registers(self) -> int | None:
        """The most that a thread may have: with 128, four blocks of four warps find room on a multiprocessor."""
        return 128 if self.cores and self.per_rows * self.per_columns == 32 else None

    @property
    def row_spread(self) -> int:
        """From one quad of a thread's rows to the next."""
        return 32 if self.cores else self.rows // (self.per_rows // 4)

    @property
    def column_spread(self) -> int:
        return 4 if self.cores else self.columns // (self.per_columns // 4)


# The first three serve double precision, and cards without tensor cores; the last but one what is tiny (and the
# simulator, whose threads are Python's).
TILES = (
    Tile(128, 128, 8, 8, 8),
    Tile(128, 64, 16, 8, 4),
    Tile(64, 64, 16, 4, 4),
    Tile(128, 32, 16, 8, 4),
    Tile(64, 16, 16, 4, 4),
    Tile(16, 64, 16, 4, 4),
    Tile(16, 16, 8, 4, 4),
    Tile(16, 32, 16, 4, 4),
)

TENSOR_TILES = (
    Tile(64, 64, tensor.DEPTH, 8, 8, "float32"),
    Tile(128, 32, tensor.DEPTH, 4, 8, "float32"),
    Tile(64, 64, tensor.DEPTH, 4, 8, "float32"),
    Tile(32, 32, tensor.DEPTH, 4, 8, "float32"),
)

_local = threading.local()


@contextmanager
def precise(precision: str) -> Iterator[None]:
    """Within the block tensor cores multiply float32 in this precision, one of `PRECISIONS`."""
    before = getattr(_local, "precision", PRECISIONS[0])
    _local.precision = precision
    try:
        yield
    finally:
        _local.precision = before


class Shape(NamedTuple):
    """Of a product, and how many of them there are side by side."""

    rows: int
    columns: int
    depth: int
    groups: int


def choose_tile(shape: Shape, dtype: np.dtype[Any], quads: bool) -> Tile:
    """The tile for a product, by its shape alone: not much wider than the product, and blocks enough for the GPU.

    `quads`: whether all operands can be read in quads. Else, and in double precision, the sums of the largest tiles
    would not stay in registers.
    """
    if shape.rows * shape.columns <= 1024 and shape.depth <= 4096:
        return TILES[6]
    if shape.rows <= 16:
        return TILES[5 if shape.columns > 32 else 7]
    if shape.columns <= 16:
        return TILES[4]
    if dtype == np.float32 and has_tensor_cores():
        return _tensor_tile(shape, quads)._replace(cores=getattr(_local, "precision", PRECISIONS[0]))
    if shape.columns <= 32:
        return TILES[3]
    for tile in TILES[:2] if quads and dtype.itemsize == 4 else ():
        if shape.columns > tile.columns // 2 and blocks(shape, tile) * tile.threads >= _BUSY:
            return tile
    return TILES[2]


def _tensor_tile(shape: Shape, quads: bool) -> Tile:
    """The widest tile that fits the columns, with many sums for a thread if its blocks keep the GPU busy so."""
    if shape.columns <= 32 or shape.rows <= 32:
        return TENSOR_TILES[1 if shape.rows >= 4096 else 3]
    many = blocks(shape, TENSOR_TILES[0]) >= 3 * 132
    return TENSOR_TILES[0 if many and quads else 2]


def blocks(shape: Shape, tile: Tile) -> int:
    """How many blocks a product takes."""
    return -(-shape.rows // tile.rows) * -(-shape.columns // tile.columns) * shape.groups


def choose_splits(shape: Shape, tile: Tile) -> tuple[int, int]:
    """In how many parts the sum is cut, each for blocks of its own, and the terms of one; by the shape alone."""
    steps = max(-(-shape.depth // tile.depth), 1)
    n_blocks = max(blocks(shape, tile), 1)
    least = 2 if n_blocks <= 16 else 8  # steps of one part: reading the first takes longer than the rest
    # Not one block more than there is room for: those left over would take as long again.
    wanted = max(min(_BUSY // (tile.threads * n_blocks), _MOST_PARTS, -(-steps // least)), 1) if n_blocks < 264 else 1
    each = -(-steps // wanted)
    return -(-steps // each), each * tile.depth


def parts_of(real: Any) -> int:
    """How many parts of the operands are in shared memory at once; 48 KB hold so many of the largest tile."""
    return 3 if np.dtype(real).itemsize == 4 else 2


class Operand(NamedTuple):
    """How parts of A or B come into shared memory: a thread brings `items` times `width` numbers of each."""

    size: int  # numbers of one part
    items: int
    lanes: int  # threads side by side along the sum, if the operand is read along it; else along a line of the tile
    put: Any  # the device function that does it: put(tile, part, t, item, source, index, inside)


@cache
def operand(length: int, tile: Tile, width: int, deep: bool) -> Operand:
    """Of a tile whose lines have `length` numbers; `width`: 4 where quads can be read at once, else 1. `deep`: it is
    read along the sum.
    """
    depth, threads = tile.depth, tile.threads
    line = length if tile.cores else length + _GAP
    part_size, items = depth * line, length * depth // width // threads
    lanes = (depth if deep else length) // width
    if tile.cores:
        return Operand(part_size, items, lanes, tensor.putter(length, threads, width, deep))
    fetch = fetch4 if width == 4 else fetch1

    @device_function
    def put_along(tile, part, t, i, source, index, inside):
        e = t + i * threads
        fetch(tile, part * part_size + e // lanes * line + e % lanes * width, source, index, inside)

    @device_function
    def put_deep(tile, part, t, i, source, index, inside):
        e = t + i * threads
        at = part * part_size + e % lanes * width * line + e // lanes
        for n in range(width):
            fetch1(tile, at + n * line, source, index + n, inside)

    return Operand(part_size, items, lanes, put_deep if deep else put_along)


@cache
def corner(tile: Tile) -> Any:
    """The device function that gives the first row and column of thread t's sums."""
    across, per_rows = tile.columns // tile.per_columns, tile.per_rows
    warps_across = tile.columns // 32

    @device_function
    def of_numbers(t):
        return t // across * 4, t % across * 4

    @device_function
    def of_warps(t):
        return tensor.corner(t, warps_across, per_rows)

    return of_warps if tile.cores else of_numbers


@cache
def multiplier(tile: Tile, a_deep: bool, b_deep: bool) -> Any:
    """The device function that multiplies what lies in shared memory; the operands were read along the sum, or not."""
    rows, columns, depth, per_rows, per_columns, cores = tile
    if cores:
        return tensor.fragment_multiplier(rows, columns, per_rows, a_deep, b_deep, cores)
    across, row_quads, column_quads = columns // per_columns, per_rows // 4, per_columns // 4
    row_spread, column_spread = tile.row_spread, tile.column_spread
    a_line, b_line = rows + _GAP, columns + _GAP

    @device_function
    def multiply(a_tile, b_tile, part, t, a, b, sums, a_scale, b_scale):
        """sums += the part's product; `a` and `b` are the thread's own, of `per_rows` and `per_columns` numbers. The
        scales are for fp16 alone.
        """
        a_at = part * depth * a_line + t // across * 4
        b_at = part * depth * b_line + t % across * 4
        for d in range(depth):
            for i in range(row_quads):
                quad = load4(a_tile, a_at + d * a_line + i * row_spread)
                a[i * 4], a[i * 4 + 1], a[i * 4 + 2], a[i * 4 + 3] = quad
            for j in range(column_quads):
                quad = load4(b_tile, b_at + d * b_line + j * column_spread)
                b[j * 4], b[j * 4 + 1], b[j * 4 + 2], b[j * 4 + 3] = quad
            for i in range(per_rows):
                for j in range(per_columns):
                    sums[i * per_columns + j] += a[i] * b[j]

    return multiply


@cache
def matrix_putter(tile: Tile, width: int) -> Any:
    """The device function that brings a part of an operand B that is a matrix into shared memory."""
    _, items, lanes, put = operand(tile.columns, tile, width, False)
    threads = tile.threads

    @device_function
    def put_matrix(b_tile, part, t, matrix, line, start, column, d, d_end):
        """Lines d.. up to d_end of a matrix whose lines are `line` long, from `start` + `column` on (< 0: nothing)."""
        for i in range(items):
            at = narrow(d + (t + i * threads) // lanes)
            put(b_tile, part, t, i, matrix, at * line + (start + column), at < d_end and column >= 0)

    return put_matrix
