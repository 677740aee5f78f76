"""3x3 and 5x5 convolution by Winograd's algorithm: `winograd_transforms` around the micro-kernel.

An image, or a mosaic of four small ones, is cut into tiles of m x m outputs. At each of the (m + r - 1)^2 points of the
transform, the tiles times the channels make a matrix, and the convolution is that many matrix products:

    forward          M = V U         V: tiles of x, U: weights, M: tiles of the output
    weight gradient  dU = V' dM      dM: tiles of the gradient dz before bias, activation and pooling
    input gradient   dV = dM U'

Here is the forward pass: a lane takes a block of tiles at a time through all of it, so that V, one panel of M and the
output are still in its cache. The gradients are `winograd_backward`'s. `winograd_layout` says where all this is faster
than the direct convolution, and how images are cut.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastcnn.kernels.cpu.epilogue import activate_address, pool_address
from fastcnn.kernels.cpu.launch import Kernel, address_for, call, launch, unpack
from fastcnn.kernels.cpu.lowering import DEPTH, Pool, has_pool, no_pool, offsets
from fastcnn.kernels.cpu.microkernel import ADD, ZERO, multiply_rows_address
from fastcnn.kernels.cpu.norm import block_moments
from fastcnn.kernels.cpu.packing import fill_zero
from fastcnn.kernels.cpu.runtime import U, lanes
from fastcnn.kernels.cpu.winograd_layout import layout, odd, operations, pad_rows, round_up
from fastcnn.kernels.cpu.winograd_transforms import output_address, transform_address

TILES = 48  # about how many a lane takes through the forward pass at a time
COPIES = 2  # of U, at most. Two cores need not share a cache: what the other one wrote may come a line in 300 ns


class ForwardSizes(NamedTuple):
    """Of the forward pass; offsets from a lane's start."""

    tile_rows: int  # in a block, which is taken at a time
    unit: int  # tile rows that must stay together: a mosaic's, where they do not hold the rows of y
    total: int  # tile rows in the batch
    weights: int
    u_point: int
    v_point: int
    m_point: int
    v: int
    m: int
    z: int  # the output of a mosaic, in that case
    lane: int


def _pools_tiles(m: int, pool: Any) -> bool:
    """Whether every window is one of a tile's own 2x2."""
    return (
        m % 2 == 0
        and (pool.r, pool.s, pool.stride_h, pool.stride_w, pool.pad_top, pool.pad_left) == (2, 2, 2, 2, 0, 0)
        and not (pool.pad_bottom or pool.pad_right)
    )


@lru_cache(maxsize=256)
def _forward_sizes(g: Any, pool: Any, n: int, itemsize: int) -> ForwardSizes:
    t = layout(g, n, itemsize)
    whole = t.grid > 1 or (has_pool(pool) and not _pools_tiles(t.m, pool))
    unit = t.rows if whole else 1
    units = t.mosaics * t.rows // unit
    blocks = -(-units // max(1, TILES // (t.columns * unit)))
    if blocks < 16:  # few: an even number of equal ones, for an even number of lanes
        blocks = min(units, blocks + blocks % 2)
    tile_rows = unit * -(-units // blocks)
    tiles = tile_rows * t.columns
    points = t.side**2
    u_point, v_point, m_point = odd(g.c * t.k_width), odd(tiles * g.c), odd(tiles * t.k_width)
    v = t.strip
    m = v + points * v_point
    z = m + points * m_point
    lane = z + whole * round_up(tile_rows * t.m * t.columns * t.m * g.k)
    return ForwardSizes(
        tile_rows, unit, units * unit, -(-g.k // t.k_width) * points * u_point, u_point, v_point, m_point, v, m, z, lane
    )  # fmt: skip


@Kernel
def _weights_to_points(start, stop, lane, args):
    """Copies of U, one after the other, each of `channels` tiles: a lane makes the one that it will read."""
    weight, scratch, source, target, channels, filters, width, size, to_points = unpack(args)
    u0, u_row, u_column, u_tile, u_block = target
    while start < stop:
        copy, first = start // channels, start % channels
        last = min(channels, first + stop - start)
        there = (u0 + copy * size, u_row, u_column, u_tile, u_block)
        call(to_points, first, last, lane, (weight, scratch, source, there, filters, width))
        start += last - first


@Kernel
def _forward_blocks(start, stop, lane, args):
    x, bias, y, argmax, scratch, n_images, t, sizes, n_lanes, kernels, tables, g, act, pool, edges, sums = unpack(args)
    # pool_rows: 0 where no window crosses tiles; moments: 0 where they are not wanted
    multiply, to_points, finish, activate, pool_rows, moments = kernels
    v_rows, m_rows, segment = tables
    points, width = t.side * t.side, t.k_width
    copies = min(COPIES, n_lanes)
    u0 = min(lane * copies // n_lanes, copies - 1) * sizes.weights
    base = copies * sizes.weights + lane * sizes.lane
    v0, m0, z0 = base + sizes.v, base + sizes.m, base + sizes.z
    # Where a row of tiles goes: y, pooled or not, or z.
    out, pitch, whole = y, pool.q, pool_rows != 0 or t.grid > 1
    per_tile, rows = t.m // pool.stride_h, pool.p
    if whole:
        out, pitch, per_tile, rows = scratch, t.columns * t.m, t.m, t.rows * t.m
    fill_zero(scratch, base, base + t.strip)
    for block in range(start, stop):
        first = block * sizes.tile_rows
        count = min(sizes.tile_rows, sizes.total - first)
        for i in range(count):
            n, row = (first + i) // t.rows, (first + i) % t.rows
            pad_rows(x, n, row * t.m - g.pad_top, n_images, g, t, scratch, base)
            source = (base, t.pitch * g.c, g.c, t.m * g.c, g.c)
            target = (v0 + i * t.columns * g.c, t.side * sizes.v_point, sizes.v_point, g.c, g.c)
            call(to_points, 0, t.columns, lane, (scratch, scratch, source, target, g.c, g.c))
        for panel in range((g.k + width - 1) // width):
            filters = min(width, g.k - panel * width)
            for point in range(points):
                for c0 in range(0, g.c, DEPTH):
                    tile = (
                        scratch, v0 + point * sizes.v_point + c0, v_rows, scratch, m0 + point * sizes.m_point, m_rows,
                        segment, min(DEPTH, g.c - c0), 1, scratch,
                        u0 + (panel * points + point) * sizes.u_point + c0 * width, width, 0, filters,
                        ADD if c0 > 0 else ZERO,
                    )  # fmt: skip
                    call(multiply, 0, count * t.columns, lane, tile)
            for i in range(count):
                n, row = (first + i) // t.rows, (first + i) % t.rows * per_tile
                at = z0 + i * t.m * pitch * g.k if whole else (n * rows + row) * pitch * g.k
                tile0 = (m0 + i * t.columns * width, t.side * sizes.m_point, sizes.m_point, width)
                out0 = (at + panel * width, pitch * g.k, g.k, per_tile * g.k)
                call(finish, 0, t.columns, lane, (scratch, out, argmax, tile0, out0, rows - row, pitch, filters))
        for i in range(0, count, sizes.unit):
            n, row = (first + i) // t.rows, (first + i) % t.rows * per_tile
            if whole:
                for place in range(t.grid * t.grid):
                    image, down, right = n * t.grid * t.grid + place, place // t.grid, place % t.grid
                    at = z0 + ((i * t.m + down * t.step_h) * pitch + right * t.step_w) * g.k
                    if image < n_images and pool_rows != 0:
                        call(pool_rows, 0, g.p, lane, (scratch, at, pitch, image, activate, bias, act, pool, y, argmax))
                    elif image < n_images:
                        for p in range(g.p):
                            source, target = at + p * pitch * g.k, (image * g.p + p) * g.q * g.k
                            for j in range(g.q * g.k):
                                y[U(target + j)] = scratch[U(source + j)]
                        call(activate, image * g.p * g.q, (image + 1) * g.p * g.q, lane, (y, g.k, bias, act))
            else:
                p0, p1 = n * rows + row, n * rows + min(row + per_tile, rows)
                call(activate, p0 * pitch, p1 * pitch, lane, (y, g.k, bias, act))
        if moments != 0:
            call(moments, block, block + 1, lane, (y, g.k, edges, sums))


@lru_cache(maxsize=256)
def block_edges(g: Any, n: int, itemsize: int) -> np.ndarray:
    """The first output pixel of each block, and the number of pixels, where nothing is pooled."""
    t, sizes = layout(g, n, itemsize), _forward_sizes(g, no_pool(g), n, itemsize)
    tile_rows = np.arange(0, sizes.total + sizes.tile_rows, sizes.tile_rows, dtype=np.int64).clip(0, sizes.total)
    images = np.minimum(tile_rows // t.rows * t.grid**2, n)
    return (images * g.p + tile_rows % t.rows * t.m) * g.q


def forward_scratch(geometry: Any, pool: Any, n: int, itemsize: int, lanes: int) -> int:
    """Elements: copies of U, then for each lane a strip, V, a panel of M and where need be the output."""
    sizes = _forward_sizes(geometry, pool, n, itemsize)
    return min(COPIES, lanes) * sizes.weights + lanes * sizes.lane


def winograd_forward(x, weight, bias, geometry, activation, pool, y, argmax, scratch, sums=None):
    """y = maxpool(activation(conv(x) + bias)), as `conv2d_block_forward`; into `sums` go y's `block_moments`, with the
    `block_edges`, if they are wanted.
    """
    g, n = geometry, x.shape[0]
    t, sizes = layout(g, n, y.itemsize), _forward_sizes(g, pool, n, y.itemsize)
    edges = np.empty(0, np.int64) if sums is None else block_edges(g, n, y.itemsize)
    copies = min(COPIES, lanes())
    points, pooled = t.side**2, has_pool(pool) and _pools_tiles(t.m, pool) and t.grid == 1
    finish = output_address(t.m, t.r, pooled, pooled and argmax.size > 0, y.dtype, argmax.dtype)
    launch(
        _weights_to_points, copies * g.c, copies * points * weight.size // 8, weight.reshape(-1), scratch,
        (0, g.s * g.c * g.k, g.c * g.k, g.k, t.k_width),
        (0, t.side * sizes.u_point, sizes.u_point, t.k_width, points * sizes.u_point), g.c, g.k, t.k_width,
        sizes.weights, transform_address("weight", t.m, t.r, y.dtype),
    )  # fmt: skip
    launch(
        _forward_blocks, -(-sizes.total // sizes.tile_rows), operations(g, n), x.reshape(-1), bias, y.reshape(-1),
        argmax.reshape(-1), scratch, n, t, sizes, lanes(),
        (
            multiply_rows_address(y.dtype), transform_address("input", t.m, t.r, y.dtype), finish,
            activate_address(y.dtype, activation),
            pool_address(y.dtype, argmax, pool) if has_pool(pool) and not pooled else 0,
            0 if sums is None else address_for(block_moments, y.reshape(-1), 0, edges, sums),
        ),
        (
            offsets(sizes.tile_rows * t.columns, g.c), offsets(sizes.tile_rows * t.columns, t.k_width), offsets(1, 0),
        ), g, tuple(activation), Pool(*pool), edges, np.empty(0) if sums is None else sums,
    )  # fmt: skip
