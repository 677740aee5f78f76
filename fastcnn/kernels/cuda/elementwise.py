"""Bias, activations, sums of branches and dropout: one number after the other."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from math import floor
from typing import Any

import numpy as np

from fastcnn.kernels.cuda.activations import activation_functions
from fastcnn.kernels.cuda.driver import SIMULATED, Kernel, cuda, device_function, kernel, linear
from fastcnn.kernels.cuda.intrinsics import quotient
from fastcnn.kernels.cuda.sums import column_sums

_PLAIN = (0, 0.0)


@kernel("R R R i i")
def bias_kernel(x, bias, y, size, width):
    for i in range(cuda.grid(1), size, cuda.gridsize(1)):
        y[i] = x[i] + bias[i - quotient(i, width) * width]


def bias_forward(x, bias, y):
    """y (rows,C) = x (rows,C) + bias (C,)."""
    linear(bias_kernel, y.size, x, bias, y, y.size, bias.size)


def bias_backward(dy, db):
    """db (C,) = sum of dy (rows,C) over the rows, in two stages."""
    if db.size:
        column_sums(dy, dy, _PLAIN, db)


@cache
def activation_kernels(real: Any) -> tuple[Kernel, Kernel, Kernel]:
    """Forward, backward, and of a sum."""
    activate, gradient = activation_functions(real)

    @kernel("R R i i r")
    def activation_forward(x, y, size, code, alpha):
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            y[i] = activate(x[i], code, alpha)

    @kernel("R R R i i r")
    def activation_backward(y, dy, dx, size, code, alpha):
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            dx[i] = gradient(y[i], dy[i], code, alpha)

    @kernel("R R R i i r")
    def add(a, b, y, size, code, alpha):
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            y[i] = activate(a[i] + b[i], code, alpha)

    return activation_forward, activation_backward, add


def activation_forward(x, activation, y):
    """y = activation(x), any one shape."""
    linear(activation_kernels(y.dtype)[0], y.size, x, y, y.size, *activation)


def activation_backward(y, dy, activation, dx):
    """dx = dy * activation'(.), from the output y (silu: from the input, in its place)."""
    linear(activation_kernels(dx.dtype)[1], dx.size, y, dy, dx, dx.size, *activation)


def add_forward(a, b, activation, y):
    """y = activation(a + b), any one shape."""
    linear(activation_kernels(y.dtype)[2], y.size, a, b, y, y.size, *activation)


# ---------------------------------------------------------------------------------------------------------- dropout

_GOLDEN, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ONE, _27, _30, _31, _32 = (np.uint64(n) for n in (1, 27, 30, 31, 32))


@device_function
def _mix64(z):
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)


@device_function
def _draw(state, i):
    """Value i of a draw: 32 random bits."""
    key = _mix64(state[0] + state[1] * _GOLDEN)
    return np.int64(_mix64(key + (np.uint64(i) + _ONE) * _GOLDEN) >> _32)


if SIMULATED:  # Python's integers do not end at 64 bits, and NumPy's warn when they do
    _MASK = 2**64 - 1

    def _mix64(z):
        z = (z ^ (z >> 30)) * int(_MIX_1) & _MASK
        z = (z ^ (z >> 27)) * int(_MIX_2) & _MASK
        return z ^ (z >> 31)

    def _draw(state, i):
        key = _mix64((int(state[0]) + int(state[1]) * int(_GOLDEN)) & _MASK)
        return _mix64((key + (i + 1) * int(_GOLDEN)) & _MASK) >> 32


@cache
def dropout_kernels(real: Any) -> tuple[Kernel, Kernel]:
    """Forward and backward, of whole channels or single values: value i belongs to place (i // block) * c + i % c."""
    zero = np.dtype(real).type(0)

    @kernel("R R B U i i i i r")
    def dropout_forward(x, y, mask, state, size, block, c, threshold, kept):
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            n = quotient(i, block)
            place = n * c + (i - quotient(i, c) * c)
            keep = _draw(state, place) >= threshold
            y[i] = x[i] / kept if keep else zero
            if i - n * block < c:
                mask[place] = keep

    @kernel("R R B i i i r")
    def dropout_backward(dy, dx, mask, size, block, c, kept):
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            place = quotient(i, block) * c + (i - quotient(i, c) * c)
            dx[i] = dy[i] / kept if mask[place] else zero

    return dropout_forward, dropout_backward


def dropout_forward(x, rate, state, y, mask):
    """y = x / (1 - rate) where kept, else 0; the contract's mask."""
    features = x.shape[-1]
    args = y.size, features, features, floor(rate * 2**32), 1 - rate
    linear(dropout_kernels(y.dtype)[0], y.size, x, y, mask, state, *args)


def dropout_backward(dy, mask, rate, dx):
    """dx = dy / (1 - rate) where kept, else 0."""
    features = dx.shape[-1]
    linear(dropout_kernels(dx.dtype)[1], dx.size, dy, dx, mask, dx.size, features, features, 1 - rate)


def spatial_dropout_forward(x, rate, state, y, mask):
    """y = x / (1 - rate) where the channel is kept, else 0; x (N,P,C), mask (N,C)."""
    _, pixels, c = x.shape
    args = y.size, pixels * c, c, floor(rate * 2**32), 1 - rate
    linear(dropout_kernels(y.dtype)[0], y.size, x, y, mask, state, *args)


def spatial_dropout_backward(dy, mask, rate, dx):
    """dx = dy / (1 - rate) where the channel was kept, else 0."""
    _, pixels, c = dx.shape
    linear(dropout_kernels(dx.dtype)[1], dx.size, dy, dx, mask, dx.size, pixels * c, c, 1 - rate)
