"""Each tile of the products against the reference, whatever tile the rule would take."""

import numpy as np
import pytest

from fastcnn.engine.ops import conv_geometry, identity_pool, pool_geometry
from fastcnn.kernels import reference
from tests.gpu import unavailable

pytestmark = [pytest.mark.cuda, pytest.mark.small]

if unavailable():
    pytest.skip(f"no GPU and no simulator: {unavailable()}", allow_module_level=True)

from fastcnn.kernels.cuda import conv, tiles
from fastcnn.kernels.cuda.arrays import place
from fastcnn.kernels.cuda.driver import SIMULATED

# In the simulator a thread is one of Python's, and a block of the largest tile takes seconds.
SIZES = [tile for tile in tiles.TILES + tiles.TENSOR_TILES if not SIMULATED or tile.threads <= 128]
ROUNDING = {"tf32": 2e-3, "bf16": 2e-2, "fp16": 2e-3}  # of the factors, relative; the simulator multiplies exactly


def case(channels, filters):
    g = conv_geometry((5, 7, channels), filters, 3, padding="same")
    rng = np.random.default_rng(0)
    arrays = [
        rng.standard_normal(s).astype(np.float32) for s in ((2, 5, 7, channels), (3, 3, channels, filters), filters)
    ]
    return g, *arrays, rng.standard_normal((2, 5, 7, filters)).astype(np.float32)


def test_more_blocks_than_a_grid_has():
    x = place(np.zeros((1, 1, 1, 8), np.float32))
    g = conv_geometry((1, 1, 8), 2**23, 1)
    tile = tiles.TILES[0]
    with pytest.raises(ValueError, match=r"8,388,608 columns .* is too large for the GPU"):
        conv.product_input(x, x, g._replace(c=g.k, k=g.c), x, x, tile)
    most = 65_535
    assert conv._grid(tiles.Shape(1, tile.columns * most, 8, 1), tile, 1) == (1, most, 1)
    assert conv._grid(tiles.Shape(1, 1, 9, most), tile, 1) == (1, 1, most)
    with pytest.raises(ValueError, match="a layer 65,535 groups"):
        conv._grid(tiles.Shape(1, 1, 9, most + 1), tile, 1)


@pytest.mark.parametrize("channels", [3, 4], ids=["numbers", "quads"])
@pytest.mark.parametrize("tile", SIZES, ids=lambda tile: f"{tile.rows}x{tile.columns}{tile.cores}")
def test_products_of_a_tile(tile, channels):
    g, x, weight, bias, dy = case(channels, 5 if channels == 3 else 12)
    dz, dx, dw, pooled = (place(np.full_like(a, np.nan)) for a in (dy, x, weight, dy[:, :2, :3]))
    scratch = place(np.full(64 * dy.size, np.nan, np.float32))
    placed_x, placed_weight, placed_bias, placed_dy = map(place, (x, weight, bias, dy))
    conv.product(placed_x, placed_weight, placed_bias, g, (1, 0.0), None, dz, None, scratch, tile)
    expected = np.empty_like(dy)
    identity = identity_pool(g.p, g.q, g.k)
    relu = type("Activation", (), {"code": 1, "alpha": 0.0})
    reference.conv2d_block_forward(x, weight, bias, g, relu, identity, expected, np.empty(dy.shape), None)
    np.testing.assert_allclose(dz, expected, rtol=1e-4, atol=1e-4)

    pool = pool_geometry((5, 7, g.k), 2)
    argmax, places = place(np.full(pooled.shape, 77, np.uint8)), np.empty(pooled.shape)
    fused = conv.Pooling(4, 2, 2, pool.p, pool.q)
    conv.product(placed_x, placed_weight, placed_bias, g, (1, 0.0), fused, pooled, argmax, scratch, tile)
    expected = np.empty(pooled.shape, np.float32)
    reference.conv2d_block_forward(x, weight, bias, g, relu, pool, expected, places, None)
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-4)
    alive = expected > 0
    np.testing.assert_array_equal(np.asarray(argmax)[alive], places[alive])

    conv.product_input(placed_dy, placed_weight, g, dx, scratch, tile)
    expected = np.empty_like(x)
    reference.conv2d_backward_input(dy, weight, g, expected, None)
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-4)

    conv.product_weight(placed_x, placed_dy, g, dw, scratch, tile)
    expected = np.empty_like(weight)
    reference.conv2d_backward_weight(x, dy, g, expected, np.empty(0), None)
    np.testing.assert_allclose(dw, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize(
    "tile", tiles.TENSOR_TILES[-1:] if SIMULATED else tiles.TENSOR_TILES, ids=lambda t: f"{t.rows}x{t.columns}"
)
def test_precisions_of_tensor_cores(tile, precision):
    tile = tile._replace(cores=precision)
    g, x, weight, bias, dy = case(8, 12)
    dy /= len(dy)
    scratch = place(np.full(64 * dy.size, np.nan, np.float32))
    dz, dx, dw = (place(np.full_like(a, np.nan)) for a in (dy, x, weight))
    conv.product(*map(place, (x, weight, bias)), g, (0, 0.0), None, dz, None, scratch, tile)
    conv.product_input(place(dy), place(weight), g, dx, scratch, tile)
    conv.product_weight(place(x), place(dy), g, dw, scratch, tile)
    expected = np.empty_like(dy), np.empty_like(x), np.empty_like(weight)
    reference.conv2d_forward(x, weight, bias, g, expected[0], None)
    reference.conv2d_backward_input(dy, weight, g, expected[1], None)
    reference.conv2d_backward_weight(x, dy, g, expected[2], np.empty(0), None)
    for found, right in zip((dz, dx, dw), expected, strict=True):
        error = np.linalg.norm(np.asarray(found) - right) / np.linalg.norm(right)
        assert error < ROUNDING[precision]
        assert SIMULATED or error > 1e-7, "not rounded at all"


def test_float32_on_tensor_cores_is_float32():
    """Three products of parts leave out 2^-20 of a product at most: of thousands of terms, what float32 itself does."""
    rng = np.random.default_rng(0)
    n = 40 if SIMULATED else 2000
    x, weight = rng.standard_normal((40, n)).astype(np.float32), rng.standard_normal((n, 36)).astype(np.float32)
    from fastcnn.kernels.cuda import dense

    y, scratch = place(np.empty((40, 36), np.float32)), place(np.empty(40 * 36 * 600, np.float32))
    args = place(x), place(weight), np.empty(0), dense.geometry_of(weight.shape), (0, 0.0), None, y, None, scratch
    conv.product(*args, tiles.TENSOR_TILES[-1])
    exact = x.astype(float) @ weight
    error = np.abs(np.asarray(y) - exact).max() / np.abs(exact).max()
    assert error < 2e-6


def test_a_long_sum_is_cut_and_added_up():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((3, 900)).astype(np.float32), rng.standard_normal((900, 7)).astype(np.float32)
    from fastcnn.kernels.cuda import dense

    shape = tiles.Shape(3, 7, 900, 1)
    splits, each = tiles.choose_splits(shape, tiles.choose_tile(shape, np.dtype("f4"), False))
    assert splits > 1 and splits * each >= 900 > (splits - 1) * each
    scratch = place(np.full(dense.dense_forward_scratch(3, 900, 7, "f4", 1), np.nan, np.float32))
    y = place(np.empty((3, 7), np.float32))
    dense.dense_forward(place(x), place(weight), place(np.ones(7, np.float32)), (1, 0.0), y, scratch)
    np.testing.assert_allclose(y, np.maximum(x.astype(float) @ weight + 1, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (9, 32, 100352, 1), (100352, 32, 9, 1), (25088, 64, 288, 1), (3136, 128, 128, 1),
     (128, 3136, 128, 1), (128, 10, 128, 1), (784, 1, 9, 64)],
)  # fmt: skip
def test_the_rule_covers_every_shape(shape, dtype):
    shape = tiles.Shape(*shape)
    for quads in (False, True):
        tile = tiles.choose_tile(shape, np.dtype(dtype), quads)
        splits, each = tiles.choose_splits(shape, tile)
        assert tile in tiles.TILES + tiles.TENSOR_TILES and each % tile.depth == 0
        assert (splits - 1) * each < shape.depth <= splits * each
        assert splits == 1 or splits * tiles.blocks(shape, tile) * tile.threads <= tiles._BUSY
