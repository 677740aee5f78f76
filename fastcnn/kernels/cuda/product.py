"""The three products of a convolution as implicit matrix products: the image is never laid out as a matrix in memory.

Forward: pixels x filters, summed over the window. Input gradient: pixels x channels, summed over window and filters.
Weight gradient: window and channels x filters, summed over the pixels of the batch. A block of threads reads its part
of both operands straight from the images into shared memory, the next part while it multiplies this one. A dense layer
is a convolution of images of one pixel.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastcnn.kernels.cuda.activations import activation_functions
from fastcnn.kernels.cuda.driver import Kernel, cuda, device_function, kernel, types
from fastcnn.kernels.cuda.intrinsics import arrive, commit, narrow, quotient, store4
from fastcnn.kernels.cuda.tiles import ALIGNMENT, Tile, corner, matrix_putter, multiplier, operand, parts_of

__all__ = ["forward_kernel", "input_kernel", "weight_kernel"]

_OUTSIDE = -(2**30)  # a row or column that no window reaches


@device_function
def _in_window(d, channels, s):
    """Term d of a sum over a window and channels: the place in the window, and the channel."""
    place = quotient(d, channels)
    r = quotient(place, s)
    return narrow(r), narrow(place - r * s), narrow(d - place * channels)


@device_function
def _moved(r, s_at, channel, terms, channels, s):
    """The place in the window and the channel so many terms further on."""
    channel = narrow(channel + terms)
    while channel >= channels:
        channel = narrow(channel - channels)
        s_at = narrow(s_at + 1)
        if s_at == s:
            s_at = narrow(0)
            r = narrow(r + 1)
    return r, s_at, channel


@device_function
def _pixel(d, p, q):
    """Pixel d of a batch: its row, its column and its image."""
    row = quotient(d, q)
    image = quotient(row, p)
    return narrow(row - image * p), narrow(d - row * q), image


@device_function
def _sizes(g):
    """A geometry's numbers, in 32 bits; what they are multiplied to need not fit. A stride that is never taken is 1."""
    h, w, c, k, r, s, p, q, stride_h, stride_w, pad_top, pad_left, _, _, dilation_h, dilation_w, groups = g
    return (
        narrow(h), narrow(w), narrow(c), narrow(k), narrow(r), narrow(s), narrow(p), narrow(q),
        narrow(stride_h if p > 1 else 1), narrow(stride_w if q > 1 else 1), narrow(pad_top), narrow(pad_left),
        narrow(dilation_h), narrow(dilation_w), groups,
    )  # fmt: skip


@cache
def quad_writer(width: int) -> Any:
    """The device function that writes four sums of a line, as many as there are columns."""

    @device_function
    def write(target, at, sums, m, columns):
        if width == 4:
            store4(target, at, sums[m], sums[m + 1], sums[m + 2], sums[m + 3])
        else:
            for n in range(4):
                if n < columns:
                    target[at + n] = sums[m + n]

    return write


@cache
def forward_kernel(tile: Tile, real: Any, x_width: int, w_width: int, window: int, code: int) -> Kernel:
    """y = maxpool(activation(x * weight + bias)).

    `x_width`, `w_width`: numbers of x and of weight that are read at once, 4 or 1. `window`: pixels of a pooling window
    (1, 2 or 4), which are neighbours in a thread's sums. `code`: of the activation. With several `splits` of the sum,
    y is a stack of partial sums.
    """
    rows, columns, depth, per_rows, per_columns, _ = tile
    threads, parts, one = tile.threads, parts_of(real), np.dtype(real).type(1)
    # In quads a thread reads several rows at one place of the sum; number by number, one row at several places.
    a_size, a_items, a_lanes, put_a = operand(rows, tile, x_width, x_width == 4)
    own_rows, a_size, b_size = (
        a_items if x_width == 4 else 1,
        parts * a_size,
        parts * operand(columns, tile, w_width, False).size,
    )
    b_lanes = columns // w_width
    multiply, put_matrix = multiplier(tile, x_width == 4, False), matrix_putter(tile, w_width)
    activate, _ = activation_functions(real)
    write, sums_corner = quad_writer(w_width), corner(tile)
    row_quads, column_quads, outputs = per_rows // 4, per_columns // 4, 4 // window
    row_spread, column_spread, n_sums = tile.row_spread, tile.column_spread, per_rows * per_columns
    number, zero = getattr(types, np.dtype(real).name), np.dtype(real).type(0)

    @kernel("R R R R B G r i i i i i i i i i", f"conv_forward{tuple(tile)}", tile.registers)
    def forward(
        x, weight, bias, y, argmax, g, alpha, n_rows, has_bias, want_argmax, window_h, window_w, pooled_h, pooled_w,
        split_depth, size,
    ):  # fmt: skip
        a_tile = cuda.shared.array(a_size, number, ALIGNMENT)
        b_tile = cuda.shared.array(b_size, number, ALIGNMENT)
        sums = cuda.local.array(n_sums, number)
        a_part = cuda.local.array(per_rows, number)
        b_part = cuda.local.array(per_columns, number)
        base = cuda.local.array(own_rows, types.int64)
        top = cuda.local.array(own_rows, types.int32)
        left = cuda.local.array(own_rows, types.int32)
        best = cuda.local.array(4, number)
        place = cuda.local.array(4, types.int64)
        h, w, c, k, r, s, _, _, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, groups = _sizes(g)
        t = narrow(cuda.threadIdx.x)
        split = quotient(cuda.blockIdx.z, groups)
        group = cuda.blockIdx.z - split * groups
        c_group, k_group = narrow(quotient(c, groups)), narrow(quotient(k, groups))
        first_row, first_column = cuda.blockIdx.x * rows, cuda.blockIdx.y * columns
        for i in range(n_sums):
            sums[i] = zero

        # Rows: the pixels of the output, in the order of the pooling windows that they belong to.
        for i in range(own_rows):
            row = first_row + ((t + i * threads) // a_lanes if x_width == 4 else t % rows)
            pixel = row // window
            in_window = row % window
            pooled_row = quotient(pixel, pooled_w)
            n = quotient(pooled_row, pooled_h)
            at_h = (pooled_row - n * pooled_h) * window_h
            at_w = (pixel - pooled_row * pooled_w) * window_w
            if window > 1:
                in_row = quotient(in_window, window_w)
                at_h += in_row
                at_w += in_window - in_row * window_w
            at_h, at_w = at_h * stride_h - pad_top, at_w * stride_w - pad_left
            base[i] = ((n * h + at_h) * w + at_w) * c + group * c_group
            top[i] = at_h if row < n_rows else _OUTSIDE
            left[i] = at_w

        # The sum: places of the window, channels. This thread's place in it moves along with the tile.
        d = narrow(split * split_depth)
        d_end = narrow(min(d + split_depth, r * s * c_group))
        steps = narrow(quotient(max(d_end - d, 0) + depth - 1, depth))
        here = narrow(d + t % a_lanes * x_width if x_width == 4 else d + t // rows)
        at_r, at_s, channel = _in_window(here, c_group, s)
        column = narrow(first_column + t % b_lanes * w_width)
        column = narrow(column if column < k_group else -w_width)
        part, multiplied = narrow(0), narrow(0)
        for step in range(steps + parts - 1):
            arrive(parts - 2)
            cuda.syncthreads()
            if step < steps:
                for i in range(a_items):
                    if x_width == 1 and (i == 0 or threads % rows != 0):
                        here = narrow(d + (t + i * threads) // rows)
                        at_r, at_s, channel = _in_window(here, c_group, s)
                    own = i if x_width == 4 else 0
                    down, right = narrow(at_r * dilation_h), narrow(at_s * dilation_w)
                    ih, iw = narrow(top[own] + down), narrow(left[own] + right)
                    inside = (here < d_end) & (ih >= 0) & (ih < h) & (iw >= 0) & (iw < w)
                    offset = narrow((down * w + right) * c + channel)
                    put_a(a_tile, part, t, i, x, base[own] + offset, inside)
                    if x_width == 1 and threads % rows == 0:
                        here = narrow(here + threads // rows)
                        at_r, at_s, channel = _moved(at_r, at_s, channel, threads // rows, c_group, s)
                put_matrix(b_tile, part, t, weight, k, group * k_group, column, d, d_end)
                d = narrow(d + depth)
                if x_width == 4:
                    here = narrow(here + depth)
                    at_r, at_s, channel = _moved(at_r, at_s, channel, depth, c_group, s)
            commit()
            part = narrow(part + 1 if part + 1 < parts else 0)
            if step >= parts - 1:
                multiply(a_tile, b_tile, multiplied, t, a_part, b_part, sums, one, one)
                multiplied = narrow(multiplied + 1 if multiplied + 1 < parts else 0)

        own_row, own_column = sums_corner(t)
        for i in range(row_quads):
            row = first_row + i * row_spread + own_row
            for j in range(column_quads):
                column = first_column + j * column_spread + own_column
                for o in range(outputs):
                    if row + o * window < n_rows and column < k_group:
                        for m in range(4):
                            best[m] = sums[(i * 4 + o * window) * per_columns + j * 4 + m]
                            place[m] = 0
                            for v in range(1, window):
                                value = sums[(i * 4 + o * window + v) * per_columns + j * 4 + m]
                                if value > best[m] or (value != value and best[m] == best[m]):
                                    best[m] = value
                                    place[m] = v
                            if has_bias and column + m < k_group:
                                best[m] += bias[group * k_group + column + m]
                            best[m] = activate(best[m], code, alpha)
                        at = split * size + quotient(row, window) * k + o * k + group * k_group + column
                        write(y, at, best, 0, k_group - column)
                        if window > 1 and want_argmax:
                            for m in range(4):
                                if column + m < k_group:
                                    argmax[at + m] = place[m]

    return forward


@cache
def input_kernel(tile: Tile, real: Any, width: int, x_width: int, strided: bool) -> Kernel:
    """dx from dy. `width`: numbers of dy and weight that are read at once, `x_width`: of dx that are written.
    `strided`: whether there is a stride above 1.

    In fp16 dy is multiplied by `scale`, and the sums by `unscale`: small gradients would vanish.
    """
    rows, columns, depth, per_rows, per_columns, _ = tile
    threads, parts, deep, one = tile.threads, parts_of(real), width == 4, np.dtype(real).type(1)
    a_size, a_items, lanes, put_a = operand(rows, tile, width, deep)  # as in `forward_kernel`
    b_size, b_items, _, put_b = operand(columns, tile, width, deep)
    a_size, b_size = parts * a_size, parts * b_size
    own_rows, multiply = a_items if deep else 1, multiplier(tile, deep, deep)
    row_quads, column_quads, sums_corner, write = per_rows // 4, per_columns // 4, corner(tile), quad_writer(x_width)
    row_spread, column_spread, n_sums = tile.row_spread, tile.column_spread, per_rows * per_columns
    number, zero, scaled = getattr(types, np.dtype(real).name), np.dtype(real).type(0), tile.cores == "fp16"

    @kernel("R R R G i i i r r", f"conv_input{tuple(tile)}", tile.registers)
    def backward_input(dy, weight, dx, g, n_rows, split_depth, size, scale, unscale):
        a_tile = cuda.shared.array(a_size, number, ALIGNMENT)
        b_tile = cuda.shared.array(b_size, number, ALIGNMENT)
        sums = cuda.local.array(n_sums, number)
        a_part = cuda.local.array(per_rows, number)
        b_part = cuda.local.array(per_columns, number)
        base = cuda.local.array(own_rows, types.int64)
        top = cuda.local.array(own_rows, types.int32)
        left = cuda.local.array(own_rows, types.int32)
        h, w, c, k, r, s, p, q, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, groups = _sizes(g)
        t = narrow(cuda.threadIdx.x)
        split = quotient(cuda.blockIdx.z, groups)
        group = cuda.blockIdx.z - split * groups
        c_group, k_group = narrow(quotient(c, groups)), narrow(quotient(k, groups))
        first_row, first_column = cuda.blockIdx.x * rows, cuda.blockIdx.y * columns
        for i in range(n_sums):
            sums[i] = zero

        # Rows: the pixels of the input. Without strides, `base` is the output's whose window begins with it.
        for i in range(own_rows):
            row = first_row + ((t + i * threads) // lanes if deep else t % rows)
            image_row = quotient(row, w)
            n = quotient(image_row, h)
            at_h, at_w = image_row - n * h + pad_top, row - image_row * w + pad_left
            base[i] = n * p * q * k + group * k_group
            if not strided:
                base[i] += (at_h * q + at_w) * k
            top[i] = at_h if row < n_rows else _OUTSIDE
            left[i] = at_w

        d = narrow(split * split_depth)
        d_end = narrow(min(d + split_depth, r * s * k_group))
        steps = narrow(quotient(max(d_end - d, 0) + depth - 1, depth))
        here = narrow(d + t % lanes * width if deep else d)
        at_r, at_s, channel = _in_window(here, k_group, s)
        part, multiplied = narrow(0), narrow(0)
        for step in range(steps + parts - 1):
            arrive(parts - 2)
            cuda.syncthreads()
            if step < steps:
                for i in range(a_items):
                    if not deep:
                        here = narrow(d + (t + i * threads) // rows)
                        at_r, at_s, channel = _in_window(here, k_group, s)
                    # The pixel of the output whose window has this one at (at_r, at_s), if there is one.
                    own = i if deep else 0
                    down, right = narrow(at_r * dilation_h), narrow(at_s * dilation_w)
                    oh, ow = narrow(top[own] - down), narrow(left[own] - right)
                    inside = (here < d_end) & (oh >= 0) & (ow >= 0)
                    if strided:
                        over_h, over_w = quotient(max(oh, 0), stride_h), quotient(max(ow, 0), stride_w)
                        inside &= (over_h * stride_h == oh) & (over_w * stride_w == ow) & (over_h < p) & (over_w < q)
                        offset = narrow((over_h * q + over_w) * k + channel)
                    else:
                        inside &= (oh < p) & (ow < q)
                        offset = narrow(channel - (down * q + right) * k)
                    put_a(a_tile, part, t, i, dy, base[own] + offset, inside)
                for i in range(b_items):
                    if not deep:
                        here = narrow(d + (t + i * threads) // columns)
                        at_r, at_s, channel = _in_window(here, k_group, s)
                    column = narrow(first_column + ((t + i * threads) // lanes if deep else t % columns))
                    offset = narrow((at_r * s + at_s) * c_group * k + channel)
                    at = offset + (column * k + group * k_group)
                    put_b(b_tile, part, t, i, weight, at, (here < d_end) & (column < c_group))
                d = narrow(d + depth)
                if deep:
                    here = narrow(here + depth)
                    at_r, at_s, channel = _moved(at_r, at_s, channel, depth, k_group, s)
            commit()
            part = narrow(part + 1 if part + 1 < parts else 0)
            if step >= parts - 1:
                multiply(a_tile, b_tile, multiplied, t, a_part, b_part, sums, scale, one)
                multiplied = narrow(multiplied + 1 if multiplied + 1 < parts else 0)

        if scaled:
            for i in range(n_sums):
                sums[i] *= unscale
        own_row, own_column = sums_corner(t)
        for i in range(row_quads):
            for j in range(column_quads):
                column = first_column + j * column_spread + own_column
                for o in range(4):
                    row = first_row + i * row_spread + own_row + o
                    if row < n_rows and column < c_group:
                        at = split * size + row * c + group * c_group + column
                        write(dx, at, sums, (i * 4 + o) * per_columns + j * 4, c_group - column)

    return backward_input


@cache
def weight_kernel(tile: Tile, real: Any, x_width: int, y_width: int) -> Kernel:
    """dw, or a stack of partial sums of it, from x and dy; the widths: numbers of each that are read at once.

    In fp16 dy is multiplied by `scale`, and the sums by `unscale`.
    """
    rows, columns, depth, per_rows, per_columns, _ = tile
    threads, parts, one = tile.threads, parts_of(real), np.dtype(real).type(1)
    a_size, a_items, a_lanes, put_a = operand(rows, tile, x_width, False)
    a_size, b_size = parts * a_size, parts * operand(columns, tile, y_width, False).size
    b_lanes, apart = columns // y_width, threads // a_lanes  # pixels from one that a thread brings to its next
    multiply, put_matrix = multiplier(tile, False, False), matrix_putter(tile, y_width)
    row_quads, column_quads, sums_corner, write = per_rows // 4, per_columns // 4, corner(tile), quad_writer(y_width)
    row_spread, column_spread, n_sums = tile.row_spread, tile.column_spread, per_rows * per_columns
    number, zero, scaled = getattr(types, np.dtype(real).name), np.dtype(real).type(0), tile.cores == "fp16"

    @kernel("R R R G i i i r r", f"conv_weight{tuple(tile)}", tile.registers)
    def backward_weight(x, dy, dw, g, n_pixels, split_depth, size, scale, unscale):
        a_tile = cuda.shared.array(a_size, number, ALIGNMENT)
        b_tile = cuda.shared.array(b_size, number, ALIGNMENT)
        sums = cuda.local.array(n_sums, number)
        a_part = cuda.local.array(per_rows, number)
        b_part = cuda.local.array(per_columns, number)
        h, w, c, k, r, s, p, q, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, groups = _sizes(g)
        t = narrow(cuda.threadIdx.x)
        split = quotient(cuda.blockIdx.z, groups)
        group = cuda.blockIdx.z - split * groups
        c_group, k_group = narrow(quotient(c, groups)), narrow(quotient(k, groups))
        first_row, first_column = cuda.blockIdx.x * rows, cuda.blockIdx.y * columns
        n_rows = r * s * c_group
        for i in range(n_sums):
            sums[i] = zero

        # This thread's row: a place of the window, a channel.
        row = narrow(first_row + t % a_lanes * x_width)
        at_place = quotient(row, c_group)
        channel = row - at_place * c_group + group * c_group
        at_r = quotient(at_place, s)
        top = narrow(at_r * dilation_h - pad_top)
        left = narrow((at_place - at_r * s) * dilation_w - pad_left)

        # The sum: pixels of the output. This thread's place among them moves along.
        d = narrow(split * split_depth)
        d_end = narrow(min(d + split_depth, n_pixels))
        steps = narrow(quotient(max(d_end - d, 0) + depth - 1, depth))
        term = narrow(d + t // a_lanes)
        at_h, at_w, n = _pixel(term, p, q)
        base = ((n * h + at_h * stride_h) * w + at_w * stride_w) * c
        to_line, to_image = narrow((stride_h * w - q * stride_w) * c), narrow((h - p * stride_h) * w * c)
        along, offset = narrow(apart * stride_w * c), (top * w + left) * c + channel
        column = narrow(first_column + t % b_lanes * y_width)
        column = narrow(column if column < k_group else -y_width)
        part, multiplied = narrow(0), narrow(0)
        for step in range(steps + parts - 1):
            arrive(parts - 2)
            cuda.syncthreads()
            if step < steps:
                for i in range(a_items):
                    ih, iw = narrow(at_h * stride_h + top), narrow(at_w * stride_w + left)
                    inside = (term < d_end) & (row < n_rows) & (ih >= 0) & (ih < h) & (iw >= 0) & (iw < w)
                    put_a(a_tile, part, t, i, x, base + offset, inside)
                    term, at_w = narrow(term + apart), narrow(at_w + apart)
                    base += along
                    while at_w >= q:
                        at_w = narrow(at_w - q)
                        at_h = narrow(at_h + 1)
                        base += to_line
                        if at_h == p:
                            at_h = narrow(0)
                            base += to_image
                put_matrix(b_tile, part, t, dy, k, group * k_group, column, d, d_end)
                d = narrow(d + depth)
            commit()
            part = narrow(part + 1 if part + 1 < parts else 0)
            if step >= parts - 1:
                multiply(a_tile, b_tile, multiplied, t, a_part, b_part, sums, one, scale)
                multiplied = narrow(multiplied + 1 if multiplied + 1 < parts else 0)

        if scaled:
            for i in range(n_sums):
                sums[i] *= unscale
        own_row, own_column = sums_corner(t)
        for i in range(row_quads):
            for j in range(column_quads):
                column = first_column + j * column_spread + own_column
                for o in range(4):
                    out_row = first_row + i * row_spread + own_row + o
                    if out_row < n_rows and column < k_group:
                        at = split * size + out_row * k + group * k_group + column
                        write(dw, at, sums, (i * 4 + o) * per_columns + j * 4, k_group - column)

    return backward_weight
