"""A convolution of small windows and the batch normalisation after it, without the images in between.

What is normalised, z = sum over t of patch_t W_t, has the mean W' m and the variance W' C W, where m and C are the mean
and the covariance of the patches that the window cuts from the images: T = R S C numbers each, so few that the moments
of all patches cost less than writing z once. With them the normalisation is a scale and a shift in the weights, as in
inference, and the rest is the convolution's own fused kernel.

Its gradient (Ioffe and Szegedy 2015, section 3), dz = scale (d - mean of d - z^ mean of d z^), needs no z either.
Summed with the patches it is

    dW = scale (D - m dbeta - C W inv_std dgamma),   D: the sum of patches times d,
    dgamma = inv_std (sum over t of W_t D_t - mean dbeta),   dbeta: the sum of d
"""

from __future__ import annotations

import math

import numpy as np

from fastcnn.kernels.cpu.conv import conv2d_block_backward, conv2d_block_forward
from fastcnn.kernels.cpu.launch import Kernel, launch, unpack
from fastcnn.kernels.cpu.packing import fill_zero
from fastcnn.kernels.cpu.runtime import U, as_input, jit

BLOCKS = 16  # at most; of images, whose sums are added up in their order
PITCH = 8  # rows of planes are a multiple of so many numbers long
PLANES = 1 << 14  # numbers that all planes of a band have, about: they stay in the cache


@jit
def _fill_plane(x, n, c, s, h0, rows, g, pitch, planes, at):
    """What the window's column s sees of channel c of image n, from row h0 on, less the first pixel's value."""
    shift = np.float64(x[U(c)])
    left = min(max(0, g.pad_left - s), g.q)  # a window may be wider than the image
    right = max(left, min(g.q, g.w + g.pad_left - s))
    for i in range(rows):
        h, row = h0 + i, at + i * pitch
        source = ((n * g.h + h) * g.w + s - g.pad_left) * g.c + c
        first, last = (left, right) if 0 <= h < g.h else (g.q, g.q)
        for q in range(first):
            planes[U(row + q)] = -shift
        for q in range(first, last):
            planes[U(row + q)] = x[U(source + q * g.c)] - shift
        for q in range(last, g.q):
            planes[U(row + q)] = -shift


@Kernel
def _patch_sums(start, stop, lane, args):
    """Each block's sums of patches, less the first pixel's channels, and of their products, the upper half.

    A band of an image's rows lies as S C planes, moved by s and filled with zeros to whole rows: so a sum over all
    pixels is one over numbers side by side.
    """
    x, n_images, g, band, pitch, planes, sums = unpack(args)
    taps, plane = g.r * g.s * g.c, (band + g.r - 1) * pitch
    blocks = sums.shape[0] // (taps + taps * taps)
    for block in range(start, stop):
        first, base = block * (taps + taps * taps), block * g.s * g.c * plane
        for i in range(first, first + taps + taps * taps):
            sums[U(i)] = 0
        fill_zero(planes, base, base + g.s * g.c * plane)
        for n in range(n_images * block // blocks, n_images * (block + 1) // blocks):
            for p0 in range(0, g.p, band):
                count = min(band, g.p - p0)
                for s in range(g.s):
                    for c in range(g.c):
                        at = base + (s * g.c + c) * plane
                        _fill_plane(x, n, c, s, p0 - g.pad_top, count + g.r - 1, g, pitch, planes, at)
                for t in range(taps):
                    at = base + t % (g.s * g.c) * plane + t // (g.s * g.c) * pitch
                    total = 0.0
                    for i in range(count * pitch):
                        total += planes[U(at + i)]
                    sums[U(first + t)] += total
                    for u in range(t, taps):
                        other = base + u % (g.s * g.c) * plane + u // (g.s * g.c) * pitch
                        total = 0.0
                        for i in range(count * pitch):
                            total += planes[U(at + i)] * planes[U(other + i)]
                        sums[U(first + taps + t * taps + u)] += total


@Kernel
def _merge_patches(start, stop, lane, args):
    """The patches' mean and covariance, from the blocks' sums."""
    x, channels, sums, pixels, taps, patches = unpack(args)
    size = taps + taps * taps
    for i in range(size):
        total = 0.0
        for at in range(i, sums.shape[0], size):
            total += sums[U(at)]
        patches[U(i)] = total / max(pixels, 1)
    for t in range(taps):
        for u in range(t, taps):
            covariance = patches[U(taps + t * taps + u)] - patches[U(t)] * patches[U(u)]
            patches[U(taps + t * taps + u)] = covariance
            patches[U(taps + u * taps + t)] = covariance
    for t in range(taps if pixels > 0 else 0):
        patches[U(t)] += np.float64(x[U(t % channels)])


@Kernel
def _normalised_weights(start, stop, lane, args):
    """The batch's statistics of the filters start..stop, the running ones moved, and weights and bias with the scale
    and shift in them.
    """
    weight, patches, pixels, gamma, beta, running, rates, moments, folded = unpack(args)
    running_mean, running_var = running
    momentum, epsilon = rates
    mean, inv_std = moments
    new_weight, new_bias = folded
    k = gamma.shape[0]
    taps = weight.shape[0] // k
    for j in range(start, stop):
        center, variance = 0.0, 0.0
        for t in range(taps):
            row = 0.0
            for u in range(taps):
                row += patches[U(taps + t * taps + u)] * weight[U(u * k + j)]
            center += weight[U(t * k + j)] * patches[U(t)]
            variance += weight[U(t * k + j)] * row
        variance = max(variance, 0.0) if variance == variance else variance
        deviation = 1 / math.sqrt(variance + epsilon) if pixels > 0 else 0.0
        mean[j], inv_std[j] = center, deviation
        if pixels > 1:
            unbiased = variance * pixels / (pixels - 1)
            running_mean[j] = momentum * running_mean[j] + (1 - momentum) * center
            running_var[j] = momentum * running_var[j] + (1 - momentum) * unbiased
        scale = gamma[j] * deviation
        new_bias[j] = beta[j] - center * scale
        for t in range(taps):
            new_weight[U(t * k + j)] = weight[U(t * k + j)] * scale


def conv2d_norm_forward(
    x, weight, gamma, beta, running_mean, running_var, momentum, epsilon, geometry, activation, pool, y, argmax, mean,
    inv_std, patches, new_weight, new_bias, scratch,
):  # fmt: skip
    """y = maxpool(activation(batch normalisation of conv(x))); the patches' moments are kept for the gradient."""
    x, weight = as_input(x), as_input(weight)
    g, n = geometry, len(x)
    taps, pixels, pitch = g.r * g.s * g.c, n * g.p * g.q, -(-g.q // PITCH) * PITCH
    blocks = max(1, min(BLOCKS, n))
    sums = np.empty(blocks * (taps + taps * taps))
    band = max(1, min(g.p, PLANES // (g.s * g.c * pitch) - g.r + 1))
    planes = np.empty(blocks * g.s * g.c * (band + g.r - 1) * pitch)
    launch(_patch_sums, blocks, pixels * taps * taps // 8, x.reshape(-1), n, g, band, pitch, planes, sums)
    launch(_merge_patches, 1, sums.size, x.reshape(-1), g.c, sums, pixels, taps, patches)
    launch(
        _normalised_weights, g.k, g.k * taps * taps, weight.reshape(-1), patches, pixels, as_input(gamma),
        as_input(beta), (running_mean, running_var), (float(momentum), float(epsilon)), (mean, inv_std),
        (new_weight.reshape(-1), new_bias),
    )  # fmt: skip
    conv2d_block_forward(x, new_weight, new_bias, geometry, activation, pool, y, argmax, scratch)


@Kernel
def _finish_gradients(start, stop, lane, args):
    """dW, which is D before, and dgamma of the filters start..stop."""
    weight, patches, gamma, mean, inv_std, dw, dgamma, dbeta = unpack(args)
    k = gamma.shape[0]
    taps = weight.shape[0] // k
    for j in range(start, stop):
        total, product, deviation = np.float64(dbeta[j]), 0.0, np.float64(inv_std[j])
        for t in range(taps):
            product += np.float64(weight[U(t * k + j)]) * dw[U(t * k + j)]
        slope = deviation * (product - mean[j] * total)
        dgamma[j] = slope
        for t in range(taps):
            away = 0.0
            for u in range(taps):
                away += patches[U(taps + t * taps + u)] * weight[U(u * k + j)]
            rest = dw[U(t * k + j)] - patches[U(t)] * total - away * deviation * slope
            dw[U(t * k + j)] = gamma[j] * deviation * rest


def conv2d_norm_backward(
    x, weight, gamma, mean, inv_std, patches, y, argmax, dy, geometry, activation, pool, dw, dgamma, dbeta, scratch
):  # fmt: skip
    """dw, dgamma and dbeta from the gradient dy of the output y; there is no gradient of x."""
    weight, none = as_input(weight), np.empty((0, 0, 0, 0), dy.dtype)
    conv2d_block_backward(x, weight, y, argmax, dy, geometry, activation, pool, none, dw, dbeta, scratch)
    launch(
        _finish_gradients, gamma.size, weight.size * geometry.r * geometry.s * geometry.c, weight.reshape(-1), patches,
        as_input(gamma), as_input(mean), as_input(inv_std), dw.reshape(-1), dgamma, dbeta,
    )  # fmt: skip
