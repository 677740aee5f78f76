"""Dense layers: three matrix products on the micro-kernel, with bias and activation applied to each lane's
rows while they are hot.

Forward cuts the batch into lanes and reads the weight where it lies, but for the last, narrower panel of columns.
The input gradient cuts the columns of x, the weight gradient the rows of the weight: a lane packs what it needs
of the other operand, once, and every sum runs over the whole batch in one order.

A weight of BLAS_WEIGHTS elements and more does not stay in any cache, and reading it for a small batch costs
more than the product: such layers go to BLAS, on one thread, so that their sums do not depend on the thread
count either.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastcnn.kernels.cpu._blas import gemm
from fastcnn.kernels.cpu.denormals import flushed
from fastcnn.kernels.cpu.epilogue import activate_address, activate_kernel, gradient_address
from fastcnn.kernels.cpu.launch import ColumnKernel, Kernel, RowKernel, call, launch, on_host, unpack
from fastcnn.kernels.cpu.lowering import PIXELS, offsets, panel_offsets
from fastcnn.kernels.cpu.microkernel import ADD, ZERO, multiply_rows_address, panel_width
from fastcnn.kernels.cpu.runtime import U, as_input, one_blas_thread
from fastcnn.kernels.cpu.transposition import transpose

DEPTH = 256  # terms of the sum in one pass over the rows: a panel of them stays in the first-level cache
ROWS = 96  # of the weight gradient at a time: so much of x, packed, stays in the cache beside a panel of dz
BLAS_WEIGHTS = 1 << 20
FEW_ROWS = 16  # with fewer, lanes share the weight instead of the batch


def dense_forward_scratch(n: int, n_in: int, n_out: int, dtype: Any, lanes: int) -> int:
    """Elements: the last panel of the weight."""
    return n_in * panel_width(np.dtype(dtype).itemsize)


def _panels(n_out: int, width: int) -> int:
    return -(-n_out // width)


def dense_backward_scratch(n: int, n_in: int, n_out: int, dtype: Any, lanes: int) -> int:
    """Elements: the gradient before the activation, in rows and in panels; then a block for each lane, of the
    weight or of x.
    """
    width = panel_width(np.dtype(dtype).itemsize)
    return n * n_out + _panels(n_out, width) * n * width + lanes * _block(n, n_out, width)


def _block(n: int, n_out: int, width: int) -> int:
    return max(n_out, ROWS // width * n) * width


@Kernel
def _pack_last_panel(start, stop, lane, args):
    weight, n_out, first, width, scratch = unpack(args)
    for k in range(start, stop):
        for j in range(n_out - first):
            scratch[U(k * width + j)] = weight[U(k * n_out + first + j)]
        for j in range(n_out - first, width):
            scratch[U(k * width + j)] = 0


@RowKernel
def _forward_rows(start, stop, lane, args):
    """The rows start..stop of y; or (`by_panel`, without the activation) its panels of columns."""
    x, weight, bias, y, scratch, sizes, width, kernels, act, x_rows, y_rows, segment = unpack(args)
    n, n_in, n_out, by_panel = sizes
    multiply, activate = kernels
    row0, row1, column0, column1 = start, stop, 0, n_out
    if by_panel:
        row0, row1, column0, column1 = 0, n, start * width, min(stop * width, n_out)
    for k0 in range(0, n_in, DEPTH):
        depth = min(DEPTH, n_in - k0)
        for first in range(column0, column1, width):
            valid = min(width, n_out - first)
            source, at, step = weight, k0 * n_out + first, n_out
            if valid < width:
                source, at, step = scratch, k0 * width, width
            tile = (
                x,
                k0,
                x_rows,
                y,
                first,
                y_rows,
                segment,
                depth,
                1,
                source,
                at,
                step,
                0,
                valid,
                ADD if k0 > 0 else ZERO,
            )
            call(multiply, row0, row1, lane, tile)
    if not by_panel:
        call(activate, row0, row1, lane, (y, n_out, bias, act))


def _gemms(*products):
    with one_blas_thread(), flushed():
        for a, b, out, *transposed in products:
            gemm(a, b, out, *transposed)


def dense_forward(x, weight, bias, activation, y, scratch):
    """y (N,n_out) = activation(x (N,n_in) @ weight (n_in,n_out) + bias)."""
    x, weight, bias = as_input(x), as_input(weight), as_input(bias)
    n, (n_in, n_out), width = x.shape[0], weight.shape, panel_width(y.itemsize)
    if weight.size >= BLAS_WEIGHTS:
        on_host(lambda: _gemms((x, weight, y)))
        launch(activate_kernel(activation.code), n, y.size, y.reshape(-1), n_out, bias, tuple(activation))
        return
    last = n_out - n_out % width
    if last < n_out:
        work = n_in * (n_out - last)
        launch(_pack_last_panel, n_in, work, weight.reshape(-1), n_out, last, width, scratch)
    by_panel = n < FEW_ROWS
    kernels = multiply_rows_address(y.dtype), activate_address(y.dtype, activation)
    launch(
        _forward_rows, _panels(n_out, width) if by_panel else n, n * n_in * n_out // 8, x.reshape(-1),
        weight.reshape(-1), bias, y.reshape(-1), scratch, (n, n_in, n_out, int(by_panel)), width, kernels,
        tuple(activation), offsets(n, n_in), offsets(n, n_out), offsets(1, 0),
    )  # fmt: skip
    if by_panel:
        launch(activate_kernel(activation.code), n, y.size, y.reshape(-1), n_out, bias, tuple(activation))


@Kernel
def _gradient_rows(start, stop, lane, args):
    """dz by rows, and by panels of columns for the weight gradient."""
    y, dy, gradient, alpha, sizes, width, dz = unpack(args)
    n, _, n_out = sizes
    call(gradient, start * n_out, stop * n_out, lane, (y, dy, alpha, dz))
    for first in range(0, n_out, width):
        valid, panel = min(width, n_out - first), n * n_out + first * n
        for i in range(start, stop):
            for j in range(valid):
                dz[U(panel + i * width + j)] = dz[U(i * n_out + first + j)]
            for j in range(valid, width):
                dz[U(panel + i * width + j)] = 0


@Kernel
def _input_panels(start, stop, lane, args):
    """dx = dz W': panels of columns of dx."""
    weight, dx, scratch, sizes, width, blocks, multiply, dz_rows, dx_rows, segment = unpack(args)
    n, n_in, n_out = sizes
    block0 = blocks[0] + lane * blocks[1]
    for panel in range(start, stop):
        first = panel * width
        valid = min(width, n_in - first)
        transpose(weight, first * n_out, valid, n_out, n_out, scratch, block0, width)
        for k in range(n_out):
            for j in range(valid, width):
                scratch[U(block0 + k * width + j)] = 0
        for k0 in range(0, n_out, DEPTH):
            tile = (
                scratch, k0, dz_rows, dx, first, dx_rows, segment, min(DEPTH, n_out - k0), 1, scratch,
                block0 + k0 * width, width, 0, valid,
                ADD if k0 > 0 else ZERO,
            )  # fmt: skip
            call(multiply, 0, n, lane, tile)


@Kernel
def _weight_rows(start, stop, lane, args):
    """dw = x' dz: rows of dw, ROWS of them at a time."""
    x, dw, scratch, sizes, width, blocks, multiply, x_rows, dw_rows, segment = unpack(args)
    n, n_in, n_out = sizes
    block0 = blocks[0] + lane * blocks[1]
    for block in range(start, stop):
        first = block * ROWS
        rows = min(ROWS, n_in - first)
        for column in range(0, rows, width):
            valid, at = min(width, rows - column), block0 + column * n
            for i in range(n):
                source = i * n_in + first + column
                for j in range(valid):
                    scratch[U(at + i * width + j)] = x[U(source + j)]
        for k0 in range(0, n_out, width):
            for n0 in range(0, max(n, 1), PIXELS):  # without images: a product of nothing, zeros
                tile = (
                    scratch, block0 + n0 * width, x_rows, dw, first * n_out + k0, dw_rows, segment,
                    min(PIXELS, n - n0), width, scratch, n * n_out + k0 * n + n0 * width, width, 0,
                    min(width, n_out - k0), ADD if n0 > 0 else ZERO,
                )  # fmt: skip
                call(multiply, 0, rows, lane, tile)


@ColumnKernel
def _bias_columns(start, stop, lane, args):
    dz, rows, columns, db = unpack(args)
    for j in range(start, stop):
        db[j] = 0
    for i in range(rows):
        for j in range(start, stop):
            db[j] += dz[U(i * columns + j)]


def dense_backward(x, weight, y, dy, activation, dx, dw, db, scratch):
    """dx, dw, db from the gradient dy of the dense block's output y. dy is not changed."""
    x, weight, y, dy = as_input(x), as_input(weight), as_input(y), as_input(dy)
    n, (n_in, n_out) = x.shape[0], weight.shape
    width, multiply, sizes = panel_width(dy.itemsize), multiply_rows_address(dy.dtype), (n, n_in, n_out)
    launch(
        _gradient_rows, n, n * n_out, y.reshape(-1), dy.reshape(-1), gradient_address(y.dtype, activation),
        float(activation.alpha), sizes, width, scratch,
    )  # fmt: skip
    if db.size:
        launch(_bias_columns, n_out, n * n_out, scratch, n, n_out, db)
    if weight.size >= BLAS_WEIGHTS:
        dz = scratch[: n * n_out].reshape(n, n_out)
        products = [(x, dz, dw, True, False)] if dw.size else []
        products += [(dz, weight, dx, False, True)] if dx.size else []
        on_host(lambda: _gemms(*products))
        return
    blocks = (n * n_out + _panels(n_out, width) * n * width, _block(n, n_out, width))
    work, rows = n * n_in * n_out // 8, x.reshape(-1)
    if dw.size:
        launch(
            _weight_rows, -(-n_in // ROWS), work, rows, dw.reshape(-1), scratch, sizes, width, blocks, multiply,
            panel_offsets(ROWS, width, n * width), offsets(ROWS, n_out), offsets(1, 0),
        )  # fmt: skip
    if dx.size:
        launch(
            _input_panels, _panels(n_in, width), work, weight.reshape(-1), dx.reshape(-1), scratch, sizes, width,
            blocks, multiply, offsets(n, n_out), offsets(n, n_in), offsets(1, 0),
        )  # fmt: skip
