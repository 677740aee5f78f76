"""Batch normalisation, activation and max-pooling in one pass: the normalised images are never stored.

For windows side by side and activations that are monotonic; the pool comes first, as in a fused convolution. Sums are
merged as in `norm`, by blocks of pooled rows.
"""

from __future__ import annotations

import numpy as np

from fastcnn.kernels.cpu.epilogue import KNOWN_WINDOW
from fastcnn.kernels.cpu.launch import ExactKernel, Kernel, family, launch, unpack
from fastcnn.kernels.cpu.lowering import Pool
from fastcnn.kernels.cpu.norm import batch_blocks, launch_moments, merge_gradients, normalising_vectors
from fastcnn.kernels.cpu.runtime import U, as_input
from fastcnn.kernels.cpu.vectors import (
    larger,
    larger_place,
    load,
    places,
    spread,
    store,
    store_places,
    vector_size,
)


@family
def _normalise_pool(window):
    """`window`: (r, s) if small, which the kernel is then compiled for; else (0, 0)."""
    known_r, known_s = window

    @Kernel
    def normalise_pool(start, stop, lane, args):
        """Rows start..stop of all pooled images."""
        x, vectors, code, pool, y, argmax = unpack(args)
        k, size, zero = pool.c, vector_size(y), y.dtype.type(0)
        rows, columns = known_r, known_s
        if not known_r:
            rows, columns = pool.r, pool.s
        whole, zeros = k // size * size, spread(y, zero)
        for row in range(start, stop):
            first = (row // pool.p * pool.h + row % pool.p * pool.r) * pool.w * k
            for q in range(pool.q):
                corner, out = first + q * pool.s * k, (row * pool.q + q) * k
                for c in range(0, whole, size):
                    mean, scale, beta = load(vectors, U(c)), load(vectors, U(k + c)), load(vectors, U(2 * k + c))
                    best, place = (load(x, U(corner + c)) - mean) * scale + beta, places(y, 0)
                    for r in range(rows):
                        for s in range(columns):
                            value = (load(x, U(corner + (r * pool.w + s) * k + c)) - mean) * scale + beta
                            place = larger_place(best, place, value, r * pool.s + s)
                            best = larger(best, value)
                    if code == 1:
                        best = larger(zeros, best)
                    store(y, U(out + c), best)
                    store_places(argmax, U(out + c), place)
                for j in range(whole, k):
                    mean1, scale1, beta1 = vectors[U(j)], vectors[U(k + j)], vectors[U(2 * k + j)]
                    largest, winner = (x[U(corner + j)] - mean1) * scale1 + beta1, 0
                    for r in range(rows):
                        for s in range(columns):
                            number = (x[U(corner + (r * pool.w + s) * k + j)] - mean1) * scale1 + beta1
                            if number > largest or number != number:
                                largest, winner = number, r * pool.s + s
                    y[U(out + j)] = zero if code == 1 and largest <= zero else largest
                    argmax[U(out + j)] = winner

    return normalise_pool


def batchnorm_pool_forward(
    x, gamma, beta, running_mean, running_var, momentum, epsilon, activation, geometry, y, argmax, mean, inv_std
):
    """y = maxpool(activation(normalised x)), the places of the winners, and the batch's statistics."""
    x, gamma, beta = as_input(x), as_input(gamma), as_input(beta)
    launch_moments(x.reshape(-1), gamma.size, running_mean, running_var, momentum, epsilon, mean, inv_std)
    vectors = normalising_vectors(gamma, beta, mean, inv_std)
    rows = len(x) * geometry.p
    images = x.reshape(-1), vectors, activation.code, Pool(*geometry), y.reshape(-1), argmax.reshape(-1)
    window = (geometry.r, geometry.s) if geometry.r * geometry.s <= KNOWN_WINDOW else (0, 0)
    launch(_normalise_pool(window), rows, x.size, *images)


@ExactKernel
def _block_gradients(start, stop, lane, args):
    """Each block's sums of dz, the gradient before the activation, and of dz * (x - mean)."""
    x, y, argmax, dy, mean, lowest, pool, rows, work, sums = unpack(args)
    k, zero = pool.c, dy.dtype.type(0)
    blocks = sums.shape[0] // (2 * k) - 1
    for block in range(start, stop):
        total, product = 2 * block * k, (2 * block + 1) * k
        for j in range(2 * k):
            sums[U(total + j)] = 0
        for row in range(rows * block // blocks, rows * (block + 1) // blocks):
            first = (row // pool.p * pool.h + row % pool.p * pool.r) * pool.w * k
            for q in range(pool.q):
                corner, out = first + q * pool.s * k, (row * pool.q + q) * k
                for j in range(k):
                    dz = dy[U(out + j)] if y[U(out + j)] > lowest else zero
                    work[U(total + j)] = dz
                    work[U(product + j)] = 0
                    sums[U(total + j)] += dz
                for r in range(pool.r):
                    for s in range(pool.s):
                        at, tap = corner + (r * pool.w + s) * k, r * pool.s + s
                        for j in range(k):
                            away = work[U(total + j)] * (x[U(at + j)] - mean[U(j)])
                            work[U(product + j)] += away if argmax[U(out + j)] == tap else zero
                for j in range(k):
                    sums[U(product + j)] += work[U(product + j)]


@ExactKernel
def _input_gradient(start, stop, lane, args):
    """dx of the images start..stop; pixels in no window have no gradient of their own, but share the statistics."""
    x, y, argmax, dy, lowest, pool, vectors, dx = unpack(args)
    k, zero = pool.c, dx.dtype.type(0)
    for n in range(start, stop):
        for h in range(pool.h):
            row, r = h // pool.r, h % pool.r
            covered = pool.q if row < pool.p else 0
            first = (n * pool.h + h) * pool.w * k
            for q in range(covered):
                out = ((n * pool.p + row) * pool.q + q) * k
                for s in range(pool.s):
                    at, tap = first + (q * pool.s + s) * k, r * pool.s + s
                    for j in range(k):
                        dz = dy[U(out + j)] if y[U(out + j)] > lowest else zero
                        dz = dz if argmax[U(out + j)] == tap else zero
                        away = (x[U(at + j)] + vectors[U(j)]) * vectors[U(3 * k + j)]
                        dx[U(at + j)] = vectors[U(k + j)] * (dz - vectors[U(2 * k + j)] - away)
            for at in range(first + covered * pool.s * k, first + pool.w * k, k):
                for j in range(k):
                    away = (x[U(at + j)] + vectors[U(j)]) * vectors[U(3 * k + j)]
                    dx[U(at + j)] = vectors[U(k + j)] * (zero - vectors[U(2 * k + j)] - away)


@Kernel
def _gradient_vectors(start, stop, lane, args):
    """Minus the mean, the scale, and what is subtracted: the level and the pull towards the mean."""
    gamma, mean, inv_std, level, pull, vectors = unpack(args)
    k = gamma.shape[0]
    for j in range(start, stop):
        vectors[U(j)] = -mean[U(j)]
        vectors[U(k + j)] = inv_std[U(j)] * gamma[U(j)]
        vectors[U(2 * k + j)] = level[U(j)]
        vectors[U(3 * k + j)] = pull[U(j)]


def batchnorm_pool_backward(
    x, gamma, mean, inv_std, y, argmax, dy, activation, geometry, dx, dgamma, dbeta
):  # fmt: skip
    """Gradients of `batchnorm_pool_forward`, from its output y."""
    x, gamma, y, dy, mean, inv_std = (as_input(a) for a in (x, gamma, y, dy, mean, inv_std))
    k, rows = gamma.size, len(x) * geometry.p
    blocks = min(batch_blocks(rows * geometry.q), max(rows, 1))
    sums, work = np.empty(2 * (blocks + 1) * k), np.empty(2 * blocks * k, x.dtype)
    lowest = x.dtype.type(0 if activation.code == 1 else -np.inf)
    images = x.reshape(-1), y.reshape(-1), as_input(argmax).reshape(-1), dy.reshape(-1)
    launch(_block_gradients, blocks, x.size, *images, mean, lowest, Pool(*geometry), rows, work, sums)
    level, pull = merge_gradients(sums, x.size // max(k, 1), inv_std, dgamma, dbeta)
    if dx.size:
        vectors = np.empty(4 * k, x.dtype)
        launch(_gradient_vectors, k, 0, gamma, mean, inv_std, level, pull, vectors)
        launch(_input_gradient, len(x), x.size, *images, lowest, Pool(*geometry), vectors, dx.reshape(-1))
