"""The gradients of the convolution by Winograd's algorithm; `winograd` has what the letters stand for.

It goes in blocks of images, in three launches: lanes own images and transform, own points and multiply, own images and
add the tiles of dx up. So each point's dU is summed by one lane in one order, whatever the number of lanes. V and dM
lie in panels: [point][channels / width][tile][width].

A block's images are spread evenly over the batch. So a lane owns those that it owns in other kernels: what another lane
wrote may lie in a cache that is slow to reach from its core.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from fastcnn.kernels.cpu.caches import goes_past
from fastcnn.kernels.cpu.launch import Kernel, call, launch, unpack
from fastcnn.kernels.cpu.lowering import DEPTH, PIXELS, Pool, offsets, panel_offsets
from fastcnn.kernels.cpu.microkernel import ADD, ZERO, multiply_rows_address
from fastcnn.kernels.cpu.packing import fill_zero, sum_parts, write_row
from fastcnn.kernels.cpu.transposition import transpose
from fastcnn.kernels.cpu.vectors import fence
from fastcnn.kernels.cpu.winograd_layout import layout, odd, operations, pad_rows, round_up
from fastcnn.kernels.cpu.winograd_transforms import transform_address, transform_kernel

BLOCK_BYTES = 4 << 20  # of V and dM in one block of the backward pass, or what U' and dU have, which are read for each


class BackwardSizes(NamedTuple):
    """Of the backward pass: offsets in scratch, and strides."""

    blocks: int
    mosaics: int  # in a block, at most; they are `blocks` apart
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
    gradient: int  # elements of a mosaic's padded dz
    lane: int


@lru_cache(maxsize=256)
def _backward_sizes(g: Any, n: int, itemsize: int) -> BackwardSizes:
    t = layout(g, n, itemsize)
    points, own_tiles = t.side**2, t.rows * t.columns
    channels, filters = -(-g.c // t.c_width) * t.c_width, -(-g.k // t.k_width) * t.k_width
    size = t.mosaics * points * own_tiles * (channels + filters) * itemsize
    weights = points * (channels * g.k + g.c * g.k) * itemsize
    blocks = max(1, min(t.mosaics, -(-size // max(BLOCK_BYTES, weights))))
    mosaics = -(-t.mosaics // blocks)
    tiles = mosaics * own_tiles
    u_point, du_point = odd(g.k * t.c_width), odd(g.c * g.k)
    v_point, dm_point = odd(tiles * channels), odd(tiles * filters)
    # U' is first transposed weights, where dm will lie.
    du = -(-g.c // t.c_width) * points * u_point
    v = du + points * du_point
    dm = v + points * v_point
    db = dm + max(points * dm_point, round_up(g.r * g.s * g.c * g.k))
    gradient = round_up(t.rows * t.m * t.columns * t.m * g.k)
    image = round_up((t.rows * t.m + t.r - 1) * t.pitch * g.c)
    return BackwardSizes(
        blocks, mosaics, tiles, 0, du, v, dm, db, db + round_up(n * g.k), u_point, du_point, v_point, dm_point,
        gradient, max(t.strip + gradient, image),
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
    """dM and V of a block's mosaics start..stop, and each image's share of db."""
    x, y, argmax, dy, scratch, block, n_images, wants, t, sizes, kernels, g, parameter, pool = unpack(args)
    scatter, to_points, gradient_to_points = kernels
    want_dw = wants[1]
    base = sizes.lanes + lane * sizes.lane
    dz, dz_pitch = base + t.strip, t.columns * t.m
    c_width, k_width, c_panel, k_panel = t.c_width, t.k_width, sizes.tiles * t.c_width, sizes.tiles * t.k_width
    fill_zero(scratch, base, base + t.strip + sizes.gradient)
    for i in range(start, stop):
        mosaic = block + i * sizes.blocks
        for place in range(t.grid * t.grid):
            n, down, right = mosaic * t.grid * t.grid + place, place // t.grid, place % t.grid
            at = dz + (down * t.step_h * dz_pitch + right * t.step_w) * g.k
            if n < n_images:
                db = sizes.db + n * g.k
                fill_zero(scratch, db, db + g.k)
                call(scatter, n, n + 1, lane, (dy, y, argmax, parameter, pool, scratch, at, dz_pitch, db))
            else:
                for p in range(g.p):
                    fill_zero(scratch, at + p * dz_pitch * g.k, at + (p * dz_pitch + g.q) * g.k)
        for row in range(t.rows):
            tile = (i * t.rows + row) * t.columns
            source = (dz + row * t.m * dz_pitch * g.k, dz_pitch * g.k, g.k, t.m * g.k, k_width)
            target = (sizes.dm + tile * k_width, t.side * sizes.dm_point, sizes.dm_point, k_width, k_panel)
            call(gradient_to_points, 0, t.columns, lane, (scratch, scratch, source, target, g.k, k_width))
            if want_dw:
                pad_rows(x, mosaic, row * t.m - g.pad_top, n_images, g, t, scratch, base)
                source = (base, t.pitch * g.c, g.c, t.m * g.c, c_width)
                target = (sizes.v + tile * c_width, t.side * sizes.v_point, sizes.v_point, c_width, c_panel)
                call(to_points, 0, t.columns, lane, (scratch, scratch, source, target, g.c, c_width))


@Kernel
def _multiply_points(start, stop, lane, args):
    """dU += V' dM, then dV = dM U' over V, at the points start..stop."""
    scratch, block, tiles, wants, t, sizes, multiply, tables, g = unpack(args)
    v_rows, du_rows, v_tiles, dm_tiles, dm_segments, segment = tables
    want_dx, want_dw = wants
    c_width, k_width, c_panel, k_panel = t.c_width, t.k_width, sizes.tiles * t.c_width, sizes.tiles * t.k_width
    points, per_pass = t.side * t.side, max(1, DEPTH // k_width)
    for point in range(start, stop):
        v0, dm0 = sizes.v + point * sizes.v_point, sizes.dm + point * sizes.dm_point
        if want_dw:
            for k0 in range(0, g.k, k_width):
                for t0 in range(0, tiles, PIXELS):
                    tile = (
                        scratch, v0 + t0 * c_width, v_rows, scratch, sizes.du + point * sizes.du_point + k0, du_rows,
                        segment, min(PIXELS, tiles - t0), c_width, scratch,
                        dm0 + k0 // k_width * k_panel + t0 * k_width, k_width, 0, min(k_width, g.k - k0),
                        ADD if block > 0 or t0 > 0 else ZERO,
                    )  # fmt: skip
                    call(multiply, 0, g.c, lane, tile)
        if want_dx:
            for c0 in range(0, g.c, c_width):
                u0 = sizes.u + (c0 // c_width * points + point) * sizes.u_point
                s0, whole = 0, g.k // k_width
                while s0 * k_width < g.k:  # some whole panels together, and half a panel alone
                    s1 = min(s0 + per_pass, whole) if s0 < whole else s0 + 1
                    tile = (
                        scratch, dm0, dm_tiles, scratch, v0 + c0 // c_width * c_panel, v_tiles, dm_segments[s0:s1],
                        min(k_width, g.k - s0 * k_width), 1, scratch, u0 + s0 * k_width * c_width, c_width, 0,
                        min(c_width, g.c - c0), ADD if s0 > 0 else ZERO,
                    )  # fmt: skip
                    call(multiply, 0, tiles, lane, tile)
                    s0 = s1


@Kernel
def _from_points(start, stop, lane, args):
    """dx of a block's mosaics start..stop, plus `beside`, if there is any."""
    dx, beside, past, scratch, block, n_images, t, sizes, from_points, g = unpack(args)
    base, width, panel = sizes.lanes + lane * sizes.lane, t.c_width, sizes.tiles * t.c_width
    for i in range(start, stop):
        fill_zero(scratch, base, base + (t.rows * t.m + t.r - 1) * t.pitch * g.c)
        for row in range(t.rows):
            source = (
                sizes.v + (i * t.rows + row) * t.columns * width, t.side * sizes.v_point, sizes.v_point, width, panel
            )  # fmt: skip
            target = (base + row * t.m * t.pitch * g.c, t.pitch * g.c, g.c, t.m * g.c, width)
            call(from_points, 0, t.columns, lane, (scratch, scratch, source, target, g.c, width))
        for place in range(t.grid * t.grid):
            n, down, right = (block + i * sizes.blocks) * t.grid * t.grid + place, place // t.grid, place % t.grid
            corner = base + ((g.pad_top + down * t.step_h) * t.pitch + g.pad_left + right * t.step_w) * g.c
            for h in range(g.h if n < n_images else 0):
                row = g.w * g.c
                write_row(scratch, corner + h * t.pitch * g.c, row, beside, past, dx, (n * g.h + h) * row)
    fence()


def backward_scratch(geometry: Any, n: int, itemsize: int, lanes: int) -> int:
    """Elements: U', dU, a block's V and dM, db by image, then for each lane a strip and dz, or dx."""
    sizes = _backward_sizes(geometry, n, itemsize)
    return sizes.lanes + lanes * sizes.lane


def winograd_backward(x, weight, y, argmax, dy, geometry, scatter, pool, beside, dx, dw, db, scratch):
    """dx, plus `beside`, dw and db from the gradient dy of the block's output y, as `conv2d_block_backward`.

    `scatter`: the address of the kernel that makes an image's dz of dy and y, and its parameter.
    """
    g, n, kind = geometry, dy.shape[0], dy.dtype
    t, sizes = layout(g, n, dy.itemsize), _backward_sizes(g, n, dy.itemsize)
    points = t.side**2
    wants = (dx.size > 0, dw.size > 0)
    if wants[0]:
        launch(_transpose_weights, g.r * g.s, weight.size, weight.reshape(-1), g, scratch, sizes.dm)
        launch(
            transform_kernel("weight", t.m, t.r), g.k, points * weight.size // 8, scratch, scratch,
            (sizes.dm, g.s * g.c * g.k, g.c * g.k, g.c, t.c_width),
            (sizes.u, t.side * sizes.u_point, sizes.u_point, t.c_width, points * sizes.u_point), g.c, t.c_width,
        )  # fmt: skip
    to_points = (
        scatter[0], transform_address("input", t.m, t.r, kind), transform_address("output gradient", t.m, t.r, kind),
    )  # fmt: skip
    tables = (
        panel_offsets(g.c, t.c_width, sizes.tiles * t.c_width), offsets(g.c, g.k), offsets(sizes.tiles, t.c_width),
        offsets(sizes.tiles, t.k_width), offsets(-(-g.k // t.k_width), sizes.tiles * t.k_width), offsets(1, 0),
    )  # fmt: skip
    from_points = transform_address("input gradient", t.m, t.r, kind)
    past = goes_past(dx, g.w * g.c)
    for block in range(sizes.blocks):
        mosaics = -(-(t.mosaics - block) // sizes.blocks)
        work = operations(g, mosaics * t.grid**2)
        launch(
            _to_points, mosaics, work, x.reshape(-1), y.reshape(-1), argmax.reshape(-1),
            dy.reshape(-1), scratch, block, n, wants, t, sizes, to_points, g, scatter[1], Pool(*pool),
        )  # fmt: skip
        launch(
            _multiply_points, points, work, scratch, block, mosaics * t.rows * t.columns, wants, t, sizes,
            multiply_rows_address(kind), tables, g,
        )  # fmt: skip
        if wants[0]:
            launch(
                _from_points, mosaics, work, dx.reshape(-1), beside.reshape(-1), past, scratch, block, n, t, sizes,
                from_points, g,
            )  # fmt: skip
    if wants[1]:
        launch(
            transform_kernel("weight gradient", t.m, t.r), g.c, points * dw.size // 8, scratch, dw.reshape(-1),
            (sizes.du, t.side * sizes.du_point, sizes.du_point, g.k, g.k),
            (0, g.s * g.c * g.k, g.c * g.k, g.k, g.k), g.k, g.k,
        )  # fmt: skip
    if db.size:
        launch(sum_parts, g.k, n * g.k, n, sizes.db, g.k, scratch, db)
