"""Activations and their gradients, for kernels of every kind."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from fastcnn.kernels.cuda.driver import device_function

__all__ = ["activation_functions"]


@cache
def activation_functions(real: Any) -> tuple[Any, Any]:
    """The device functions `activate(x, code, alpha)` and `gradient(y, dy, code, alpha)` for a dtype.

    Constants have that dtype, or float32 would be computed in float64. `code` as in `fastcnn.kernels.contract`.
    """
    zero, half, one, lowest = (np.dtype(real).type(value) for value in (0, 0.5, 1, -3e38))

    @device_function
    def activate(x, code, alpha):
        if code == 1:
            return zero if x <= zero else x  # NaN stays NaN
        if code == 2:
            return x if x > zero else alpha * math.expm1(x)
        if code == 3:
            return math.tanh(x)
        if code == 4:
            return x if x > zero else alpha * x
        if code == 5:
            finite = lowest if x < lowest else x  # minus infinity times 0 would be NaN
            return finite * (half + half * math.tanh(half * finite))
        return x

    @device_function
    def gradient(y, dy, code, alpha):
        if code == 1:
            return dy if y > zero else zero
        if code == 2:
            return dy if y > zero else dy * (y + alpha)
        if code == 3:
            return dy * (one - y * y)
        if code == 4:
            return dy if y > zero else alpha * dy
        if code == 5:
            s = half + half * math.tanh(half * y)
            return dy * (s + y * s * (one - s))
        return dy

    return activate, gradient
