"""What a convolution's output goes through while it is hot: bias, activation, max-pooling, and their
gradients.

Kernels over one band or one image, called by address; channels are innermost, so that their loops run as
vectors. Activations here are monotonic, so the pool comes first and the activation sees only the winners.

Which activation and which kind of pooling is known when a kernel is compiled (`*_kernel(...)` makes it): one
kernel with all of them takes several times as long to compile.
"""

from __future__ import annotations

import numpy as np

from fastcnn.kernels.cpu.exponential import expm1, tanh
from fastcnn.kernels.cpu.launch import Kernel, address_for, call, empty, family, unpack
from fastcnn.kernels.cpu.lowering import Pool, has_pool
from fastcnn.kernels.cpu.runtime import U, jit
from fastcnn.kernels.cpu.vectors import (
    element,
    larger,
    larger_place,
    load,
    places,
    spread,
    store,
    store_places,
    vector_size,
)

KNOWN_WINDOW = 9  # taps of a window up to which a pooling kernel is compiled for it


@family
def activate_kernel(code):
    """y = activation(y + bias) over the rows start..stop of k channels, in place. `act` is (code, alpha)."""

    @Kernel
    def activate_rows(start, stop, lane, args):
        y, k, bias, act = unpack(args)
        pixels, start = stop - start, start * k
        zero = y.dtype.type(0)
        if bias.shape[0]:
            for i in range(pixels):
                at = start + i * k
                if code == 1:
                    for j in range(k):
                        v = y[U(at + j)] + bias[U(j)]
                        y[U(at + j)] = zero if v <= zero else v
                else:
                    for j in range(k):
                        y[U(at + j)] += bias[j]
        elif code == 1:
            for i in range(start, start + pixels * k):
                v = y[U(i)]
                y[U(i)] = zero if v <= zero else v
        if code == 2:
            alpha = y.dtype.type(act[1])
            for i in range(start, start + pixels * k):
                v = y[U(i)]
                low = alpha * expm1(zero if v > zero else v)
                y[U(i)] = v if v > zero else low
        elif code == 3:
            for i in range(start, start + pixels * k):
                y[U(i)] = tanh(y[U(i)])
        elif code == 4:
            alpha = y.dtype.type(act[1])
            for i in range(start, start + pixels * k):
                v = y[U(i)]
                y[U(i)] = v if v > zero else alpha * v
        elif code == 5:
            half, lowest = y.dtype.type(0.5), y.dtype.type(-3e38)  # minus infinity times 0 would be NaN
            for i in range(start, start + pixels * k):
                v = half * (lowest if y[U(i)] < lowest else y[U(i)])
                y[U(i)] = v + v * tanh(v)

    return activate_rows


@family
def pool_kernel(window, padded, want_argmax):
    """Pool the convolution's rows start..stop (at z[band0:], `pitch` pixels long) into image n of y, then bias
    and activation. `window`: (r, s) if small, else (0, 0); `padded`: whether windows may reach out of the image.
    """
    known_r, known_s = window

    @Kernel
    def pool_rows(start, stop, lane, args):
        z, band0, pitch, n, activate, bias, act, pool, y, argmax = unpack(args)
        p0, p1 = start, stop
        k, size = pool.c, vector_size(y)
        whole = (k + size - 1) // size * size
        row0 = (p0 + pool.stride_h - 1) // pool.stride_h if p0 else 0
        row1 = pool.p if p1 == pool.h else (p1 + pool.stride_h - 1) // pool.stride_h
        row1 = min(row1, pool.p)
        end = (n * pool.p + row1) * pool.q * k
        rows, columns = known_r, known_s
        if not known_r:
            rows, columns = pool.r, pool.s
        for row in range(row0, row1):
            for column in range(pool.q):
                out = ((n * pool.p + row) * pool.q + column) * k
                top, left = row * pool.stride_h - pool.pad_top, column * pool.stride_w - pool.pad_left
                r0, s0 = 0, 0
                if padded:
                    r0, s0 = max(0, -top), max(0, -left)
                    rows, columns = min(pool.r, pool.h - top) - r0, min(pool.s, pool.w - left) - s0
                corner = band0 + ((top + r0 - p0) * pitch + left + s0) * k
                first = r0 * pool.s + s0
                if out + whole <= end and corner + rows * pitch * k + whole <= z.shape[0]:
                    for c in range(0, k, size):
                        best, place = load(z, U(corner + c)), places(y, first)
                        for r in range(rows):
                            for s in range(columns):
                                value = load(z, U(corner + (r * pitch + s) * k + c))
                                if want_argmax:
                                    place = larger_place(best, place, value, first + r * pool.s + s)
                                best = larger(best, value)
                        store(y, U(out + c), best)
                        if want_argmax:
                            store_places(argmax, U(out + c), place)
                    continue
                for c in range(k):
                    largest, winner = z[U(corner + c)], first
                    for r in range(rows):
                        for s in range(columns):
                            number = z[U(corner + (r * pitch + s) * k + c)]
                            if number > largest or number != number:
                                largest, winner = number, first + r * pool.s + s
                    y[U(out + c)] = largest
                    if want_argmax:
                        argmax[U(out + c)] = winner
        if row1 > row0:
            first = n * pool.p
            call(activate, (first + row0) * pool.q, (first + row1) * pool.q, lane, (y, k, bias, act))

    return pool_rows


@jit
def _slope(y, code, alpha, one):
    """The activation's derivative, from its output y (silu's from its input); all selects, so that loops over it run
    as vectors.
    """
    if code == 1:
        return one if y > 0 else one - one
    if code == 2:
        return one if y > 0 else y + alpha
    if code == 3:
        return one - y * y
    if code == 4:
        return one if y > 0 else alpha
    if code == 5:
        half = one / (one + one)
        s = half + half * tanh(half * y)
        return s + y * s * (one - s)
    return one


@family
def gradient_kernel(code):
    """dz = dy * activation'(.) over the elements start..stop, from the output y."""

    @Kernel
    def gradient_before(start, stop, lane, args):
        y, dy, parameter, dz = unpack(args)
        one, alpha = dz.dtype.type(1), dz.dtype.type(parameter)
        for i in range(start, stop):
            dz[U(i)] = dy[U(i)] * _slope(y[U(i)], code, alpha, one)

    return gradient_before


@family
def scatter_kernel(code, pooled, cover):
    """The pre-pool gradient of image n, into the padded image whose first inner pixel is at dz[start] and
    whose rows are `pitch` pixels long; and its sum over the pixels added to dz[db : db + k]. `cover`: windows
    lie side by side, without padding.
    """

    @Kernel
    def scatter_gradient(n, stop, lane, args):
        dy, y, argmax, parameter, pool, dz, start, pitch, db = unpack(args)
        k, alpha = pool.c, dz.dtype.type(parameter)
        one = dz.dtype.type(1)
        if not pooled:
            for row in range(pool.p):
                at, first = (n * pool.p + row) * pool.q * k, start + row * pitch * k
                for j in range(pool.q * k):
                    dz[U(first + j)] = dy[U(at + j)] * _slope(y[U(at + j)], code, alpha, one)
            add_columns(dz, start, pool.p, pool.q, pitch, k, db)
            return
        if not cover:
            for row in range(pool.h):
                first = start + row * pitch * k
                for j in range(first, first + pool.w * k):
                    dz[j] = 0
        for row in range(pool.p):
            for column in range(pool.q):
                at = ((n * pool.p + row) * pool.q + column) * k
                top, left = row * pool.stride_h - pool.pad_top, column * pool.stride_w - pool.pad_left
                first = start + (top * pitch + left) * k
                if cover:
                    for j in range(k):
                        dz[U(db + j)] += dy[U(at + j)] * _slope(y[U(at + j)], code, alpha, one)
                    for r in range(pool.r):
                        for s in range(pool.s):
                            place, to = r * pool.s + s, first + (r * pitch + s) * k
                            for j in range(k):
                                v = dy[U(at + j)] * _slope(y[U(at + j)], code, alpha, one)
                                dz[U(to + j)] = v if argmax[U(at + j)] == place else 0
                else:
                    for j in range(k):
                        v = dy[U(at + j)] * _slope(y[U(at + j)], code, alpha, one)
                        place = np.int64(argmax[U(at + j)])
                        dz[U(first + (place // pool.s * pitch + place % pool.s) * k + j)] += v
                        dz[U(db + j)] += v

    return scatter_gradient


@jit
def add_columns(z, start, rows, columns, pitch, k, out):
    """z[out : out + k] += the sum over the pixels of an image in z whose rows are `pitch` pixels long."""
    size = vector_size(z)
    for first in range(0, k, size):
        total = spread(z, z.dtype.type(0))
        for row in range(rows):
            at = start + row * pitch * k + first
            for column in range(columns):
                total = total + load(z, U(at + column * k))
        if first + size <= k:
            store(z, U(out + first), load(z, U(out + first)) + total)
        else:
            for j in range(k - first):
                z[U(out + first + j)] += element(total, j)


_ACT, SOME_POOL = (0, 0.0), Pool(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, False)


def activate_address(dtype, activation):
    """What `call` takes to run `activate_rows` on arrays of `dtype`."""
    return address_for(activate_kernel(int(activation[0])), empty(dtype), 0, empty(dtype), _ACT)


def gradient_address(dtype, activation):
    """What `call` takes to run `gradient_before` on arrays of `dtype`."""
    x = empty(dtype)
    return address_for(gradient_kernel(int(activation[0])), x, x, 0.0, x)


def pool_address(dtype, argmax, pool):
    """What `call` takes to run `pool_rows` on arrays of `dtype`, with `argmax` or without (size 0)."""
    x, window = empty(dtype), (pool.r, pool.s) if pool.r * pool.s <= KNOWN_WINDOW else (0, 0)
    kernel = pool_kernel(window, _padded(pool), argmax.size > 0)
    return address_for(kernel, x, 0, 0, 0, 0, x, _ACT, SOME_POOL, x, empty(argmax.dtype))


def scatter_address(dtype, argmax_dtype, activation, pool):
    """What `call` takes to run `scatter_gradient` on arrays of `dtype`."""
    x, pooled = empty(dtype), has_pool(pool)
    kernel = scatter_kernel(int(activation[0]), pooled, pooled and side_by_side(pool))
    return address_for(kernel, x, x, empty(argmax_dtype), 0.0, SOME_POOL, x, 0, 0, 0)


def side_by_side(pool):
    """Whether windows neither overlap nor leave gaps, and have no padding."""
    return (pool.r, pool.s) == (pool.stride_h, pool.stride_w) and not _padded(pool)


def _padded(pool):
    return bool(pool.pad_top or pool.pad_left or pool.pad_bottom or pool.pad_right)
