"""Bias, activations and dropout."""

import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastcnn.engine.ops import IDENTITY, SMOOTH, activation
from fastcnn.kernels import reference
from tests import naive
from tests.kernels import harness
from tests.kernels.harness import assert_close, assert_same_bits, same_bits_on_threads

ACTIVATIONS = {
    "identity": IDENTITY,
    "relu": activation("relu"),
    "elu": activation("elu"),
    "elu 0.3": activation("elu", 0.3),
    "tanh": activation("tanh"),
    "leaky relu": activation("leaky_relu"),
    "leaky relu 0.3": activation("leaky_relu", 0.3),
    "silu": activation("silu"),
}


def seen(x, y, act):
    """What `activation_backward` takes the gradient from."""
    return x if act.code in SMOOTH else y


SHAPES = [
    pytest.param(shape, marks=[pytest.mark.small] if math.prod(shape) < 300 else [])
    for shape in [(0, 3), (1, 1), (1, 7), (5, 1), (7, 33), (64, 10), (1000, 64), (4099, 3)]
]
SIZES = [
    pytest.param(shape, marks=[pytest.mark.small] if math.prod(shape) < 300 else [])
    for shape in [(0,), (1,), (17,), (3, 5), (2, 3, 4, 5), (0, 4, 4, 3), (100_003,), (4, 15, 14, 33)]
]


def normal(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ------------------------------------------------------------------------------------------------------- bias


@pytest.mark.parametrize("shape", SHAPES)
def test_bias(backend, shape, dtype):
    x, bias = normal(shape, dtype), normal(shape[1:], dtype, 1)
    y = same_bits_on_threads(lambda: harness.bias_forward(backend, x, bias))
    assert_array_equal(y, x + bias)
    db = same_bits_on_threads(lambda: harness.bias_backward(backend, x))
    x64 = x.astype(np.float64)
    assert_close(db, x64.sum(axis=0), abs(x64).sum(axis=0))


@pytest.mark.small
def test_bias_passes_nan_on_and_takes_unusual_inputs(backend, dtype):
    x, bias = normal((6, 4), dtype), normal((4,), dtype, 1)
    y, db = harness.bias_forward(backend, x, bias), harness.bias_backward(backend, x)
    for twin in harness.unusual_twins(x):
        assert_same_bits(harness.bias_forward(backend, twin, bias), y)
        assert_same_bits(harness.bias_backward(backend, twin), db)
    x[3, 2] = np.nan
    assert_array_equal(np.isnan(harness.bias_forward(backend, x, bias)), np.isnan(x))
    assert_array_equal(np.isnan(harness.bias_backward(backend, x)), [False, False, True, False])


# ------------------------------------------------------------------------------------------------ activations


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", SIZES)
def test_activation(backend, shape, name, dtype):
    act = ACTIVATIONS[name]
    x, dy = 3 * normal(shape, dtype), normal(shape, dtype, 1)
    y = same_bits_on_threads(lambda: harness.activation_forward(backend, x, act))
    expected = np.array([naive.activate(float(v), act) for v in x.ravel()]).reshape(shape)
    assert_close(y, expected, x.astype(np.float64), tolerance=8)
    dx = same_bits_on_threads(lambda: harness.activation_backward(backend, seen(x, y, act), dy, act))
    expected = np.array([naive.slope(float(v), act) for v in x.ravel()]).reshape(shape) * dy.astype(np.float64)
    assert_close(dx, expected, dy, tolerance=16)


@pytest.mark.small
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_accurate_near_zero(backend, name, dtype):
    act = ACTIVATIONS[name]
    x = np.geomspace(1e-12, 1, 60).astype(dtype)
    x = np.concatenate([-x[::-1], x])
    expected = np.array([naive.activate(float(v), act) for v in x])
    assert_close(harness.activation_forward(backend, x, act), expected, expected, tolerance=8)


@pytest.mark.small
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_of_special_values(backend, name, dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, 1e30, -1e30, 90.0, -90.0] * 5, dtype)
    act = ACTIVATIONS[name]
    expected = np.array([naive.activate(float(v), act) for v in x])
    actual = harness.activation_forward(backend, x, act)
    assert_array_equal(np.isinf(actual), np.isinf(expected))
    finite = ~np.isinf(expected)
    # Silu is a product: far below 0 its tiny value is rounded to 0.
    magnitude = x.astype(np.float64) if act.code in SMOOTH else expected
    assert_close(actual[finite], expected[finite], magnitude[finite], tolerance=4)
    assert act.code not in SMOOTH or (np.abs(actual[x < -80]) < 1e-30).all()


@pytest.mark.small
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_far_from_zero(backend, name, dtype):
    act, x = ACTIVATIONS[name], np.array([-1e30, -300, -90, 90, 300, 1e30] * 3, dtype)
    y = harness.activation_forward(backend, x, act)
    dx = harness.activation_backward(backend, x if act.code in SMOOTH else y, np.ones_like(x), act)
    below = act.alpha if "leaky" in name else float(act.code == 0)
    np.testing.assert_allclose(dx, np.where(x < 0, below, float(name != "tanh")), atol=1e-6)


@pytest.mark.small
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_in_the_gradient_of_an_activation_is_seen(backend, name, dtype):
    y, dy = np.full(9, 0.5, dtype), np.ones(9, dtype)
    dy[4] = np.nan
    dx = harness.activation_backward(backend, y, dy, ACTIVATIONS[name])
    assert_array_equal(np.isnan(dx), np.isnan(dy))


@pytest.mark.small
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_of_unusual_inputs(backend, name, dtype):
    act = ACTIVATIONS[name]
    x, dy = normal((3, 4, 5), dtype), normal((3, 4, 5), dtype, 1)
    y = harness.activation_forward(backend, x, act)
    dx = harness.activation_backward(backend, y, dy, act)
    for twin in harness.unusual_twins(x):
        assert_same_bits(harness.activation_forward(backend, twin, act), y)
    for y_twin, dy_twin in zip(harness.unusual_twins(y), harness.unusual_twins(dy), strict=True):
        assert_same_bits(harness.activation_backward(backend, y_twin, dy_twin, act), dx)


@pytest.mark.small
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_gradients_by_central_differences(backend, name):
    act = ACTIVATIONS[name]
    x, dy = normal((5, 6), np.float64), normal((5, 6), np.float64, 1)
    y = harness.activation_forward(backend, x, act)
    dx = harness.activation_backward(backend, seen(x, y, act), dy, act)

    def loss(v):
        return float((dy * harness.activation_forward(backend, v, act)).sum())

    harness.elementwise_gradient_check(loss, x, dx)
    harness.directional_gradient_check(loss, x, dx, np.random.default_rng(2))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", SIZES)
def test_sum(backend, shape, name, dtype):
    a, b, act = normal(shape, dtype), normal(shape, dtype, 1), ACTIVATIONS[name]
    y = same_bits_on_threads(lambda: harness.add_forward(backend, a, b, act))
    assert_same_bits(y, harness.activation_forward(backend, a + b, act))
    for twin_a, twin_b in zip(harness.unusual_twins(a), harness.unusual_twins(b), strict=True):
        assert_same_bits(harness.add_forward(backend, twin_a, twin_b, act), y)


# ---------------------------------------------------------------------------------------------------- dropout


def splitmix64(z):
    """The finaliser, in Python's unbounded integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def naive_mask(shape, rate, seed, step):
    golden, key = 0x9E3779B97F4A7C15, 0
    key = splitmix64((seed + step * golden) % 2**64)
    bits = [splitmix64((key + (i + 1) * golden) % 2**64) >> 32 for i in range(math.prod(shape))]
    return np.array([b >= math.floor(rate * 2**32) for b in bits], np.uint8).reshape(shape)


@pytest.mark.small
def test_the_generator_is_splitmix64():
    # The first outputs of splitmix64 seeded with 0, known from its reference implementation.
    golden = 0x9E3779B97F4A7C15
    assert splitmix64(golden) == 0xE220A8397B1DCDAF
    assert splitmix64(2 * golden % 2**64) == 0x6E789E6AA1B965F4


@pytest.mark.small
@pytest.mark.parametrize("seed, step", [(0, 0), (1, 0), (0, 1), (2**64 - 1, 2**63 + 5), (12345, 678)])
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.9])
def test_dropout_mask_is_the_contracts(backend, rate, seed, step, dtype):
    x = normal((4, 9), dtype)
    y, mask = harness.dropout_forward(backend, x, rate, np.array([seed, step], np.uint64))
    assert_array_equal(mask, naive_mask(x.shape, rate, seed, step))
    assert_close(y, np.where(mask, x.astype(np.float64) / (1 - rate), 0), x, tolerance=40)
    assert not y[mask == 0].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_dropout(backend, shape, dtype):
    x, dy, state = normal(shape, dtype), normal(shape, dtype, 1), np.array([7, 3], np.uint64)
    before = state.copy()
    y, mask = same_bits_on_threads(lambda: harness.dropout_forward(backend, x, 0.4, state))
    expected_y, expected_mask = harness.dropout_forward(reference, x, 0.4, state)
    assert_array_equal(mask, expected_mask)
    assert_close(y, expected_y.astype(np.float64), expected_y, tolerance=4)
    dx = same_bits_on_threads(lambda: harness.dropout_backward(backend, dy, mask, 0.4))
    expected = harness.dropout_backward(reference, dy, mask, 0.4)
    assert_close(dx, expected.astype(np.float64), expected, tolerance=4)
    assert_array_equal(state, before)


def test_dropout_drops_its_rate_and_differs_from_step_to_step(backend):
    x = np.ones((300, 1000), np.float32)
    masks = [harness.dropout_forward(backend, x, 0.3, np.array([1, s], np.uint64))[1] for s in (0, 1)]
    for mask in masks:
        assert abs(mask.mean() - 0.7) < 0.005  # six standard deviations
    assert abs((masks[0] == masks[1]).mean() - (0.49 + 0.09)) < 0.006


@pytest.mark.small
def test_dropout_passes_nan_on_where_kept(backend, dtype):
    x, state = np.full((3, 8), np.nan, dtype), np.array([0, 0], np.uint64)
    y, mask = harness.dropout_forward(backend, x, 0.5, state)
    assert_array_equal(np.isnan(y), mask == 1)
    assert_array_equal(np.isnan(harness.dropout_backward(backend, x, mask, 0.5)), mask == 1)


@pytest.mark.small
def test_dropout_of_unusual_inputs(backend, dtype):
    x, state = normal((4, 6), dtype), np.array([5, 5], np.uint64)
    y, mask = harness.dropout_forward(backend, x, 0.5, state)
    dx = harness.dropout_backward(backend, x, mask, 0.5)
    for twin in harness.unusual_twins(x):
        assert_same_bits(harness.dropout_forward(backend, twin, 0.5, state)[0], y)
        assert_same_bits(harness.dropout_backward(backend, twin, mask, 0.5), dx)


@pytest.mark.parametrize("shape", [(0, 4, 3), (1, 1, 1), (3, 1, 5), (4, 9, 7), (65, 49, 33)])
def test_spatial_dropout(backend, shape, dtype):
    x, dy, state = normal(shape, dtype), normal(shape, dtype, 1), np.array([7, 3], np.uint64)
    x.flat[:1] = np.nan
    y, mask = same_bits_on_threads(lambda: harness.spatial_dropout_forward(backend, x, 0.4, state))
    assert_array_equal(mask, naive_mask((shape[0], shape[2]), 0.4, 7, 3))
    kept = np.broadcast_to(mask[:, np.newaxis] == 1, shape)
    assert_close(y, np.where(kept, x.astype(np.float64) / 0.6, 0), x, tolerance=4)
    dx = same_bits_on_threads(lambda: harness.spatial_dropout_backward(backend, dy, mask, 0.4))
    assert_close(dx, np.where(kept, dy.astype(np.float64) / 0.6, 0), dy, tolerance=4)
    for twin in harness.unusual_twins(x):
        assert_same_bits(harness.spatial_dropout_forward(backend, twin, 0.4, state)[0], y)
