"""Pooling: a thread for each pixel and channel of what is written."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastcnn.kernels.cuda.activations import activation_functions
from fastcnn.kernels.cuda.arrays import none, width_of
from fastcnn.kernels.cuda.driver import Kernel, cuda, device_function, kernel, linear, types
from fastcnn.kernels.cuda.elementwise import activation_backward
from fastcnn.kernels.cuda.intrinsics import quotient, vectors

_PLAIN = (0, 0.0)


@device_function
def place_of(i, c, width, height):
    """Element i of images (n, height, width, c): image, row, column, channel."""
    pixel = quotient(i, c)
    row = quotient(pixel, width)
    n = quotient(row, height)
    return n, row - n * height, pixel - row * width, i - pixel * c


@device_function
def _windows(at, pad, window, stride, n):
    """The first window that covers `at`, and the one after the last."""
    first = at + pad - window + stride
    first = quotient(first, stride) if first > 0 else 0
    return first, min(quotient(at + pad, stride) + 1, n)


@cache
def max_forward_kernel(real: Any) -> Kernel:
    lowest = np.dtype(real).type(-np.inf)

    @kernel("R R A G i i")
    def maxpool_forward(x, y, argmax, g, size, want_argmax):
        h, w, c, r, s, p, q, stride_h, stride_w, pad_top, pad_left, _, _, _, _, _, _ = g
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            n, at_p, at_q, channel = place_of(i, c, q, p)
            best, place = lowest, -1
            for at_r in range(r):
                ih = at_p * stride_h - pad_top + at_r
                if ih >= 0 and ih < h:
                    for at_s in range(s):
                        iw = at_q * stride_w - pad_left + at_s
                        if iw >= 0 and iw < w:
                            v = x[((n * h + ih) * w + iw) * c + channel]
                            if place < 0 or v > best or (v != v and best == best):
                                best, place = v, at_r * s + at_s
            y[i] = best
            if want_argmax:
                argmax[i] = place

    return maxpool_forward


def maxpool2d_forward(x, geometry, y, argmax):
    """y (N,P,Q,C), argmax of y's shape."""
    wanted = argmax.size > 0
    kept = argmax if wanted else none(np.uint8)
    linear(max_forward_kernel(y.dtype), y.size, x, y, kept, geometry, y.size, wanted)


@cache
def max_backward_kernel(real: Any) -> Kernel:
    _, gradient = activation_functions(real)
    zero = np.dtype(real).type(0)

    @kernel("R R A R G i i r")
    def maxpool_backward(y, dy, argmax, dx, g, size, code, alpha):
        h, w, c, r, s, p, q, stride_h, stride_w, pad_top, pad_left, _, _, _, _, _, _ = g
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            n, ih, iw, channel = place_of(i, c, w, h)
            p_from, p_to = _windows(ih, pad_top, r, stride_h, p)
            q_from, q_to = _windows(iw, pad_left, s, stride_w, q)
            total = zero
            for at_p in range(p_from, p_to):
                for at_q in range(q_from, q_to):
                    at = ((n * p + at_p) * q + at_q) * c + channel
                    place = (ih + pad_top - at_p * stride_h) * s + iw + pad_left - at_q * stride_w
                    if argmax[at] == place:
                        total += gradient(y[at], dy[at], code, alpha)
            dx[i] = total

    return maxpool_backward


@cache
def window_reader(real: Any, width: int) -> Any:
    """The device function that reads, of the `width` pooled numbers from `at` on, the gradients before the activation
    and the winners.
    """
    _, gradient = activation_functions(real)
    read, _ = vectors(width)

    @device_function
    def read_window(y, dy, argmax, at, ys, dzs, winners, code, alpha):
        read(y, at, ys, 0)
        read(dy, at, dzs, 0)
        read(argmax, at, winners, 0)
        for m in range(width):
            dzs[m] = gradient(ys[m], dzs[m], code, alpha)

    return read_window


@cache
def window_backward_kernel(real: Any, width: int) -> Kernel:
    """`max_backward_kernel` for windows side by side: a thread for each window, and for what no window covers at the
    right and below. `width`: channels at once.
    """
    number, zero = getattr(types, np.dtype(real).name), np.dtype(real).type(0)
    read_window, (_, write) = window_reader(real, width), vectors(width)

    @kernel("R R A R G i i r")
    def window_backward(y, dy, argmax, dx, g, size, code, alpha):
        ys = cuda.local.array(width, number)
        dzs = cuda.local.array(width, number)
        dxs = cuda.local.array(width, number)
        winners = cuda.local.array(width, types.int64)
        h, w, c, r, s, p, q, _, _, _, _, _, _, _, _, _, _ = g
        down, across = quotient(h + r - 1, r), quotient(w + s - 1, s)
        for i in range(cuda.grid(1) * width, size, cuda.gridsize(1) * width):
            n, at_p, at_q, channel = place_of(i, c, across, down)
            covered = at_p < p and at_q < q
            if covered:
                at = ((n * p + at_p) * q + at_q) * c + channel
                read_window(y, dy, argmax, at, ys, dzs, winners, code, alpha)
            for at_r in range(min(r, h - at_p * r)):
                for at_s in range(min(s, w - at_q * s)):
                    for m in range(width):
                        dxs[m] = dzs[m] if covered and winners[m] == at_r * s + at_s else zero
                    write(dx, ((n * h + at_p * r + at_r) * w + at_q * s + at_s) * c + channel, dxs, 0)

    return window_backward


def maxpool2d_backward(dy, argmax, geometry, dx):
    """dx (N,H,W,C): each dy goes to its winner; overlapping windows add up."""
    pool_gradient(dy, dy, argmax, geometry, _PLAIN, dx)


def pool_gradient(y, dy, argmax, pool, activation, dz):
    """The gradient before a pooling and the activation after it, from that of the output y. A 1x1 window with stride 1:
    no pooling.
    """
    if pool.r == pool.s == pool.stride_h == pool.stride_w == 1:
        activation_backward(y, dy, activation, dz)
    elif (pool.r, pool.s) == (pool.stride_h, pool.stride_w) and not (pool.pad_top or pool.pad_left):
        size = len(dz) * -(-pool.h // pool.r) * -(-pool.w // pool.s) * pool.c
        width = width_of(pool.c, y, dy, dz, argmax)
        args = y, dy, argmax, dz, pool, size, *activation
        linear(window_backward_kernel(dz.dtype, width), size // width, *args)
    else:
        linear(max_backward_kernel(dz.dtype), dz.size, y, dy, argmax, dz, pool, dz.size, *activation)


@cache
def average_forward_kernel(real: Any) -> Kernel:
    zero, one = (np.dtype(real).type(value) for value in (0, 1))

    @kernel("R R G i")
    def avgpool_forward(x, y, g, size):
        h, w, c, r, s, p, q, stride_h, stride_w, pad_top, pad_left, _, _, all_count, _, _, _ = g
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            n, at_p, at_q, channel = place_of(i, c, q, p)
            total, count = zero, zero
            for at_r in range(r):
                ih = at_p * stride_h - pad_top + at_r
                for at_s in range(s):
                    iw = at_q * stride_w - pad_left + at_s
                    inside = ih >= 0 and ih < h and iw >= 0 and iw < w
                    if inside:
                        total += x[((n * h + ih) * w + iw) * c + channel]
                    if inside or all_count:
                        count += one
            y[i] = total / count

    return avgpool_forward


def avgpool2d_forward(x, geometry, y):
    """y: mean over each window, of its pixels inside the image (or of all R*S with count_include_pad)."""
    linear(average_forward_kernel(y.dtype), y.size, x, y, geometry, y.size)


@cache
def average_backward_kernel(real: Any) -> Kernel:
    number, zero = np.dtype(real).type, np.dtype(real).type(0)

    @kernel("R R G i")
    def avgpool_backward(dy, dx, g, size):
        h, w, c, r, s, p, q, stride_h, stride_w, pad_top, pad_left, _, _, all_count, _, _, _ = g
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            n, ih, iw, channel = place_of(i, c, w, h)
            p_from, p_to = _windows(ih, pad_top, r, stride_h, p)
            q_from, q_to = _windows(iw, pad_left, s, stride_w, q)
            total = zero
            for at_p in range(p_from, p_to):
                top = at_p * stride_h - pad_top
                high = r if all_count else min(top + r, h) - max(top, 0)
                for at_q in range(q_from, q_to):
                    left = at_q * stride_w - pad_left
                    wide = s if all_count else min(left + s, w) - max(left, 0)
                    total += dy[((n * p + at_p) * q + at_q) * c + channel] / number(high * wide)
            dx[i] = total

    return avgpool_backward


def avgpool2d_backward(dy, geometry, dx):
    """dx: each dy spread evenly over what its window averaged."""
    linear(average_backward_kernel(dx.dtype), dx.size, dy, dx, geometry, dx.size)
