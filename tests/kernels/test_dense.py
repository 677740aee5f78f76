"""The dense block, x @ weight + bias and an activation, and its gradients."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastcnn.engine.ops import IDENTITY, activation
from fastcnn.kernels import get_backend, reference
from fastcnn.kernels.cpu import dense
from fastcnn.kernels.cpu._blas import gemm
from tests import naive
from tests.cases import DENSE_CASES
from tests.kernels import harness
from tests.kernels.harness import assert_close, assert_same_bits, case_params, none, same_bits_on_threads

ACTIVATIONS = {
    "identity": IDENTITY,
    "relu": activation("relu"),
    "elu": activation("elu", 0.7),
    "tanh": activation("tanh"),
    "leaky": activation("leaky_relu", 0.3),
}


def arrays(n, n_in, n_out, dtype, seed=0):
    """x, weight, bias, dy."""
    rng = np.random.default_rng(seed)
    shapes = ((n, n_in), (n_in, n_out), (n_out,), (n, n_out))
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


@pytest.mark.small
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("case", [c for c in case_params(DENSE_CASES) if c.values[0].small])
def test_reference_is_the_naive_loop(case, name):
    act = ACTIVATIONS[name]
    x, weight, bias, dy = arrays(case.n, case.n_in, case.n_out, np.float64)
    y = harness.dense_forward(reference, x, weight, bias, act)
    expected, z = naive.dense_forward(x, weight, bias, act)
    assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    actual = harness.dense_backward(reference, x, weight, y, dy, act)
    for a, b in zip(actual, naive.dense_backward(x, weight, z, dy, act), strict=True):
        assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("case", case_params(DENSE_CASES))
def test_dense(backend, case, name, dtype):
    act = ACTIVATIONS[name]
    x, weight, bias, dy = arrays(case.n, case.n_in, case.n_out, dtype)
    x64, weight64, bias64, dy64 = (a.astype(np.float64) for a in (x, weight, bias, dy))
    y = same_bits_on_threads(lambda: harness.dense_forward(backend, x, weight, bias, act))
    expected = harness.dense_forward(reference, x64, weight64, bias64, act)
    assert_close(y, expected, harness.dense_forward(reference, abs(x64), abs(weight64), abs(bias64)))
    gradients = same_bits_on_threads(lambda: harness.dense_backward(backend, x, weight, y, dy, act))
    y64 = y.astype(np.float64)
    expected = harness.dense_backward(reference, x64, weight64, y64, dy64, act)
    magnitudes = harness.dense_backward(reference, abs(x64), abs(weight64), y64, abs(dy64))
    for actual, right, magnitude in zip(gradients, expected, magnitudes, strict=True):
        assert_close(actual, right, magnitude)


@pytest.mark.small
@pytest.mark.parametrize("n", [0, 1, 5])
def test_large_weights_go_to_blas(n, dtype, monkeypatch):
    kernels, act = get_backend("cpu"), ACTIVATIONS["elu"]
    x, weight, bias, dy = arrays(n, 7, 6, dtype)
    calls = []
    monkeypatch.setattr(dense, "BLAS_WEIGHTS", weight.size)
    monkeypatch.setattr(dense, "gemm", lambda *args: calls.append(args) or gemm(*args))
    y = harness.dense_forward(kernels, x, weight, bias, act)
    assert len(calls) == 1
    for actual, expected in zip(
        (y, *harness.dense_backward(kernels, x, weight, y, dy, act)),
        (
            harness.dense_forward(reference, x, weight, bias, act),
            *harness.dense_backward(reference, x, weight, y, dy, act),
        ),
        strict=True,
    ):
        assert_close(actual, expected.astype(np.float64), 10.0)
    assert len(calls) == (3 if n else 2)  # there is no dx of nothing


@pytest.mark.small
def test_no_bias_is_a_bias_of_zero(backend, dtype):
    x, weight, bias, _ = arrays(5, 7, 6, dtype)
    for act in ACTIVATIONS.values():
        without = harness.dense_forward(backend, x, weight, none(1, dtype), act)
        assert_array_equal(without, harness.dense_forward(backend, x, weight, np.zeros_like(bias), act))


@pytest.mark.small
def test_unwanted_outputs_change_nothing_else(backend, dtype):
    x, weight, bias, dy = arrays(5, 7, 6, dtype)
    act = ACTIVATIONS["relu"]
    y = harness.dense_forward(backend, x, weight, bias, act)
    every = harness.dense_backward(backend, x, weight, y, dy, act)
    for wants in ((False, True, True), (True, False, True), (True, True, False), (True, False, False)):
        some = harness.dense_backward(backend, x, weight, y, dy, act, wants=wants)
        for wanted, actual, expected in zip(wants, some, every, strict=True):
            if wanted:
                assert_same_bits(actual, expected)


@pytest.mark.small
def test_no_rows_give_gradients_of_zero(backend, dtype):
    x, weight, _, dy = arrays(0, 4, 3, dtype)
    _, dw, db = harness.dense_backward(backend, x, weight, dy, dy)
    assert not dw.any() and not db.any()


@pytest.mark.small
@pytest.mark.parametrize("which", ["x", "weight", "bias", "dy"])
def test_unusual_inputs_give_the_same_bits(backend, which, dtype):
    act = ACTIVATIONS["elu"]
    given = dict(zip(("x", "weight", "bias", "dy"), arrays(6, 9, 5, dtype), strict=True))

    def outputs(x, weight, bias, dy):
        y = harness.dense_forward(backend, x, weight, bias, act)
        return y, *harness.dense_backward(backend, x, weight, y, dy, act)

    expected = outputs(**given)
    for twin in harness.unusual_twins(given[which]):
        for actual, right in zip(outputs(**{**given, which: twin}), expected, strict=True):
            # BLAS may sum in another order where an operand is laid out otherwise.
            assert_close(actual, right.astype(np.float64), 10.0)


@pytest.mark.small
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_is_seen(backend, name, dtype):
    x, weight, bias, dy = arrays(4, 5, 3, dtype)
    x[2, 1] = np.nan
    y = harness.dense_forward(backend, x, weight, bias, ACTIVATIONS[name])
    assert np.isnan(y[2]).all() and not np.isnan(y[[0, 1, 3]]).any()
    _, dw, _ = harness.dense_backward(backend, x, weight, np.zeros_like(y), dy)
    assert np.isnan(dw[1]).all() and not np.isnan(dw[[0, 2, 3, 4]]).any()


@pytest.mark.small
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_by_central_differences(backend, name):
    act, rng = ACTIVATIONS[name], np.random.default_rng(3)
    x, weight, bias, dy = arrays(4, 6, 5, np.float64, seed=4)

    def loss(x=x, weight=weight, bias=bias):
        return float((dy * harness.dense_forward(backend, x, weight, bias, act)).sum())

    y = harness.dense_forward(backend, x, weight, bias, act)
    dx, dw, db = harness.dense_backward(backend, x, weight, y, dy, act)
    harness.directional_gradient_check(lambda v: loss(x=v), x, dx, rng)
    harness.directional_gradient_check(lambda v: loss(weight=v), weight, dw, rng)
    harness.elementwise_gradient_check(lambda v: loss(x=v), x, dx)
    harness.elementwise_gradient_check(lambda v: loss(weight=v), weight, dw)
    harness.elementwise_gradient_check(lambda v: loss(bias=v), bias, db)
