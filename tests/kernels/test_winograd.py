"""Winograd's algorithm: its formulas, its convolutions against the reference, its error.

A tile's outputs come from all of its inputs, so rounding is relative to the largest sum of magnitudes in reach, where
the direct sum's is relative to the output's own. And terms that cancel in the formulas are larger than the products
that they stand for, by `amplification`: so is what they may lose.
"""

from functools import cache, lru_cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import maximum_filter

from fastcnn.engine.ops import IDENTITY, activation, conv_geometry, identity_pool, pool_geometry
from fastcnn.kernels import reference
from fastcnn.kernels.cpu import backend as cpu
from fastcnn.kernels.cpu import winograd_formulas as formulas
from fastcnn.kernels.cpu.microkernel import panel_width
from tests.cases import LAYERS, WINOGRAD_CASES
from tests.kernels import harness
from tests.kernels.harness import TOLERANCE, assert_close, case_params, none, same_bits_on_threads

TILES = ((2, 3), (4, 3), (5, 3), (7, 3), (2, 5), (3, 5))  # (m, r): F(m x m, r x r)
WIDTH = {np.dtype(d): panel_width(np.dtype(d).itemsize) for d in (np.float32, np.float64)}


ROUNDINGS = 16  # of a term on its way: about 3 in each of two directions of three transforms


def matrix(formula, size):
    """The matrix of a formula, from what it makes of unit vectors."""
    return np.array([formula(list(unit)) for unit in np.eye(size)]).T


def matrices(m, r):
    """Of the inputs (m+r-1, m+r-1), the outputs (m, m+r-1) and the weights (m+r-1, r)."""
    return [matrix(*formulas.formula_of(name, m, r)) for name in ("input", "output", "weight")]


@cache
def amplification(m, r):
    """What an output's terms of one input and one weight come to, at most, as a multiple of |input * weight|."""
    inputs, outputs, weights = map(abs, matrices(m, r))
    return np.einsum("op,pi,pw->oiw", outputs, inputs, weights).max() ** 2


def tolerance(m, r):
    return max(TOLERANCE, ROUNDINGS * amplification(m, r))


# --------------------------------------------------------------------------------------------------- formulas


@pytest.mark.small
@pytest.mark.parametrize("m, r", TILES)
def test_formulas_make_a_correlation(m, r):
    rng = np.random.default_rng(0)
    inputs, outputs, weights = matrices(m, r)
    d, g = rng.standard_normal(m + r - 1), rng.standard_normal(r)
    assert_allclose(outputs @ ((inputs @ d) * (weights @ g)), np.correlate(d, g, "valid"), rtol=1e-12, atol=1e-12)


@pytest.mark.small
@pytest.mark.parametrize("name", ["input", "output", "weight"])
@pytest.mark.parametrize("m, r", TILES)
def test_gradients_are_the_transposes(m, r, name):
    forward, gradient = (matrix(*formulas.formula_of(which, m, r)) for which in (name, f"{name} gradient"))
    assert_allclose(forward.T, gradient, rtol=1e-12, atol=1e-14)


# ----------------------------------------------------------------------------------------------- convolutions


def in_reach(magnitude, m):
    """The largest magnitude of the images (N,H,W,C) within a tile's reach."""
    return maximum_filter(magnitude, (1, 2 * m + 7, 2 * m + 7, 1), mode="constant")


def in_window(magnitude):
    """The largest magnitude of each window (3,3,C,K)."""
    return np.broadcast_to(magnitude.max((0, 1)), magnitude.shape)


def problem(case, m, r, dtype):
    case = case._replace(kernel_size=r)
    arrays = harness.conv_arrays(case.geometry, case.n, dtype, np.random.default_rng(len(case.name)))
    return case.geometry._replace(winograd=m), arrays


@lru_cache(maxsize=2)  # the tiles of a case follow each other, and have these in common
def forward_by_reference(case, r, dtype):
    """The outputs, and the sums of their terms' magnitudes."""
    g, (x, weight, bias, _) = problem(case, 0, r, dtype)
    wide = [a.astype(np.float64) for a in (x, weight, bias)]
    return [harness.conv2d_forward(reference, *arrays, g) for arrays in (wide, map(abs, wide))]


@lru_cache(maxsize=2)
def backward_by_reference(case, r, dtype):
    """The gradients of input, weight and bias, and the sums of their terms' magnitudes."""
    g, (x, weight, _, dy) = problem(case, 0, r, dtype)
    wide = [a.astype(np.float64) for a in (x, weight, dy)]
    return [
        (harness.conv2d_backward_input(reference, dy, weight, g), *harness.conv2d_backward_weight(reference, x, dy, g))
        for x, weight, dy in (wide, map(abs, wide))
    ]


@pytest.mark.parametrize("m, r", TILES)
@pytest.mark.parametrize("case", case_params(WINOGRAD_CASES))
def test_forward(case, m, r, dtype):
    g, (x, weight, bias, _) = problem(case, m, r, dtype)
    y = same_bits_on_threads(lambda: harness.conv2d_forward(cpu, x, weight, bias, g))
    expected, magnitudes = forward_by_reference(case, r, dtype)
    assert_close(y, expected, in_reach(magnitudes, m), tolerance(m, r))


@pytest.mark.parametrize("m, r", TILES)
@pytest.mark.parametrize("case", case_params(WINOGRAD_CASES))
def test_backward(case, m, r, dtype):
    g, (x, weight, _, dy) = problem(case, m, r, dtype)
    expected, magnitudes = backward_by_reference(case, r, dtype)
    dx = same_bits_on_threads(lambda: harness.conv2d_backward_input(cpu, dy, weight, g))
    assert_close(dx, expected[0], in_reach(magnitudes[0], m), tolerance(m, r))
    dw, db = same_bits_on_threads(lambda: harness.conv2d_backward_weight(cpu, x, dy, g))
    assert_close(dw, expected[1], in_window(magnitudes[1]), tolerance(m, r))
    assert_close(db, expected[2], magnitudes[2])


POOLS = {
    "none": None,
    "2x2": (2,),
    "overlapping 3x3 stride 2": (3, 2),
    "padded 3x3 stride 2": (3, 2, 1),
    "2x2 stride 1": (2, 1),
    "2x2 padded": (2, 2, 1),
    "3x3": (3,),
    "4x4": (4,),
}


@pytest.mark.parametrize("name", ["identity", "relu", "elu", "tanh"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("m, r", TILES)
def test_fused_block_is_the_direct_one(m, r, pool, name):
    width = WIDTH[np.dtype(np.float64)]
    g = conv_geometry((11, 9, width), 2 * width, r, padding="same")
    act = IDENTITY if name == "identity" else activation(name)
    pool = identity_pool(g.p, g.q, g.k) if POOLS[pool] is None else pool_geometry((g.p, g.q, g.k), *POOLS[pool])
    rng = np.random.default_rng(3)
    x, weight, bias, _ = harness.conv_arrays(g, 5, np.float64, rng)
    dy = rng.standard_normal((5, pool.p, pool.q, g.k))
    direct, fast = (
        (
            harness.conv2d_block_forward(cpu, x, weight, bias, geometry, act, pool),
            harness.conv2d_block_forward(cpu, x, weight, bias, geometry, act, pool, want_argmax=False)[0],
        )
        for geometry in (g, g._replace(winograd=m))
    )
    (y, argmax), without = fast
    assert_allclose(y, direct[0][0], rtol=1e-11, atol=1e-11)
    assert_array_equal(argmax, direct[0][1])
    assert_array_equal(without, y)

    def backward(geometry):
        return harness.conv2d_block_backward(cpu, x, weight, y, argmax, dy, geometry, act, pool)

    gradients = same_bits_on_threads(lambda: backward(g._replace(winograd=m)))
    for actual, expected in zip(gradients, backward(g), strict=True):
        assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("m, r", TILES)
def test_gradients_against_central_differences(m, r):
    width = WIDTH[np.dtype(np.float64)]
    g = conv_geometry((6, 7, width), width, r, padding="same")._replace(winograd=m)
    rng = np.random.default_rng(1)
    x, weight, bias, dy = harness.conv_arrays(g, 2, np.float64, rng)

    def loss(x_, weight_):
        return float((harness.conv2d_forward(cpu, x_, weight_, bias, g) * dy).sum())

    dx = harness.conv2d_backward_input(cpu, dy, weight, g)
    dw, _ = harness.conv2d_backward_weight(cpu, x, dy, g)
    harness.directional_gradient_check(lambda v: loss(v, weight), x, dx, rng)
    harness.directional_gradient_check(lambda v: loss(x, v), weight, dw, rng)


@pytest.mark.parametrize("m, r", TILES)
def test_only_what_is_wanted(m, r, dtype):
    width = WIDTH[np.dtype(dtype)]
    g = conv_geometry((5, 6, width), width, r, padding="same")._replace(winograd=m)
    x, weight, _, dy = harness.conv_arrays(g, 3, dtype, np.random.default_rng(2))
    pool, argmax = identity_pool(g.p, g.q, g.k), none(4, np.uint8)
    block = (cpu, x, weight, dy, argmax, dy, g, IDENTITY, pool)
    dx, dw, db = harness.conv2d_block_backward(*block)
    for wants in ((True, False, False), (False, True, False), (False, False, True), (False, True, True)):
        for wanted, actual, whole in zip(
            wants, harness.conv2d_block_backward(*block, wants=wants), (dx, dw, db), strict=True
        ):
            if wanted:
                assert_array_equal(actual, whole)


@pytest.mark.parametrize("m, r", TILES)
def test_nan_stays_where_it_can_reach(m, r):
    width = WIDTH[np.dtype(np.float32)]
    g = conv_geometry((12, 12, width), width, r, padding="same")._replace(winograd=m)
    x, weight, bias, _ = harness.conv_arrays(g, 2, np.float32, np.random.default_rng(4))
    x[0, 6, 6, 3] = np.nan
    pool = pool_geometry((g.p, g.q, g.k), 2)
    y, argmax = harness.conv2d_block_forward(cpu, x, weight, bias, g, activation("relu"), pool)
    assert np.isnan(y[0, 2:4, 2:4]).all() and np.isfinite(y[1]).all()
    assert argmax.max() < 4
    x[0, 6, 6, 3], x[0, 0, 0, 3] = 0, np.nan
    z = harness.conv2d_forward(cpu, x, weight, bias, g)
    far = np.arange(12) >= m + r  # of other tiles, which do not see the corner
    assert np.isfinite(z[0, far]).all() and np.isfinite(z[0, :, far]).all() and np.isnan(z[0, :2, :2]).all()


@settings(deadline=None, max_examples=40)
@example(2, 1, 1, 1, 1, 2, 1, (5, 3), np.float32)  # a weight's gradient of 0, from larger terms that cancel
@given(
    st.integers(1, 3), st.integers(1, 13), st.integers(1, 13), st.integers(1, 2), st.integers(1, 2), st.integers(0, 2),
    st.integers(0, 2), st.sampled_from(TILES), st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_any_shape(n, h, w, c_panels, k_panels, top, left, tile, dtype):
    width, (m, r) = WIDTH[np.dtype(dtype)], tile
    pads = ((top, max(0, r - h - top)), (left, max(1, r - w - left)))
    g = conv_geometry((h, w, c_panels * width), k_panels * width, r, padding=pads)._replace(winograd=m)
    x, weight, bias, dy = harness.conv_arrays(g, n, dtype, np.random.default_rng(h * 16 + w))
    wide = [a.astype(np.float64) for a in (x, weight, bias, dy)]
    sizes = [abs(a) for a in wide]
    assert_close(
        harness.conv2d_forward(cpu, x, weight, bias, g),
        harness.conv2d_forward(reference, *wide[:3], g), in_reach(harness.conv2d_forward(reference, *sizes[:3], g), m),
        tolerance(m, r),
    )  # fmt: skip
    assert_close(
        harness.conv2d_backward_input(cpu, dy, weight, g),
        harness.conv2d_backward_input(reference, wide[3], wide[1], g),
        in_reach(harness.conv2d_backward_input(reference, sizes[3], sizes[1], g), m),
        tolerance(m, r),
    )
    assert_close(
        harness.conv2d_backward_weight(cpu, x, dy, g)[0],
        harness.conv2d_backward_weight(reference, wide[0], wide[3], g)[0],
        in_window(harness.conv2d_backward_weight(reference, sizes[0], sizes[3], g)[0]),
        tolerance(m, r),
    )


# -------------------------------------------------------------------------------------------- error, and rule


@pytest.mark.parametrize("m, r", TILES)
@pytest.mark.parametrize("what, most", [("forward", (3, 6, 25)), ("input", (3, 6, 25)), ("weight", (6, 10, 40))])
def test_mean_error_is_a_few_times_the_direct_one(what, most, m, r):
    g = conv_geometry((28, 28, 64), 64, r, padding="same")
    x, weight, bias, dy = harness.conv_arrays(g, 4, np.float32, np.random.default_rng(5))

    def run(backend, geometry, *arrays):
        a, w, b, d = arrays
        if what == "forward":
            return harness.conv2d_forward(backend, a, w, b, geometry)
        if what == "input":
            return harness.conv2d_backward_input(backend, d, w, geometry)
        return harness.conv2d_backward_weight(backend, a, d, geometry)[0]

    exact = run(reference, g, *(a.astype(np.float64) for a in (x, weight, bias, dy)))
    direct, fast = (np.abs(run(cpu, g._replace(winograd=k), x, weight, bias, dy) - exact).mean() for k in (0, m))
    assert 0 < direct < 1e-5 * np.abs(exact).mean()
    assert fast < most[{7: 1, 9: 2}.get(m + r - 1, 0)] * direct


@pytest.mark.small
def test_rule_chooses_by_shape():
    def chosen(shape, filters, kernel_size=3, n=32, dtype=np.float32, training=False, **settings):
        return cpu.conv2d_algorithm(conv_geometry(shape, filters, kernel_size, **settings), n, dtype, training)

    width = WIDTH[np.dtype(np.float32)]
    assert chosen((28, 28, 2 * width), 2 * width) == 4
    assert chosen((14, 14, 2 * width), 2 * width) == 5
    assert chosen((14, 14, 2 * width), 2 * width, training=True) == 7
    assert chosen((16, 16, 2 * width), 2 * width, training=True) == 4
    assert chosen((8, 8, 2 * width), 2 * width, dtype=np.float64) == 4
    assert chosen((7, 7, 2 * width), 2 * width) == 5  # in mosaics
    assert chosen((7, 7, 2 * width), 2 * width, n=2) == 4
    assert chosen((2, 2, 2 * width), 2 * width, n=128) == 5
    assert chosen((1, 9, 2 * width), 2 * width) == 4
    assert chosen((1, 5, 2 * width), 2 * width) == 0  # a row of few pixels fills no tile
    assert chosen((28, 28, 1), 2 * width) == 0
    assert chosen((14, 14, 2 * width), 2 * width + 1) == 0
    assert chosen((14, 14, 2 * width), 2 * width, 5) == 3
    assert chosen((14, 14, 2 * width), 2 * width, (3, 5)) == chosen((14, 14, 2 * width), 2 * width, 7) == 0
    for setting in ({"stride": 2}, {"dilation": 2}, {"groups": 2}):
        assert chosen((14, 14, 2 * width), 2 * width, **setting) == 0
    assert chosen((4, 4, 32 * width), 32 * width) == 0  # more weights than a small batch pays for
    assert chosen((4, 4, 2 * width), 2 * width, n=1) == 0  # too few tiles for the transform of the weights
    assert any(cpu.conv2d_algorithm(case.geometry, case.n, np.float32, True) for case in LAYERS)
    assert reference.conv2d_algorithm(conv_geometry((14, 14, 32), 64, 3), 32, np.float32, True) == 0
