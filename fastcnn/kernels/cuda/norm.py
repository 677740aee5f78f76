"""Batch normalisation, alone, with an activation, and with max-pooling after it.

The moments are found in one reading: each thread sums differences from the first value that it meets. Those of threads
and of chunks are merged in a fixed order: the mean first, then the squares of the means' distances from it are added
to the sums of squares (Chan, Golub and LeVeque 1979).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastcnn.kernels.cuda.activations import activation_functions
from fastcnn.kernels.cuda.arrays import none, width_of, workspace
from fastcnn.kernels.cuda.driver import Kernel, cuda, device_function, kernel, launch, linear, types
from fastcnn.kernels.cuda.intrinsics import quotient, vectors
from fastcnn.kernels.cuda.pool import place_of, window_reader
from fastcnn.kernels.cuda.sums import AT_ONCE, CELLS, LINES, MANY_LINES, WIDTH, add_parts, chunks_of

MANY_CELLS = WIDTH * MANY_LINES


@device_function
def _share(total, first, step):
    """How many of the numbers first, first + step, ... are below `total`."""
    return (total - first + step - 1) // step if total > first else 0


class _Kernels(NamedTuple):
    moments: Kernel
    finish: Kernel
    normalise: Kernel
    inference: Kernel
    fold: Kernel
    gradients: Kernel
    pool: Kernel
    pool_sums: Kernel
    sums: Kernel
    pool_gradients: Kernel


@cache
def norm_kernels(real: Any, width: int = 1) -> _Kernels:
    """`width`: numbers that the kernels which go through whole images read at once, 4 or 1."""
    activate, gradient = activation_functions(real)
    read, write = vectors(width)
    read_window = window_reader(real, width)
    make, numbers = np.dtype(real).type, getattr(types, np.dtype(real).name)
    zero, one, lowest = make(0), make(1), make(-np.inf)

    @kernel("R R R i i i")
    def moments(x, means, squares, rows, columns, each):
        mean_cells = cuda.shared.array(CELLS, numbers)
        square_cells = cuda.shared.array(CELLS, numbers)
        column = cuda.blockIdx.x * WIDTH + cuda.threadIdx.x
        first = cuda.blockIdx.y * each
        end = min(first + each, rows)
        start = first + cuda.threadIdx.y
        cell = cuda.threadIdx.y * WIDTH + cuda.threadIdx.x
        mean, square = zero, zero
        if column < columns and start < end:
            origin = x[start * columns + column]
            total = zero
            for row in range(start, end, LINES):
                difference = x[row * columns + column] - origin
                total += difference
                square += difference * difference
            count = make(_share(end, start, LINES))
            mean = origin + total / count
            square = max(square - total * total / count, zero)
        mean_cells[cell] = mean
        square_cells[cell] = square
        cuda.syncthreads()
        if cuda.threadIdx.y == 0 and column < columns:
            # Distances from a mean that is there: of numbers far from zero a sum of means would lose digits.
            origin, total, square = mean_cells[cuda.threadIdx.x], zero, zero
            for line in range(1, LINES):
                share = make(_share(end, first + line, LINES))
                total += share * (mean_cells[line * WIDTH + cuda.threadIdx.x] - origin)
            middle = origin + total / make(max(end - first, 1))
            for line in range(LINES):
                difference = mean_cells[line * WIDTH + cuda.threadIdx.x] - middle
                square += square_cells[line * WIDTH + cuda.threadIdx.x]
                square += make(_share(end, first + line, LINES)) * difference * difference
            means[cuda.blockIdx.y * columns + column] = middle
            squares[cuda.blockIdx.y * columns + column] = square

    @kernel("R R R R R R i i i i r r", registers=64)
    def finish(
        means, squares, mean, inv_std, running_mean, running_var, rows, columns, each, chunks, momentum, epsilon
    ):
        cells = cuda.shared.array(MANY_CELLS, numbers)
        c = cuda.blockIdx.x * WIDTH + cuda.threadIdx.x
        cell = cuda.threadIdx.y * WIDTH + cuda.threadIdx.x
        origin, total = zero, zero
        if c < columns:
            origin = means[c]
            for some in range(cuda.threadIdx.y, chunks, AT_ONCE * MANY_LINES):
                for chunk in range(some, some + AT_ONCE * MANY_LINES, MANY_LINES):
                    if chunk < chunks:
                        seen = make(max(min(each, rows - chunk * each), 0))
                        total += seen * (means[chunk * columns + c] - origin)
        cells[cell] = total
        cuda.syncthreads()
        middle = zero
        for line in range(MANY_LINES):
            middle += cells[line * WIDTH + cuda.threadIdx.x]
        middle = origin + middle / make(max(rows, 1))
        cuda.syncthreads()
        total = zero
        if c < columns:
            for some in range(cuda.threadIdx.y, chunks, AT_ONCE * MANY_LINES):
                for chunk in range(some, some + AT_ONCE * MANY_LINES, MANY_LINES):
                    if chunk < chunks:
                        seen = make(max(min(each, rows - chunk * each), 0))
                        difference = means[chunk * columns + c] - middle
                        total += squares[chunk * columns + c] + seen * difference * difference
        cells[cell] = total
        cuda.syncthreads()
        if cuda.threadIdx.y == 0 and c < columns:
            square = zero
            for line in range(MANY_LINES):
                square += cells[line * WIDTH + cuda.threadIdx.x]
            mean[c] = middle
            inv_std[c] = one / math.sqrt(square / make(max(rows, 1)) + epsilon)
            if rows > 0:
                unbiased = square / make(max(rows - 1, 1))
                running_mean[c] = momentum * running_mean[c] + (one - momentum) * middle
                running_var[c] = momentum * running_var[c] + (one - momentum) * unbiased

    @kernel("R R R R R R i i i r")
    def normalise(x, mean, inv_std, gamma, beta, y, size, columns, code, alpha):
        values = cuda.local.array(width, numbers)
        for i in range(cuda.grid(1) * width, size, cuda.gridsize(1) * width):
            c = i - quotient(i, columns) * columns
            read(x, i, values)
            for m in range(width):
                v = (values[m] - mean[c + m]) * inv_std[c + m] * gamma[c + m] + beta[c + m]
                values[m] = activate(v, code, alpha)
            write(y, i, values)

    @kernel("R R R R R R i i i r r")
    def inference(x, mean, var, gamma, beta, y, size, columns, code, alpha, epsilon):
        values = cuda.local.array(width, numbers)
        for i in range(cuda.grid(1) * width, size, cuda.gridsize(1) * width):
            c = i - quotient(i, columns) * columns
            read(x, i, values)
            for m in range(width):
                v = (values[m] - mean[c + m]) / math.sqrt(var[c + m] + epsilon) * gamma[c + m] + beta[c + m]
                values[m] = activate(v, code, alpha)
            write(y, i, values)

    @kernel("R R R R R R R R i i i r")
    def fold(weight, bias, gamma, beta, mean, var, new_weight, new_bias, size, columns, has_bias, epsilon):
        for i in range(cuda.grid(1), size + columns, cuda.gridsize(1)):
            c = i - quotient(i, columns) * columns
            scale = gamma[c] / math.sqrt(var[c] + epsilon)
            if i < size:
                new_weight[i] = weight[i] * scale
            else:
                new_bias[c] = beta[c] + ((bias[c] if has_bias else zero) - mean[c]) * scale

    def sums_kernel(pooled):
        @kernel("R R R A R R R R G i i i i r", "norm_pool_sums" if pooled else "norm_sums")
        def sums(x, y, dy, argmax, mean, inv_std, dy_sums, dyx_sums, g, rows, columns, each, code, alpha):
            first_cells = cuda.shared.array(CELLS, numbers)
            second_cells = cuda.shared.array(CELLS, numbers)
            h, w, _, r, s, p, q, _, _, _, _, _, _, _, _, _, _ = g
            column = cuda.blockIdx.x * WIDTH + cuda.threadIdx.x
            first = cuda.blockIdx.y * each
            cell = cuda.threadIdx.y * WIDTH + cuda.threadIdx.x
            total, product = zero, zero
            if column < columns:
                for row in range(first + cuda.threadIdx.y, min(first + each, rows), LINES):
                    at = row * columns + column
                    dz = gradient(y[at], dy[at], code, alpha)
                    if pooled:  # the winner's place
                        line = quotient(row, q)
                        n = quotient(line, p)
                        place = np.int64(argmax[at])
                        in_row = quotient(place, s)
                        ih = (line - n * p) * r + in_row
                        iw = (row - line * q) * s + place - in_row * s
                        at = ((n * h + ih) * w + iw) * columns + column
                    total += dz
                    product += dz * (x[at] - mean[column]) * inv_std[column]
            first_cells[cell] = total
            second_cells[cell] = product
            cuda.syncthreads()
            if cuda.threadIdx.y == 0 and column < columns:
                total, product = zero, zero
                for line in range(LINES):
                    total += first_cells[line * WIDTH + cuda.threadIdx.x]
                    product += second_cells[line * WIDTH + cuda.threadIdx.x]
                dy_sums[cuda.blockIdx.y * columns + column] = total
                dyx_sums[cuda.blockIdx.y * columns + column] = product

        return sums

    @kernel("R R R R R R R R R i i i r r")
    def gradients(x, gamma, mean, inv_std, y, dy, dy_sum, dyx_sum, dx, size, columns, code, alpha, rows):
        xs = cuda.local.array(width, numbers)
        ys = cuda.local.array(width, numbers)
        dys = cuda.local.array(width, numbers)
        for i in range(cuda.grid(1) * width, size, cuda.gridsize(1) * width):
            c = i - quotient(i, columns) * columns
            read(x, i, xs)
            read(y, i, ys)
            read(dy, i, dys)
            for m in range(width):
                dz = gradient(ys[m], dys[m], code, alpha)
                normalised = (xs[m] - mean[c + m]) * inv_std[c + m]
                scale = gamma[c + m] * inv_std[c + m]
                xs[m] = scale * (dz - (dy_sum[c + m] + normalised * dyx_sum[c + m]) / rows)
            write(dx, i, xs)

    @kernel("R R R R R R A G i i r")
    def pool(x, mean, inv_std, gamma, beta, y, argmax, g, size, code, alpha):
        values = cuda.local.array(width, numbers)
        best = cuda.local.array(width, numbers)
        place = cuda.local.array(width, types.int64)
        h, w, c, r, s, p, q, _, _, _, _, _, _, _, _, _, _ = g
        for i in range(cuda.grid(1) * width, size, cuda.gridsize(1) * width):
            pixel = quotient(i, c)
            channel = i - pixel * c
            line = quotient(pixel, q)
            n = quotient(line, p)
            corner = (n * h + (line - n * p) * r) * w + (pixel - line * q) * s
            for m in range(width):
                best[m] = lowest
                place[m] = -1
            for at_r in range(r):
                for at_s in range(s):
                    read(x, (corner + at_r * w + at_s) * c + channel, values)
                    for m in range(width):
                        v = (values[m] - mean[channel + m]) * inv_std[channel + m]
                        v = v * gamma[channel + m] + beta[channel + m]
                        if place[m] < 0 or v > best[m] or (v != v and best[m] == best[m]):
                            best[m] = v
                            place[m] = at_r * s + at_s
            for m in range(width):
                best[m] = activate(best[m], code, alpha)
                argmax[i + m] = place[m]
            write(y, i, best)

    @kernel("R R R R R R A R R R G i i r r")
    def pool_gradients(
        x, gamma, mean, inv_std, y, dy, argmax, dy_sum, dyx_sum, dx, g, size, code, alpha, rows
    ):  # fmt: skip
        xs = cuda.local.array(width, numbers)
        ys = cuda.local.array(width, numbers)
        dzs = cuda.local.array(width, numbers)
        winners = cuda.local.array(width, types.int64)
        h, w, c, r, s, p, q, _, _, _, _, _, _, _, _, _, _ = g
        # A thread for each window, and for what no window covers at the right and below.
        down, across = quotient(h + r - 1, r), quotient(w + s - 1, s)
        for i in range(cuda.grid(1) * width, size, cuda.gridsize(1) * width):
            n, at_p, at_q, channel = place_of(i, c, across, down)
            covered = at_p < p and at_q < q
            if covered:
                at = ((n * p + at_p) * q + at_q) * c + channel
                read_window(y, dy, argmax, at, ys, dzs, winners, code, alpha)
            for at_r in range(min(r, h - at_p * r)):
                for at_s in range(min(s, w - at_q * s)):
                    at = ((n * h + at_p * r + at_r) * w + at_q * s + at_s) * c + channel
                    read(x, at, xs)
                    for m in range(width):
                        dz = dzs[m] if covered and winners[m] == at_r * s + at_s else zero
                        normalised = (xs[m] - mean[channel + m]) * inv_std[channel + m]
                        scale = gamma[channel + m] * inv_std[channel + m]
                        xs[m] = scale * (dz - (dy_sum[channel + m] + normalised * dyx_sum[channel + m]) / rows)
                    write(dx, at, xs)

    return _Kernels(
        moments, finish, normalise, inference, fold, gradients, pool, sums_kernel(True), sums_kernel(False),
        pool_gradients,
    )  # fmt: skip


def _find_moments(x, c, running_mean, running_var, momentum, epsilon, mean, inv_std):
    """Of the columns of x (rows,C), C = c."""
    rows, kernels = x.size // c, norm_kernels(x.dtype)
    chunks, each = chunks_of(rows, c)
    parts = workspace(2 * chunks * c, x.dtype)
    means, squares = parts[: chunks * c], parts[chunks * c : 2 * chunks * c]
    launch(kernels.moments, (-(-c // WIDTH), chunks), (WIDTH, LINES), x, means, squares, rows, c, each)
    vectors = means, squares, mean, inv_std, running_mean, running_var
    args = rows, c, each, chunks, momentum, epsilon
    launch(kernels.finish, -(-c // WIDTH), (WIDTH, MANY_LINES), *vectors, *args)


def batchnorm_forward(x, gamma, beta, running_mean, running_var, momentum, epsilon, activation, y, mean, inv_std):
    """y (rows,C) by the batch's statistics, which are saved and move the running ones."""
    c = gamma.size
    _find_moments(x, c, running_mean, running_var, momentum, epsilon, mean, inv_std)
    width = width_of(c, x, y)
    args = x, mean, inv_std, gamma, beta, y, y.size, c, *activation
    linear(norm_kernels(x.dtype, width).normalise, y.size // width, *args)


def batchnorm_inference(x, gamma, beta, running_mean, running_var, epsilon, activation, y):
    """y = activation(gamma * (x - running_mean) / sqrt(running_var + epsilon) + beta)."""
    args = x, running_mean, running_var, gamma, beta, y, y.size, gamma.size, *activation, epsilon
    width = width_of(gamma.size, x, y)
    linear(norm_kernels(x.dtype, width).inference, y.size // width, *args)


def batchnorm_fold(weight, bias, gamma, beta, running_mean, running_var, epsilon, new_weight, new_bias):
    """Weights and bias that do the inference-mode batch normalisation after them too."""
    size, c, has_bias = weight.size, gamma.size, bias.size > 0
    vectors = weight, bias if has_bias else none(weight.dtype), gamma, beta, running_mean, running_var
    args = (*vectors, new_weight, new_bias, size, c, has_bias, epsilon)
    linear(norm_kernels(weight.dtype).fold, size + c, *args)


def _find_sums(x, y, dy, argmax, g, mean, inv_std, activation, dgamma, dbeta):
    """Of dz and of dz times the normalised x, by column: dbeta and dgamma, as arrays whether they are wanted or not."""
    c, kernels = mean.size, norm_kernels(x.dtype)
    rows = dy.size // c
    chunks, each = chunks_of(rows, c)
    stack = chunks * c
    parts = workspace(2 * stack + 2 * c, x.dtype)
    dy_parts, dyx_parts = parts[:stack], parts[stack : 2 * stack]
    dy_sum = dbeta if dbeta.size else parts[2 * stack : 2 * stack + c]
    dyx_sum = dgamma if dgamma.size else parts[2 * stack + c : 2 * stack + 2 * c]
    kernel_ = kernels.sums if argmax is None else kernels.pool_sums
    winners = none(np.uint8) if argmax is None else argmax
    args = x, y, dy, winners, mean, inv_std, dy_parts, dyx_parts, g, rows, c, each, *activation
    launch(kernel_, (-(-c // WIDTH), chunks), (WIDTH, LINES), *args)
    add_parts(dy_parts, chunks, dy_sum)
    add_parts(dyx_parts, chunks, dyx_sum)
    return dy_sum, dyx_sum


def batchnorm_backward(x, gamma, mean, inv_std, y, dy, activation, dx, dgamma, dbeta):
    """Gradients of the training-mode batch normalisation and the activation after it (Ioffe and Szegedy 2015)."""
    sums = _find_sums(x, y, dy, None, (), mean, inv_std, activation, dgamma, dbeta)
    if dx.size:
        args = x, gamma, mean, inv_std, y, dy, *sums, dx, dx.size, gamma.size, *activation, x.size // gamma.size
        width = width_of(gamma.size, x, y, dy, dx)
        linear(norm_kernels(x.dtype, width).gradients, dx.size // width, *args)


def batchnorm_pool_forward(
    x, gamma, beta, running_mean, running_var, momentum, epsilon, activation, geometry, y, argmax, mean, inv_std
):
    """y = maxpool(activation(normalised x)); the activation is monotonic, so the pool comes first."""
    _find_moments(x, gamma.size, running_mean, running_var, momentum, epsilon, mean, inv_std)
    args = x, mean, inv_std, gamma, beta, y, argmax, geometry, y.size, *activation
    width = width_of(gamma.size, x, y)
    linear(norm_kernels(x.dtype, width).pool, y.size // width, *args)


def batchnorm_pool_backward(x, gamma, mean, inv_std, y, argmax, dy, activation, geometry, dx, dgamma, dbeta):
    """Gradients of `batchnorm_pool_forward`: only winners have one before the normalisation."""
    sums = _find_sums(x, y, dy, argmax, geometry, mean, inv_std, activation, dgamma, dbeta)
    if dx.size:
        g, c = geometry, gamma.size
        size = len(x) * -(-g.h // g.r) * -(-g.w // g.s) * c
        width = width_of(c, x, y, dy, dx)
        args = x, gamma, mean, inv_std, y, dy, argmax, *sums, dx, g, size, *activation, x.size // c
        linear(norm_kernels(x.dtype, width).pool_gradients, size // width, *args)
