"""Dense layers: three matrix products on the micro-kernel, with bias and activation applied to each lane's
rows while they are hot.

Forward and input gradient cut the batch into lanes and pack the weight block by block (DEPTH of the sum, one
panel of columns) into a lane's scratch; the weight gradient cuts the rows of the weight, so every sum runs
over the whole batch in one order.

A weight of BLAS_WEIGHTS elements and more does not stay in any cache, and packing it for a small batch costs
more than the product: such layers go to BLAS, on one thread, so that their sums do not depend on the thread
count either.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fastcnn.kernels.cpu._blas import gemm
from fastcnn.kernels.cpu.epilogue import activate_address, activate_rows, gradient_before
from fastcnn.kernels.cpu.launch import ColumnKernel, Kernel, call, launch, on_host, unpack
from fastcnn.kernels.cpu.microkernel import multiply_rows_address, panel_width
from fastcnn.kernels.cpu.runtime import U, as_input, one_blas_thread

DEPTH = 256  # terms of the sum in one packed block: a panel of them stays in the first-level cache


BLAS_WEIGHTS = 1 << 20


@lru_cache(maxsize=256)
def _offsets(count: int, pitch: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64) * pitch


def dense_forward_scratch(n: int, n_in: int, n_out: int, dtype: Any, lanes: int) -> int:
    """Elements: a packed block for each lane."""
    return lanes * DEPTH * panel_width(np.dtype(dtype).itemsize)


def dense_backward_scratch(n: int, n_in: int, n_out: int, dtype: Any, lanes: int) -> int:
    """Elements: the gradient before the activation (readable a panel past its end), then a packed block for
    each lane.
    """
    width = panel_width(np.dtype(dtype).itemsize)
    return n * n_out + width + lanes * DEPTH * width


@Kernel
def _forward_rows(start, stop, lane, args):
    x, weight, bias, y, scratch, sizes, width, multiply, activate, act, x_rows, y_rows, segment = unpack(args)
    n_in, n_out = sizes
    block0 = lane * DEPTH * width
    for first in range(0, n_out, width):
        valid = min(width, n_out - first)
        for k0 in range(0, n_in, DEPTH):
            depth = min(DEPTH, n_in - k0)
            for k in range(depth):
                source, target = (k0 + k) * n_out + first, block0 + k * width
                for j in range(valid):
                    scratch[U(target + j)] = weight[U(source + j)]
                for j in range(valid, width):
                    scratch[U(target + j)] = 0
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
                scratch,
                block0,
                width,
                0,
                valid,
                k0 > 0,
            )
            call(multiply, start, stop, lane, tile)
    call(activate, start, stop, lane, (y, n_out, bias, act))


def _gemms(*products):
    with one_blas_thread():
        for a, b, out, *transposed in products:
            gemm(a, b, out, *transposed)


def dense_forward(x, weight, bias, activation, y, scratch):
    """y (N,n_out) = activation(x (N,n_in) @ weight (n_in,n_out) + bias)."""
    x, weight, bias = as_input(x), as_input(weight), as_input(bias)
    n, (n_in, n_out) = x.shape[0], weight.shape
    if weight.size >= BLAS_WEIGHTS:
        on_host(lambda: _gemms((x, weight, y)))
        launch(activate_rows, n, y.size, y.reshape(-1), n_out, bias, tuple(activation))
        return
    launch(
        _forward_rows,
        n,
        n * n_in * n_out // 8,
        x.reshape(-1),
        weight.reshape(-1),
        bias,
        y.reshape(-1),
        scratch,
        (n_in, n_out),
        panel_width(y.itemsize),
        multiply_rows_address(y.dtype),
        activate_address(y.dtype),
        tuple(activation),
        _offsets(n, n_in),
        _offsets(n, n_out),
        _offsets(1, 0),
    )


@Kernel
def _gradient_rows(start, stop, lane, args):
    y, dy, act, sizes, dz = unpack(args)
    n, n_out, width = sizes
    gradient_before(y, dy, start * n_out, stop * n_out, act, dz)
    if stop == n:
        for i in range(n * n_out, n * n_out + width):
            dz[U(i)] = 0


@Kernel
def _input_rows(start, stop, lane, args):
    weight, dx, scratch, sizes, width, multiply, dz_rows, dx_rows, segment = unpack(args)
    n, n_in, n_out = sizes
    block0 = n * n_out + width + lane * DEPTH * width
    for first in range(0, n_in, width):
        valid = min(width, n_in - first)
        for k0 in range(0, n_out, DEPTH):
            depth = min(DEPTH, n_out - k0)
            for j in range(valid):
                source = (first + j) * n_out + k0
                for k in range(depth):
                    scratch[U(block0 + k * width + j)] = weight[U(source + k)]
            for j in range(valid, width):
                for k in range(depth):
                    scratch[U(block0 + k * width + j)] = 0
            tile = (
                scratch,
                k0,
                dz_rows,
                dx,
                first,
                dx_rows,
                segment,
                depth,
                1,
                scratch,
                block0,
                width,
                0,
                valid,
                k0 > 0,
            )
            call(multiply, start, stop, lane, tile)


@Kernel
def _weight_rows(start, stop, lane, args):
    x, dw, scratch, sizes, width, multiply, x_rows, dw_rows, segment = unpack(args)
    n, n_in, n_out = sizes
    for first in range(0, n_out, width):
        valid = min(width, n_out - first)
        tile = (x, 0, x_rows, dw, first, dw_rows, segment, n, n_in, scratch, first, n_out, 0, valid, False)
        call(multiply, start, stop, lane, tile)


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
    launch(_gradient_rows, n, n * n_out, y.reshape(-1), dy.reshape(-1), tuple(activation), (n, n_out, width), scratch)
    if db.size:
        launch(_bias_columns, n_out, n * n_out, scratch, n, n_out, db)
    if weight.size >= BLAS_WEIGHTS:
        dz = scratch[: n * n_out].reshape(n, n_out)
        products = [(x, dz, dw, True, False)] if dw.size else []
        products += [(dz, weight, dx, False, True)] if dx.size else []
        on_host(lambda: _gemms(*products))
        return
    if dw.size:
        launch(
            _weight_rows,
            n_in,
            n * n_in * n_out // 8,
            x.reshape(-1),
            dw.reshape(-1),
            scratch,
            sizes,
            width,
            multiply,
            _offsets(n_in, 1),
            _offsets(n_in, n_out),
            _offsets(1, 0),
        )
    if dx.size:
        launch(
            _input_rows,
            n,
            n * n_in * n_out // 8,
            weight.reshape(-1),
            dx.reshape(-1),
            scratch,
            sizes,
            width,
            multiply,
            _offsets(n, n_out),
            _offsets(n, n_in),
            _offsets(1, 0),
        )
