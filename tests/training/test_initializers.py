"""Initial weights: distribution, and the same values in both dtypes."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastcnn.training.initializers import initialize

pytestmark = pytest.mark.small

SHAPE, FAN_IN, FAN_OUT = (3, 3, 40, 60), 360, 540


def drawn(activation, dtype="float64", seed=0):
    return initialize(SHAPE, FAN_IN, FAN_OUT, activation, np.random.default_rng(seed), dtype)


@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_he_normal_before_rectifiers(activation):
    weights = drawn(activation)
    assert weights.mean() == pytest.approx(0, abs=2e-3)
    assert weights.var() == pytest.approx(2 / FAN_IN, rel=0.03)
    assert np.abs(weights).max() > 3 * weights.std()  # a normal's tail


@pytest.mark.parametrize("activation", ["tanh", "identity", None])
def test_glorot_uniform_otherwise(activation):
    weights = drawn(activation)
    limit = (6 / (FAN_IN + FAN_OUT)) ** 0.5
    assert weights.mean() == pytest.approx(0, abs=2e-3)
    assert weights.var() == pytest.approx(2 / (FAN_IN + FAN_OUT), rel=0.03)
    assert 0.99 * limit < np.abs(weights).max() <= limit


@pytest.mark.parametrize("activation", ["relu", None])
def test_both_dtypes_start_from_the_same_values(activation):
    single, double = drawn(activation, "float32"), drawn(activation, "float64")
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    assert single.shape == SHAPE
    assert_array_equal(single, double.astype(np.float32))


def test_the_seed_decides():
    assert_array_equal(drawn("relu"), drawn("relu"))
    assert not np.array_equal(drawn("relu"), drawn("relu", seed=1))


@pytest.mark.parametrize("shape", [(3, 3, 4, 60), (50, 20), (7, 90), (5, 5)])
@pytest.mark.parametrize("activation", ["relu", None])
def test_orthogonal(shape, activation):
    weights = initialize(shape, 1, 1, activation, np.random.default_rng(0), "float64", "orthogonal")
    matrix = weights.reshape(-1, shape[-1])
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(gram, np.eye(len(gram)) * (2 if activation else 1), atol=1e-12)


def test_a_kind_that_is_asked_for():
    def variance(kind):
        return initialize(SHAPE, FAN_IN, FAN_OUT, None, np.random.default_rng(0), "float64", kind).var()

    assert variance("he") == pytest.approx(2 / FAN_IN, rel=0.03)
    assert variance("glorot") == variance("auto") == pytest.approx(2 / (FAN_IN + FAN_OUT), rel=0.03)
    with pytest.raises(ValueError, match="unknown initialisation 'zeros'"):
        variance("zeros")
