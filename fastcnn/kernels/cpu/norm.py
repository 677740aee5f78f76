"""Batch normalisation over rows of channels. Lanes own columns, so each channel is summed in one order."""

from __future__ import annotations

import math

import numpy as np

from fastcnn.kernels.cpu.launch import Kernel, launch, unpack
from fastcnn.kernels.cpu.runtime import U, as_input


@Kernel
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
    for j in range(start, stop):
        sums[j] = 0
    for i in range(rows):
        for j in range(start, stop):
            sums[j] += x[U(i * c + j)]
    for j in range(start, stop):
        sums[j] /= rows
        sums[U(c + j)] = 0
    for i in range(rows):
        for j in range(start, stop):
            d = x[U(i * c + j)] - sums[j]
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
            y[U(i * c + j)] = (x[U(i * c + j)] - mean[j]) * (inv_std[j] * gamma[j]) + beta[j]


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
def _inference(start, stop, lane, args):
    x, shift, scale, beta, y = unpack(args)
    c = shift.shape[0]
    for i in range(start, stop):
        for j in range(c):
            y[U(i * c + j)] = (x[U(i * c + j)] - shift[j]) * scale[j] + beta[j]


def batchnorm_inference(x, gamma, beta, running_mean, running_var, epsilon, y):
    """y = gamma * (x - running_mean) / sqrt(running_var + epsilon) + beta."""
    x, beta, mean = as_input(x), as_input(beta), as_input(running_mean)
    scale = (np.asarray(gamma, np.float64) / np.sqrt(np.asarray(running_var, np.float64) + epsilon)).astype(y.dtype)
    launch(_inference, x.shape[0], x.size, x.reshape(-1), mean, scale, beta, y.reshape(-1))


@Kernel
def _backward(start, stop, lane, args):
    x, gamma, mean, inv_std, dy, dx, dgamma, dbeta, sums = unpack(args)
    c = gamma.shape[0]
    rows = dy.shape[0] // c
    for j in range(start, stop):
        sums[j] = 0
        sums[U(c + j)] = 0
    for i in range(rows):
        for j in range(start, stop):
            d = dy[U(i * c + j)]
            sums[j] += d
            sums[U(c + j)] += d * ((x[U(i * c + j)] - mean[j]) * inv_std[j])
    for j in range(start, stop):
        if dbeta.shape[0]:
            dbeta[j] = sums[j]
        if dgamma.shape[0]:
            dgamma[j] = sums[U(c + j)]
    if dx.shape[0] and rows:
        for j in range(start, stop):
            sums[j] /= rows
            sums[U(c + j)] /= rows
        for i in range(rows):
            for j in range(start, stop):
                normal = (x[U(i * c + j)] - mean[j]) * inv_std[j]
                dx[U(i * c + j)] = gamma[j] * inv_std[j] * (dy[U(i * c + j)] - sums[j] - normal * sums[U(c + j)])


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
