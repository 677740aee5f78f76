"""3x3 and 5x5 convolution by Winograd's algorithm and its gradients: `winograd_transforms` around the micro-kernel.

An image is cut into tiles of m x m outputs. At each of the (m + r - 1)^2 points of the transform, the tiles
times the channels make a matrix, and the convolution is that many matrix products:

    forward          M = V U         V: tiles of x, U: weights, M: tiles of the output
    weight gradient  dU = V' dM      dM: tiles of the gradient dz before bias, activation and pooling
    input gradient   dV = dM U'

Forward, a lane takes a block of tiles at a time through all of it, so that V, one panel of M and the output are
still in its cache. Backward goes in blocks of images, in three launches: lanes own images and
transform, own points and multiply, own images and add the tiles of dx up. So each point's dU is summed by one
lane in one order, whatever the number of lanes. V and dM lie in panels there: [point][channels / width][tile]
[width].

`winograd_tile` is the rule that says where all this is faster than the direct convolution.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from fastcnn.kernels.cpu.epilogue import activate_address, pool_address, scatter_address
from fastcnn.kernels.cpu.launch import Kernel, call, launch, unpack
from fastcnn.kernels.cpu.lowering import DEPTH, PIXELS, Pool, has_pool, offsets, panel_offsets
from fastcnn.kernels.cpu.microkernel import ADD, MAX_ROWS, ZERO, multiply_rows_address, panel_width
from fastcnn.kernels.cpu.packing import fill_zero, sum_parts
from fastcnn.kernels.cpu.runtime import U, jit
from fastcnn.kernels.cpu.transposition import transpose
from fastcnn.kernels.cpu.winograd_transforms import output_address, transform_address, transform_kernel

TILES = 48  # about how many a lane takes through the forward pass at a time
BLOCK_BYTES = 1 << 22  # of V and dM in one block of the backward pass
MIN_CHANNELS = 32  # with fewer, the transforms cost more than they save
MIN_TILES = {2: 32, 4: 8}
HALF_PANELS = (
    MAX_ROWS >= 12
)  # whether the micro-kernel has tall tiles of one vector, for a last panel of half the width
MAX_WEIGHTS = 1 << 17  # channels in times out: transforming more costs small batches more than it saves


def winograd_tile(geometry: Any, n: int, itemsize: int) -> int:
    """The side m of the output tile to compute `geometry` with for n images, or 0 for the direct convolution.

    For a window of 3x3, m is 4 or 2, whichever leaves fewer multiplications for the image's size (a tile that
    hangs over the edge is computed whole); for 5x5 it is 2. 0 where that is less than 1.7 times fewer, where
    channels do not fill panels (or half of the last), for fewer than MIN_CHANNELS, for more than MAX_WEIGHTS, or where
    so few tiles (MIN_TILES) do not repay the transform of the weights.
    """
    g, width = geometry, panel_width(itemsize)
    if g.r != g.s or g.r not in (3, 5) or (g.stride_h, g.stride_w, g.dilation_h, g.dilation_w, g.groups) != (1,) * 5:
        return 0
    unit = width // 2 if HALF_PANELS else width
    if g.c % unit or g.k % unit or min(g.c, g.k) < MIN_CHANNELS or g.c * g.k > MAX_WEIGHTS:
        return 0
    saved = {
        m: g.r * g.s * g.p * g.q / (-(-g.p // m) * -(-g.q // m) * (m + g.r - 1) ** 2)
        for m in ((2, 4) if g.r == 3 else (2,))
    }
    best = max(saved, key=lambda m: saved[m])
    tiles = n * -(-g.p // best) * -(-g.q // best)
    return best if saved[best] >= 1.7 and tiles >= MIN_TILES[best] else 0


class Layout(NamedTuple):
    """Sizes, in elements, that both passes share. A stride of an odd number of cache lines (`_odd`) keeps the
    points of one tile from falling into the same few sets of the cache.
    """

    m: int
    r: int  # of the window
    side: int  # of a tile of points
    rows: int  # of tiles in an image
    columns: int
    pitch: int  # pixels in a row of the padded image
    strip: int  # the rows of the padded image under one row of tiles
    width: int  # of a panel


@lru_cache(maxsize=256)
def _layout(g: Any, itemsize: int) -> Layout:
    m, side = g.winograd, g.winograd + g.r - 1
    rows, columns = -(-g.p // m), -(-g.q // m)
    pitch = columns * m + g.r - 1
    return Layout(m, g.r, side, rows, columns, pitch, _round(side * pitch * g.c), panel_width(itemsize))


def _round(size: int) -> int:
    return -(-size // 16) * 16


def _odd(size: int) -> int:
    """`size` rounded up to an odd number of 16 elements."""
    return (-(-size // 16) | 1) * 16


@jit
def _pad_rows(x, n, first, rows, g, pitch, out, out0):
    """`rows` rows of image n, from row `first` (which may lie outside), into a strip with zeros around."""
    for i in range(rows):
        h = first + i
        target = out0 + (i * pitch + g.pad_left) * g.c
        if h < 0 or h >= g.h:
            fill_zero(out, target, target + g.w * g.c)
        else:
            source = (n * g.h + h) * g.w * g.c
            for j in range(g.w * g.c):
                out[U(target + j)] = x[U(source + j)]


# ------------------------------------------------------------------------------------------------------------- forward


class ForwardSizes(NamedTuple):
    """Of the forward pass; offsets from a lane's start."""

    tile_rows: int  # in a block, which is taken at a time
    unit: int  # tile rows that must stay together: an image's, where pooling windows cross them
    total: int  # tile rows in the batch
    weights: int
    u_point: int
    v_point: int
    m_point: int
    v: int
    m: int
    z: int  # the output of an image, where pooling windows cross tiles
    lane: int


def _pools_tiles(pool: Any) -> bool:
    """Whether every window is one of a tile's own 2x2."""
    return (pool.r, pool.s, pool.stride_h, pool.stride_w, pool.pad_top, pool.pad_left) == (2, 2, 2, 2, 0, 0) and not (
        pool.pad_bottom or pool.pad_right
    )


@lru_cache(maxsize=256)
def _forward_sizes(g: Any, pool: Any, n: int, itemsize: int) -> ForwardSizes:
    t = _layout(g, itemsize)
    by_image = has_pool(pool) and not _pools_tiles(pool)
    unit = t.rows if by_image else 1
    units = n * t.rows // unit
    blocks = -(-units // max(1, TILES // (t.columns * unit)))
    if blocks < 16:  # few: an even number of equal ones, for an even number of lanes
        blocks = min(units, blocks + blocks % 2)
    tile_rows = unit * -(-units // blocks)
    tiles = tile_rows * t.columns
    points = t.side**2
    u_point, v_point, m_point = _odd(g.c * t.width), _odd(tiles * g.c), _odd(tiles * t.width)
    v = t.strip
    m = v + points * v_point
    z = m + points * m_point
    lane = z + by_image * _round(tile_rows * t.m * t.columns * t.m * g.k)
    return ForwardSizes(
        tile_rows, unit, units * unit, -(-g.k // t.width) * points * u_point, u_point, v_point, m_point, v, m, z, lane
    )  # fmt: skip


@Kernel
def _forward_blocks(start, stop, lane, args):
    x, bias, y, argmax, scratch, t, sizes, kernels, tables, g, act, pool = unpack(args)
    multiply, to_points, finish, activate, pool_rows = kernels  # pool_rows: 0 where no window crosses tiles
    v_rows, m_rows, segment = tables
    points, width = t.side * t.side, t.width
    base = sizes.weights + lane * sizes.lane
    v0, m0, z0 = base + sizes.v, base + sizes.m, base + sizes.z
    # Where a row of tiles goes: y, pooled or not, or z.
    out, pitch = y, pool.q
    per_tile, rows = t.m // pool.stride_h, pool.p
    if pool_rows != 0:
        out, pitch, per_tile, rows = scratch, t.columns * t.m, t.m, t.rows * t.m
    fill_zero(scratch, base, base + t.strip)
    for block in range(start, stop):
        first = block * sizes.tile_rows
        count = min(sizes.tile_rows, sizes.total - first)
        for i in range(count):
            n, row = (first + i) // t.rows, (first + i) % t.rows
            _pad_rows(x, n, row * t.m - g.pad_top, t.side, g, t.pitch, scratch, base)
            source = (base, t.pitch * g.c, g.c, t.m * g.c, width)
            target = (v0 + i * t.columns * g.c, t.side * sizes.v_point, sizes.v_point, g.c, width)
            call(to_points, 0, t.columns, lane, (scratch, scratch, source, target, g.c, width))
        for panel in range((g.k + width - 1) // width):
            filters = min(width, g.k - panel * width)
            for point in range(points):
                for c0 in range(0, g.c, DEPTH):
                    tile = (
                        scratch, v0 + point * sizes.v_point + c0, v_rows, scratch, m0 + point * sizes.m_point, m_rows,
                        segment, min(DEPTH, g.c - c0), 1, scratch,
                        (panel * points + point) * sizes.u_point + c0 * width, width, 0, filters,
                        ADD if c0 > 0 else ZERO,
                    )  # fmt: skip
                    call(multiply, 0, count * t.columns, lane, tile)
            for i in range(count):
                n, row = (first + i) // t.rows, (first + i) % t.rows * per_tile
                at = z0 + i * t.m * pitch * g.k if pool_rows != 0 else (n * rows + row) * pitch * g.k
                tile0 = (m0 + i * t.columns * width, t.side * sizes.m_point, sizes.m_point, width)
                out0 = (at + panel * width, pitch * g.k, g.k, per_tile * g.k)
                call(finish, 0, t.columns, lane, (scratch, out, argmax, tile0, out0, rows - row, pitch, filters))
        for i in range(0, count, sizes.unit):
            n, row = (first + i) // t.rows, (first + i) % t.rows * per_tile
            if pool_rows != 0:
                at = z0 + i * t.m * pitch * g.k
                call(pool_rows, 0, g.p, lane, (scratch, at, pitch, n, activate, bias, act, pool, y, argmax))
            else:
                p0, p1 = n * rows + row, n * rows + min(row + per_tile, rows)
                call(activate, p0 * pitch, p1 * pitch, lane, (y, g.k, bias, act))


def forward_scratch(geometry: Any, pool: Any, n: int, itemsize: int, lanes: int) -> int:
    """Elements: transformed weights, then for each lane a strip, V, a panel of M and where need be the output."""
    sizes = _forward_sizes(geometry, pool, n, itemsize)
    return sizes.weights + lanes * sizes.lane


def winograd_forward(x, weight, bias, geometry, activation, pool, y, argmax, scratch):
    """y = maxpool(activation(conv(x) + bias)), as `conv2d_block_forward`."""
    g, n = geometry, x.shape[0]
    t, sizes = _layout(g, y.itemsize), _forward_sizes(g, pool, n, y.itemsize)
    points, pooled = t.side**2, has_pool(pool) and _pools_tiles(pool)
    finish = output_address(t.m, t.r, pooled, pooled and argmax.size > 0, y.dtype, argmax.dtype)
    launch(
        transform_kernel("weight", t.m, t.r), g.c, points * weight.size // 8, weight.reshape(-1), scratch,
        (0, g.s * g.c * g.k, g.c * g.k, g.k, t.width),
        (0, t.side * sizes.u_point, sizes.u_point, t.width, points * sizes.u_point), g.k, t.width,
    )  # fmt: skip
    launch(
        _forward_blocks, -(-sizes.total // sizes.tile_rows), _operations(g, n), x.reshape(-1), bias, y.reshape(-1),
        argmax.reshape(-1), scratch, t, sizes,
        (
            multiply_rows_address(y.dtype), transform_address("input", t.m, t.r, y.dtype), finish,
            activate_address(y.dtype, activation),
            pool_address(y.dtype, argmax, pool) if has_pool(pool) and not pooled else 0,
        ),
        (
            offsets(sizes.tile_rows * t.columns, g.c), offsets(sizes.tile_rows * t.columns, t.width), offsets(1, 0),
        ), g, tuple(activation), Pool(*pool),
    )  # fmt: skip


def _operations(g: Any, n: int) -> int:
    return int(n * g.p * g.q * g.k * g.c // 2)


# ------------------------------------------------------------------------------------------------------------ backward


class BackwardSizes(NamedTuple):
    """Of the backward pass: offsets in scratch, and strides."""

    images: int  # in a block
    tiles: int  # in a block
    u: int
    du: int
    v: int
    dm: int
    db: int
    lanes: int
    u_point: int
    du_point: int
    v_point: int
    dm_point: int
    gradient: int  # elements of a padded dz
    lane: int


@lru_cache(maxsize=256)
def _backward_sizes(g: Any, n: int, itemsize: int) -> BackwardSizes:
    t = _layout(g, itemsize)
    points, image_tiles = t.side**2, t.rows * t.columns
    channels, filters = (-(-count // t.width) * t.width for count in (g.c, g.k))
    images = max(1, min(n, BLOCK_BYTES // (points * image_tiles * (channels + filters) * itemsize)))
    tiles = images * image_tiles
    u_point, du_point = _odd(g.k * t.width), _odd(g.c * g.k)
    v_point, dm_point = _odd(tiles * channels), _odd(tiles * filters)
    # U' is first transposed weights, where dm will lie.
    du = -(-g.c // t.width) * points * u_point
    v = du + points * du_point
    dm = v + points * v_point
    db = dm + max(points * dm_point, _round(g.r * g.s * g.c * g.k))
    gradient = _round(t.rows * t.m * t.columns * t.m * g.k)
    image = _round((t.rows * t.m + t.r - 1) * t.pitch * g.c)
    return BackwardSizes(
        images, tiles, 0, du, v, dm, db, db + _round(n * g.k), u_point, du_point, v_point, dm_point, gradient,
        max(t.strip + gradient, image),
    )  # fmt: skip


@Kernel
def _transpose_weights(start, stop, lane, args):
    """(R,S,C,K) -> (R,S,K,C)."""
    weight, g, out, out0 = unpack(args)
    for tap in range(start, stop):
        first = tap * g.c * g.k
        transpose(weight, first, g.c, g.k, g.k, out, out0 + first, g.c)


@Kernel
def _to_points(start, stop, lane, args):
    """dM and V of the images start..stop of a block, and each image's share of db."""
    x, y, argmax, dy, scratch, first, wants, t, sizes, kernels, g, alpha, pool = unpack(args)
    scatter, to_points, gradient_to_points = kernels
    want_dw = wants[1]
    base = sizes.lanes + lane * sizes.lane
    dz, dz_pitch, width, panel = base + t.strip, t.columns * t.m, t.width, sizes.tiles * t.width
    fill_zero(scratch, base, base + t.strip + sizes.gradient)
    for i in range(start, stop):
        n, db = first + i, sizes.db + (first + i) * g.k
        fill_zero(scratch, db, db + g.k)
        call(scatter, n, n + 1, lane, (dy, y, argmax, alpha, pool, scratch, dz, dz_pitch, db))
        for row in range(t.rows):
            tile = (i * t.rows + row) * t.columns * width
            source = (dz + row * t.m * dz_pitch * g.k, dz_pitch * g.k, g.k, t.m * g.k, width)
            target = (sizes.dm + tile, t.side * sizes.dm_point, sizes.dm_point, width, panel)
            call(gradient_to_points, 0, t.columns, lane, (scratch, scratch, source, target, g.k, width))
            if want_dw:
                _pad_rows(x, n, row * t.m - g.pad_top, t.side, g, t.pitch, scratch, base)
                source = (base, t.pitch * g.c, g.c, t.m * g.c, width)
                target = (sizes.v + tile, t.side * sizes.v_point, sizes.v_point, width, panel)
                call(to_points, 0, t.columns, lane, (scratch, scratch, source, target, g.c, width))


@Kernel
def _multiply_points(start, stop, lane, args):
    """dU += V' dM, then dV = dM U' over V, at the points start..stop."""
    scratch, first, tiles, wants, t, sizes, multiply, tables, g = unpack(args)
    v_rows, du_rows, tile_rows, dm_segments, segment = tables
    want_dx, want_dw = wants
    width, panel = t.width, sizes.tiles * t.width
    points, per_pass = t.side * t.side, max(1, DEPTH // width)
    for point in range(start, stop):
        v0, dm0 = sizes.v + point * sizes.v_point, sizes.dm + point * sizes.dm_point
        if want_dw:
            for k0 in range(0, g.k, width):
                for t0 in range(0, tiles, PIXELS):
                    tile = (
                        scratch, v0 + t0 * width, v_rows, scratch, sizes.du + point * sizes.du_point + k0, du_rows,
                        segment, min(PIXELS, tiles - t0), width, scratch, dm0 + k0 // width * panel + t0 * width, width,
                        0, min(width, g.k - k0), ADD if first + t0 > 0 else ZERO,
                    )  # fmt: skip
                    call(multiply, 0, g.c, lane, tile)
        if want_dx:
            for c0 in range(0, g.c, width):
                u0 = sizes.u + (c0 // width * points + point) * sizes.u_point
                s0, whole = 0, g.k // width
                while s0 * width < g.k:  # some whole panels together, and half a panel alone
                    s1 = min(s0 + per_pass, whole) if s0 < whole else s0 + 1
                    tile = (
                        scratch, dm0, tile_rows, scratch, v0 + c0 // width * panel, tile_rows, dm_segments[s0:s1],
                        min(width, g.k - s0 * width), 1, scratch, u0 + s0 * width * width, width, 0,
                        min(width, g.c - c0), ADD if s0 > 0 else ZERO,
                    )  # fmt: skip
                    call(multiply, 0, tiles, lane, tile)
                    s0 = s1


@Kernel
def _from_points(start, stop, lane, args):
    """dx of the images start..stop of a block."""
    dx, scratch, first, t, sizes, from_points, g = unpack(args)
    base, width, panel = sizes.lanes + lane * sizes.lane, t.width, sizes.tiles * t.width
    for i in range(start, stop):
        fill_zero(scratch, base, base + (t.rows * t.m + t.r - 1) * t.pitch * g.c)
        for row in range(t.rows):
            source = (
                sizes.v + (i * t.rows + row) * t.columns * width, t.side * sizes.v_point, sizes.v_point, width, panel
            )  # fmt: skip
            target = (base + row * t.m * t.pitch * g.c, t.pitch * g.c, g.c, t.m * g.c, width)
            call(from_points, 0, t.columns, lane, (scratch, scratch, source, target, g.c, width))
        for h in range(g.h):
            at, out = base + ((h + g.pad_top) * t.pitch + g.pad_left) * g.c, ((first + i) * g.h + h) * g.w * g.c
            for j in range(g.w * g.c):
                dx[U(out + j)] = scratch[U(at + j)]


def backward_scratch(geometry: Any, n: int, itemsize: int, lanes: int) -> int:
    """Elements: U', dU, a block's V and dM, db by image, then for each lane a strip and dz, or dx."""
    sizes = _backward_sizes(geometry, n, itemsize)
    return sizes.lanes + lanes * sizes.lane


def winograd_backward(x, weight, y, argmax, dy, geometry, activation, pool, dx, dw, db, scratch):
    """dx, dw, db from the gradient dy of the block's output y, as `conv2d_block_backward`."""
    g, n, kind = geometry, dy.shape[0], dy.dtype
    t, sizes = _layout(g, dy.itemsize), _backward_sizes(g, n, dy.itemsize)
    points, panel = t.side**2, sizes.tiles * t.width
    wants = (dx.size > 0, dw.size > 0)
    if wants[0]:
        launch(_transpose_weights, g.r * g.s, weight.size, weight.reshape(-1), g, scratch, sizes.dm)
        launch(
            transform_kernel("weight", t.m, t.r), g.k, points * weight.size // 8, scratch, scratch,
            (sizes.dm, g.s * g.c * g.k, g.c * g.k, g.c, t.width),
            (sizes.u, t.side * sizes.u_point, sizes.u_point, t.width, points * sizes.u_point), g.c, t.width,
        )  # fmt: skip
    to_points = (
        scatter_address(kind, argmax.dtype, activation, pool), transform_address("input", t.m, t.r, kind),
        transform_address("output gradient", t.m, t.r, kind),
    )  # fmt: skip
    tables = (
        panel_offsets(g.c, t.width, panel), offsets(g.c, g.k), offsets(sizes.tiles, t.width),
        offsets(-(-g.k // t.width), panel), offsets(1, 0),
    )  # fmt: skip
    from_points = transform_address("input gradient", t.m, t.r, kind)
    for first in range(0, n, sizes.images):
        images = min(sizes.images, n - first)
        launch(
            _to_points, images, _operations(g, images), x.reshape(-1), y.reshape(-1), argmax.reshape(-1),
            dy.reshape(-1), scratch, first, wants, t, sizes, to_points, g, float(activation[1]), Pool(*pool),
        )  # fmt: skip
        launch(
            _multiply_points, points, _operations(g, images), scratch, first, images * t.rows * t.columns, wants, t,
            sizes, multiply_rows_address(kind), tables, g,
        )  # fmt: skip
        if wants[0]:
            work = _operations(g, images)
            launch(_from_points, images, work, dx.reshape(-1), scratch, first, t, sizes, from_points, g)
    if wants[1]:
        launch(
            transform_kernel("weight gradient", t.m, t.r), g.c, points * dw.size // 8, scratch, dw.reshape(-1),
            (sizes.du, t.side * sizes.du_point, sizes.du_point, g.k, t.width),
            (0, g.s * g.c * g.k, g.c * g.k, g.k, t.width), g.k, t.width,
        )  # fmt: skip
    if db.size:
        launch(sum_parts, g.k, n * g.k, n, sizes.db, g.k, scratch, db)
