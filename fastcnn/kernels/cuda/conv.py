"""Convolution, alone and with bias, activation and max-pooling, and its gradients: the fronts of `product`."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastcnn.kernels.cuda.arrays import DeviceArray, none, width_of
from fastcnn.kernels.cuda.driver import branch, fork, launch
from fastcnn.kernels.cuda.pool import maxpool2d_forward, pool_gradient
from fastcnn.kernels.cuda.product import forward_kernel, input_kernel, weight_kernel
from fastcnn.kernels.cuda.sums import add_parts, column_parts, column_sums
from fastcnn.kernels.cuda.tiles import Shape, Tile, choose_splits, choose_tile

_PLAIN = (0, 0.0)  # no activation
_MOST_ACROSS = 65_535  # blocks of a grid along its second and third axes
_LINE = 64  # numbers; parts of scratch begin at multiples of it


class Pooling(NamedTuple):
    """A pooling that the forward kernel does in its registers: windows side by side, of so many pixels."""

    window: int
    r: int
    s: int
    p: int
    q: int


def conv2d_algorithm(geometry, n, dtype, training):
    """0: the direct sum, an implicit matrix product."""
    return 0


def conv2d_forward_scratch(geometry, pool, n, dtype, lanes):
    """Partial sums where the sum is cut; the images before a pooling that is a kernel of its own."""
    g, dtype = geometry, np.dtype(dtype)
    z = n * g.p * g.q * g.k
    if _in_registers(g, pool):
        return _forward_parts(g, n, dtype)
    return _lines(z) + _forward_parts(g, n, dtype)


def conv2d_backward_scratch(geometry, pool, n, dtype, lanes):
    """The gradient before pooling and activation, and partial sums."""
    g, dtype = geometry, np.dtype(dtype)
    n_pixels = n * g.p * g.q
    parts = _weight_parts(g, n, dtype), column_parts(n * pool.p * pool.q, g.k)
    return _lines(n_pixels * g.k) + sum(map(_lines, parts)) + _input_parts(g, n, dtype)


def conv2d_forward(x, weight, bias, geometry, y, scratch):
    """y (N,P,Q,K) = x (N,H,W,C) convolved with weight (R,S,C/groups,K), plus bias (K,)."""
    product(x, weight, bias, geometry, _PLAIN, None, y, None, scratch)


def conv2d_backward_input(dy, weight, geometry, dx, scratch):
    """dx (N,H,W,C) from dy (N,P,Q,K)."""
    if dx.size:
        product_input(dy, weight, geometry, dx, scratch)


def conv2d_backward_weight(x, dy, geometry, dw, db, scratch):
    """dw (R,S,C/groups,K) and db (K,), summed over the batch."""
    if dw.size:
        product_weight(x, dy, geometry, dw, scratch)
    if db.size:
        column_sums(dy, dy, _PLAIN, db)


def conv2d_block_forward(x, weight, bias, geometry, activation, pool, y, argmax, scratch):
    """y = maxpool(activation(conv(x) + bias)); argmax as y's shape."""
    g = geometry
    if _is_identity(pool):
        product(x, weight, bias, g, activation, None, y, None, scratch)
    elif _in_registers(g, pool):
        fused = Pooling(pool.r * pool.s, pool.r, pool.s, pool.p, pool.q)
        product(x, weight, bias, g, activation, fused, y, argmax, scratch)
    else:
        z, rest = _cut(scratch, (len(x), g.p, g.q, g.k))
        product(x, weight, bias, g, activation, None, z, None, rest)
        maxpool2d_forward(z, pool, y, argmax)


def conv2d_block_backward(x, weight, y, argmax, dy, geometry, activation, pool, dx, dw, db, scratch):
    """dx, dw, db of the block from the gradient dy of its output y. dy is not changed."""
    g = geometry
    dz, rest = dy, scratch
    if (dx.size or dw.size) and not (_is_identity(pool) and activation.code == 0):
        dz, rest = _cut(scratch, (len(dy), g.p, g.q, g.k))
        pool_gradient(y, dy, argmax, pool, activation, dz)
    parts, rest = _cut(rest, (_weight_parts(g, len(dy), dy.dtype),))
    db_parts, rest = _cut(rest, (column_parts(dy.size // g.k, g.k),))
    with fork():
        if db.size:
            with branch():
                column_sums(y, dy, activation, db, db_parts)
        if dw.size:
            with branch():
                product_weight(x, dz, g, dw, parts)
        if dx.size:
            with branch():
                product_input(dz, weight, g, dx, rest)


# ---------------------------------------------------------------------------------------------------- products


def product(x, weight, bias, g, activation, pooling, y, argmax, scratch, tile=None):
    """The forward product, over `tile` (None: the one that `choose_tile` says)."""
    real = y.dtype
    pooling = pooling or Pooling(1, 1, 1, g.p, g.q)
    window = pooling.window
    shape = _forward_shape(g, len(x))._replace(rows=len(x) * pooling.p * pooling.q * window)
    quads = width_of(g.c // g.groups, x), width_of(g.k // g.groups, weight, y)
    tile = tile or choose_tile(shape, real, min(quads) == 4)
    splits, each = choose_splits(shape, tile) if window == 1 else (1, _all_of(shape, tile))
    has_bias, wants_argmax = bias.size > 0, argmax is not None and argmax.size > 0
    if splits == 1:
        target, code, alpha = y, activation[0], activation[1]
    else:
        target, code, alpha = scratch, 0, 0.0
    kernel = forward_kernel(tile, real, *quads, window, int(code))
    launch(
        kernel, _grid(shape, tile, splits), tile.threads,
        x, weight, bias if has_bias else none(real), target, argmax if wants_argmax else none(np.uint8), g, alpha,
        shape.rows, has_bias and splits == 1, wants_argmax, *pooling[1:], each, y.size,
    )  # fmt: skip
    if splits > 1:
        add_parts(scratch, splits, y, bias, activation)


def product_input(dy, weight, g, dx, scratch, tile=None):
    """The product that gives the input's gradient."""
    shape = _input_shape(g, len(dy))
    widths = width_of(g.k // g.groups, dy, weight), width_of(g.c // g.groups, dx)
    tile = tile or choose_tile(shape, dx.dtype, min(widths) == 4)
    splits, each = choose_splits(shape, tile)
    target = dx if splits == 1 else scratch
    kernel = input_kernel(tile, dx.dtype, *widths, g.stride_h > 1 or g.stride_w > 1)
    args = dy, weight, target, g, shape.rows, each, dx.size, *_scales(len(dy))
    launch(kernel, _grid(shape, tile, splits), tile.threads, *args)
    if splits > 1:
        add_parts(scratch, splits, dx)


def product_weight(x, dy, g, dw, scratch, tile=None):
    """The product that gives the weight's gradient."""
    shape = _weight_shape(g, len(dy))
    widths = width_of(g.c // g.groups, x), width_of(g.k // g.groups, dy, dw)
    tile = tile or choose_tile(shape, dw.dtype, min(widths) == 4)
    splits, each = choose_splits(shape, tile)
    target = dw if splits == 1 else scratch
    kernel = weight_kernel(tile, dw.dtype, *widths)
    args = x, dy, target, g, shape.depth, each, dw.size, *_scales(len(dy))
    launch(kernel, _grid(shape, tile, splits), tile.threads, *args)
    if splits > 1:
        add_parts(scratch, splits, dw)


def _scales(n: int) -> tuple[float, float]:
    """A power of two that takes the batch's size out of the gradients of a mean, for what is computed in fp16; its
    inverse.
    """
    scale = 2.0 ** max(n - 1, 0).bit_length()
    return scale, 1 / scale


def _forward_shape(g, n) -> Shape:
    return Shape(n * g.p * g.q, g.k // g.groups, g.r * g.s * (g.c // g.groups), g.groups)


def _input_shape(g, n) -> Shape:
    return Shape(n * g.h * g.w, g.c // g.groups, g.r * g.s * (g.k // g.groups), g.groups)


def _weight_shape(g, n) -> Shape:
    return Shape(g.r * g.s * (g.c // g.groups), g.k // g.groups, n * g.p * g.q, g.groups)


def _grid(shape: Shape, tile: Tile, splits: int) -> tuple[int, int, int]:
    across, deep = -(-shape.columns // tile.columns), shape.groups * splits
    if max(across, deep) > _MOST_ACROSS:
        raise ValueError(
            f"a product of {shape.columns:,} columns (and {shape.groups:,} groups) is too large for the GPU: a group "
            f"has at most {_MOST_ACROSS * tile.columns:,} inputs or units, a layer {_MOST_ACROSS:,} groups"
        )
    return -(-shape.rows // tile.rows), across, deep


def _all_of(shape: Shape, tile: Tile) -> int:
    return -(-shape.depth // tile.depth) * tile.depth


def _splits(shape: Shape, dtype: np.dtype[Any]) -> int:
    """The most parts that a product's sum is cut into, whether it reads quads or not."""
    return max(_parts(shape, choose_tile(shape, dtype, quads)) for quads in (False, True))


def _parts(shape: Shape, tile: Tile) -> int:
    splits, _ = choose_splits(shape, tile)
    return splits if splits > 1 else 0


def _forward_parts(g, n, dtype) -> int:
    return _splits(_forward_shape(g, n), dtype) * n * g.p * g.q * g.k


def _weight_parts(g, n, dtype) -> int:
    return _splits(_weight_shape(g, n), dtype) * g.r * g.s * (g.c // g.groups) * g.k


def _input_parts(g, n, dtype) -> int:
    return _splits(_input_shape(g, n), dtype) * n * g.h * g.w * g.c


def _is_identity(pool) -> bool:
    return pool.r == pool.s == pool.stride_h == pool.stride_w == 1


def _in_registers(g, pool) -> bool:
    """Whether the forward kernel can pool: windows of 2 or 4 pixels side by side, or no pooling."""
    side_by_side = (pool.r, pool.s) == (pool.stride_h, pool.stride_w)
    padded = pool.pad_top or pool.pad_left or pool.pad_bottom or pool.pad_right
    return side_by_side and not padded and pool.r * pool.s in (1, 2, 4)


def _lines(size: int) -> int:
    return -(-size // _LINE) * _LINE


def _cut(scratch: DeviceArray, shape: tuple[int, ...]) -> tuple[DeviceArray, DeviceArray]:
    """An array of `shape` at the beginning of `scratch`, and the rest of it."""
    size = int(np.prod(shape))
    return scratch[:size].reshape(shape), scratch[_lines(size) :]
