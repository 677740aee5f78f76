"""Initial weights. Drawn in float64 and cast, so that networks of both dtypes start from the same values."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

import numpy as np

KINDS = ("auto", "he", "glorot", "orthogonal")
_RECTIFIERS = ("relu", "elu", "leaky_relu", "silu")


def initialize(
    shape: Sequence[int],
    fan_in: int,
    fan_out: int,
    activation: str | None,
    rng: np.random.Generator,
    dtype: Any,
    kind: str = "auto",
) -> np.ndarray:
    """Weights for a layer whose output goes into `activation`.

    Parameters
    ----------
    shape : sequence of int
        Shape of the weights.
    fan_in, fan_out : int
        Values that one output reads, and outputs that one input feeds: R * S * C / groups and
        R * S * K / groups for a convolution, n_in and n_out for a dense layer.
    activation : str or None
        What follows; None: nothing (logits).
    rng : numpy Generator
    dtype : "float32" or "float64"
    kind : "auto", "he", "glorot" or "orthogonal"
        "auto": He before "relu" and its kin, Glorot otherwise.

    Returns
    -------
    array of `shape` and `dtype`
    """
    if kind not in KINDS:
        raise ValueError(f"unknown initialisation {kind!r}: expected one of {KINDS}")
    if kind == "orthogonal":
        return orthogonal(shape, sqrt(2.0) if activation in _RECTIFIERS else 1.0, rng).astype(dtype)
    if kind == "he" or (kind == "auto" and activation in _RECTIFIERS):
        return he_normal(shape, fan_in, rng).astype(dtype)
    return glorot_uniform(shape, fan_in, fan_out, rng).astype(dtype)


def he_normal(shape: Sequence[int], fan_in: int, rng: np.random.Generator) -> np.ndarray:
    """Normal with variance 2 / fan_in, float64 [1]_.

    References
    ----------
    .. [1] He, Zhang, Ren and Sun 2015, "Delving deep into rectifiers", eq. 10.
    """
    return rng.normal(0.0, sqrt(2.0 / fan_in), size=tuple(shape))


def glorot_uniform(shape: Sequence[int], fan_in: int, fan_out: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform with variance 2 / (fan_in + fan_out), float64 [1]_.

    References
    ----------
    .. [1] Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural
       networks", eq. 16.
    """
    limit = sqrt(6.0 / (fan_in + fan_out))
    return rng.uniform(-limit, limit, size=tuple(shape))


def orthogonal(shape: Sequence[int], gain: float, rng: np.random.Generator) -> np.ndarray:
    """Orthonormal columns (or rows, where there are fewer) times `gain`, of the weights as a matrix, float64 [1]_.

    References
    ----------
    .. [1] Saxe, McClelland and Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear
       neural networks".
    """
    columns = shape[-1]
    rows = prod(shape[:-1])
    q, r = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
    q *= np.sign(np.diagonal(r)) + (np.diagonal(r) == 0)  # so that every orthogonal matrix is as likely
    return gain * (q if rows >= columns else q.T).reshape(shape)
