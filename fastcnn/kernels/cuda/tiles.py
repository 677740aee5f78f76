"""Tiles of a matrix product: which block of threads computes how much of it, and the code that all products share.

A block of threads computes `rows` x `columns` numbers of C = A B, `depth` terms of the sum at a time. Both operands'
parts lie in shared memory, twice: while one is multiplied, the next is read. A thread keeps `per_rows` x `per_columns`
sums in registers: quads of rows and columns that lie apart, so that a warp reads shared memory without conflicts.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastcnn.kernels.cuda.driver import SIMULATED, device_function
from fastcnn.kernels.cuda.intrinsics import load4, store4

__all__ = [
    "ALIGNMENT",
    "TILES",
    "Operand",
    "Shape",
    "Tile",
    "choose_splits",
    "choose_tile",
    "matrix_reader",
    "multiplier",
    "operand",
]

ALIGNMENT = None if SIMULATED else 16  # bytes, of shared memory that is read in quads
_GAP = 4  # numbers between two rows in shared memory, against conflicts of its banks
_BLOCKS = 264  # what keeps a large GPU busy: two blocks for each of its 132 multiprocessors


class Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    per_rows: int
    per_columns: int

    @property
    def threads(self) -> int:
        return (self.rows // self.per_rows) * (self.columns // self.per_columns)


# The last is for what is tiny (and for the simulator, whose threads are Python's).
TILES = (
    Tile(128, 128, 8, 8, 8),
    Tile(128, 64, 16, 8, 4),
    Tile(64, 64, 16, 4, 4),
    Tile(128, 32, 16, 8, 4),
    Tile(64, 16, 16, 4, 4),
    Tile(16, 64, 16, 4, 4),
    Tile(16, 16, 8, 4, 4),
)


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
        return TILES[-1]
    if shape.rows <= 16:
        return TILES[5]
    if shape.columns <= 16:
        return TILES[4]
    if shape.columns <= 32:
        return TILES[3]
    for tile in TILES[:2] if quads and dtype.itemsize == 4 else ():
        if shape.columns > tile.columns // 2 and blocks(shape, tile) >= _BLOCKS:
            return tile
    return TILES[2]


def blocks(shape: Shape, tile: Tile) -> int:
    """How many blocks a product takes."""
    return -(-shape.rows // tile.rows) * -(-shape.columns // tile.columns) * shape.groups


def choose_splits(shape: Shape, tile: Tile, most: int = 128) -> tuple[int, int]:
    """In how many parts the sum is cut, each for blocks of its own, and the terms of one; by the shape alone."""
    steps = max(-(-shape.depth // tile.depth), 1)
    wanted = min(-(-_BLOCKS // max(blocks(shape, tile), 1)), most, -(-steps // 8))
    each = -(-steps // max(wanted, 1))
    return -(-steps // each), each * tile.depth


class Operand(NamedTuple):
    """How a tile's part of A or B comes into shared memory: a thread reads `items` times `width` numbers of it."""

    size: int  # numbers in shared memory, of both parts
    items: int
    numbers: int
    lanes_along: int  # threads side by side along a line of the tile
    lanes_deep: int  # the same where the operand is read along the sum
    keep: Any
    keep_turned: Any


@cache
def operand(length: int, depth: int, threads: int, width: int) -> Operand:
    """Of a tile whose lines have `length` numbers; `width`: 4 where quads can be read at once, else 1."""
    line = length + _GAP
    part_size, items = depth * line, length * depth // width // threads
    along, deep = length // width, depth // width

    @device_function
    def keep(tile, part, t, numbers):
        """What a thread has read along the tile's lines, into shared memory."""
        for i in range(items):
            e = t + i * threads
            at = part * part_size + e // along * line + e % along * width
            if width == 4:
                store4(tile, at, numbers[i * 4], numbers[i * 4 + 1], numbers[i * 4 + 2], numbers[i * 4 + 3])
            else:
                tile[at] = numbers[i]

    @device_function
    def keep_turned(tile, part, t, numbers):
        """What a thread has read along the sum, into shared memory."""
        for i in range(items):
            e = t + i * threads
            at = part * part_size + e % deep * width * line + e // deep
            for n in range(width):
                tile[at + n * line] = numbers[i * width + n]

    return Operand(2 * part_size, items, items * width, along, deep, keep, keep_turned)


@cache
def multiplier(tile: Tile) -> Any:
    """The device function that multiplies what lies in shared memory."""
    rows, columns, depth, per_rows, per_columns = tile
    across, row_quads, column_quads = columns // per_columns, per_rows // 4, per_columns // 4
    row_spread, column_spread = rows // row_quads, columns // column_quads
    a_line, b_line = rows + _GAP, columns + _GAP

    @device_function
    def multiply(a_tile, b_tile, part, t, a, b, sums):
        """sums += the part's product; `a` and `b` are the thread's own, of `per_rows` and `per_columns` numbers."""
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
def matrix_reader(tile: Tile, width: int, real: Any) -> Any:
    """The device function that reads the tile's part of an operand B that is a matrix."""
    columns, threads = tile.columns, tile.threads
    items, lanes, zero = columns * tile.depth // width // threads, columns // width, np.dtype(real).type(0)

    @device_function
    def read_matrix(matrix, line, start, column, t, d, d_end, numbers):
        """Lines d.. up to d_end of a matrix whose lines are `line` long, from `start` + `column` on (< 0: nothing)."""
        for i in range(items):
            at = d + (t + i * threads) // lanes
            inside = at < d_end and column >= 0
            if width == 4:
                if inside:
                    quad = load4(matrix, at * line + start + column)
                    numbers[i * 4], numbers[i * 4 + 1], numbers[i * 4 + 2], numbers[i * 4 + 3] = quad
                else:
                    for n in range(4):
                        numbers[i * 4 + n] = zero
            else:
                numbers[i] = matrix[at * line + start + column] if inside else zero

    return read_matrix
