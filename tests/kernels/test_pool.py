"""Max and average pooling and their gradients."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastcnn.engine.ops import pool_geometry
from fastcnn.kernels import reference
from tests import naive
from tests.cases import POOL_CASES
from tests.kernels import harness
from tests.kernels.harness import assert_close, assert_same_bits, case_params, same_bits_on_threads

SMALL_CASES = [c for c in case_params(POOL_CASES) if c.values[0].small]


def arrays(case, dtype):
    """x, dy."""
    g, rng = case.geometry, np.random.default_rng(len(case.name))
    x = rng.standard_normal((case.n, g.h, g.w, g.c)).astype(dtype)
    return x, rng.standard_normal((case.n, g.p, g.q, g.c)).astype(dtype)


@pytest.mark.small
@pytest.mark.parametrize("stride", [2, 1])
def test_textbook_pooling(backend, stride, dtype):
    matrix = [[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]]
    x = np.array(matrix, dtype).reshape(1, 4, 4, 1)
    g = pool_geometry((4, 4, 1), 2, stride)
    largest, mean = {
        2: ([[6, 8], [3, 4]], [[3.25, 5.25], [2, 2]]),
        1: ([[6, 7, 8], [6, 7, 8], [3, 3, 4]], [[3.25, 4, 5.25], [4, 4, 4], [2, 2, 2]]),
    }[stride]
    assert_array_equal(harness.maxpool2d_forward(backend, x, g)[0][0, :, :, 0], largest)
    assert_array_equal(harness.avgpool2d_forward(backend, x, g)[0, :, :, 0], mean)


@pytest.mark.small
@pytest.mark.parametrize("case", SMALL_CASES)
def test_reference_is_the_naive_loop(case):
    x, dy = arrays(case, np.float64)
    x = x.round()  # with equals, whose first must win
    y, argmax = harness.maxpool2d_forward(reference, x, case.geometry)
    expected_y, expected_argmax = naive.maxpool2d_forward(x, case.geometry)
    assert_array_equal(y, expected_y)
    assert_array_equal(argmax, expected_argmax)
    dx = harness.maxpool2d_backward(reference, dy, argmax, case.geometry)
    assert_allclose(dx, naive.maxpool2d_backward(dy, argmax, case.geometry), rtol=1e-13, atol=1e-13)
    for g in (case.geometry, case.geometry_with_pad):
        y = harness.avgpool2d_forward(reference, x, g)
        assert_allclose(y, naive.avgpool2d_forward(x, g), rtol=1e-13, atol=1e-13)
        dx = harness.avgpool2d_backward(reference, dy, g)
        assert_allclose(dx, naive.avgpool2d_backward(dy, g), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("case", case_params(POOL_CASES))
def test_max(backend, case, dtype):
    x, dy = arrays(case, dtype)
    for image in (x, x.round()):
        y, argmax = same_bits_on_threads(lambda: harness.maxpool2d_forward(backend, image, case.geometry))  # noqa: B023
        expected_y, expected_argmax = harness.maxpool2d_forward(reference, image, case.geometry)
        assert_array_equal(y, expected_y)
        assert_array_equal(argmax, expected_argmax)
        alone, _ = harness.maxpool2d_forward(backend, image, case.geometry, want_argmax=False)
        assert_array_equal(alone, y)
    dx = same_bits_on_threads(lambda: harness.maxpool2d_backward(backend, dy, argmax, case.geometry))
    dy64 = dy.astype(np.float64)
    expected = harness.maxpool2d_backward(reference, dy64, argmax, case.geometry)
    assert_close(dx, expected, harness.maxpool2d_backward(reference, abs(dy64), argmax, case.geometry))


@pytest.mark.parametrize("with_pad", [False, True], ids=["pixels", "with padding"])
@pytest.mark.parametrize("case", case_params(POOL_CASES))
def test_average(backend, case, with_pad, dtype):
    g = case.geometry_with_pad if with_pad else case.geometry
    x, dy = arrays(case, dtype)
    x64, dy64 = x.astype(np.float64), dy.astype(np.float64)
    y = same_bits_on_threads(lambda: harness.avgpool2d_forward(backend, x, g))
    expected = harness.avgpool2d_forward(reference, x64, g)
    assert_close(y, expected, harness.avgpool2d_forward(reference, abs(x64), g))
    dx = same_bits_on_threads(lambda: harness.avgpool2d_backward(backend, dy, g))
    expected = harness.avgpool2d_backward(reference, dy64, g)
    assert_close(dx, expected, harness.avgpool2d_backward(reference, abs(dy64), g))


@pytest.mark.small
@pytest.mark.parametrize("padding", [0, 1])
def test_nan_wins(backend, padding, dtype):
    g = pool_geometry((4, 4, 1), 2 + padding, 2, padding)
    x = np.arange(32, dtype=dtype).reshape(2, 4, 4, 1)
    x[0, 0, 0], x[0, 0, 1], x[0, 3, 2], x[1, 2, 2] = np.nan, np.nan, np.nan, np.inf
    y, argmax = harness.maxpool2d_forward(backend, x, g)
    assert_array_equal(y, naive.maxpool2d_forward(x, g)[0])
    assert_array_equal(naive.at_argmax(x, argmax, g), y)  # of several NaNs any may be the winner
    assert np.isnan(y).sum() >= 2
    averages = harness.avgpool2d_forward(backend, x, g)
    assert_array_equal(np.isnan(averages), np.isnan(naive.avgpool2d_forward(x, g)))


@pytest.mark.small
def test_padding_never_wins(backend, dtype):
    g = pool_geometry((3, 3, 2), 3, 2, 1)
    for value in (-5.0, -np.inf):
        x = np.full((1, 3, 3, 2), value, dtype)
        y, argmax = harness.maxpool2d_forward(backend, x, g)
        assert_array_equal(y, value)
        dx = harness.maxpool2d_backward(backend, np.ones_like(y), argmax, g)
        assert dx.sum() == y.size  # every gradient arrived at a pixel of the image


@pytest.mark.small
def test_unusual_inputs_give_the_same_bits(backend, dtype):
    g = pool_geometry((6, 5, 4), 3, 2, 1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 5, 4)).astype(dtype)
    dy = rng.standard_normal((2, g.p, g.q, 4)).astype(dtype)
    y, argmax = harness.maxpool2d_forward(backend, x, g)
    mean = harness.avgpool2d_forward(backend, x, g)
    for twin in harness.unusual_twins(x):
        assert_same_bits(harness.maxpool2d_forward(backend, twin, g)[0], y)
        assert_same_bits(harness.avgpool2d_forward(backend, twin, g), mean)
    dx, spread = (
        harness.maxpool2d_backward(backend, dy, argmax, g),
        harness.avgpool2d_backward(backend, dy, g),
    )
    for twin in harness.unusual_twins(dy):
        assert_same_bits(harness.maxpool2d_backward(backend, twin, argmax, g), dx)
        assert_same_bits(harness.avgpool2d_backward(backend, twin, g), spread)


@pytest.mark.parametrize("case", [c for c in SMALL_CASES if c.values[0].n])
def test_gradients_by_central_differences(backend, case):
    rng = np.random.default_rng(1)
    x, dy = arrays(case, np.float64)
    g = case.geometry
    _, argmax = harness.maxpool2d_forward(backend, x, g)
    dx = harness.maxpool2d_backward(backend, dy, argmax, g)
    harness.directional_gradient_check(
        lambda v: float((dy * harness.maxpool2d_forward(backend, v, g)[0]).sum()), x, dx, rng
    )
    for g in (case.geometry, case.geometry_with_pad):
        dx = harness.avgpool2d_backward(backend, dy, g)
        harness.directional_gradient_check(
            lambda v: float((dy * harness.avgpool2d_forward(backend, v, g)).sum()),  # noqa: B023
            x,
            dx,
            rng,
        )


@pytest.mark.small
def test_every_element_of_tiny_gradients(backend):
    g, rng = pool_geometry((3, 4, 1), 2, 1, ((1, 0), (0, 1))), np.random.default_rng(2)
    x, dy = rng.standard_normal((1, 3, 4, 1)), rng.standard_normal((1, g.p, g.q, 1))
    _, argmax = harness.maxpool2d_forward(backend, x, g)
    harness.elementwise_gradient_check(
        lambda v: float((dy * harness.maxpool2d_forward(backend, v, g)[0]).sum()),
        x,
        harness.maxpool2d_backward(backend, dy, argmax, g),
    )
    harness.elementwise_gradient_check(
        lambda v: float((dy * harness.avgpool2d_forward(backend, v, g)).sum()),
        x,
        harness.avgpool2d_backward(backend, dy, g),
    )
