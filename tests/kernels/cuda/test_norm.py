"""Batch statistics in single precision, of many chunks of rows."""

import numpy as np
import pytest

from tests.gpu import unavailable

pytestmark = [pytest.mark.cuda, pytest.mark.small]

if unavailable():
    pytest.skip(f"no GPU and no simulator: {unavailable()}", allow_module_level=True)

from fastcnn.kernels.cuda import norm, sums
from fastcnn.kernels.cuda.arrays import place


def moments(x):
    """Mean and 1 / sqrt(variance + 1e-3) of the columns of x."""
    columns = x.shape[1]
    vectors = [place(np.zeros(columns, np.float32)) for _ in range(5)]
    gamma, beta, running_mean, running_var, mean = vectors
    inv_std, y = place(np.zeros(columns, np.float32)), place(np.zeros_like(x))
    norm.batchnorm_forward(place(x), gamma, beta, running_mean, running_var, 0.9, 1e-3, (0, 0.0), y, mean, inv_std)
    return np.asarray(mean), np.asarray(inv_std)


def test_columns_that_are_constant_and_far_from_zero():
    x = np.empty((203, 5), np.float32)
    x[:] = 1234567.9, -0.1, 3e-20, 16777217, 7
    assert sums.chunks_of(*x.shape)[0] > 1
    mean, inv_std = moments(x)
    np.testing.assert_array_equal(mean, x[0])
    np.testing.assert_allclose(inv_std, 1 / np.sqrt(1e-3), rtol=1e-6)


def test_a_spread_that_is_small_beside_the_mean():
    x = np.random.default_rng(0).normal(1000, 0.1, (501, 3)).astype(np.float32)
    mean, inv_std = moments(x)
    np.testing.assert_allclose(mean, x.mean(axis=0, dtype=float), atol=1e-4)
    np.testing.assert_allclose(inv_std, 1 / np.sqrt(x.var(axis=0, dtype=float) + 1e-3), rtol=1e-3)
