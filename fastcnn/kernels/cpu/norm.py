"""Batch normalisation over rows of channels, with an activation after it.

The rows are cut into blocks, as many as their number asks for; each is summed by one lane, about a row of its
own, and the blocks' sums are then merged in their order (Chan, Golub and LeVeque 1983, "Algorithms for computing
the sample variance"). So no sum depends on the lanes, and the variance of a channel far from zero stays right.
"""

from __future__ import annotations

import math

import numpy as np

from fastcnn.kernels.cpu.epilogue import activate_address, gradient_address
from fastcnn.kernels.cpu.launch import ColumnKernel, ExactKernel, Kernel, call, launch, unpack
from fastcnn.kernels.cpu.runtime import U, as_input

BLOCK_ROWS = 256
MAX_BLOCKS = 256


def batch_blocks(rows: int) -> int:
    """Into how many blocks the rows are cut."""
    return max(1, min(MAX_BLOCKS, -(-rows // BLOCK_ROWS)))


@ExactKernel
def _block_moments(start, stop, lane, args):
    """Each block's sums of x - x0 and of its square, x0 its first row."""
    x, c, sums = unpack(args)
    rows, blocks = x.shape[0] // c, sums.shape[0] // (2 * c)
    for block in range(start, stop):
        first, last, at = rows * block // blocks, rows * (block + 1) // blocks, 2 * block * c
        for j in range(2 * c):
            sums[U(at + j)] = 0
        origin, whole = first * c, first + (last - first) // 4 * 4
        for i in range(first * c, whole * c, 4 * c):
            for j in range(c):
                center = x[U(origin + j)]
                d0, d1 = x[U(i + j)] - center, x[U(i + c + j)] - center
                d2, d3 = x[U(i + 2 * c + j)] - center, x[U(i + 3 * c + j)] - center
                sums[U(at + j)] += (d0 + d1) + (d2 + d3)
                sums[U(at + c + j)] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        for i in range(whole * c, last * c, c):
            for j in range(c):
                d = x[U(i + j)] - x[U(origin + j)]
                sums[U(at + j)] += d
                sums[U(at + c + j)] += d * d


@ColumnKernel
def _merge_moments(start, stop, lane, args):
    x, running_mean, running_var, momentum, epsilon, mean, inv_std, sums = unpack(args)
    c = mean.shape[0]
    rows, blocks = x.shape[0] // c, sums.shape[0] // (2 * c)
    for j in range(start, stop):
        if rows == 0:
            mean[j] = 0
            inv_std[j] = 0
            continue
        center, spread = 0.0, 0.0
        for block in range(blocks):
            first, last = rows * block // blocks, rows * (block + 1) // blocks
            count = last - first
            shift = sums[U(2 * block * c + j)] / count
            away = np.float64(x[U(first * c + j)]) + shift - center
            spread += sums[U((2 * block + 1) * c + j)] - shift * shift * count + away * away * first * count / last
            center += away * count / last
        variance = max(spread, 0.0) / rows if spread == spread else spread
        mean[j] = center
        inv_std[j] = 1 / math.sqrt(variance + epsilon)
        unbiased = variance * rows / max(rows - 1, 1)
        running_mean[j] = momentum * running_mean[j] + (1 - momentum) * center
        running_var[j] = momentum * running_var[j] + (1 - momentum) * unbiased


@Kernel
def _normalise(start, stop, lane, args):
    """y = activation((x - mean) * inv_std * gamma + beta)."""
    x, gamma, beta, mean, inv_std, act, activate, none, y = unpack(args)
    c, zero, code = gamma.shape[0], y.dtype.type(0), act[0]
    for first in range(start, stop, 64):  # a piece stays in the first-level cache for its activation
        last = min(first + 64, stop)
        for i in range(first * c, last * c, c):
            if code == 1:
                for j in range(c):
                    v = (x[U(i + j)] - mean[U(j)]) * (inv_std[U(j)] * gamma[U(j)]) + beta[U(j)]
                    y[U(i + j)] = zero if v <= zero else v
            else:
                for j in range(c):
                    y[U(i + j)] = (x[U(i + j)] - mean[U(j)]) * (inv_std[U(j)] * gamma[U(j)]) + beta[U(j)]
        if code > 1:
            call(activate, first, last, lane, (y, c, none, act))


def _launch_normalise(x, gamma, beta, mean, inv_std, activation, y):
    launch(
        _normalise, x.shape[0], x.size, x.reshape(-1), gamma, beta, mean, inv_std, tuple(activation),
        activate_address(y.dtype, activation), np.empty(0, y.dtype), y.reshape(-1),
    )  # fmt: skip


def launch_moments(x, c, running_mean, running_var, momentum, epsilon, mean, inv_std):
    """The batch's statistics of x, rows of c channels; the running ones move."""
    blocks = batch_blocks(x.size // max(c, 1))
    sums = np.empty(2 * blocks * c)
    launch(_block_moments, blocks, x.size, x, c, sums)
    launch(
        _merge_moments, c, 4 * sums.size, x, running_mean, running_var, float(momentum), float(epsilon), mean, inv_std,
        sums,
    )  # fmt: skip


def batchnorm_forward(x, gamma, beta, running_mean, running_var, momentum, epsilon, activation, y, mean, inv_std):
    """Training: normalises by the batch's statistics, saves them, and moves the running ones in place."""
    x, gamma, beta = as_input(x), as_input(gamma), as_input(beta)
    launch_moments(x.reshape(-1), gamma.size, running_mean, running_var, momentum, epsilon, mean, inv_std)
    _launch_normalise(x, gamma, beta, mean, inv_std, activation, y)


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
    _launch_normalise(x, gamma, beta, mean, inv_std, activation, y)


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
    x, dy, mean, scale, beta, sums = unpack(args)
    c, zero = mean.shape[0], dy.dtype.type(0)
    rows, blocks = dy.shape[0] // c, sums.shape[0] // (2 * c) - 1
    for block in range(start, stop):
        first, last, at = rows * block // blocks, rows * (block + 1) // blocks, 2 * block * c
        for j in range(2 * c):
            sums[U(at + j)] = 0
        whole = first + (last - first) // 2 * 2
        for i in range(first * c, whole * c, 2 * c):
            for j in range(c):
                away0, away1 = x[U(i + j)] - mean[U(j)], x[U(i + c + j)] - mean[U(j)]
                d0 = dy[U(i + j)] if away0 * scale[U(j)] + beta[U(j)] > zero else zero
                d1 = dy[U(i + c + j)] if away1 * scale[U(j)] + beta[U(j)] > zero else zero
                sums[U(at + j)] += d0 + d1
                sums[U(at + c + j)] += d0 * away0 + d1 * away1
        for i in range(whole * c, last * c, c):
            for j in range(c):
                away = x[U(i + j)] - mean[U(j)]
                d = dy[U(i + j)] if away * scale[U(j)] + beta[U(j)] > zero else zero
                sums[U(at + j)] += d
                sums[U(at + c + j)] += d * away


@ExactKernel
def _relu_input_gradient(start, stop, lane, args):
    """dx as `_input_gradient` has it."""
    x, dy, mean, scale, beta, level, pull, dx = unpack(args)
    c, kind = mean.shape[0], dx.dtype.type
    for i in range(start * c, stop * c, c):
        for j in range(c):
            away = x[U(i + j)] - mean[U(j)]
            d = dy[U(i + j)] if away * scale[U(j)] + beta[U(j)] > kind(0) else kind(0)
            dx[U(i + j)] = scale[U(j)] * (d - kind(level[U(j)]) - away * kind(pull[U(j)]))


@Kernel
def _scales(start, stop, lane, args):
    gamma, inv_std, scale = unpack(args)
    for j in range(start, stop):
        scale[U(j)] = gamma[U(j)] * inv_std[U(j)]


def merge_gradients(sums, rows, inv_std, dgamma, dbeta):
    """dgamma and dbeta from the blocks' sums; what the input's gradient has less: a level, and a pull to the mean."""
    c = inv_std.size
    launch(_merge_gradients, c, 4 * sums.size, sums, rows, inv_std, dgamma, dbeta)
    return sums[-2 * c : -c], sums[-c:]


def batchnorm_backward(x, gamma, beta, mean, inv_std, y, dy, activation, dx, dgamma, dbeta):
    """Gradients of the training-mode batch normalisation (Ioffe and Szegedy 2015, section 3)."""
    x, gamma, y, dy, mean, inv_std = (as_input(a) for a in (x, gamma, y, dy, mean, inv_std))
    rows, c, blocks = x.shape[0], gamma.size, batch_blocks(x.shape[0])
    sums, flat = np.empty(2 * (blocks + 1) * c), x.reshape(-1)
    if activation.code == 1:
        scale = np.empty(c, x.dtype)
        launch(_scales, c, 0, gamma, inv_std, scale)
        vectors = mean, scale, as_input(beta)
        launch(_block_relu_gradients, blocks, x.size, flat, dy.reshape(-1), *vectors, sums)
        level, pull = merge_gradients(sums, rows, inv_std, dgamma, dbeta)
        if dx.size:
            launch(_relu_input_gradient, rows, x.size, flat, dy.reshape(-1), *vectors, level, pull, dx.reshape(-1))
        return
    dz = dx.reshape(-1) if dx.size else np.empty(x.size, x.dtype)
    launch(
        _block_gradients, blocks, x.size, flat, y.reshape(-1), dy.reshape(-1), mean,
        gradient_address(y.dtype, activation), float(activation.alpha), sums, dz,
    )  # fmt: skip
    level, pull = merge_gradients(sums, rows, inv_std, dgamma, dbeta)
    if dx.size:
        launch(_input_gradient, rows, x.size, flat, gamma, mean, inv_std, level, pull, dz)
