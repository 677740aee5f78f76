"""Batch normalisation over rows of channels. Lanes own columns, so each channel is summed in one order."""

from __future__ import annotations

import math

import numpy as np

from fastcnn.kernels.cpu.launch import ColumnKernel, Kernel, launch, unpack
from fastcnn.kernels.cpu.runtime import U, as_input


@ColumnKernel
def _forward(start, stop, lane, args):
    x, gamma, beta, running_mean, running_var, momentum, epsilon, y, mean, inv_std, sums = unpack(args)
    c = gamma.shape[0]
    rows = x.shape[0] // c
    if rows == 0:
        for j in range(start, stop):
            mean[j] = 0
            inv_std[j] = 0
        return
    # Two passes in float64: the variance of a channel far from zero stays right in float32.
    # Four rows at a time: the running sums are then loaded and stored a quarter as often.
    whole = rows - rows % 4
    for j in range(start, stop):
        sums[U(j)] = 0
    for i in range(0, whole, 4):
        for j in range(start, stop):
            at = i * c + j
            upper = np.float64(x[U(at)]) + np.float64(x[U(at + c)])
            lower = np.float64(x[U(at + 2 * c)]) + np.float64(x[U(at + 3 * c)])
            sums[U(j)] += upper + lower
    for i in range(whole, rows):
        for j in range(start, stop):
            sums[U(j)] += x[U(i * c + j)]
    for j in range(start, stop):
        sums[U(j)] /= rows
        sums[U(c + j)] = 0
    for i in range(0, whole, 4):
        for j in range(start, stop):
            at, center = i * c + j, sums[U(j)]
            d0, d1 = x[U(at)] - center, x[U(at + c)] - center
            d2, d3 = x[U(at + 2 * c)] - center, x[U(at + 3 * c)] - center
            sums[U(c + j)] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for i in range(whole, rows):
        for j in range(start, stop):
            d = x[U(i * c + j)] - sums[U(j)]
            sums[U(c + j)] += d * d
    for j in range(start, stop):
        variance = sums[U(c + j)] / rows
        mean[j] = sums[j]
        inv_std[j] = 1 / math.sqrt(variance + epsilon)
        unbiased = variance * rows / max(rows - 1, 1)
        running_mean[j] = momentum * running_mean[j] + (1 - momentum) * sums[j]
        running_var[j] = momentum * running_var[j] + (1 - momentum) * unbiased
    for i in range(rows):
        for j in range(start, stop):
            y[U(i * c + j)] = (x[U(i * c + j)] - mean[U(j)]) * (inv_std[U(j)] * gamma[U(j)]) + beta[U(j)]


def batchnorm_forward(x, gamma, beta, running_mean, running_var, momentum, epsilon, y, mean, inv_std):
    """Training: normalises by the batch's statistics, saves them, and moves the running ones in place."""
    x, gamma, beta = as_input(x), as_input(gamma), as_input(beta)
    sums = np.empty(2 * gamma.size)
    launch(
        _forward,
        gamma.size,
        4 * x.size,
        x.reshape(-1),
        gamma,
        beta,
        running_mean,
        running_var,
        float(momentum),
        float(epsilon),
        y.reshape(-1),
        mean,
        inv_std,
        sums,
    )


@Kernel
def _inference_scale(start, stop, lane, args):
    gamma, running_var, epsilon, scale = unpack(args)
    for j in range(start, stop):
        scale[U(j)] = gamma[U(j)] / math.sqrt(np.float64(running_var[U(j)]) + epsilon)


@Kernel
def _inference(start, stop, lane, args):
    x, shift, scale, beta, y = unpack(args)
    c = shift.shape[0]
    for i in range(start, stop):
        for j in range(c):
            y[U(i * c + j)] = (x[U(i * c + j)] - shift[U(j)]) * scale[U(j)] + beta[U(j)]


def batchnorm_inference(x, gamma, beta, running_mean, running_var, epsilon, y):
    """y = gamma * (x - running_mean) / sqrt(running_var + epsilon) + beta."""
    x, gamma, beta, mean, var = (as_input(a) for a in (x, gamma, beta, running_mean, running_var))
    scale = np.empty(gamma.size, y.dtype)
    launch(_inference_scale, gamma.size, 0, gamma, var, float(epsilon), scale)
    launch(_inference, x.shape[0], x.size, x.reshape(-1), mean, scale, beta, y.reshape(-1))


@ColumnKernel
def _backward(start, stop, lane, args):
    x, gamma, mean, inv_std, dy, dx, dgamma, dbeta, sums = unpack(args)
    c = gamma.shape[0]
    rows, kind = dy.shape[0] // c, dx.dtype.type
    whole = rows - rows % 4
    for j in range(start, stop):
        sums[U(j)] = 0
        sums[U(c + j)] = 0
    for i in range(0, whole, 4):
        for j in range(start, stop):
            at, center = i * c + j, mean[U(j)]
            d0, d1 = np.float64(dy[U(at)]), np.float64(dy[U(at + c)])
            d2, d3 = np.float64(dy[U(at + 2 * c)]), np.float64(dy[U(at + 3 * c)])
            sums[U(j)] += (d0 + d1) + (d2 + d3)
            upper = d0 * (x[U(at)] - center) + d1 * (x[U(at + c)] - center)
            lower = d2 * (x[U(at + 2 * c)] - center) + d3 * (x[U(at + 3 * c)] - center)
            sums[U(c + j)] += upper + lower
    for i in range(whole, rows):
        for j in range(start, stop):
            d = np.float64(dy[U(i * c + j)])
            sums[U(j)] += d
            sums[U(c + j)] += d * (x[U(i * c + j)] - mean[U(j)])
    for j in range(start, stop):
        sums[U(c + j)] *= inv_std[U(j)]
        if dbeta.shape[0]:
            dbeta[j] = sums[j]
        if dgamma.shape[0]:
            dgamma[j] = sums[U(c + j)]
    if dx.shape[0] and rows:
        # dx = slope * (dy - mean of dy - (x - mean) * pull)
        for j in range(start, stop):
            sums[U(j)] /= rows
            sums[U(c + j)] *= inv_std[U(j)] / rows
        for i in range(rows):
            for j in range(start, stop):
                slope, level, pull = gamma[U(j)] * inv_std[U(j)], kind(sums[U(j)]), kind(sums[U(c + j)])
                center = x[U(i * c + j)] - mean[U(j)]
                dx[U(i * c + j)] = slope * (dy[U(i * c + j)] - level - center * pull)


def batchnorm_backward(x, gamma, mean, inv_std, dy, dx, dgamma, dbeta):
    """Gradients of the training-mode batch normalisation (Ioffe and Szegedy 2015, section 3)."""
    x, gamma, dy, mean, inv_std = (
        as_input(x),
        as_input(gamma),
        as_input(dy),
        as_input(mean),
        as_input(inv_std),
    )
    sums = np.empty(2 * gamma.size)
    launch(
        _backward,
        gamma.size,
        4 * x.size,
        x.reshape(-1),
        gamma,
        mean,
        inv_std,
        dy.reshape(-1),
        dx.reshape(-1),
        dgamma,
        dbeta,
        sums,
    )
