"""Batch normalisation's loops over rows of c channels: vectors of channels as far as they go, then one by one.

A few rows at a time stay in the first-level cache while the vectors of channels go down them, one after the other,
with what belongs to their channels in registers. Sums over these rows are of the array's own dtype, and are then added
to sums of float64.
"""

from __future__ import annotations

from fastcnn.kernels.cpu.runtime import U, jit
from fastcnn.kernels.cpu.vectors import (
    add_to,
    fence,
    load,
    spread,
    store,
    store_past,
    vector_size,
    where_positive,
)

ROWS = 16


@jit
def add_moments(x, first, last, c, sums, at):
    """sums[at:] += the sums of x - x0 over the rows first..last, and of its squares; x0 is the first row."""
    size, zero, origin = vector_size(x), spread(x, x.dtype.type(0)), first * c
    whole = c // size * size
    for row in range(first, last, ROWS):
        end = min(row + ROWS, last)
        start, pairs, stop = row * c, (row + (end - row) // 2 * 2) * c, end * c
        for j in range(0, whole, size):
            center = load(x, U(origin + j))
            total0, total1, square0, square1 = zero, zero, zero, zero
            for i in range(start + j, pairs + j, 2 * c):
                d0, d1 = load(x, U(i)) - center, load(x, U(i + c)) - center
                total0, total1 = total0 + d0, total1 + d1
                square0, square1 = square0 + d0 * d0, square1 + d1 * d1
            if pairs < stop:
                d0 = load(x, U(pairs + j)) - center
                total0, square0 = total0 + d0, square0 + d0 * d0
            add_to(sums, U(at + j), total0 + total1)
            add_to(sums, U(at + c + j), square0 + square1)
        for i in range(start, stop if whole < c else start, c):
            for j in range(whole, c):
                d = x[U(i + j)] - x[U(origin + j)]
                sums[U(at + j)] += d
                sums[U(at + c + j)] += d * d


@jit
def normalise_rows(x, first, last, vectors, relu, y):
    """y = (x - mean) * scale + beta of the rows first..last, or 0 where a ReLU makes it 0; `vectors`: the three."""
    c, size, zero = vectors.shape[0] // 3, vector_size(x), x.dtype.type(0)
    whole = c // size * size
    for row in range(first, last, ROWS):
        start, stop = row * c, min(row + ROWS, last) * c
        for j in range(0, whole, size):
            mean, scale, beta = load(vectors, U(j)), load(vectors, U(c + j)), load(vectors, U(2 * c + j))
            if relu:
                for i in range(start + j, stop + j, c):
                    v = (load(x, U(i)) - mean) * scale + beta
                    store(y, U(i), where_positive(v, v))
            else:
                for i in range(start + j, stop + j, c):
                    store(y, U(i), (load(x, U(i)) - mean) * scale + beta)
        for i in range(start, stop if whole < c else start, c):
            for j in range(whole, c):
                number = (x[U(i + j)] - vectors[U(j)]) * vectors[U(c + j)] + vectors[U(2 * c + j)]
                y[U(i + j)] = zero if relu and number <= zero else number


@jit
def normalise_rows_past(x, first, last, vectors, relu, other, y):
    """The same plus `other`, if there is any, past the caches: whole rows, in the order of memory."""
    c, size = vectors.shape[0] // 3, vector_size(x)
    for i in range(first * c, last * c, c):
        for j in range(0, c, size):
            v = (load(x, U(i + j)) - load(vectors, U(j))) * load(vectors, U(c + j)) + load(vectors, U(2 * c + j))
            if relu:
                v = where_positive(v, v)
            if other.shape[0]:
                v = v + load(other, U(i + j))
            store_past(y, U(i + j), v)
    fence()


@jit
def add_relu_gradients(x, dy, first, last, vectors, sums, at):
    """sums[at:] += the sums of dz over the rows first..last, and of dz * (x - mean).

    dz, the gradient before a ReLU, is dy where its input, (x - mean) * scale + beta, is above 0; `vectors`: as below.
    """
    c, size, zero = vectors.shape[0] // 5, vector_size(x), spread(x, x.dtype.type(0))
    nothing = x.dtype.type(0)
    whole = c // size * size
    for row in range(first, last, ROWS):
        end = min(row + ROWS, last)
        start, pairs, stop = row * c, (row + (end - row) // 2 * 2) * c, end * c
        for j in range(0, whole, size):
            mean, scale, beta = load(vectors, U(j)), load(vectors, U(c + j)), load(vectors, U(2 * c + j))
            total0, total1, product0, product1 = zero, zero, zero, zero
            for i in range(start + j, pairs + j, 2 * c):
                away0, away1 = load(x, U(i)) - mean, load(x, U(i + c)) - mean
                d0 = where_positive(away0 * scale + beta, load(dy, U(i)))
                d1 = where_positive(away1 * scale + beta, load(dy, U(i + c)))
                total0, total1 = total0 + d0, total1 + d1
                product0, product1 = product0 + d0 * away0, product1 + d1 * away1
            if pairs < stop:
                away0 = load(x, U(pairs + j)) - mean
                d0 = where_positive(away0 * scale + beta, load(dy, U(pairs + j)))
                total0, product0 = total0 + d0, product0 + d0 * away0
            add_to(sums, U(at + j), total0 + total1)
            add_to(sums, U(at + c + j), product0 + product1)
        for i in range(start, stop if whole < c else start, c):
            for j in range(whole, c):
                away = x[U(i + j)] - vectors[U(j)]
                # As whole vectors do, what is not a number lets it through.
                d = nothing if away * vectors[U(c + j)] + vectors[U(2 * c + j)] <= nothing else dy[U(i + j)]
                sums[U(at + j)] += d
                sums[U(at + c + j)] += d * away


@jit
def relu_gradient_rows(x, dy, first, last, vectors, dx, at):
    """dx = scale * (dz - level - (x - mean) * pull) of the rows first..last, from dx[at] on; `vectors`: mean, scale,
    beta, level and pull.
    """
    c, size, zero = vectors.shape[0] // 5, vector_size(x), x.dtype.type(0)
    whole, shift = c // size * size, at - first * c
    for row in range(first, last, ROWS):
        start, stop = row * c, min(row + ROWS, last) * c
        for j in range(0, whole, size):
            mean, scale, beta = load(vectors, U(j)), load(vectors, U(c + j)), load(vectors, U(2 * c + j))
            level, pull = load(vectors, U(3 * c + j)), load(vectors, U(4 * c + j))
            for i in range(start + j, stop + j, c):
                away = load(x, U(i)) - mean
                d = where_positive(away * scale + beta, load(dy, U(i)))
                store(dx, U(shift + i), scale * (d - level - away * pull))
        for i in range(start, stop if whole < c else start, c):
            for j in range(whole, c):
                gap = x[U(i + j)] - vectors[U(j)]
                before = gap * vectors[U(c + j)] + vectors[U(2 * c + j)]
                dz = (dy[U(i + j)] if before > zero else zero) - vectors[U(3 * c + j)] - gap * vectors[U(4 * c + j)]
                dx[U(shift + i + j)] = vectors[U(c + j)] * dz
