"""What a convolution's output goes through while it is hot: bias, activation, max-pooling, and their gradients.

Inlined loops over one band or one image; channels are innermost, so that they run as vectors. Activations here are monotonic, so the pool
comes first and the activation sees only the winners.
"""

from __future__ import annotations

import math

import numpy as np

from fastcnn.kernels.cpu.lowering import has_pool
from fastcnn.kernels.cpu.runtime import jit


is_pooled = jit(has_pool)


@jit
def band_epilogue(y, start, pixels, k, bias, act):  # type: ignore[no-untyped-def]
    """y = activation(y + bias) over `pixels` rows of k channels, in place. `act` is (code, alpha)."""
    code = act[0]
    if bias.shape[0]:
        for i in range(pixels):
            at = start + i * k
            if code == 1:
                for j in range(k):
                    v = y[at + j] + bias[j]
                    y[at + j] = 0 if v <= 0 else v
            else:
                for j in range(k):
                    y[at + j] += bias[j]
    elif code == 1:
        for i in range(start, start + pixels * k):
            v = y[i]
            y[i] = 0 if v <= 0 else v
    if code == 2:
        alpha = y.dtype.type(act[1])
        for i in range(start, start + pixels * k):
            v = y[i]
            if v <= 0:
                y[i] = alpha * math.expm1(v)
    elif code == 3:
        for i in range(start, start + pixels * k):
            y[i] = math.tanh(y[i])


@jit
def pool_band(z, band0, p0, p1, bias, act, pool, y, argmax, n):  # type: ignore[no-untyped-def]
    """Pool the convolution's rows p0 <= p < p1 (at z[band0:]) into image n of y, then bias and activation."""
    k, want_argmax = pool.c, argmax.shape[0] > 0
    row0 = (p0 + pool.stride_h - 1) // pool.stride_h if p0 else 0
    row1 = pool.p if p1 == pool.h else (p1 + pool.stride_h - 1) // pool.stride_h
    row1 = min(row1, pool.p)
    plain = pool.r == 2 and pool.s == 2 and not (pool.pad_top or pool.pad_left or pool.pad_bottom or pool.pad_right)
    for row in range(row0, row1):
        for column in range(pool.q):
            out = ((n * pool.p + row) * pool.q + column) * k
            if plain:
                first = band0 + ((row * pool.stride_h - p0) * pool.w + column * pool.stride_w) * k
                _pool_2x2(z, first, first + pool.w * k, k, y, argmax, out, want_argmax)
                continue
            top, left = row * pool.stride_h - pool.pad_top, column * pool.stride_w - pool.pad_left
            fresh = True
            for r in range(max(0, -top), min(pool.r, pool.h - top)):
                for s in range(max(0, -left), min(pool.s, pool.w - left)):
                    at = band0 + ((top + r - p0) * pool.w + left + s) * k
                    place = r * pool.s + s
                    if fresh:
                        for j in range(k):
                            y[out + j] = z[at + j]
                        if want_argmax:
                            for j in range(k):
                                argmax[out + j] = place
                    elif want_argmax:
                        for j in range(k):
                            v, best = z[at + j], y[out + j]
                            if v > best or (v != v and best == best):
                                y[out + j] = v
                                argmax[out + j] = place
                    else:
                        for j in range(k):
                            v = z[at + j]
                            if v > y[out + j] or v != v:
                                y[out + j] = v
                    fresh = False
    start = (n * pool.p + row0) * pool.q * k
    band_epilogue(y, start, max(row1 - row0, 0) * pool.q, k, bias, act)


@jit
def _pool_2x2(z, upper, lower, k, y, argmax, out, want_argmax):  # type: ignore[no-untyped-def]
    """The common window, with the winners kept in registers."""
    if want_argmax:
        for j in range(k):
            best, place = z[upper + j], 0
            v = z[upper + k + j]
            if v > best or (v != v and best == best):
                best, place = v, 1
            v = z[lower + j]
            if v > best or (v != v and best == best):
                best, place = v, 2
            v = z[lower + k + j]
            if v > best or (v != v and best == best):
                best, place = v, 3
            y[out + j] = best
            argmax[out + j] = place
    else:
        for j in range(k):
            best = z[upper + j]
            v = z[upper + k + j]
            best = v if v > best or v != v else best
            v = z[lower + j]
            best = v if v > best or v != v else best
            v = z[lower + k + j]
            best = v if v > best or v != v else best
            y[out + j] = best


@jit
def _slope(y, code, alpha, one):  # type: ignore[no-untyped-def]
    """The activation's derivative, from its output y; all selects, so that loops over it run as vectors."""
    if code == 1:
        return one if y > 0 else one - one
    if code == 2:
        return one if y > 0 else y + alpha
    if code == 3:
        return one - y * y
    return one


@jit
def gradient_before(y, dy, start, stop, act, dz):  # type: ignore[no-untyped-def]
    """dz = dy * activation'(.) over the elements start..stop, from the output y."""
    one, code, alpha = dz.dtype.type(1), act[0], dz.dtype.type(act[1])
    for i in range(start, stop):
        dz[i] = dy[i] * _slope(y[i], code, alpha, one)


@jit
def scatter_gradient(dy, y, argmax, n, act, pool, dz, start, pitch, db):  # type: ignore[no-untyped-def]
    """The pre-pool gradient of image n, into the padded image whose first inner pixel is at dz[start] and whose rows are `pitch`
    pixels long; and its sum over the pixels added to dz[db : db + k]."""
    k, code, alpha = pool.c, act[0], dz.dtype.type(act[1])
    one = dz.dtype.type(1)
    pooled = is_pooled(pool)
    cover = (
        pooled and pool.r == pool.stride_h and pool.s == pool.stride_w
        and not (pool.pad_top or pool.pad_left or pool.pad_bottom or pool.pad_right)
    )  # fmt: skip
    if pooled and not cover:
        for row in range(pool.h):
            first = start + row * pitch * k
            for j in range(first, first + pool.w * k):
                dz[j] = 0
    for row in range(pool.p):
        for column in range(pool.q):
            at = ((n * pool.p + row) * pool.q + column) * k
            top, left = row * pool.stride_h - pool.pad_top, column * pool.stride_w - pool.pad_left
            first = start + (top * pitch + left) * k
            if not pooled:
                for j in range(k):
                    v = dy[at + j] * _slope(y[at + j], code, alpha, one)
                    dz[first + j] = v
                for j in range(k):
                    dz[db + j] += dz[first + j]
            elif cover:
                for j in range(k):
                    dz[db + j] += dy[at + j] * _slope(y[at + j], code, alpha, one)
                for r in range(pool.r):
                    for s in range(pool.s):
                        place, to = r * pool.s + s, first + (r * pitch + s) * k
                        for j in range(k):
                            v = dy[at + j] * _slope(y[at + j], code, alpha, one)
                            dz[to + j] = v if argmax[at + j] == place else 0
            else:
                for j in range(k):
                    v = dy[at + j] * _slope(y[at + j], code, alpha, one)
                    place = np.int64(argmax[at + j])
                    dz[first + (place // pool.s * pitch + place % pool.s) * k + j] += v
                    dz[db + j] += v
