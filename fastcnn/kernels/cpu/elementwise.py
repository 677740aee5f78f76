"""Bias, activations and dropout as ops of their own, for where they are not fused into a convolution or dense
layer.
"""

from __future__ import annotations

import numpy as np

from fastcnn.kernels.cpu.epilogue import activate_address, gradient_kernel
from fastcnn.kernels.cpu.launch import ColumnKernel, Kernel, call, launch, unpack
from fastcnn.kernels.cpu.runtime import U, as_input, jit


@Kernel
def _add_bias(start, stop, lane, args):
    x, bias, y = unpack(args)
    c = bias.shape[0]
    for row in range(start, stop):
        for j in range(c):
            y[U(row * c + j)] = x[U(row * c + j)] + bias[j]


def bias_forward(x, bias, y):
    """y (rows,C) = x (rows,C) + bias (C,)."""
    x, bias = as_input(x), as_input(bias)
    launch(_add_bias, x.shape[0], x.size, x.reshape(-1), bias, y.reshape(-1))


@ColumnKernel
def _sum_columns(start, stop, lane, args):
    """Columns, not rows, are cut into lanes: each is summed in one order."""
    dy, rows, sums, db = unpack(args)
    c = db.shape[0]
    for j in range(start, stop):
        sums[U(j)] = 0
    whole = rows - rows % 8
    for row in range(0, whole, 8):
        at = row * c
        for j in range(start, stop):
            a, b = at + j, at + 4 * c + j
            upper = (dy[U(a)] + dy[U(a + c)]) + (dy[U(a + 2 * c)] + dy[U(a + 3 * c)])
            lower = (dy[U(b)] + dy[U(b + c)]) + (dy[U(b + 2 * c)] + dy[U(b + 3 * c)])
            sums[U(j)] += upper + lower
    for row in range(whole, rows):
        for j in range(start, stop):
            sums[U(j)] += dy[U(row * c + j)]
    for j in range(start, stop):
        db[U(j)] = sums[U(j)]


def bias_backward(dy, db):
    """db (C,) = sum of dy (rows,C) over the rows, in an order that does not depend on the thread count."""
    dy = as_input(dy)
    launch(_sum_columns, db.shape[0], dy.size, dy.reshape(-1), dy.shape[0], np.empty(db.size), db)


@Kernel
def _activate(start, stop, lane, args):
    x, no_bias, act, y, activate = unpack(args)
    if act[0] == 1:
        zero = y.dtype.type(0)
        for i in range(start, stop):
            v = x[U(i)]
            y[U(i)] = zero if v <= zero else v
        return
    # In pieces that stay in the first-level cache between the copy and what is done to it in place.
    for first in range(start, stop, 1024):
        last = min(first + 1024, stop)
        for i in range(first, last):
            y[U(i)] = x[U(i)]
        call(activate, first, last, lane, (y, 1, no_bias, act))


def activation_forward(x, activation, y):
    """y = activation(x), any one shape."""
    x = as_input(x)
    no_bias, activate = np.empty(0, x.dtype), activate_address(x.dtype, activation)
    launch(_activate, x.size, x.size, x.reshape(-1), no_bias, tuple(activation), y.reshape(-1), activate)


def activation_backward(y, dy, activation, dx):
    """dx = dy * activation'(.), from the output y."""
    y, dy = as_input(y), as_input(dy)
    kernel, alpha = gradient_kernel(activation.code), float(activation.alpha)
    launch(kernel, y.size, y.size, y.reshape(-1), dy.reshape(-1), alpha, dx.reshape(-1))


@Kernel
def _add(start, stop, lane, args):
    a, b, no_bias, act, y, activate = unpack(args)
    zero = y.dtype.type(0)
    for first in range(start, stop, 1024):  # as in `_activate`
        last = min(first + 1024, stop)
        if act[0] == 1:
            for i in range(first, last):
                v = a[U(i)] + b[U(i)]
                y[U(i)] = zero if v <= zero else v
            continue
        for i in range(first, last):
            y[U(i)] = a[U(i)] + b[U(i)]
        if act[0] > 1:
            call(activate, first, last, lane, (y, 1, no_bias, act))


def add_forward(a, b, activation, y):
    """y = activation(a + b), any one shape."""
    a, b = as_input(a), as_input(b)
    no_bias, activate = np.empty(0, a.dtype), activate_address(a.dtype, activation)
    flat = a.reshape(-1), b.reshape(-1), no_bias, tuple(activation), y.reshape(-1), activate
    launch(_add, a.size, a.size, *flat)


_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)


@jit
def _mix64(z):
    """splitmix64's finaliser (Steele, Lea and Flood 2014)."""
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@Kernel
def _drop(start, stop, lane, args):
    x, state, threshold, scale, y, mask = unpack(args)
    base = _mix64(state[0] + state[1] * _GAMMA)
    for i in range(start, stop):
        keep = (_mix64(base + np.uint64(i + 1) * _GAMMA) >> _S32) >= threshold
        mask[U(i)] = keep
        y[U(i)] = x[U(i)] * scale if keep else 0


def _threshold_and_scale(rate, dtype):
    return np.uint64(int(rate * 2**32)), dtype.type(1 / (1 - rate))


def dropout_forward(x, rate, state, y, mask):
    """y = x / (1 - rate) where kept, else 0; the mask is the contract's function of (seed, step, place)."""
    x = as_input(x)
    threshold, scale = _threshold_and_scale(rate, y.dtype)
    with np.errstate(over="ignore"):  # without Numba, NumPy's scalars warn of the wrap-around that is meant
        launch(_drop, x.size, 4 * x.size, x.reshape(-1), state, threshold, scale, y.reshape(-1), mask.reshape(-1))


@Kernel
def _drop_backward(start, stop, lane, args):
    dy, mask, scale, dx = unpack(args)
    zero = scale - scale
    for i in range(start, stop):
        v = dy[U(i)] * scale  # of every element: a load under a condition would keep the loop from vectors
        dx[U(i)] = v if mask[U(i)] != 0 else zero


def dropout_backward(dy, mask, rate, dx):
    """dx = dy / (1 - rate) where kept, else 0."""
    dy, mask = as_input(dy), as_input(mask)
    launch(
        _drop_backward,
        dy.size,
        dy.size,
        dy.reshape(-1),
        mask.reshape(-1),
        dx.dtype.type(1 / (1 - rate)),
        dx.reshape(-1),
    )


@Kernel
def _draw(start, stop, lane, args):
    state, threshold, mask = unpack(args)
    base = _mix64(state[0] + state[1] * _GAMMA)
    for i in range(start, stop):
        mask[U(i)] = (_mix64(base + np.uint64(i + 1) * _GAMMA) >> _S32) >= threshold


@Kernel
def _scale_channels(start, stop, lane, args):
    """y = x * scale where the mask of image and channel is not 0, else 0."""
    x, mask, scale, pixels, y = unpack(args)
    zero, c = scale - scale, mask.shape[1]
    for n in range(start, stop):
        for at in range(n * pixels * c, (n + 1) * pixels * c, c):
            for j in range(c):
                v = x[U(at + j)] * scale  # of every element, as in `_drop_backward`
                y[U(at + j)] = v if mask[n, U(j)] != 0 else zero


def spatial_dropout_forward(x, rate, state, y, mask):
    """y = x / (1 - rate) where the channel is kept, else 0."""
    x = as_input(x)
    threshold, scale = _threshold_and_scale(rate, y.dtype)
    with np.errstate(over="ignore"):  # as in `dropout_forward`
        launch(_draw, mask.size, 4 * mask.size, state, threshold, mask.reshape(-1))
    launch(_scale_channels, len(x), x.size, x.reshape(-1), mask, scale, x.shape[1], y.reshape(-1))


def spatial_dropout_backward(dy, mask, rate, dx):
    """dx = dy / (1 - rate) where the channel was kept, else 0."""
    dy, mask = as_input(dy), as_input(mask)
    _, scale = _threshold_and_scale(rate, dx.dtype)
    launch(_scale_channels, len(dy), dy.size, dy.reshape(-1), mask, scale, dy.shape[1], dx.reshape(-1))
