"""Batch normalisation, alone and with an activation; `norm_pool` has the one with max-pooling after it.

A block goes through a chunk of rows, each of its threads with one or four columns of its own, whose numbers it keeps.
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
from fastcnn.kernels.cuda.sums import AT_ONCE, LINES, MANY_LINES, MOST_CHUNKS, WIDTH, chunks_of

__all__ = [
    "batchnorm_backward",
    "batchnorm_fold",
    "batchnorm_forward",
    "batchnorm_inference",
    "find_moments",
    "find_sums",
    "over_rows",
    "own_rows",
]

FEW = min(8, WIDTH)  # columns of a block that adds up what chunks have: few, for what many threads do takes time too
FINER = 4
OF_THREE = 2  # rows of three arrays that a thread asks for at once
_SHARE = MOST_CHUNKS // MANY_LINES  # chunks that a thread of the last stage has


@device_function
def _share(total, first, step):
    """How many of the numbers first, first + step, ... are below `total`."""
    return (total - first + step - 1) // step if total > first else 0


@device_function
def own_rows(chunk, line, rows, each):
    """The first row of a block's line of threads, and the end of its chunk."""
    return chunk * each + line, min((chunk + 1) * each, rows)


def over_rows(
    kernel: Kernel, width: int, rows: int, columns: int, vectors: tuple[Any, ...], *args: Any, finer: int = 1
) -> None:
    """Launch `kernel`, whose blocks have a chunk of rows each, and `width` columns for each thread. `finer`: into how
    many a chunk is cut where nothing is summed up.
    """
    chunks, each = chunks_of(rows, columns)
    if finer > 1:
        each = max(each // finer, 4 * LINES)
        chunks = -(-rows // each)
    block = WIDTH // width, LINES * width
    launch(kernel, (-(-columns // WIDTH), chunks), block, *vectors, rows, columns, each, *args)


class _Kernels(NamedTuple):
    moments: Kernel
    finish: Kernel
    normalise: Kernel
    inference: Kernel
    fold: Kernel
    gradients: Kernel
    sums: Kernel
    pool_sums: Kernel
    finish_sums: Kernel


_BY_SIGN = 0, 1, 4  # codes of activations whose gradient is told by the sign of the output: x tells it as well as y


@cache
def norm_kernels(real: Any, width: int = 1, by_sign: bool = False) -> _Kernels:
    """`width`: numbers that a thread reads at once, 4 or 1. `by_sign`: the gradients need not read y."""
    activate, gradient = activation_functions(real)
    read, write = vectors(width)
    make, numbers = np.dtype(real).type, getattr(types, np.dtype(real).name)
    zero, one = make(0), make(1)
    lines, cells_size = LINES * width, LINES * width * WIDTH
    several, few, few_cells = AT_ONCE * width, OF_THREE * width, FEW * MANY_LINES
    # All chunks find room at once: four blocks of 256 threads on each of 132 multiprocessors.
    registers = 64 if np.dtype(real).itemsize == 4 else None

    @device_function
    def merged(means, squares, column, line, step, n, first, end, every):
        """Mean and sum of squares of a block's lines `line`, `line` + `step`, ..., n of them. Line l has the rows
        first + l, first + l + every, ...
        """
        # Distances from a mean that is there: of numbers far from zero a sum of means would lose digits.
        origin, total, count = means[line * WIDTH + column], zero, zero
        for j in range(n):
            at = line + j * step
            share = make(_share(end, first + at, every))
            total += share * (means[at * WIDTH + column] - origin)
            count += share
        middle, square = origin + total / max(count, one), zero
        for j in range(n):
            at = line + j * step
            difference = means[at * WIDTH + column] - middle
            square += squares[at * WIDTH + column]
            square += make(_share(end, first + at, every)) * difference * difference
        return middle, square

    @kernel("R R R i i i", registers=registers)
    def moments(x, means, squares, rows, columns, each):
        mean_cells = cuda.shared.array(cells_size, numbers)
        square_cells = cuda.shared.array(cells_size, numbers)
        values = cuda.local.array(several, numbers)
        origin = cuda.local.array(width, numbers)
        total = cuda.local.array(width, numbers)
        square = cuda.local.array(width, numbers)
        column = cuda.blockIdx.x * WIDTH + cuda.threadIdx.x * width
        start, end = own_rows(cuda.blockIdx.y, cuda.threadIdx.y, rows, each)
        first = cuda.blockIdx.y * each
        for m in range(width):
            origin[m], total[m], square[m] = zero, zero, zero
        if column < columns and start < end:
            read(x, start * columns + column, origin, 0)
            for some in range(start, end, AT_ONCE * lines):
                for j in range(AT_ONCE):
                    if some + j * lines < end:
                        read(x, (some + j * lines) * columns + column, values, j * width)
                for j in range(AT_ONCE):
                    if some + j * lines < end:
                        for m in range(width):
                            difference = values[j * width + m] - origin[m]
                            total[m] += difference
                            square[m] += difference * difference
            count = make(_share(end, start, lines))
            for m in range(width):
                square[m] = max(square[m] - total[m] * total[m] / count, zero)
                total[m] = origin[m] + total[m] / count
        for m in range(width):
            cell = cuda.threadIdx.y * WIDTH + cuda.threadIdx.x * width + m
            mean_cells[cell] = total[m]
            square_cells[cell] = square[m]
        cuda.syncthreads()
        t = cuda.threadIdx.y * (WIDTH // width) + cuda.threadIdx.x
        line, c = t // WIDTH, t % WIDTH
        if width > 1:  # every LINES-th line: nobody else reads or writes these cells
            middle, spread = merged(mean_cells, square_cells, c, line, LINES, width, first, end, lines)
            mean_cells[t] = middle
            square_cells[t] = spread
            cuda.syncthreads()
        if line == 0 and cuda.blockIdx.x * WIDTH + c < columns:
            middle, spread = merged(mean_cells, square_cells, c, 0, 1, LINES, first, end, LINES)
            at = cuda.blockIdx.y * columns + cuda.blockIdx.x * WIDTH + c
            means[at] = middle
            squares[at] = spread

    @kernel("R R R R R R i i i i r r")
    def finish(
        means, squares, mean, inv_std, running_mean, running_var, rows, columns, each, chunks, momentum, epsilon
    ):
        cells = cuda.shared.array(few_cells, numbers)
        own = cuda.local.array(_SHARE, numbers)
        c = cuda.blockIdx.x * FEW + cuda.threadIdx.x
        cell = cuda.threadIdx.y * FEW + cuda.threadIdx.x
        full, rest = make(each), make(rows - (chunks - 1) * each)
        origin, total, square = zero, zero, zero
        if c < columns:
            origin = means[c]
            for j in range(_SHARE):
                chunk = cuda.threadIdx.y + j * MANY_LINES
                own[j] = means[chunk * columns + c] if chunk < chunks else origin
                square += squares[chunk * columns + c] if chunk < chunks else zero
            for j in range(_SHARE):
                total += (full if cuda.threadIdx.y + j * MANY_LINES < chunks - 1 else rest) * (own[j] - origin)
        cells[cell] = total
        cuda.syncthreads()
        middle = zero
        for line in range(MANY_LINES):
            middle += cells[line * FEW + cuda.threadIdx.x]
        middle = origin + middle / make(max(rows, 1))
        cuda.syncthreads()
        if c < columns:
            for j in range(_SHARE):
                chunk = cuda.threadIdx.y + j * MANY_LINES
                difference = own[j] - middle if chunk < chunks else zero
                square += (full if chunk < chunks - 1 else rest) * difference * difference
        cells[cell] = square
        cuda.syncthreads()
        if cuda.threadIdx.y == 0 and c < columns:
            square = zero
            for line in range(MANY_LINES):
                square += cells[line * FEW + cuda.threadIdx.x]
            mean[c] = middle
            inv_std[c] = one / math.sqrt(square / make(max(rows, 1)) + epsilon)
            if rows > 1:
                unbiased = square / make(rows - 1)
                running_mean[c] = momentum * running_mean[c] + (one - momentum) * middle
                running_var[c] = momentum * running_var[c] + (one - momentum) * unbiased

    @kernel("R R R R R R i i i i r")
    def normalise(x, mean, inv_std, gamma, beta, y, rows, columns, each, code, alpha):
        values = cuda.local.array(several, numbers)
        middle = cuda.local.array(width, numbers)
        scale = cuda.local.array(width, numbers)
        shift = cuda.local.array(width, numbers)
        column = cuda.blockIdx.x * WIDTH + cuda.threadIdx.x * width
        start, end = own_rows(cuda.blockIdx.y, cuda.threadIdx.y, rows, each)
        if column < columns:
            for m in range(width):
                middle[m], scale[m] = mean[column + m], inv_std[column + m] * gamma[column + m]
                shift[m] = beta[column + m]
            for some in range(start, end, AT_ONCE * lines):
                for j in range(AT_ONCE):
                    if some + j * lines < end:
                        read(x, (some + j * lines) * columns + column, values, j * width)
                for j in range(AT_ONCE):
                    if some + j * lines < end:
                        for m in range(width):
                            v = (values[j * width + m] - middle[m]) * scale[m] + shift[m]
                            values[j * width + m] = activate(v, code, alpha)
                        write(y, (some + j * lines) * columns + column, values, j * width)

    @kernel("R R R R R R i i i r r")
    def inference(x, mean, var, gamma, beta, y, size, columns, code, alpha, epsilon):
        values = cuda.local.array(width, numbers)
        for i in range(cuda.grid(1) * width, size, cuda.gridsize(1) * width):
            c = i - quotient(i, columns) * columns
            read(x, i, values, 0)
            for m in range(width):
                v = (values[m] - mean[c + m]) / math.sqrt(var[c + m] + epsilon) * gamma[c + m] + beta[c + m]
                values[m] = activate(v, code, alpha)
            write(y, i, values, 0)

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
        rows_at_once = 1 if pooled else OF_THREE  # the winners' values are more to ask for

        @kernel("R R R A R R R R R i i i G i r", "norm_pool_sums" if pooled else "norm_sums", registers)
        def sums(x, y, dy, argmax, gamma, beta, mean, inv_std, parts, rows, columns, each, g, code, alpha):
            first_cells = cuda.shared.array(cells_size, numbers)
            second_cells = cuda.shared.array(cells_size, numbers)
            xs = cuda.local.array(few, numbers)
            ys = cuda.local.array(few, numbers)
            dys = cuda.local.array(few, numbers)
            winners = cuda.local.array(few, types.int32)
            middle = cuda.local.array(width, numbers)
            scale = cuda.local.array(width, numbers)
            shift = cuda.local.array(width, numbers)
            total = cuda.local.array(width, numbers)
            product = cuda.local.array(width, numbers)
            h, w, _, r, s, p, q, _, _, _, _, _, _, _, _, _, _ = g
            column = cuda.blockIdx.x * WIDTH + cuda.threadIdx.x * width
            start, end = own_rows(cuda.blockIdx.y, cuda.threadIdx.y, rows, each)
            for m in range(width):
                total[m], product[m] = zero, zero
            if column < columns:
                for m in range(width):
                    c = column + m
                    middle[m], scale[m], shift[m] = mean[c], inv_std[c] * gamma[c], beta[c]
                for some in range(start, end, rows_at_once * lines):
                    for j in range(rows_at_once):
                        row = some + j * lines
                        if row < end:
                            if pooled or not by_sign:
                                read(y, row * columns + column, ys, j * width)
                            read(dy, row * columns + column, dys, j * width)
                            if pooled:
                                read(argmax, row * columns + column, winners, j * width)
                            else:
                                read(x, row * columns + column, xs, j * width)
                    for j in range(rows_at_once if pooled else 0):
                        row = some + j * lines
                        if row < end:
                            line = quotient(row, q)
                            n = quotient(line, p)
                            corner = (n * h + (line - n * p) * r) * w + (row - line * q) * s
                            for m in range(width):
                                place = winners[j * width + m]
                                down = quotient(place, s)
                                at = (corner + down * w + place - down * s) * columns + column + m
                                xs[j * width + m] = x[at]
                    for j in range(rows_at_once):
                        if some + j * lines < end:
                            for m in range(width):
                                i = j * width + m
                                away = xs[i] - middle[m]
                                out = away * scale[m] + shift[m] if by_sign and not pooled else ys[i]
                                dz = gradient(out, dys[i], code, alpha)
                                total[m] += dz
                                product[m] += dz * away
            for m in range(width):
                cell = cuda.threadIdx.y * WIDTH + cuda.threadIdx.x * width + m
                first_cells[cell] = total[m]
                second_cells[cell] = product[m]
            cuda.syncthreads()
            t = cuda.threadIdx.y * (WIDTH // width) + cuda.threadIdx.x
            dz_sum, dzx_sum = zero, zero
            for j in range(width):  # every LINES-th line: nobody else reads or writes these cells
                dz_sum += first_cells[t + j * LINES * WIDTH]
                dzx_sum += second_cells[t + j * LINES * WIDTH]
            first_cells[t] = dz_sum
            second_cells[t] = dzx_sum
            cuda.syncthreads()
            column = cuda.blockIdx.x * WIDTH + t
            if t < WIDTH and column < columns:
                dz_sum, dzx_sum = zero, zero
                for line in range(LINES):
                    dz_sum += first_cells[line * WIDTH + t]
                    dzx_sum += second_cells[line * WIDTH + t]
                parts[2 * cuda.blockIdx.y * columns + column] = dz_sum
                parts[(2 * cuda.blockIdx.y + 1) * columns + column] = dzx_sum * inv_std[column]

        return sums

    @kernel("R R R i i", "norm_finish_sums")
    def finish_sums(parts, dy_sum, dyx_sum, chunks, columns):
        cells = cuda.shared.array(few_cells, numbers)
        c = cuda.blockIdx.x * FEW + cuda.threadIdx.x
        second = cuda.blockIdx.y
        total = zero
        if c < columns:
            for j in range(_SHARE):
                chunk = cuda.threadIdx.y + j * MANY_LINES
                if chunk < chunks:
                    total += parts[(2 * chunk + second) * columns + c]
        cells[cuda.threadIdx.y * FEW + cuda.threadIdx.x] = total
        cuda.syncthreads()
        if cuda.threadIdx.y == 0 and c < columns:
            total = zero
            for line in range(MANY_LINES):
                total += cells[line * FEW + cuda.threadIdx.x]
            if second:
                dyx_sum[c] = total
            else:
                dy_sum[c] = total

    @kernel("R R R R R R R R R R i i i i r")
    def gradients(x, gamma, beta, mean, inv_std, y, dy, dy_sum, dyx_sum, dx, rows, columns, each, code, alpha):
        xs = cuda.local.array(few, numbers)
        ys = cuda.local.array(few, numbers)
        dys = cuda.local.array(few, numbers)
        middle = cuda.local.array(width, numbers)
        scale = cuda.local.array(width, numbers)
        shift = cuda.local.array(width, numbers)
        level = cuda.local.array(width, numbers)
        slope = cuda.local.array(width, numbers)
        column = cuda.blockIdx.x * WIDTH + cuda.threadIdx.x * width
        start, end = own_rows(cuda.blockIdx.y, cuda.threadIdx.y, rows, each)
        if column < columns:
            for m in range(width):
                c = column + m
                middle[m], scale[m], shift[m] = mean[c], inv_std[c] * gamma[c], beta[c]
                level[m] = scale[m] * dy_sum[c] / make(rows)
                slope[m] = scale[m] * inv_std[c] * dyx_sum[c] / make(rows)
            for some in range(start, end, OF_THREE * lines):
                for j in range(OF_THREE):
                    at = (some + j * lines) * columns + column
                    if some + j * lines < end:
                        read(x, at, xs, j * width)
                        read(dy, at, dys, j * width)
                        if not by_sign:
                            read(y, at, ys, j * width)
                for j in range(OF_THREE):
                    if some + j * lines < end:
                        for m in range(width):
                            i = j * width + m
                            away = xs[i] - middle[m]
                            dz = gradient(away * scale[m] + shift[m] if by_sign else ys[i], dys[i], code, alpha)
                            xs[i] = scale[m] * dz - level[m] - away * slope[m]
                        write(dx, (some + j * lines) * columns + column, xs, j * width)

    return _Kernels(
        moments, finish, normalise, inference, fold, gradients, sums_kernel(False), sums_kernel(True), finish_sums
    )


def find_moments(x, c, running_mean, running_var, momentum, epsilon, mean, inv_std):
    """Of the columns of x (rows,C), C = c."""
    rows, width = x.size // c, width_of(c, x)
    kernels = norm_kernels(x.dtype, width)
    chunks, each = chunks_of(rows, c)
    parts = workspace(2 * chunks * c, x.dtype)
    means, squares = parts[: chunks * c], parts[chunks * c : 2 * chunks * c]
    over_rows(kernels.moments, width, rows, c, (x, means, squares))
    vectors = means, squares, mean, inv_std, running_mean, running_var
    args = rows, c, each, chunks, momentum, epsilon
    launch(kernels.finish, -(-c // FEW), (FEW, MANY_LINES), *vectors, *args)


def batchnorm_forward(x, gamma, beta, running_mean, running_var, momentum, epsilon, activation, y, mean, inv_std):
    """y (rows,C) by the batch's statistics, which are saved and move the running ones."""
    c, width = gamma.size, width_of(gamma.size, x, y)
    find_moments(x, c, running_mean, running_var, momentum, epsilon, mean, inv_std)
    arrays = x, mean, inv_std, gamma, beta, y
    over_rows(norm_kernels(x.dtype, width).normalise, width, x.size // c, c, arrays, *activation, finer=FINER)


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


def find_sums(x, y, dy, argmax, geometry, gamma, beta, mean, inv_std, activation, dgamma, dbeta):
    """Of dz and of dz times the normalised x, by column: dbeta and dgamma, as arrays whether they are wanted or not.
    `argmax`: of the pooling (`geometry`) after the normalisation, or None.
    """
    c, pooled = mean.size, argmax is not None
    rows = dy.size // c
    chunks, _ = chunks_of(rows, c)
    parts = workspace(2 * (chunks + 1) * c, x.dtype)
    dy_sum = dbeta if dbeta.size else parts[2 * chunks * c : (2 * chunks + 1) * c]
    dyx_sum = dgamma if dgamma.size else parts[(2 * chunks + 1) * c : 2 * (chunks + 1) * c]
    winners = argmax if pooled else none(np.uint8)
    width = width_of(c, x, y, dy, *((argmax,) if pooled else ()))
    kernels = norm_kernels(x.dtype, width, activation[0] in _BY_SIGN)
    arrays = x, y, dy, winners, gamma, beta, mean, inv_std, parts
    kernel_ = kernels.pool_sums if pooled else kernels.sums
    over_rows(kernel_, width, rows, c, arrays, geometry, *activation)
    args = parts, dy_sum, dyx_sum, chunks, c
    launch(kernels.finish_sums, (-(-c // FEW), 2), (FEW, MANY_LINES), *args)
    return dy_sum, dyx_sum


def batchnorm_backward(x, gamma, beta, mean, inv_std, y, dy, activation, dx, dgamma, dbeta):
    """Gradients of the training-mode batch normalisation and the activation after it (Ioffe and Szegedy 2015)."""
    sums = find_sums(x, y, dy, None, (), gamma, beta, mean, inv_std, activation, dgamma, dbeta)
    if dx.size:
        c, width = gamma.size, width_of(gamma.size, x, y, dy, dx)
        arrays = x, gamma, beta, mean, inv_std, y, dy, *sums, dx
        gradients = norm_kernels(x.dtype, width, activation[0] in _BY_SIGN).gradients
        over_rows(gradients, width, x.size // c, c, arrays, *activation, finer=FINER)
