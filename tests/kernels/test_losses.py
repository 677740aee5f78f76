"""Softmax and its cross-entropy."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastcnn.kernels import reference
from tests import naive
from tests.kernels import harness
from tests.kernels.harness import assert_close, assert_same_bits, same_bits_on_threads

SHAPES = [
    pytest.param(shape, marks=[pytest.mark.small] if shape[0] * shape[1] < 300 else [])
    for shape in [(0, 4), (1, 1), (1, 2), (5, 1), (7, 10), (33, 3), (300, 10), (64, 1000)]
]


def arrays(shape, dtype, seed=0):
    """logits, labels, weights."""
    rng = np.random.default_rng(seed)
    logits = (4 * rng.standard_normal(shape)).astype(dtype)
    return logits, rng.integers(0, shape[1], shape[0]), rng.uniform(0, 2, shape[0]).astype(dtype)


@pytest.mark.small
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(1, 1), (6, 2), (5, 10)])
def test_reference_is_the_naive_loop(shape, smoothing):
    logits, labels, weights = arrays(shape, np.float64)
    assert_allclose(harness.softmax(reference, logits), naive.softmax(logits), rtol=1e-12)
    actual = harness.softmax_cross_entropy(reference, logits, labels, weights, smoothing)
    for a, b in zip(actual, naive.softmax_cross_entropy(logits, labels, weights, smoothing), strict=True):
        assert_allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_cross_entropy(backend, shape, smoothing, dtype):
    logits, labels, weights = arrays(shape, dtype)
    logits64, weights64 = logits.astype(np.float64), weights.astype(np.float64)
    proba = same_bits_on_threads(lambda: harness.softmax(backend, logits))
    expected_proba = harness.softmax(reference, logits64)
    assert_close(proba, expected_proba, expected_proba * 16)
    losses, dlogits = same_bits_on_threads(
        lambda: harness.softmax_cross_entropy(backend, logits, labels, weights, smoothing)
    )
    expected = harness.softmax_cross_entropy(reference, logits64, labels, weights64, smoothing)
    assert_close(losses, expected[0], weights64 * (abs(logits64).max(axis=1, initial=0) + 1))
    assert_close(dlogits, expected[1], weights64[:, None] / max(weights64.sum(), 1e-9))


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_without_gradient(backend, shape, dtype):
    logits, labels, weights = arrays(shape, dtype)
    losses, _ = harness.softmax_cross_entropy(backend, logits, labels, weights, 0.1)
    alone, _ = harness.softmax_cross_entropy(backend, logits, labels, weights, 0.1, want_dlogits=False)
    assert_same_bits(alone, losses)


@pytest.mark.small
@pytest.mark.parametrize("weight", [1e-40, 1e-45])
def test_weights_whose_inverse_is_infinite(backend, weight):
    logits, labels, _ = arrays((4, 3), np.float32)
    weights = np.array([weight, 0, 0, 0], np.float32)
    _, dlogits = harness.softmax_cross_entropy(backend, logits, labels, weights, 0.1)
    _, expected = harness.softmax_cross_entropy(backend, logits, labels, (weights > 0).astype(np.float32), 0.1)
    assert_allclose(dlogits, expected, rtol=1e-6)


@pytest.mark.small
def test_huge_logits_neither_overflow_nor_vanish(backend, dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e30, -1e30, -1e30], [1e30, 0, 0]], dtype)
    labels, weights = np.array([1, 0, 0]), np.ones(3, dtype)
    proba = harness.softmax(backend, logits)
    third = 1 / 3
    assert_allclose(proba, [[1, 0, 0], [third, third, third], [1, 0, 0]], rtol=1e-6)
    losses, dlogits = harness.softmax_cross_entropy(backend, logits, labels, weights, 0.0)
    assert_allclose(losses, [2e4, np.log(3), 0], rtol=1e-6, atol=1e-12)
    expected = np.array([[1, -1, 0], [third - 1, third, third], [0, 0, 0]]) / 3
    assert_allclose(dlogits, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.small
def test_rows_without_weight_count_for_nothing(backend, dtype):
    logits, labels, weights = arrays((7, 4), dtype)
    weights[[1, 4]] = 0
    losses, dlogits = harness.softmax_cross_entropy(backend, logits, labels, weights, 0.1)
    assert not losses[[1, 4]].any() and not dlogits[[1, 4]].any()
    kept = weights > 0
    alone = harness.softmax_cross_entropy(backend, logits[kept], labels[kept], weights[kept], 0.1)
    assert_allclose(losses[kept], alone[0], rtol=1e-6)
    assert_allclose(dlogits[kept], alone[1], rtol=1e-5, atol=1e-7)
    losses, dlogits = harness.softmax_cross_entropy(backend, logits, labels, np.zeros_like(weights), 0.0)
    assert not losses.any() and not dlogits.any()


@pytest.mark.small
def test_nan_spoils_its_row_only(backend, dtype):
    logits, labels, weights = arrays((5, 3), dtype)
    logits[2, 1] = np.nan
    touched = np.isnan(logits).any(axis=1)
    losses, dlogits = harness.softmax_cross_entropy(backend, logits, labels, weights, 0.0)
    assert_array_equal(np.isnan(losses), touched)
    assert_array_equal(np.isnan(dlogits).all(axis=1), touched)
    assert not np.isnan(dlogits[~touched]).any()
    assert_array_equal(np.isnan(harness.softmax(backend, logits)).all(axis=1), touched)


@pytest.mark.small
def test_unusual_inputs_give_the_same_bits(backend, dtype):
    logits, labels, weights = arrays((6, 4), dtype)
    expected = harness.softmax_cross_entropy(backend, logits, labels, weights, 0.1)
    proba = harness.softmax(backend, logits)
    twins = (harness.unusual_twins(a) for a in (logits, labels, weights))
    for logits_twin, labels_twin, weights_twin in zip(*twins, strict=True):
        actual = harness.softmax_cross_entropy(backend, logits_twin, labels_twin, weights_twin, 0.1)
        for a, b in zip(actual, expected, strict=True):
            assert_same_bits(a, b)
        assert_same_bits(harness.softmax(backend, logits_twin), proba)


@pytest.mark.small
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_by_central_differences(backend, smoothing):
    logits, labels, weights = arrays((5, 4), np.float64)

    def loss(v):
        losses, _ = harness.softmax_cross_entropy(backend, v, labels, weights, smoothing)
        return float(losses.sum() / weights.sum())

    _, dlogits = harness.softmax_cross_entropy(backend, logits, labels, weights, smoothing)
    harness.elementwise_gradient_check(loss, logits, dlogits)
    harness.directional_gradient_check(loss, logits, dlogits, np.random.default_rng(1))
