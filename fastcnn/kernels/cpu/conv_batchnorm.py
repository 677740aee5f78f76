"""A convolution, the batch normalisation and ReLU after it, and the sum at the end of a residual block, in training.

What the convolution writes is normalised by moments of all of it, so y needs a pass of its own. But by Winograd's
algorithm a block of outputs is still in the cache when its sums are taken. And the gradient of the normalisation's
input,

    dz = scale (d - mean of d - z^ mean of d z^),   d = dy where y > 0,

is made where the convolution's gradients read it, image by image: dz is never stored.
"""

from __future__ import annotations

import numpy as np

from fastcnn.kernels.cpu.conv import NO_ACTIVATION, conv2d_block_backward, conv2d_block_forward
from fastcnn.kernels.cpu.elementwise import add_forward
from fastcnn.kernels.cpu.lowering import no_pool
from fastcnn.kernels.cpu.norm import (
    batchnorm_backward,
    launch_moments,
    launch_normalise,
    merge_moments,
    relu_gradients,
    scatter_relu_address,
)
from fastcnn.kernels.cpu.runtime import as_input
from fastcnn.kernels.cpu.winograd import block_edges, winograd_forward
from fastcnn.kernels.cpu.winograd_backward import winograd_backward


def conv2d_batchnorm_forward(
    x, weight, gamma, beta, running_mean, running_var, momentum, epsilon, geometry, activation, other, z, y, mean,
    inv_std, scratch,
):  # fmt: skip
    """z = conv(x), y = relu(batch normalisation of z) + other."""
    x, weight, gamma, beta, other = (as_input(a) for a in (x, weight, gamma, beta, other))
    g, rows, statistics = geometry, z.reshape(-1), (running_mean, running_var, momentum, epsilon, mean, inv_std)
    no_bias, no_argmax = np.empty(0, z.dtype), np.empty((0, 0, 0, 0), np.uint8)
    convolution = x, weight, no_bias, g, NO_ACTIVATION, no_pool(g), z, no_argmax, scratch
    if g.winograd and len(x):
        edges = block_edges(g, len(x), z.itemsize)
        sums = np.empty(2 * (edges.size - 1) * g.k)
        winograd_forward(*convolution, sums)
        merge_moments(rows, edges, sums, *statistics)
    else:
        conv2d_block_forward(*convolution)
        launch_moments(rows, g.k, *statistics)
    launch_normalise(z.reshape(-1, g.k), gamma, beta, mean, inv_std, activation, other, y)


def conv2d_batchnorm_backward(
    x, weight, z, gamma, beta, mean, inv_std, dy, geometry, activation, beside, dx, dw, dgamma, dbeta, dz, scratch
):
    """dx, plus `beside`, dw, dgamma and dbeta from the gradient dy of the output y."""
    x, weight, z, gamma, beta, mean, inv_std, dy, beside = (
        as_input(a) for a in (x, weight, z, gamma, beta, mean, inv_std, dy, beside)
    )  # fmt: skip
    g, rows, no_argmax, no_db = geometry, (-1, geometry.k), np.empty((0, 0, 0, 0), np.uint8), np.empty(0, dy.dtype)
    normalisation = z.reshape(rows), gamma, beta, mean, inv_std
    if g.winograd and len(x):
        vectors = relu_gradients(*normalisation, dy.reshape(rows), dgamma, dbeta)
        scatter = scatter_relu_address(dy.dtype), vectors
        winograd_backward(x, weight, z, no_argmax, dy, g, scatter, no_pool(g), beside, dx, dw, no_db, scratch)
        return
    flat = dz.reshape(rows)
    batchnorm_backward(*normalisation, normalisation[0], dy.reshape(rows), activation, flat, dgamma, dbeta)
    conv2d_block_backward(x, weight, dz, no_argmax, dz, g, NO_ACTIVATION, no_pool(g), dx, dw, no_db, scratch)
    if dx.size and beside.size:
        add_forward(dx.reshape(-1), beside.reshape(-1), NO_ACTIVATION, dx.reshape(-1))
