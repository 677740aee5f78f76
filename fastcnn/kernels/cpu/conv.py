"""2-D convolution and its gradients, with bias, activation and max-pooling applied while a band of the image
is hot.

A lane (thread) pads one image at a time into its scratch, where the micro-kernel reads windows in place. Forward
cuts the images into bands of output rows, the work that lanes share: convolve all panels of channels, then
bias, activation and pooling over the band. Backward is cut by images. It rebuilds the
pre-pool gradient dz of an image from dy, y and argmax, adds its share, or that of a few small images
together, to the weight gradient and convolves it with the flipped weights for the input gradient. Weight
gradients are summed over a fixed number of chunks of images, then over the chunks in order, so they do not
depend on the number of lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastcnn.kernels.cpu.depthwise import depthwise_chunks, depthwise_forward, is_depthwise
from fastcnn.kernels.cpu.epilogue import activate_address, pool_address, scatter_address
from fastcnn.kernels.cpu.launch import Kernel, address_for, call, launch, unpack
from fastcnn.kernels.cpu.lowering import (
    Pool,
    column_tables,
    forward_tables,
    has_pool,
    input_tables,
    no_pool,
    weight_tables,
)
from fastcnn.kernels.cpu.microkernel import ADD, BIAS, ZERO, multiply_rows_address, panel_width
from fastcnn.kernels.cpu.packing import (
    fill_zero,
    pack_backward,
    pack_columns,
    pack_forward,
    pack_panel,
    pad_image,
    sum_parts,
    transpose_image,
)
from fastcnn.kernels.cpu.runtime import U, as_input, jit
from fastcnn.kernels.cpu.winograd import forward_scratch, winograd_forward
from fastcnn.kernels.cpu.winograd_backward import backward_scratch, winograd_backward
from fastcnn.kernels.cpu.winograd_layout import winograd_tile

CHUNKS = 16  # at most; of images, each with a weight gradient of its own
# A chunk of fewer output pixels costs more to add up than it spares; some there are for the threads all the same.
CHUNK_PIXELS, FEW_CHUNKS = 1024, 4
CHUNK_BYTES = 1 << 26  # that all of them together may take
BAND_PIXELS = 192  # about how many output pixels a band has: few calls, and it stays in cache


def _panels(channels: int, itemsize: int) -> int:
    return -(-channels // panel_width(itemsize))


def _packed_forward(g: Any, itemsize: int) -> int:
    kg = g.k // g.groups
    return g.groups * _panels(kg, itemsize) * panel_width(itemsize) * (1 + g.r * g.s * (g.c // g.groups))


def _packed_backward(g: Any, itemsize: int) -> int:
    cg = g.c // g.groups
    return g.groups * _panels(cg, itemsize) * panel_width(itemsize) * g.r * g.s * (g.k // g.groups)


def _image(g: Any) -> int:
    t = forward_tables(g)
    return _round(t.hp * t.wp * g.c)


def _round(size: int) -> int:
    return -(-size // 16) * 16


def _band_rows(g: Any, pool: Any) -> int:
    """Output rows of the convolution in one band: whole pooled rows, or the whole image where windows
    overlap.
    """
    if has_pool(pool):
        if pool.stride_h < pool.r or pool.pad_top or pool.pad_bottom:
            return int(g.p)
        return int(min(g.p, pool.stride_h * max(1, BAND_PIXELS // (g.q * pool.stride_h))))
    return int(max(1, BAND_PIXELS // g.q))


def _images_together(g: Any) -> int:
    """Whose weight gradient is one product."""
    return 1 if is_depthwise(g) else weight_tables(g).images


def _chunks(n: int, g: Any, itemsize: int) -> int:
    partial = max(1, (g.r * g.s * (g.c // g.groups) * g.k + g.k) * itemsize)
    many = min(CHUNKS, CHUNK_BYTES // partial, max(FEW_CHUNKS, n * g.p * g.q // CHUNK_PIXELS))
    products = -(-n // _images_together(g))
    return max(1, -(-products // -(-products // max(1, many)))) if n else 1


def conv2d_algorithm(geometry: Any, n: int, dtype: Any, training: bool) -> int:
    """The `winograd` of the geometry that is fastest for n images: by a rule of shapes, never by the clock."""
    return winograd_tile(geometry, n, np.dtype(dtype).itemsize, training)


def conv2d_forward_scratch(geometry: Any, pool: Any, n: int, dtype: Any, lanes: int) -> int:
    """Elements: packed weights, then for each lane a padded image and a band."""
    size = np.dtype(dtype).itemsize
    if geometry.winograd and n:
        return forward_scratch(geometry, pool, n, size, lanes)
    band = _round(_band_rows(geometry, pool) * geometry.q * geometry.k) if has_pool(pool) else 0
    return _round(_packed_forward(geometry, size)) + lanes * (_image(geometry) + band)


def conv2d_backward_scratch(geometry: Any, pool: Any, n: int, dtype: Any, lanes: int) -> int:
    """Elements: packed weights, the chunks' weight gradients, then for each lane a padded image, a padded
    gradient and a panel of it.
    """
    g, size = geometry, np.dtype(dtype).itemsize
    if is_depthwise(g):
        return _chunks(n, g, size) * _partial(g) + lanes * (2 * _image(g) + _depthwise_gradient(g, size))
    if geometry.winograd and n:
        return backward_scratch(geometry, n, size, lanes)
    return _round(_packed_backward(g, size)) + _chunks(n, g, size) * _partial(g) + lanes * sum(_lane_parts(g, size))


def _partial(g: Any) -> int:
    return _round(g.r * g.s * (g.c // g.groups) * g.k + g.k)


def _depthwise_gradient(g: Any, itemsize: int) -> int:
    return _round(g.p * g.q * g.k + panel_width(itemsize))  # its last pixel is read as whole vectors


def _gradient_image(g: Any, itemsize: int) -> int:
    t = input_tables(g)
    return _round(t.pp * t.qp * g.k + panel_width(itemsize))


def _gradient_panel(g: Any, itemsize: int) -> int:
    return _round(g.p * g.q * panel_width(itemsize))


def _lane_parts(g: Any, itemsize: int) -> tuple[int, int, int, int]:
    """Of a lane's scratch: images with channels first, their gradients, a panel of these, an input gradient."""
    t = weight_tables(g)
    gradients, panel = t.images * _gradient_image(g, itemsize), t.images * _gradient_panel(g, itemsize)
    return t.images * t.image, gradients, panel, _columns_image(g, itemsize)


def _columns_image(g: Any, itemsize: int) -> int:
    t = column_tables(g, panel_width(itemsize))
    return _round(t.hp * t.wp * g.c) if t.chosen and t.padded else 0


def _operations(g: Any, n: int) -> int:
    """Multiply-adds, as vectors of eight, of one pass over n images; and the output at least."""
    return int(n * g.p * g.q * g.k * (1 + g.r * g.s * (g.c // g.groups) // 8))


# ------------------------------------------------------------------------------------------------------------- forward


@Kernel
def _pack_forward_kernel(start, stop, lane, args):
    weight, bias, g, width, scratch = unpack(args)
    pack_forward(weight, bias, g, width, scratch, start, stop)


@Kernel
def _forward_bands(start, stop, lane, args):
    """The bands start..stop, counted through all images."""
    x, no_bias, y, argmax, scratch, layout, width, kernels, g, act, pool, t = unpack(args)
    multiply, activate, pool_rows = kernels  # pool_rows: 0 where there is no pooling
    packed_size, lane_size, image_size, band_rows = layout
    kg, cg = g.k // g.groups, g.c // g.groups
    panel_size = (1 + g.r * g.s * cg) * width
    panels = (kg + width - 1) // width
    pooled = pool_rows != 0
    image0 = packed_size + lane * lane_size
    band0 = image0 + image_size
    if t.padded:
        fill_zero(scratch, image0, image0 + image_size)
    bands, padded = (g.p + band_rows - 1) // band_rows, -1
    for item in range(start, stop):
        n, p0 = item // bands, item % bands * band_rows
        p1 = min(p0 + band_rows, g.p)
        source, source0 = x, n * g.h * g.w * g.c
        if t.padded:
            if padded != n:
                pad_image(x, source0, g.h, g.w, g.c, scratch, image0, g.pad_top, g.pad_left, t.wp)
                padded = n
            source, source0 = scratch, image0
        target, target0 = y, n * g.p * g.q * g.k
        if pooled:
            target, target0 = scratch, band0 - p0 * g.q * g.k
        for group in range(g.groups):
            for panel in range(panels):
                first, packed0 = panel * width, (group * panels + panel) * panel_size
                for seg0 in range(0, t.segments.shape[0], t.per_pass):
                    tile = (
                        source, source0 + group * cg, t.rows, target, target0 + group * kg + first, t.out_rows,
                        t.segments[seg0 : seg0 + t.per_pass], t.seg_len, 1, scratch,
                        packed0 + width + seg0 * t.seg_len * width, width, 0, min(width, kg - first),
                        ADD if seg0 > 0 else BIAS,
                    )  # fmt: skip
                    call(multiply, p0 * g.q, p1 * g.q, lane, tile)
        if pooled:
            call(pool_rows, p0, p1, lane, (scratch, band0, g.q, n, activate, no_bias, act, pool, y, argmax))
        else:
            call(activate, (n * g.p + p0) * g.q, (n * g.p + p1) * g.q, lane, (y, g.k, no_bias, act))


def conv2d_block_forward(x, weight, bias, geometry, activation, pool, y, argmax, scratch):
    """y = maxpool(activation(conv(x) + bias)), the pre-pool values never stored; argmax as y's shape."""
    x, weight, bias = as_input(x), as_input(weight), as_input(bias)
    if geometry.winograd and len(x):
        winograd_forward(x, weight, bias, geometry, activation, pool, y, argmax, scratch)
        return
    g, size = geometry, y.itemsize
    image = _image(geometry) if forward_tables(geometry).padded else 0
    band_rows = _band_rows(geometry, pool)
    band = _round(band_rows * g.q * g.k) if has_pool(pool) else 0
    layout = (_round(_packed_forward(g, size)), image + band, image, band_rows)
    if is_depthwise(g):
        launch(
            depthwise_forward, x.shape[0], _operations(g, x.shape[0]), x.reshape(-1), weight.reshape(-1), bias,
            y.reshape(-1), argmax.reshape(-1), scratch, layout,
            (activate_address(y.dtype, activation), pool_address(y.dtype, argmax, pool) if has_pool(pool) else 0),
            g, tuple(activation), Pool(*pool), forward_tables(geometry),
        )  # fmt: skip
        return
    width = panel_width(size)
    panels = g.groups * _panels(g.k // g.groups, size)
    launch(_pack_forward_kernel, panels, weight.size, weight.reshape(-1), bias, g, width, scratch)
    launch(
        _forward_bands,
        x.shape[0] * -(-g.p // band_rows),
        _operations(g, x.shape[0]),
        x.reshape(-1),
        bias[:0],  # it is in the packed weights
        y.reshape(-1),
        argmax.reshape(-1),
        scratch,
        layout,
        width,
        (
            multiply_rows_address(y.dtype),
            activate_address(y.dtype, activation),
            pool_address(y.dtype, argmax, pool) if has_pool(pool) else 0,
        ),
        g,
        tuple(activation),
        Pool(*pool),
        forward_tables(geometry),
    )


# ------------------------------------------------------------------------------------------------------------ backward


@jit
def _weight_products(
    count, scratch, image0, dz, gradient_size, panel0, partial, begun, multiply, lane, width, g, t, qp
):
    """dw of `count` images, added to what there is if it was `begun`."""
    kg, cg = g.k // g.groups, g.c // g.groups
    rows = count * g.p
    passes = (rows + t.per_pass - 1) // t.per_pass
    per_pass = (rows + passes - 1) // passes
    for group in range(g.groups):
        for first in range(0, kg, width):
            panel, panel_row, panel_skip = dz + group * kg + first, g.k, (qp - g.q) * g.k
            if t.packed:
                for i in range(count):
                    packed = panel0 + i * g.p * g.q * width
                    pack_panel(scratch, panel + i * gradient_size, g.p, g.q, g.k, qp, width, packed)
                panel, panel_row, panel_skip = panel0, width, 0
            for p0 in range(0, rows, per_pass):
                tile = (
                    scratch, image0 + group * cg * t.plane, t.rows, scratch, partial + group * kg + first, t.out_rows,
                    t.segments[p0 : min(p0 + per_pass, rows)], g.q, t.step, scratch,
                    panel + p0 * (g.q * panel_row + panel_skip), panel_row, panel_skip, min(width, kg - first),
                    ADD if begun or p0 > 0 else ZERO,
                )  # fmt: skip
                call(multiply, 0, g.r * g.s * cg, lane, tile)


@Kernel
def _backward_chunks(start, stop, lane, args):
    x, y, argmax, dy, dx, scratch, layout, width, wants, kernels, g, alpha, pool, wt, it, columns = unpack(args)
    n_images, chunks, packed_size, partial_size, parts, gradient_size = layout
    want_dx, want_dw = wants
    multiply, scatter, input_gradient = kernels
    dw_size = g.r * g.s * (g.c // g.groups) * g.k
    image0 = packed_size + chunks * partial_size + lane * (parts[0] + parts[1] + parts[2] + parts[3])
    gradient0 = image0 + parts[0]
    panel0 = gradient0 + parts[1]
    inside = (it.top * it.qp + it.left) * g.k  # where the first pixel of a padded gradient lies
    # The borders of a lane's padded images are zero, and stay so.
    fill_zero(scratch, image0, panel0)
    for chunk in range(start, stop):
        partial = packed_size + chunk * partial_size
        products = (n_images + wt.images - 1) // wt.images
        first = products * chunk // chunks * wt.images
        last = min(n_images, products * (chunk + 1) // chunks * wt.images)
        fill_zero(scratch, partial + (dw_size if first < last else 0), partial + partial_size)
        for n0 in range(first, last, wt.images):
            count = min(wt.images, last - n0)
            for i in range(count):
                dz = gradient0 + i * gradient_size + inside
                gradient = (dy, y, argmax, alpha, pool, scratch, dz, it.qp, partial + dw_size)
                call(scatter, n0 + i, n0 + i + 1, lane, gradient)
                if want_dw:
                    transpose_image(x, (n0 + i) * g.h * g.w * g.c, g.w, g.c, wt, scratch, image0 + i * wt.image)
            if want_dw:
                _weight_products(
                    count, scratch, image0, gradient0 + inside, gradient_size, panel0, partial, n0 > first, multiply,
                    lane, width, g, wt, it.qp,
                )  # fmt: skip
            for i in range(count if want_dx else 0):
                n, dz = n0 + i, gradient0 + i * gradient_size
                if columns.chosen:
                    one = (scratch, dz + inside, panel0 + parts[2], dx, multiply, width, g, columns)
                    call(input_gradient, n, n + 1, lane, one)
                else:
                    call(input_gradient, n, n + 1, lane, (scratch, dz, dx, multiply, width, g, it))


@Kernel
def _input_by_phases(n, stop, lane, args):
    """The input gradient of image n from its dz, by `input_tables`."""
    scratch, dz_start, dx, multiply, width, g, t = unpack(args)
    kg, cg = g.k // g.groups, g.c // g.groups
    at, dx0 = 0, n * g.h * g.w * g.c
    for phase in range(t.seg_lens.shape[0]):
        n_taps = t.tap_starts[phase + 1] - t.tap_starts[phase]
        segments = t.segments[t.seg_starts[phase] : t.seg_starts[phase + 1]]
        seg_len, per_pass = t.seg_lens[phase], t.per_pass[phase]
        for group in range(g.groups):
            for first in range(0, cg, width):
                for seg0 in range(0, max(segments.shape[0], 1), per_pass):
                    tile = (
                        scratch, dz_start + group * kg, t.rows, dx, dx0 + group * cg + first, t.out_rows,
                        segments[seg0 : seg0 + per_pass], seg_len, 1, scratch, at + seg0 * seg_len * width,
                        width, 0, min(width, cg - first),
                        ADD if seg0 > 0 else ZERO,
                    )  # fmt: skip
                    call(multiply, t.starts[phase], t.starts[phase + 1], lane, tile)
                at += n_taps * kg * width


@Kernel
def _input_by_columns(n, stop, lane, args):
    """The input gradient of image n from its dz, by `column_tables`."""
    scratch, dz_start, image0, dx, multiply, width, g, t = unpack(args)
    target, target0, size = dx, n * g.h * g.w * g.c, g.h * g.w * g.c
    if t.padded:
        target, target0, size = scratch, image0, t.hp * t.wp * g.c
    fill_zero(target, target0, target0 + size)
    at = 0
    for r in range(g.r):
        for first in range(0, g.s * g.c, width):
            tile = (
                scratch, dz_start, t.rows, target, target0 + r * g.dilation_h * t.wp * g.c + first, t.out_rows,
                t.segment, g.k, 1, scratch, at, width, 0, min(width, g.s * g.c - first), ADD,
            )  # fmt: skip
            call(multiply, 0, g.p * g.q, lane, tile)
            at += g.k * width
    if t.padded:
        for h in range(g.h):
            source, to = image0 + ((g.pad_top + h) * t.wp + g.pad_left) * g.c, (n * g.h + h) * g.w * g.c
            for j in range(g.w * g.c):
                dx[U(to + j)] = scratch[U(source + j)]


@Kernel
def _pack_backward_kernel(start, stop, lane, args):
    weight, g, t, width, scratch = unpack(args)
    pack_backward(weight, g, t, width, scratch)


@Kernel
def _pack_columns_kernel(start, stop, lane, args):
    weight, g, width, scratch = unpack(args)
    pack_columns(weight, g, width, scratch, start, stop)


def conv2d_block_backward(x, weight, y, argmax, dy, geometry, activation, pool, dx, dw, db, scratch):
    """dx, dw, db of the block from the gradient dy of its output y. dy is not changed."""
    x, weight, y, argmax, dy = as_input(x), as_input(weight), as_input(y), as_input(argmax), as_input(dy)
    scatter, parameter = scatter_address(dy.dtype, argmax.dtype, activation, pool), float(activation[1])
    if geometry.winograd and len(dy):
        none = np.empty(0, dy.dtype)
        winograd_backward(x, weight, y, argmax, dy, geometry, (scatter, parameter), pool, none, dx, dw, db, scratch)
        return
    g, size, n, width = geometry, dy.itemsize, dy.shape[0], panel_width(dy.itemsize)
    chunks, packed, partial = _chunks(n, g, size), _round(_packed_backward(g, size)), _partial(g)
    if is_depthwise(g):
        packed = 0
        launch(
            depthwise_chunks, chunks, 2 * _operations(g, n), x.reshape(-1), weight.reshape(-1), y.reshape(-1),
            argmax.reshape(-1), dy.reshape(-1), dx.reshape(-1), scratch,
            (n, chunks, packed, partial, _image(g), _depthwise_gradient(g, size)), (dx.size > 0, dw.size > 0),
            scatter, g, parameter, Pool(*pool), forward_tables(geometry),
        )  # fmt: skip
        _merge(chunks, packed, partial, scratch, dw, db, g)
        return
    layout = n, chunks, packed, partial, _lane_parts(g, size), _gradient_image(g, size)
    tables, columns = input_tables(geometry), column_tables(geometry, width)
    if dx.size and columns.chosen:
        launch(_pack_columns_kernel, g.r, weight.size, weight.reshape(-1), g, width, scratch)
    elif dx.size:
        launch(_pack_backward_kernel, 1, weight.size, weight.reshape(-1), g, tables, width, scratch)
    multiply, input_gradient = multiply_rows_address(dy.dtype), 0
    if dx.size and columns.chosen:
        input_gradient = address_for(_input_by_columns, scratch, 0, 0, scratch, 0, width, g, columns)
    elif dx.size:
        input_gradient = address_for(_input_by_phases, scratch, 0, scratch, 0, width, g, tables)
    launch(
        _backward_chunks,
        chunks,
        2 * _operations(g, n),
        x.reshape(-1),
        y.reshape(-1),
        argmax.reshape(-1),
        dy.reshape(-1),
        dx.reshape(-1),
        scratch,
        layout,
        width,
        (dx.size > 0, dw.size > 0),
        (multiply, scatter, input_gradient),
        g,
        parameter,
        Pool(*pool),
        weight_tables(geometry),
        tables,
        columns,
    )
    _merge(chunks, packed, partial, scratch, dw, db, g)


def _merge(chunks, packed, partial, scratch, dw, db, g):
    if dw.size:
        launch(sum_parts, dw.size, dw.size * chunks, chunks, packed, partial, scratch, dw.reshape(-1))
    if db.size:
        first = packed + g.r * g.s * (g.c // g.groups) * g.k
        launch(sum_parts, db.size, 0, chunks, first, partial, scratch, db)


# ------------------------------------------------------------------ the convolution alone, without epilogue


NO_ACTIVATION = (0, 0.0)


def conv2d_forward(x, weight, bias, geometry, y, scratch):
    """y (N,P,Q,K) = x (N,H,W,C) convolved with weight (R,S,C/groups,K), plus bias (K,)."""
    argmax = np.empty((0, 0, 0, 0), np.uint8)
    conv2d_block_forward(x, weight, bias, geometry, NO_ACTIVATION, no_pool(geometry), y, argmax, scratch)


def conv2d_backward_input(dy, weight, geometry, dx, scratch):
    """dx (N,H,W,C) from dy (N,P,Q,K)."""
    none, argmax = np.empty((0, 0, 0, 0), dy.dtype), np.empty((0, 0, 0, 0), np.uint8)
    outputs = dx, none, none.reshape(-1), scratch
    conv2d_block_backward(none, weight, dy, argmax, dy, geometry, NO_ACTIVATION, no_pool(geometry), *outputs)


def conv2d_backward_weight(x, dy, geometry, dw, db, scratch):
    """dw (R,S,C/groups,K) and db (K,), summed over the batch."""
    none, argmax = np.empty((0, 0, 0, 0), dy.dtype), np.empty((0, 0, 0, 0), np.uint8)
    conv2d_block_backward(x, none, dy, argmax, dy, geometry, NO_ACTIVATION, no_pool(geometry), none, dw, db, scratch)
