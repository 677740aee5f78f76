"""Batch normalisation."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastcnn.engine.ops import activation, pool_geometry
from fastcnn.kernels import reference
from tests.kernels import harness
from tests.kernels.harness import assert_close, assert_same_bits, same_bits_on_threads

SHAPES = [
    pytest.param(shape, marks=[pytest.mark.small] if shape[0] * shape[1] < 300 else [])
    for shape in [(1, 3), (2, 1), (7, 5), (16, 17), (1000, 33), (2049, 64)]
]
EPSILON = 1e-3


def arrays(shape, dtype, seed=0):
    """x, dy, gamma, beta, running_mean, running_var."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * rng.uniform(0.5, 3, shape[1]) + rng.uniform(-3, 3, shape[1])
    vectors = [
        rng.uniform(0.5, 2, shape[1]),
        *rng.standard_normal((2, shape[1])),
        rng.uniform(0.5, 2, shape[1]),
    ]
    return tuple(a.astype(dtype) for a in (x, rng.standard_normal(shape), *vectors))


@pytest.mark.small
def test_formula(backend):
    x, _, gamma, beta, running_mean, running_var = arrays((7, 5), np.float64)
    y, mean, inv_std, moved_mean, moved_var = harness.batchnorm_forward(
        backend, x, gamma, beta, running_mean, running_var, 0.9, EPSILON
    )
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON) * gamma + beta
    assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    assert_allclose(mean, x.mean(0), rtol=1e-12)
    assert_allclose(inv_std, 1 / np.sqrt(x.var(0) + EPSILON), rtol=1e-12)
    assert_allclose(moved_mean, 0.9 * running_mean + 0.1 * x.mean(0), rtol=1e-12)
    assert_allclose(moved_var, 0.9 * running_var + 0.1 * x.var(0, ddof=1), rtol=1e-12)
    y = harness.batchnorm_inference(backend, x, gamma, beta, running_mean, running_var, EPSILON)
    expected = (x - running_mean) / np.sqrt(running_var + EPSILON) * gamma + beta
    assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.small
def test_one_row_does_not_move_running_statistics(backend):
    """It has no variance: a last mini-batch of one image would count as much as the others."""
    x, _, gamma, beta, *running = arrays((1, 5), np.float64)
    y, _, _, *moved = harness.batchnorm_forward(backend, x, gamma, beta, *running, 0.9, EPSILON)
    assert_allclose(y, beta[np.newaxis], atol=1e-12)
    for actual, expected in zip(moved, running, strict=True):
        assert_allclose(actual, expected, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_forward(backend, shape, dtype):
    x, _, gamma, beta, *running = arrays(shape, dtype)
    wide = [a.astype(np.float64) for a in (x, gamma, beta, *running)]
    actual = same_bits_on_threads(lambda: harness.batchnorm_forward(backend, x, gamma, beta, *running, 0.9, EPSILON))
    expected = harness.batchnorm_forward(reference, *wide, 0.9, EPSILON)
    inv_std, size = expected[2], abs(x).mean(axis=0, dtype=np.float64)
    magnitudes = [
        (abs(wide[0]) + size) * inv_std * gamma + abs(beta),
        size,
        inv_std * (1 + (size * inv_std) ** 2),
        size + abs(running[0]),
        running[1] + size**2 + expected[4],
    ]
    for a, b, magnitude in zip(actual, expected, magnitudes, strict=True):
        assert_close(a, b, magnitude)

    y = same_bits_on_threads(lambda: harness.batchnorm_inference(backend, x, gamma, beta, *running, EPSILON))
    expected_y = harness.batchnorm_inference(reference, *wide, EPSILON)
    assert_close(y, expected_y, (abs(wide[0]) + abs(running[0])) / np.sqrt(wide[4]) * gamma + abs(beta))


@pytest.mark.parametrize("shape", SHAPES)
def test_backward(backend, shape, dtype):
    x, dy, gamma, beta, *running = arrays(shape, dtype)
    _, mean, inv_std, *_ = harness.batchnorm_forward(reference, x, gamma, beta, *running, 0.9, EPSILON)
    wide = [a.astype(np.float64) for a in (x, gamma, mean, inv_std, dy)]
    actual = same_bits_on_threads(lambda: harness.batchnorm_backward(backend, x, gamma, mean, inv_std, dy))
    expected = harness.batchnorm_backward(reference, *wide)
    x64, gamma64, mean64, inv_std64, dy64 = wide
    normalised = (abs(x64) + abs(mean64)) * inv_std64
    dgamma, dbeta = (abs(dy64) * normalised).sum(0), abs(dy64).sum(0)
    dx = gamma64 * inv_std64 * (abs(dy64) + (dbeta + normalised * dgamma) / len(x))
    for a, b, magnitude in zip(actual, expected, (dx, dgamma, dbeta), strict=True):
        assert_close(a, b, magnitude)
    without = harness.batchnorm_backward(backend, x, gamma, mean, inv_std, dy, want_dx=False)
    assert_same_bits(without[1], actual[1])
    assert_same_bits(without[2], actual[2])


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "tanh"])
@pytest.mark.parametrize("shape", SHAPES)
def test_with_an_activation(backend, shape, name):
    act = activation(name, 0.7)
    x, dy, gamma, beta, *running = arrays(shape, np.float64)
    plain, mean, inv_std, *moved = harness.batchnorm_forward(backend, x, gamma, beta, *running, 0.9, EPSILON)
    y, *others = same_bits_on_threads(
        lambda: harness.batchnorm_forward(backend, x, gamma, beta, *running, 0.9, EPSILON, act)
    )
    assert_allclose(y, harness.activation_forward(reference, plain, act), rtol=1e-12, atol=1e-12)
    for actual, expected in zip(others, (mean, inv_std, *moved), strict=True):
        assert_same_bits(actual, expected)
    inference = harness.batchnorm_inference(backend, x, gamma, beta, *running, EPSILON, act)
    expected = harness.batchnorm_inference(backend, x, gamma, beta, *running, EPSILON)
    assert_allclose(inference, harness.activation_forward(reference, expected, act), rtol=1e-12, atol=1e-12)

    actual = same_bits_on_threads(
        lambda: harness.batchnorm_backward(backend, x, gamma, mean, inv_std, dy, y=y, beta=beta, activation=act)
    )
    dz = harness.activation_backward(reference, y, dy, act)
    for a, b in zip(actual, harness.batchnorm_backward(reference, x, gamma, mean, inv_std, dz), strict=True):
        assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.small
def test_the_variance_survives_a_large_mean(backend):
    rng = np.random.default_rng(0)
    x = (1000 + rng.standard_normal((900, 2))).astype(np.float32)
    one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    y, _, inv_std, *_ = harness.batchnorm_forward(backend, x, one, zero, zero, one, 0.9, 0.0)
    assert_allclose(inv_std, 1 / x.astype(np.float64).std(0), rtol=1e-3)
    assert_allclose(y.std(0), 1, rtol=1e-3)


@pytest.mark.small
def test_no_rows_move_nothing(backend, dtype):
    x, dy, gamma, beta, *running = arrays((0, 3), dtype)
    _, mean, inv_std, *moved = harness.batchnorm_forward(backend, x, gamma, beta, *running, 0.9, EPSILON)
    for actual, before in zip(moved, running, strict=True):
        assert_array_equal(actual, before)
    harness.batchnorm_inference(backend, x, gamma, beta, *running, EPSILON)
    _, dgamma, dbeta = harness.batchnorm_backward(backend, x, gamma, mean, inv_std, dy)
    assert not dgamma.any() and not dbeta.any()


@pytest.mark.small
def test_nan_spoils_its_channel_only(backend, dtype):
    x, dy, gamma, beta, *running = arrays((8, 3), dtype)
    x[4, 1] = np.nan
    y, mean, inv_std, *_ = harness.batchnorm_forward(backend, x, gamma, beta, *running, 0.9, EPSILON)
    assert np.isnan(y[:, 1]).all() and not np.isnan(y[:, [0, 2]]).any()
    dx, dgamma, _ = harness.batchnorm_backward(backend, x, gamma, mean, inv_std, dy)
    assert np.isnan(dx[:, 1]).all() and np.isnan(dgamma[1]) and not np.isnan(dx[:, [0, 2]]).any()
    y = harness.batchnorm_inference(backend, x, gamma, beta, *running, EPSILON)
    assert_array_equal(np.isnan(y), np.isnan(x))


@pytest.mark.small
def test_unusual_inputs_give_the_same_bits(backend, dtype):
    x, dy, gamma, beta, *running = arrays((6, 4), dtype)

    def outputs(x, dy):
        forward = harness.batchnorm_forward(backend, x, gamma, beta, *running, 0.9, EPSILON)
        inference = harness.batchnorm_inference(backend, x, gamma, beta, *running, EPSILON)
        return *forward, inference, *harness.batchnorm_backward(backend, x, gamma, forward[1], forward[2], dy)

    expected = outputs(x, dy)
    for twins in zip(harness.unusual_twins(x), harness.unusual_twins(dy), strict=True):
        for actual, right in zip(outputs(*twins), expected, strict=True):
            assert_close(actual, right.astype(np.float64), abs(right.astype(np.float64)) + 1)


@pytest.mark.small
@pytest.mark.parametrize("shape", [(2, 1), (5, 3)])
def test_gradients_by_central_differences(backend, shape):
    x, dy, gamma, beta, *running = arrays(shape, np.float64, seed=3)

    def loss(x=x, gamma=gamma, beta=beta):
        y, *_ = harness.batchnorm_forward(backend, x, gamma, beta, *running, 0.9, EPSILON)
        return float((dy * y).sum())

    _, mean, inv_std, *_ = harness.batchnorm_forward(backend, x, gamma, beta, *running, 0.9, EPSILON)
    dx, dgamma, dbeta = harness.batchnorm_backward(backend, x, gamma, mean, inv_std, dy)
    harness.elementwise_gradient_check(lambda v: loss(x=v), x, dx)
    harness.elementwise_gradient_check(lambda v: loss(gamma=v), gamma, dgamma)
    harness.elementwise_gradient_check(lambda v: loss(beta=v), beta, dbeta)
    harness.directional_gradient_check(lambda v: loss(x=v), x, dx, np.random.default_rng(1))


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (9, 5), (288, 64)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_folded_weights_normalise_too(backend, shape, with_bias, dtype):
    weight, _, gamma, beta, *running = arrays(shape, dtype)
    bias = gamma[::-1].copy() if with_bias else np.empty(0, dtype)
    new_weight, new_bias = same_bits_on_threads(
        lambda: harness.batchnorm_fold(backend, weight, bias, gamma, beta, *running, EPSILON)
    )
    x = np.random.default_rng(5).standard_normal((7, shape[0]))
    plain = x @ weight.astype(np.float64) + (bias.astype(np.float64) if with_bias else 0)
    mean, var = (vector.astype(np.float64) for vector in running)
    scale = gamma.astype(np.float64) / np.sqrt(var + EPSILON)
    expected = (plain - mean) * scale + beta.astype(np.float64)
    size = (abs(x) @ abs(weight.astype(np.float64)) + abs(mean) + 1) * abs(scale) + abs(beta)
    actual = x @ new_weight.astype(np.float64) + new_bias.astype(np.float64)
    assert_close(actual.astype(dtype), expected, size, tolerance=8)


# ---------------------------------------------------------------------------------------------------- with pooling

POOLED = {  # images, pool
    "even": ((3, 6, 8, 16), 2),
    "odd": ((2, 7, 5, 9), 2),
    "few channels": ((2, 4, 4, 3), 2),
    "wide": ((2, 9, 6, 33), (3, 2)),
    "whole image": ((4, 3, 3, 8), 3),
    "many": ((37, 16, 16, 32), 2),
    "large windows": ((2, 9, 8, 4), (4, 3)),
}


def pooled(name, dtype, seed=0):
    """x, dy, gamma, beta, running statistics, the pool's geometry."""
    shape, size = POOLED[name]
    g = pool_geometry(shape[1:], size)
    rows, _, *vectors = arrays((math.prod(shape[:3]), shape[3]), dtype, seed)
    dy = np.random.default_rng(seed + 1).standard_normal((shape[0], g.p, g.q, g.c)).astype(dtype)
    vectors[0][::2] *= -1  # a negative scale turns the order of the pixels round
    return rows.reshape(shape), dy, *vectors, g


@pytest.mark.parametrize("act", ["identity", "relu"])
@pytest.mark.parametrize("name", POOLED)
def test_normalise_and_pool(backend, name, act, dtype):
    x, dy, gamma, beta, *running, g = pooled(name, dtype)
    act, c = activation(act), gamma.size
    y, argmax, mean, inv_std, *moved = same_bits_on_threads(
        lambda: harness.batchnorm_pool_forward(backend, x, gamma, beta, *running, 0.9, EPSILON, act, g)
    )
    alone = harness.batchnorm_forward(backend, x.reshape(-1, c), gamma, beta, *running, 0.9, EPSILON)
    for actual, expected in zip((mean, inv_std, *moved), alone[1:], strict=True):
        assert_same_bits(actual, expected)
    wide = [a.astype(np.float64) for a in (x, dy, gamma, beta, *running)]
    right = harness.batchnorm_pool_forward(reference, wide[0], *wide[2:], 0.9, EPSILON, act, g)
    size = abs(x).max() * abs(right[3] * gamma).max() + abs(beta).max()
    assert_close(y, right[0], np.full(y.shape, size))
    assert (argmax == right[1]).mean() > 0.999  # all but what ties within rounding

    dx, dgamma, dbeta = same_bits_on_threads(
        lambda: harness.batchnorm_pool_backward(backend, x, gamma, mean, inv_std, y, argmax, dy, act, g)
    )
    kept = right[0].astype(dtype), argmax
    expected = harness.batchnorm_pool_backward(
        reference, wide[0], wide[2], right[2], right[3], kept[0].astype(np.float64), argmax, wide[1], act, g
    )
    terms = dy.size * 4.0
    assert_close(dbeta, expected[2], np.full(c, terms / c))
    assert_close(dgamma, expected[1], np.full(c, terms / c))
    assert_close(dx, expected[0], np.full(x.shape, 8 * abs(right[3] * gamma).max()))
    without = harness.batchnorm_pool_backward(backend, x, gamma, mean, inv_std, y, argmax, dy, act, g, want_dx=False)
    assert_same_bits(without[1], dgamma)
    assert_same_bits(without[2], dbeta)


@pytest.mark.small
@pytest.mark.parametrize("name", ["odd", "few channels"])
def test_pooled_gradients_by_central_differences(backend, name):
    x, dy, gamma, beta, *running, g = pooled(name, np.float64, seed=4)
    act = activation("relu")

    def run(x=x, gamma=gamma, beta=beta):
        return harness.batchnorm_pool_forward(backend, x, gamma, beta, *running, 0.9, EPSILON, act, g)

    y, argmax, mean, inv_std, *_ = run()
    dx, dgamma, dbeta = harness.batchnorm_pool_backward(backend, x, gamma, mean, inv_std, y, argmax, dy, act, g)
    rng = np.random.default_rng(1)
    harness.directional_gradient_check(lambda v: float((dy * run(x=v)[0]).sum()), x, dx, rng)
    harness.elementwise_gradient_check(lambda v: float((dy * run(gamma=v)[0]).sum()), gamma, dgamma)
    harness.elementwise_gradient_check(lambda v: float((dy * run(beta=v)[0]).sum()), beta, dbeta)


@pytest.mark.small
def test_nan_spoils_its_pooled_channel_only(backend, dtype):
    x, dy, gamma, beta, *running, g = pooled("few channels", dtype)
    x[1, 2, 3, 1] = np.nan
    act = activation("relu")
    y, argmax, mean, inv_std, *_ = harness.batchnorm_pool_forward(
        backend, x, gamma, beta, *running, 0.9, EPSILON, act, g
    )
    assert np.isnan(y[..., 1]).all() and not np.isnan(y[..., [0, 2]]).any()
    dx, dgamma, _ = harness.batchnorm_pool_backward(backend, x, gamma, mean, inv_std, y, argmax, dy, act, g)
    assert np.isnan(dx[..., 1]).all() and np.isnan(dgamma[1]) and not np.isnan(dx[..., [0, 2]]).any()
