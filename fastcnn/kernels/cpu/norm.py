"""Batch normalisation over rows of channels, with an activation after it.

The rows are cut into blocks, as many as their number asks for; each is summed by one lane, about a row of its
own, and the blocks' sums are then merged in their order (Chan, Golub and LeVeque 1983, "Algorithms for computing
the sample variance"). So no sum depends on the lanes, and the variance of a channel far from zero stays right.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from fastcnn.kernels.cpu.caches import goes_past
from fastcnn.kernels.cpu.epilogue import SOME_POOL, activate_address, gradient_address
from fastcnn.kernels.cpu.launch import ColumnKernel, ExactKernel, Kernel, address_for, call, empty, launch, unpack
from fastcnn.kernels.cpu.norm_rows import (
    add_moments,
    add_relu_gradients,
    normalise_rows,
    normalise_rows_past,
    relu_gradient_rows,
)
from fastcnn.kernels.cpu.packing import fill_zero
from fastcnn.kernels.cpu.runtime import U, as_input

BLOCK_ROWS = 256
MAX_BLOCKS = 256


def batch_blocks(rows: int) -> int:
    """Into how many blocks the rows are cut."""
    return max(1, min(MAX_BLOCKS, -(-rows // BLOCK_ROWS)))


@lru_cache(maxsize=256)
def batch_edges(rows: int) -> np.ndarray:
    """The first row of each block, and the number of rows."""
    blocks = batch_blocks(rows)
    return rows * np.arange(blocks + 1, dtype=np.int64) // blocks


@ExactKernel
def block_moments(start, stop, lane, args):
    """Each block's sums of x - x0 and of its square, x0 its first row; `edges`: where blocks start, and the end."""
    x, c, edges, sums = unpack(args)
    for block in range(start, stop):
        at = 2 * block * c
        fill_zero(sums, at, at + 2 * c)
        add_moments(x, edges[U(block)], edges[U(block + 1)], c, sums, at)


@ColumnKernel
def _merge_moments(start, stop, lane, args):
    x, running_mean, running_var, momentum, epsilon, mean, inv_std, edges, sums = unpack(args)
    c, blocks = mean.shape[0], edges.shape[0] - 1
    rows = edges[U(blocks)]
    for j in range(start, stop):
        if rows == 0:
            mean[j] = 0
            inv_std[j] = 0
            continue
        center, spread = 0.0, 0.0
        for block in range(blocks):
            first, last = edges[U(block)], edges[U(block + 1)]
            count = last - first
            shift = sums[U(2 * block * c + j)] / count
            away = np.float64(x[U(first * c + j)]) + shift - center
            spread += sums[U((2 * block + 1) * c + j)] - shift * shift * count + away * away * first * count / last
            center += away * count / last
        variance = max(spread, 0.0) / rows if spread == spread else spread
        mean[j] = center
        inv_std[j] = 1 / math.sqrt(variance + epsilon)
        if rows > 1:
            unbiased = variance * rows / (rows - 1)
            running_mean[j] = momentum * running_mean[j] + (1 - momentum) * center
            running_var[j] = momentum * running_var[j] + (1 - momentum) * unbiased


@Kernel
def _normalise(start, stop, lane, args):
    """y = activation((x - mean) * scale + beta) + other, if there is any."""
    x, vectors, act, activate, none, other, past, y = unpack(args)
    c = vectors.shape[0] // 3
    if past:
        normalise_rows_past(x, start, stop, vectors, act[0] == 1, other, y)
        return
    for first in range(start, stop, 64):  # a piece stays in the first-level cache for its activation
        last = min(first + 64, stop)
        normalise_rows(x, first, last, vectors, act[0] == 1, y)
        if act[0] > 1:
            call(activate, first, last, lane, (y, c, none, act))
        for i in range(first * c, last * c if other.shape[0] else first * c):
            y[U(i)] += other[U(i)]


@Kernel
def _vectors(start, stop, lane, args):
    """mean, scale, beta; and level and pull, if there are any."""
    gamma, beta, mean, inv_std, pulls, vectors = unpack(args)
    c = gamma.shape[0]
    for j in range(start, stop):
        vectors[U(j)] = mean[U(j)]
        vectors[U(c + j)] = inv_std[U(j)] * gamma[U(j)]
        vectors[U(2 * c + j)] = beta[U(j)]
    for j in range(start, stop if pulls.shape[0] else start):
        vectors[U(3 * c + j)] = pulls[U(j)]
        vectors[U(4 * c + j)] = pulls[U(c + j)]


def normalising_vectors(gamma, beta, mean, inv_std):
    """mean, scale and beta, as kernels read them."""
    vectors = np.empty(3 * gamma.size, gamma.dtype)
    launch(_vectors, gamma.size, 0, gamma, beta, mean, inv_std, np.empty(0), vectors)
    return vectors


def launch_normalise(x, gamma, beta, mean, inv_std, activation, other, y):
    """y = activation(normalised x) + other, rows all; `other` may have size zero."""
    vectors = normalising_vectors(gamma, beta, mean, inv_std)
    past = activation.code <= 1 and goes_past(y, x.shape[1])
    launch(
        _normalise, x.shape[0], x.size, x.reshape(-1), vectors, tuple(activation),
        activate_address(y.dtype, activation), np.empty(0, y.dtype), other.reshape(-1), past, y.reshape(-1),
    )  # fmt: skip


def launch_moments(x, c, running_mean, running_var, momentum, epsilon, mean, inv_std):
    """The batch's statistics of x, rows of c channels; the running ones move."""
    edges = batch_edges(x.size // max(c, 1))
    sums = np.empty(2 * (edges.size - 1) * c)
    launch(block_moments, edges.size - 1, x.size, x, c, edges, sums)
    merge_moments(x, edges, sums, running_mean, running_var, momentum, epsilon, mean, inv_std)


def merge_moments(x, edges, sums, running_mean, running_var, momentum, epsilon, mean, inv_std):
    """The batch's statistics from the sums of `block_moments`; the running ones move."""
    launch(
        _merge_moments, mean.size, 4 * sums.size, x, running_mean, running_var, float(momentum), float(epsilon), mean,
        inv_std, edges, sums,
    )  # fmt: skip


def batchnorm_forward(x, gamma, beta, running_mean, running_var, momentum, epsilon, activation, y, mean, inv_std):
    """Training: normalises by the batch's statistics, saves them, and moves the running ones in place."""
    x, gamma, beta = as_input(x), as_input(gamma), as_input(beta)
    launch_moments(x.reshape(-1), gamma.size, running_mean, running_var, momentum, epsilon, mean, inv_std)
    launch_normalise(x, gamma, beta, mean, inv_std, activation, np.empty(0, y.dtype), y)


@Kernel
def _inference_scale(start, stop, lane, args):
    running_var, epsilon, scale = unpack(args)
    for j in range(start, stop):
        scale[U(j)] = 1 / math.sqrt(np.float64(running_var[U(j)]) + epsilon)


def batchnorm_inference(x, gamma, beta, running_mean, running_var, epsilon, activation, y):
    """y = activation(gamma * (x - running_mean) / sqrt(running_var + epsilon) + beta)."""
    x, gamma, beta, mean, var = (as_input(a) for a in (x, gamma, beta, running_mean, running_var))
    inv_std = np.empty(gamma.size, y.dtype)
    launch(_inference_scale, gamma.size, 0, var, float(epsilon), inv_std)
    launch_normalise(x, gamma, beta, mean, inv_std, activation, np.empty(0, y.dtype), y)


@Kernel
def _fold_vectors(start, stop, lane, args):
    bias, gamma, beta, running_mean, running_var, epsilon, scale, new_bias = unpack(args)
    for j in range(start, stop):
        scale[U(j)] = gamma[U(j)] / math.sqrt(np.float64(running_var[U(j)]) + epsilon)
        before = bias[U(j)] if bias.shape[0] else bias.dtype.type(0)
        new_bias[U(j)] = beta[U(j)] + (before - running_mean[U(j)]) * scale[U(j)]


@Kernel
def _fold_rows(start, stop, lane, args):
    weight, scale, new_weight = unpack(args)
    k = scale.shape[0]
    for at in range(start * k, stop * k, k):
        for j in range(k):
            new_weight[U(at + j)] = weight[U(at + j)] * scale[U(j)]


def batchnorm_fold(weight, bias, gamma, beta, running_mean, running_var, epsilon, new_weight, new_bias):
    """Weights and bias that do the inference-mode batch normalisation after them too."""
    weight, bias, gamma, beta, mean, var = (as_input(a) for a in (weight, bias, gamma, beta, running_mean, running_var))
    scale = np.empty(gamma.size, weight.dtype)
    launch(_fold_vectors, gamma.size, 0, bias, gamma, beta, mean, var, float(epsilon), scale, new_bias)
    launch(_fold_rows, len(weight), weight.size, weight.reshape(-1), scale, new_weight.reshape(-1))


@ExactKernel
def _block_gradients(start, stop, lane, args):
    """dz, the gradient before the activation; and each block's sums of dz and of dz * (x - mean)."""
    x, y, dy, mean, gradient, alpha, sums, dz = unpack(args)
    c = mean.shape[0]
    rows, blocks = dy.shape[0] // c, sums.shape[0] // (2 * c) - 1
    for block in range(start, stop):
        first, last, at = rows * block // blocks, rows * (block + 1) // blocks, 2 * block * c
        for j in range(2 * c):
            sums[U(at + j)] = 0
        for piece in range(first, last, 64):  # stays in the first-level cache
            end = min(piece + 64, last)
            call(gradient, piece * c, end * c, lane, (y, dy, alpha, dz))
            whole = piece + (end - piece) // 2 * 2
            for i in range(piece * c, whole * c, 2 * c):
                for j in range(c):
                    center, d0, d1 = mean[U(j)], dz[U(i + j)], dz[U(i + c + j)]
                    sums[U(at + j)] += d0 + d1
                    sums[U(at + c + j)] += d0 * (x[U(i + j)] - center) + d1 * (x[U(i + c + j)] - center)
            for i in range(whole * c, end * c, c):
                for j in range(c):
                    d = dz[U(i + j)]
                    sums[U(at + j)] += d
                    sums[U(at + c + j)] += d * (x[U(i + j)] - mean[U(j)])


@ColumnKernel
def _merge_gradients(start, stop, lane, args):
    """dgamma and dbeta; and what `_input_gradient` subtracts, after the blocks' sums."""
    sums, rows, inv_std, dgamma, dbeta = unpack(args)
    c = inv_std.shape[0]
    blocks = sums.shape[0] // (2 * c) - 1
    for j in range(start, stop):
        total, product = 0.0, 0.0
        for block in range(blocks):
            total += sums[U(2 * block * c + j)]
            product += sums[U((2 * block + 1) * c + j)]
        product *= inv_std[U(j)]
        if dbeta.shape[0]:
            dbeta[j] = total
        if dgamma.shape[0]:
            dgamma[j] = product
        sums[U(2 * blocks * c + j)] = total / max(rows, 1)
        sums[U((2 * blocks + 1) * c + j)] = product * inv_std[U(j)] / max(rows, 1)


@ExactKernel
def _input_gradient(start, stop, lane, args):
    """dx = slope * (dz - mean of dz - (x - mean) * pull), where dx is dz before."""
    x, gamma, mean, inv_std, level, pull, dx = unpack(args)
    c, kind = gamma.shape[0], dx.dtype.type
    for i in range(start * c, stop * c, c):
        for j in range(c):
            away = (x[U(i + j)] - mean[U(j)]) * kind(pull[U(j)])
            dx[U(i + j)] = gamma[U(j)] * inv_std[U(j)] * (dx[U(i + j)] - kind(level[U(j)]) - away)


@ExactKernel
def _block_relu_gradients(start, stop, lane, args):
    """The same sums for a ReLU, which needs no array of dz: the sign of its input says where dy goes through."""
    x, dy, edges, vectors, sums = unpack(args)
    c = vectors.shape[0] // 5
    for block in range(start, stop):
        at = 2 * block * c
        fill_zero(sums, at, at + 2 * c)
        add_relu_gradients(x, dy, edges[U(block)], edges[U(block + 1)], vectors, sums, at)


@ExactKernel
def _relu_input_gradient(start, stop, lane, args):
    """Of rows, where they lie."""
    x, dy, vectors, dx = unpack(args)
    relu_gradient_rows(x, dy, start, stop, vectors, dx, start * (vectors.shape[0] // 5))


@ExactKernel
def _scatter_relu_gradient(n, stop, lane, args):
    """Of image n, into an image as `scatter_gradient` of a convolution does it; there is no db."""
    dy, x, _argmax, vectors, pool, dz, start, pitch, _db = unpack(args)
    for row in range(pool.p):
        first = (n * pool.p + row) * pool.q
        relu_gradient_rows(x, dy, first, first + pool.q, vectors, dz, start + row * pitch * pool.c)


def scatter_relu_address(dtype):
    """What a convolution's gradient takes in place of `scatter_address`, to go back through normalisation and ReLU."""
    x = empty(dtype)
    return address_for(_scatter_relu_gradient, x, x, empty(np.uint8), x, SOME_POOL, x, 0, 0, 0)


def merge_gradients(sums, rows, inv_std, dgamma, dbeta):
    """dgamma and dbeta from the blocks' sums; what the input's gradient has less: a level, and a pull to the mean."""
    c = inv_std.size
    launch(_merge_gradients, c, 4 * sums.size, sums, rows, inv_std, dgamma, dbeta)
    return sums[-2 * c : -c], sums[-c:]


def relu_gradients(x, gamma, beta, mean, inv_std, dy, dgamma, dbeta):
    """dgamma and dbeta of batch normalisation with a ReLU after it; and the vectors of `relu_gradient_rows`."""
    edges, c, flat = batch_edges(x.shape[0]), gamma.size, x.reshape(-1)
    sums, vectors = np.empty(2 * edges.size * c), np.empty(5 * c, x.dtype)
    normalisation = gamma, beta, mean, inv_std
    launch(_vectors, c, 0, *normalisation, np.empty(0), vectors)
    launch(_block_relu_gradients, edges.size - 1, x.size, flat, dy.reshape(-1), edges, vectors, sums)
    merge_gradients(sums, x.shape[0], inv_std, dgamma, dbeta)
    launch(_vectors, c, 0, *normalisation, sums[-2 * c :], vectors)
    return vectors


def batchnorm_backward(x, gamma, beta, mean, inv_std, y, dy, activation, dx, dgamma, dbeta):
    """Gradients of the training-mode batch normalisation (Ioffe and Szegedy 2015, section 3)."""
    x, gamma, y, dy, mean, inv_std = (as_input(a) for a in (x, gamma, y, dy, mean, inv_std))
    rows, c, blocks = x.shape[0], gamma.size, batch_blocks(x.shape[0])
    flat = x.reshape(-1)
    if activation.code == 1:
        vectors = relu_gradients(x, gamma, as_input(beta), mean, inv_std, dy, dgamma, dbeta)
        if dx.size:
            launch(_relu_input_gradient, rows, x.size, flat, dy.reshape(-1), vectors, dx.reshape(-1))
        return
    sums = np.empty(2 * (blocks + 1) * c)
    dz = dx.reshape(-1) if dx.size else np.empty(x.size, x.dtype)
    launch(
        _block_gradients, blocks, x.size, flat, y.reshape(-1), dy.reshape(-1), mean,
        gradient_address(y.dtype, activation), float(activation.alpha), sums, dz,
    )  # fmt: skip
    level, pull = merge_gradients(sums, rows, inv_std, dgamma, dbeta)
    if dx.size:
        launch(_input_gradient, rows, x.size, flat, gamma, mean, inv_std, level, pull, dz)
