"""Batch normalisation, activation and max-pooling in one: windows side by side, each a row of what is written."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastcnn.kernels.cuda.activations import activation_functions
from fastcnn.kernels.cuda.arrays import width_of
from fastcnn.kernels.cuda.driver import Kernel, cuda, kernel, types
from fastcnn.kernels.cuda.intrinsics import quotient, vectors
from fastcnn.kernels.cuda.norm import find_moments, find_sums, over_rows, own_rows
from fastcnn.kernels.cuda.pool import window_reader
from fastcnn.kernels.cuda.sums import LINES, WIDTH

__all__ = ["batchnorm_pool_backward", "batchnorm_pool_forward"]

_MOST_TOGETHER = 9  # pixels of a window that a thread reads at once


class _Kernels(NamedTuple):
    forward: Kernel
    gradients: Kernel


@cache
def norm_pool_kernels(real: Any, width: int, together: int) -> _Kernels:
    """`width`: numbers that a thread reads at once, 4 or 1. `together`: pixels that it reads at once: those of a
    window, or one.
    """
    activate, _ = activation_functions(real)
    read, write = vectors(width)
    read_window = window_reader(real, width)
    numbers, zero, lowest = getattr(types, np.dtype(real).name), np.dtype(real).type(0), np.dtype(real).type(-np.inf)
    make, lines, several = np.dtype(real).type, LINES * width, together * width

    @kernel("R R R R R R A i i i G i r", "norm_pool")
    def forward(x, mean, inv_std, gamma, beta, y, argmax, rows, columns, each, g, code, alpha):
        values = cuda.local.array(several, numbers)
        best = cuda.local.array(width, numbers)
        place = cuda.local.array(width, types.int32)
        middle = cuda.local.array(width, numbers)
        scale = cuda.local.array(width, numbers)
        shift = cuda.local.array(width, numbers)
        h, w, _, r, s, p, q, _, _, _, _, _, _, _, _, _, _ = g
        column = cuda.blockIdx.x * WIDTH + cuda.threadIdx.x * width
        start, end = own_rows(cuda.blockIdx.y, cuda.threadIdx.y, rows, each)
        if column < columns:
            for m in range(width):
                middle[m], scale[m] = mean[column + m], inv_std[column + m] * gamma[column + m]
                shift[m] = beta[column + m]
            for row in range(start, end, lines):
                line = quotient(row, q)
                n = quotient(line, p)
                corner = (n * h + (line - n * p) * r) * w + (row - line * q) * s
                for m in range(width):
                    best[m], place[m] = lowest, -1
                for first in range(0, r * s, together):
                    for k in range(together):
                        down = quotient(first + k, s)
                        at = corner + down * w + first + k - down * s
                        read(x, at * columns + column, values, k * width)
                    for k in range(together):
                        for m in range(width):
                            v = (values[k * width + m] - middle[m]) * scale[m] + shift[m]
                            if place[m] < 0 or v > best[m] or (v != v and best[m] == best[m]):
                                best[m], place[m] = v, first + k
                for m in range(width):
                    best[m] = activate(best[m], code, alpha)
                write(y, row * columns + column, best, 0)
                write(argmax, row * columns + column, place, 0)

    @kernel("R R R R R R A R R R i i i i G i r", "norm_pool_gradients")
    def gradients(
        x, gamma, mean, inv_std, y, dy, argmax, dy_sum, dyx_sum, dx, rows, columns, each, pixels, g, code, alpha
    ):  # fmt: skip
        xs = cuda.local.array(several, numbers)
        ys = cuda.local.array(width, numbers)
        dzs = cuda.local.array(width, numbers)
        winners = cuda.local.array(width, types.int32)
        middle = cuda.local.array(width, numbers)
        scale = cuda.local.array(width, numbers)
        shift = cuda.local.array(width, numbers)
        slope = cuda.local.array(width, numbers)
        h, w, _, r, s, p, q, _, _, _, _, _, _, _, _, _, _ = g
        # A row for each window, and for what no window covers at the right and below.
        high, wide = quotient(h + r - 1, r), quotient(w + s - 1, s)
        column = cuda.blockIdx.x * WIDTH + cuda.threadIdx.x * width
        start, end = own_rows(cuda.blockIdx.y, cuda.threadIdx.y, rows, each)
        if column < columns:
            for m in range(width):
                c = column + m
                middle[m], scale[m] = mean[c], gamma[c] * inv_std[c]
                shift[m] = scale[m] * dy_sum[c] / make(pixels)
                slope[m] = scale[m] * inv_std[c] * dyx_sum[c] / make(pixels)
            for row in range(start, end, lines):
                line = quotient(row, wide)
                n = quotient(line, high)
                at_p, at_q = line - n * high, row - line * wide
                covered = at_p < p and at_q < q
                corner = (n * h + at_p * r) * w + at_q * s
                for m in range(width):
                    dzs[m], winners[m] = zero, -1
                if covered:
                    at = ((n * p + at_p) * q + at_q) * columns + column
                    read_window(y, dy, argmax, at, ys, dzs, winners, code, alpha)
                for first in range(0, r * s, together):
                    for k in range(together):
                        down = quotient(first + k, s)
                        right = first + k - down * s
                        if at_p * r + down < h and at_q * s + right < w:
                            read(x, (corner + down * w + right) * columns + column, xs, k * width)
                    for k in range(together):
                        down = quotient(first + k, s)
                        right = first + k - down * s
                        if at_p * r + down < h and at_q * s + right < w:
                            for m in range(width):
                                dz = dzs[m] if winners[m] == first + k else zero
                                i = k * width + m
                                xs[i] = scale[m] * dz - shift[m] - (xs[i] - middle[m]) * slope[m]
                            write(dx, (corner + down * w + right) * columns + column, xs, k * width)

    return _Kernels(forward, gradients)


def _together(g) -> int:
    return g.r * g.s if g.r * g.s <= _MOST_TOGETHER else 1


def batchnorm_pool_forward(
    x, gamma, beta, running_mean, running_var, momentum, epsilon, activation, geometry, y, argmax, mean, inv_std
):
    """y = maxpool(activation(normalised x)); the activation is monotonic, so the pool comes first."""
    c, width = gamma.size, width_of(gamma.size, x, y, argmax)
    find_moments(x, c, running_mean, running_var, momentum, epsilon, mean, inv_std)
    arrays = x, mean, inv_std, gamma, beta, y, argmax
    forward = norm_pool_kernels(x.dtype, width, _together(geometry)).forward
    over_rows(forward, width, y.size // c, c, arrays, geometry, *activation)


def batchnorm_pool_backward(x, gamma, mean, inv_std, y, argmax, dy, activation, geometry, dx, dgamma, dbeta):
    """Gradients of `batchnorm_pool_forward`: only winners have one before the normalisation."""
    no_beta = gamma  # the pooled y is small, and read
    sums = find_sums(x, y, dy, argmax, geometry, gamma, no_beta, mean, inv_std, activation, dgamma, dbeta)
    if dx.size:
        g, c = geometry, gamma.size
        width = width_of(c, x, y, dy, dx, argmax)
        arrays = x, gamma, mean, inv_std, y, dy, argmax, *sums, dx
        gradients = norm_pool_kernels(x.dtype, width, _together(g)).gradients
        rows = len(x) * -(-g.h // g.r) * -(-g.w // g.s)
        over_rows(gradients, width, rows, c, arrays, x.size // c, g, *activation)
