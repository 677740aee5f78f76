"""Convolution and its gradients, alone and fused with bias, activation and max-pooling."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastcnn.engine.ops import IDENTITY, activation, conv_geometry, identity_pool, pool_geometry
from fastcnn.kernels import reference
from tests import naive
from tests.cases import CONV_CASES
from tests.kernels import harness
from tests.kernels.harness import assert_close, assert_same_bits, case_params, none, same_bits_on_threads

ACTIVATIONS = {
    "identity": IDENTITY,
    "relu": activation("relu"),
    "elu": activation("elu", 0.7),
    "tanh": activation("tanh"),
}


def arrays(case, dtype):
    return harness.conv_arrays(case.geometry, case.n, dtype, np.random.default_rng(len(case.name)))


# ------------------------------------------------------------------------------------------- what it computes


@pytest.mark.small
def test_textbook_convolution(backend, dtype):
    image = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]
    window = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    x, weight = np.array(image, dtype).reshape(1, 5, 5, 1), np.array(window, dtype).reshape(3, 3, 1, 1)
    y = harness.conv2d_forward(backend, x, weight, none(1, dtype), conv_geometry((5, 5, 1), 1, 3, 1, "valid"))
    assert_array_equal(y[0, :, :, 0], [[4, 3, 4], [2, 4, 3], [2, 3, 4]])


@pytest.mark.small
@pytest.mark.parametrize("case", [c for c in case_params(CONV_CASES) if c.values[0].small])
def test_reference_is_the_naive_loop(case):
    g = case.geometry
    x, weight, bias, dy = arrays(case, np.float64)
    y = harness.conv2d_forward(reference, x, weight, bias, g)
    assert_allclose(y, naive.conv2d_forward(x, weight, bias, g), rtol=1e-12, atol=1e-12)
    dx, dw, db = naive.conv2d_backward(x, weight, dy, g)
    assert_allclose(harness.conv2d_backward_input(reference, dy, weight, g), dx, rtol=1e-12, atol=1e-12)
    actual_dw, actual_db = harness.conv2d_backward_weight(reference, x, dy, g)
    assert_allclose(actual_dw, dw, rtol=1e-12, atol=1e-12)
    assert_allclose(actual_db, db, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", case_params(CONV_CASES))
def test_forward(backend, case, dtype):
    g = case.geometry
    x, weight, bias, _ = arrays(case, dtype)
    x64, weight64, bias64 = (a.astype(np.float64) for a in (x, weight, bias))
    y = same_bits_on_threads(lambda: harness.conv2d_forward(backend, x, weight, bias, g))
    expected = harness.conv2d_forward(reference, x64, weight64, bias64, g)
    magnitude = harness.conv2d_forward(reference, abs(x64), abs(weight64), abs(bias64), g)
    assert_close(y, expected, magnitude)
    without = harness.conv2d_forward(backend, x, weight, none(1, dtype), g)
    assert_close(without, expected - bias64, magnitude)


@pytest.mark.parametrize("case", case_params(CONV_CASES))
def test_backward(backend, case, dtype):
    g = case.geometry
    x, weight, _, dy = arrays(case, dtype)
    x64, weight64, dy64 = (a.astype(np.float64) for a in (x, weight, dy))
    dx = same_bits_on_threads(lambda: harness.conv2d_backward_input(backend, dy, weight, g))
    expected = harness.conv2d_backward_input(reference, dy64, weight64, g)
    assert_close(dx, expected, harness.conv2d_backward_input(reference, abs(dy64), abs(weight64), g))

    gradients = same_bits_on_threads(lambda: harness.conv2d_backward_weight(backend, x, dy, g))
    expected = harness.conv2d_backward_weight(reference, x64, dy64, g)
    magnitudes = harness.conv2d_backward_weight(reference, abs(x64), abs(dy64), g)
    for actual, right, magnitude in zip(gradients, expected, magnitudes, strict=True):
        assert_close(actual, right, magnitude)


# ------------------------------------------------------------------------------------------------------ fused

BLOCKS = {
    "plain": conv_geometry((7, 8, 3), 5, 3, padding="same"),
    "grouped, strided": conv_geometry((13, 12, 4), 6, 3, stride=2, padding=1, groups=2),
    "asymmetric, dilated": conv_geometry((6, 8, 2), 17, (2, 3), padding=((1, 2), (3, 0)), dilation=(1, 2)),
    "1x1": conv_geometry((6, 7, 5), 9, 1),
}
POOLS = {
    "none": None,
    "2x2": (2,),
    "overlapping 3x3 stride 2": (3, 2),
    "padded 3x3 stride 2": (3, 2, 1),
    "2x3 same": ((2, 3), None, "same"),
    "2x2 stride 1": (2, 1),
    "2x2 stride 3": (2, 3),
    "1x1 stride 2": (1, 2),
}
SMALL = [
    ("plain", "2x2"),
    ("plain", "none"),
    ("1x1", "overlapping 3x3 stride 2"),
    ("1x1", "padded 3x3 stride 2"),
]


def blocks():
    for block in BLOCKS:
        for pool in POOLS:
            marks = [pytest.mark.small] if (block, pool) in SMALL else []
            yield pytest.param(block, pool, id=f"{block}-{pool}", marks=marks)


def pool_after(g, pool):
    settings = POOLS[pool]
    return identity_pool(g.p, g.q, g.k) if settings is None else pool_geometry((g.p, g.q, g.k), *settings)


def unfused(backend, x, weight, bias, g, act, pool, dy=None):
    """y, argmax, and with dy also dx, dw, db, from kernels that each do one thing."""
    z = harness.conv2d_forward(backend, x, weight, none(1, x.dtype), g)
    z = harness.bias_forward(backend, z.reshape(-1, g.k), bias).reshape(z.shape)
    activated = harness.activation_forward(backend, z, act)
    y, argmax = harness.maxpool2d_forward(backend, activated, pool)
    if dy is None:
        return y, argmax
    dz = harness.maxpool2d_backward(backend, dy, argmax, pool)
    dz = harness.activation_backward(backend, activated, dz, act)
    dw, db = harness.conv2d_backward_weight(backend, x, dz, g)
    return y, argmax, harness.conv2d_backward_input(backend, dz, weight, g), dw, db


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("block, pool", list(blocks()))
def test_fused_block_is_the_unfused_chain(backend, block, pool, name):
    g, act = BLOCKS[block], ACTIVATIONS[name]
    pool = pool_after(g, pool)
    rng = np.random.default_rng(3)
    x, weight, bias, _ = harness.conv_arrays(g, 3, np.float64, rng)
    dy = rng.standard_normal((3, pool.p, pool.q, g.k))
    y, argmax, *gradients = unfused(backend, x, weight, bias, g, act, pool, dy)
    fused_y, fused_argmax = harness.conv2d_block_forward(backend, x, weight, bias, g, act, pool)
    assert_allclose(fused_y, y, rtol=1e-12, atol=1e-12)
    if fused_argmax.size:
        alive = y != 0 if name == "relu" else np.full(y.shape, True)  # among ReLU's zeros any winner will do
        assert_array_equal(fused_argmax[alive], argmax[alive])
    fused = harness.conv2d_block_backward(backend, x, weight, fused_y, fused_argmax, dy, g, act, pool)
    for actual, expected in zip(fused, gradients, strict=True):
        assert_allclose(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("block, pool", list(blocks()))
def test_fused_block_is_the_reference(backend, block, pool, name, dtype):
    check_block(backend, BLOCKS[block], pool_after(BLOCKS[block], pool), 3, ACTIVATIONS[name], dtype)


@pytest.mark.parametrize("case", case_params(c for c in CONV_CASES if not c.small or c.n == 0))
def test_fused_layers_of_networks(backend, case, dtype):
    check_block(backend, case.geometry, case.pool, case.n, ACTIVATIONS["relu"], dtype)


def check_block(backend, g, pool, n, act, dtype):
    rng = np.random.default_rng(5)
    x, weight, bias, _ = harness.conv_arrays(g, n, dtype, rng)
    dy = rng.standard_normal((n, pool.p, pool.q, g.k)).astype(dtype)
    x64, weight64, bias64, dy64 = (a.astype(np.float64) for a in (x, weight, bias, dy))
    y, argmax = same_bits_on_threads(lambda: harness.conv2d_block_forward(backend, x, weight, bias, g, act, pool))
    expected, _ = harness.conv2d_block_forward(reference, x64, weight64, bias64, g, act, pool)
    magnitude, _ = harness.conv2d_block_forward(reference, abs(x64), abs(weight64), abs(bias64), g, IDENTITY, pool)
    assert_close(y, expected, magnitude)
    alone, _ = harness.conv2d_block_forward(backend, x, weight, bias, g, act, pool, want_argmax=False)
    assert_same_bits(alone, y)

    # Backward starts from this backend's own y and argmax: rounding may choose another winner.
    gradients = same_bits_on_threads(
        lambda: harness.conv2d_block_backward(backend, x, weight, y, argmax, dy, g, act, pool)
    )
    y64 = y.astype(np.float64)
    expected = harness.conv2d_block_backward(reference, x64, weight64, y64, argmax, dy64, g, act, pool)
    magnitudes = harness.conv2d_block_backward(
        reference, abs(x64), abs(weight64), y64, argmax, abs(dy64), g, IDENTITY, pool
    )
    for actual, right, size in zip(gradients, expected, magnitudes, strict=True):
        assert_close(actual, right, size)


# ------------------------------------------------------------------------------------------- what it promises


@pytest.mark.small
def test_unwanted_outputs_change_nothing_else(backend, dtype):
    g = BLOCKS["plain"]
    pool = pool_after(g, "2x2")
    x, weight, bias, dz = harness.conv_arrays(g, 2, dtype, np.random.default_rng(0))
    dw, db = harness.conv2d_backward_weight(backend, x, dz, g)
    assert_same_bits(harness.conv2d_backward_weight(backend, x, dz, g, wants=(True, False))[0], dw)
    assert_same_bits(harness.conv2d_backward_weight(backend, x, dz, g, wants=(False, True))[1], db)

    act = ACTIVATIONS["relu"]
    y, argmax = harness.conv2d_block_forward(backend, x, weight, bias, g, act, pool)
    args = (backend, x, weight, y, argmax, np.ones_like(y), g, act, pool)
    every = harness.conv2d_block_backward(*args)
    for wants in ((False, True, True), (True, False, True), (True, True, False), (True, False, False)):
        some = harness.conv2d_block_backward(*args, wants=wants)
        for wanted, actual, expected in zip(wants, some, every, strict=True):
            if wanted:
                assert_same_bits(actual, expected)


@pytest.mark.small
def test_bias_may_be_absent_from_a_block(backend, dtype):
    g, act = BLOCKS["plain"], ACTIVATIONS["elu"]
    x, weight, bias, _ = harness.conv_arrays(g, 2, dtype, np.random.default_rng(0))
    args = (g, act, pool_after(g, "2x2"))
    without = harness.conv2d_block_forward(backend, x, weight, none(1, dtype), *args)
    with_zero = harness.conv2d_block_forward(backend, x, weight, np.zeros_like(bias), *args)
    for a, b in zip(without, with_zero, strict=True):
        assert_array_equal(a, b)


@pytest.mark.small
@pytest.mark.parametrize("which", ["x", "weight", "bias", "dy"])
def test_unusual_inputs_give_the_same_bits(backend, which, dtype):
    g, act = BLOCKS["plain"], ACTIVATIONS["tanh"]
    pool = pool_after(g, "2x2")
    names = ("x", "weight", "bias", "dy")
    given = dict(zip(names, harness.conv_arrays(g, 2, dtype, np.random.default_rng(1)), strict=True))
    given["dy"] = np.ascontiguousarray(given["dy"][:, : pool.p, : pool.q])

    def outputs(x, weight, bias, dy):
        y, argmax = harness.conv2d_block_forward(backend, x, weight, bias, g, act, pool)
        alone = harness.conv2d_forward(backend, x, weight, bias, g)
        return (
            y,
            argmax,
            alone,
            *harness.conv2d_block_backward(backend, x, weight, y, argmax, dy, g, act, pool),
        )

    expected = outputs(**given)
    for twin in harness.unusual_twins(given[which]):
        for actual, right in zip(outputs(**{**given, which: twin}), expected, strict=True):
            assert_same_bits(actual, right)


@pytest.mark.small
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("pool", ["none", "2x2", "padded 3x3 stride 2"])
def test_nan_in_the_image_is_seen_where_its_windows_are(backend, pool, name, dtype):
    g = BLOCKS["plain"]
    pool = pool_after(g, pool)
    x, weight, bias, _ = harness.conv_arrays(g, 3, dtype, np.random.default_rng(2))
    clean, _ = harness.conv2d_block_forward(backend, x, weight, bias, g, ACTIVATIONS[name], pool)
    x[1, 3, 0, 1] = np.nan
    y, argmax = harness.conv2d_block_forward(backend, x, weight, bias, g, ACTIVATIONS[name], pool)
    expected, _ = harness.conv2d_block_forward(reference, x, weight, bias, g, ACTIVATIONS[name], pool)
    touched = np.isnan(expected)
    assert touched.any() and not touched.all()
    assert_array_equal(np.isnan(y), touched)
    assert_same_bits(y[~touched], clean[~touched])
    if argmax.size:
        z = harness.conv2d_forward(reference, x, weight, bias, g)
        assert_array_equal(np.isnan(naive.at_argmax(z, argmax, pool)), touched)


@pytest.mark.small
def test_nan_in_the_gradient_is_seen(backend, dtype):
    g = BLOCKS["asymmetric, dilated"]
    x, weight, _, dy = harness.conv_arrays(g, 2, dtype, np.random.default_rng(2))
    dy[0, 1, 2, 3] = np.nan
    assert_array_equal(
        np.isnan(harness.conv2d_backward_input(backend, dy, weight, g)),
        np.isnan(harness.conv2d_backward_input(reference, dy, weight, g)),
    )
    dw, db = harness.conv2d_backward_weight(backend, x, dy, g)
    assert np.isnan(dw[..., 3]).any() and np.isnan(db[3])
    assert not np.isnan(dw[..., :3]).any() and not np.isnan(db[4:]).any()


@pytest.mark.small
def test_no_images_give_gradients_of_zero(backend, dtype):
    g = BLOCKS["plain"]
    x, _, _, dy = harness.conv_arrays(g, 0, dtype, np.random.default_rng(0))
    dw, db = harness.conv2d_backward_weight(backend, x, dy, g)
    assert not dw.any() and not db.any()


# -------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("case", case_params(c for c in CONV_CASES if c.small and c.n))
def test_gradients_by_central_differences(backend, case):
    g, rng = case.geometry, np.random.default_rng(9)
    x, weight, bias, dy = harness.conv_arrays(g, case.n, np.float64, rng)

    def loss(x=x, weight=weight, bias=bias):
        return float((dy * harness.conv2d_forward(backend, x, weight, bias, g)).sum())

    dx = harness.conv2d_backward_input(backend, dy, weight, g)
    dw, db = harness.conv2d_backward_weight(backend, x, dy, g)
    harness.directional_gradient_check(lambda v: loss(x=v), x, dx, rng, directions=2)
    harness.directional_gradient_check(lambda v: loss(weight=v), weight, dw, rng, directions=2)
    harness.directional_gradient_check(lambda v: loss(bias=v), bias, db, rng, directions=1)


@pytest.mark.small
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("pool", ["none", "2x2", "overlapping 3x3 stride 2", "padded 3x3 stride 2"])
def test_block_gradients_by_central_differences(backend, pool, name):
    g, act, rng = conv_geometry((5, 5, 2), 3, 3, padding=1), ACTIVATIONS[name], np.random.default_rng(11)
    pool = pool_after(g, pool)
    x, weight, bias, _ = harness.conv_arrays(g, 2, np.float64, rng)
    dy = rng.standard_normal((2, pool.p, pool.q, g.k))

    def loss(x=x, weight=weight, bias=bias):
        return float((dy * harness.conv2d_block_forward(backend, x, weight, bias, g, act, pool)[0]).sum())

    y, argmax = harness.conv2d_block_forward(backend, x, weight, bias, g, act, pool)
    dx, dw, db = harness.conv2d_block_backward(backend, x, weight, y, argmax, dy, g, act, pool)
    harness.directional_gradient_check(lambda v: loss(x=v), x, dx, rng)
    harness.directional_gradient_check(lambda v: loss(weight=v), weight, dw, rng)
    harness.directional_gradient_check(lambda v: loss(bias=v), bias, db, rng)


@pytest.mark.small
@pytest.mark.parametrize("pool", ["none", "2x2", "padded 3x3 stride 2"])
def test_every_element_of_the_gradients_of_a_tiny_block(backend, pool):
    g, act, rng = (
        conv_geometry((3, 4, 1), 2, 2, padding="same"),
        ACTIVATIONS["elu"],
        np.random.default_rng(13),
    )
    pool = pool_after(g, pool)
    x, weight, bias, _ = harness.conv_arrays(g, 1, np.float64, rng)
    dy = rng.standard_normal((1, pool.p, pool.q, g.k))

    def loss(x=x, weight=weight, bias=bias):
        return float((dy * harness.conv2d_block_forward(backend, x, weight, bias, g, act, pool)[0]).sum())

    y, argmax = harness.conv2d_block_forward(backend, x, weight, bias, g, act, pool)
    dx, dw, db = harness.conv2d_block_backward(backend, x, weight, y, argmax, dy, g, act, pool)
    harness.elementwise_gradient_check(lambda v: loss(x=v), x, dx)
    harness.elementwise_gradient_check(lambda v: loss(weight=v), weight, dw)
    harness.elementwise_gradient_check(lambda v: loss(bias=v), bias, db)


@pytest.mark.small
@pytest.mark.parametrize(
    ("n", "side", "channels", "chunks"),
    [
        (128, 14, 32, 16),  # no more than 16
        (32, 8, 256, 4),  # 2,048 pixels: few chunks, of two products of four images
        (128, 8, 256, 8),  # 1,024 pixels in each
        (3, 8, 64, 1),  # one product
        (0, 8, 64, 1),
    ],
)
def test_chunks_of_weight_gradients(n, side, channels, chunks):
    from fastcnn.kernels.cpu import conv

    assert conv._chunks(n, conv_geometry((side, side, channels), channels, 3, 1, "same"), 4) == chunks
