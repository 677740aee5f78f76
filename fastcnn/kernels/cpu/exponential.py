"""expm1 and tanh as straight arithmetic, so that loops over them run as vectors; the C library's do not.

exp(x) - 1 = 2^n (1 + p) - 1 with x = n log(2) + r, |r| <= log(2) / 2, and p = exp(r) - 1 from its Taylor
series; 2^n p + (2^n - 1) loses nothing near zero. n log(2) is subtracted in two parts (Cody and Waite 1980,
"Software manual for the elementary functions", chapter 6). Within 3 units in the last place; NaN stays NaN.
"""

from __future__ import annotations

from math import factorial
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from fastcnn.kernels.cpu.runtime import jit

_S = np.float32
_S_LOW, _S_LOG2E, _S_ONE = _S(-80), _S(1.4426950408889634), _S(1)
_S_ROUND, _S_BIAS, _S_SHIFT = _S(1.5 * 2**23), np.int32(127), np.int32(23)
_S_HIGH, _S_REST = _S(0.693359375), _S(-2.12194440e-4)
_S2, _S3, _S4, _S5, _S6, _S7, _S8 = (_S(1 / factorial(i)) for i in range(2, 9))

_D = np.float64
_D_LOW, _D_LOG2E, _D_ONE = _D(-700), _D(1.4426950408889634), _D(1)
_D_ROUND, _D_BIAS, _D_SHIFT = _D(1.5 * 2**52), np.int64(1023), np.int64(52)
_D_HIGH, _D_REST = _D(6.93145751953125e-1), _D(1.42860682030941723212e-6)
_D2, _D3, _D4, _D5, _D6, _D7, _D8 = (_D(1 / factorial(i)) for i in range(2, 9))
_D9, _D10, _D11, _D12, _D13, _D14 = (_D(1 / factorial(i)) for i in range(9, 15))


# Exact: reassociated, the roundings that the method rests on would be simplified away.
@jit(exact=True)
def _expm1_single(x):
    x = _S_LOW if x < _S_LOW else x
    shifted = x * _S_LOG2E + _S_ROUND  # its last bits are n
    n = shifted - _S_ROUND
    r = (x - n * _S_HIGH) - n * _S_REST
    series = _S2 + r * (_S3 + r * (_S4 + r * (_S5 + r * (_S6 + r * (_S7 + r * _S8)))))
    scale = np.int32((np.float32(shifted).view(np.int32) + _S_BIAS) << _S_SHIFT).view(np.float32)
    return scale * (r + r * r * series) + (scale - _S_ONE)


@jit(exact=True)
def _expm1_double(x):
    x = _D_LOW if x < _D_LOW else x
    shifted = x * _D_LOG2E + _D_ROUND
    n = shifted - _D_ROUND
    r = (x - n * _D_HIGH) - n * _D_REST
    series = _D8 + r * (_D9 + r * (_D10 + r * (_D11 + r * (_D12 + r * (_D13 + r * _D14)))))
    series = _D2 + r * (_D3 + r * (_D4 + r * (_D5 + r * (_D6 + r * (_D7 + r * series)))))
    scale = np.int64((np.float64(shifted).view(np.int64) + _D_BIAS) << _D_SHIFT).view(np.float64)
    return scale * (r + r * r * series) + (scale - _D_ONE)


def expm1(x: Any) -> Any:
    """exp(x) - 1 for x <= 0."""
    return _expm1_single(x) if isinstance(x, np.float32) else _expm1_double(x)


@overload(expm1)
def _expm1_overload(x):
    if x == types.float32:
        return lambda x: _expm1_single(x)
    return lambda x: _expm1_double(x)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return _tanh(x, np.float32(2) if isinstance(x, np.float32) else np.float64(2))


@overload(tanh)
def _tanh_overload(x):
    two = np.float32(2) if x == types.float32 else np.float64(2)
    return lambda x: _tanh(x, two)


@jit(exact=True)
def _tanh(x, two):
    e = expm1(two * (-x if x > 0 else x))
    half = e / (e + two)  # of -|x|
    return -half if x > 0 else half
