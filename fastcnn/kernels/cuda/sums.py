"""Sums with one order: over columns of a table, in two stages, and over stacks of partial sums."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastcnn.kernels.cuda.activations import activation_functions
from fastcnn.kernels.cuda.arrays import DeviceArray, none, workspace
from fastcnn.kernels.cuda.driver import SIMULATED, Kernel, cuda, kernel, launch, linear, types
from fastcnn.kernels.cuda.intrinsics import quotient

__all__ = ["LINES", "WIDTH", "add_parts", "chunks_of", "column_parts", "column_sums"]

# A block sums WIDTH columns, LINES rows at a time.
WIDTH, LINES = (4, 2) if SIMULATED else (32, 8)
CELLS = WIDTH * LINES
MANY_LINES = 2 if SIMULATED else 32  # of a block that adds up what others have summed
AT_ONCE = 4  # numbers that a thread asks for before it adds the first of them
MOST_CHUNKS = 512
_FEW_PARTS = 16  # so many a thread adds up alone
_MANY_SUMS = 2**16  # so many threads, one for each sum, keep the GPU busy


def chunks_of(rows: int, columns: int) -> tuple[int, int]:
    """Into how many chunks the rows of a table are cut, and the rows of one; by its shape alone."""
    across = -(-columns // WIDTH)
    each = max(-(-rows // max(1, MOST_CHUNKS // across)), 4 * LINES, 1)
    return max(-(-rows // each), 1), each


@cache
def parts_kernel(real: Any) -> Kernel:
    """y = activation(sum of the stack's parts + bias), the parts in their order."""
    activate, _ = activation_functions(real)
    number, zero = getattr(types, np.dtype(real).name), np.dtype(real).type(0)

    @kernel("R R R i i i i i r")
    def add_parts(parts, bias, y, n_parts, size, width, has_bias, code, alpha):
        some = cuda.local.array(AT_ONCE, number)
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            total = zero
            for first in range(0, n_parts, AT_ONCE):
                for j in range(AT_ONCE):
                    some[j] = parts[(first + j) * size + i] if first + j < n_parts else zero
                for j in range(AT_ONCE):
                    total += some[j]
            if has_bias:
                total += bias[i - quotient(i, width) * width]
            y[i] = activate(total, code, alpha)

    return add_parts


@cache
def many_parts_kernel(real: Any) -> Kernel:
    """The same for stacks of many parts: each line of a block adds up its share of them, the first line the shares."""
    activate, _ = activation_functions(real)
    number, zero = getattr(types, np.dtype(real).name), np.dtype(real).type(0)
    cells_size = WIDTH * MANY_LINES

    @kernel("R R R i i i i i r", registers=64)
    def add_many_parts(parts, bias, y, n_parts, size, width, has_bias, code, alpha):
        cells = cuda.shared.array(cells_size, number)
        i = cuda.blockIdx.x * WIDTH + cuda.threadIdx.x
        total = zero
        if i < size:
            for first in range(cuda.threadIdx.y, n_parts, AT_ONCE * MANY_LINES):
                for j in range(first, first + AT_ONCE * MANY_LINES, MANY_LINES):
                    if j < n_parts:
                        total += parts[j * size + i]
        cells[cuda.threadIdx.y * WIDTH + cuda.threadIdx.x] = total
        cuda.syncthreads()
        if cuda.threadIdx.y == 0 and i < size:
            total = zero
            for line in range(MANY_LINES):
                total += cells[line * WIDTH + cuda.threadIdx.x]
            if has_bias:
                total += bias[i - quotient(i, width) * width]
            y[i] = activate(total, code, alpha)

    return add_many_parts


def add_parts(parts: DeviceArray, n_parts: int, y: DeviceArray, bias: Any = None, activation: Any = (0, 0.0)) -> None:
    """y = activation(sum of the `n_parts` arrays in `parts`, + bias along the last axis)."""
    has_bias = bias is not None and bias.size > 0
    vectors = parts, bias if has_bias else none(y.dtype), y
    args = (n_parts, y.size, y.shape[-1], has_bias, *activation)
    if n_parts <= _FEW_PARTS or y.size >= _MANY_SUMS:
        linear(parts_kernel(y.dtype), y.size, *vectors, *args)
    else:
        launch(many_parts_kernel(y.dtype), -(-y.size // WIDTH), (WIDTH, MANY_LINES), *vectors, *args)


@cache
def column_kernel(real: Any) -> Kernel:
    """Sums of the columns of activation'(y) * dy, one for each chunk of rows."""
    _, gradient = activation_functions(real)
    number, zero = getattr(types, np.dtype(real).name), np.dtype(real).type(0)

    @kernel("R R R i i i i r")
    def column_sums(y, dy, parts, rows, columns, each, code, alpha):
        cells = cuda.shared.array(CELLS, number)
        column = cuda.blockIdx.x * WIDTH + cuda.threadIdx.x
        first = cuda.blockIdx.y * each
        total = zero
        if column < columns:
            for row in range(first + cuda.threadIdx.y, min(first + each, rows), LINES):
                at = row * columns + column
                total += gradient(y[at], dy[at], code, alpha)
        cells[cuda.threadIdx.y * WIDTH + cuda.threadIdx.x] = total
        cuda.syncthreads()
        if cuda.threadIdx.y == 0 and column < columns:
            total = zero
            for line in range(LINES):
                total += cells[line * WIDTH + cuda.threadIdx.x]
            parts[cuda.blockIdx.y * columns + column] = total

    return column_sums


def column_parts(rows: int, columns: int) -> int:
    """How many numbers `column_sums` sums up before the last stage."""
    return chunks_of(rows, columns)[0] * columns


def column_sums(y: Any, dy: Any, activation: Any, out: DeviceArray, parts: DeviceArray | None = None) -> None:
    """out (C,) = sums of the columns of activation'(y) * dy (rows,C). `parts`: scratch, of `column_parts`."""
    columns = out.size
    rows = dy.size // columns
    n_chunks, each = chunks_of(rows, columns)
    parts = workspace(n_chunks * columns, dy.dtype) if parts is None else parts
    grid = -(-columns // WIDTH), n_chunks
    launch(column_kernel(dy.dtype), grid, (WIDTH, LINES), y, dy, parts, rows, columns, each, *activation)
    add_parts(parts, n_chunks, out)
