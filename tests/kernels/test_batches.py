"""The compiled batch builder against plain NumPy."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import fastcnn
from fastcnn.kernels.cpu import _batches

pytestmark = pytest.mark.small

SOURCES = [np.uint8, np.float32, np.float64]
REALS = [np.float32, np.float64]


def test_where_it_is_not_built_it_is_said_what_to_do(tmp_path):
    """As in the folder of the sources, which Python finds before the installed package."""
    left_out = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(Path(fastcnn.__file__).parent, tmp_path / "fastcnn", ignore=left_out)
    code = "import fastcnn; fastcnn.CNNClassifier"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: No module named 'fastcnn.kernels.cpu._batches': this is fastcnn's source" in done.stderr
    assert "pip install -e ." in done.stderr


def naive_scale(images, mean, inv_std, dtype):
    """Images (m, H, W, C) of any dtype, scaled in double."""
    return ((images.astype(np.float64) - mean) * inv_std).astype(dtype)


def naive_augment(image, flip, shift, erase):
    """One image (H, W, C), pixel by pixel."""
    height, width, _ = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_y, from_x = y - shift[0], x - shift[1]
            if flip:
                from_x = width - 1 - from_x
            top, left, rows, columns = erase
            erased = top <= y < top + rows and left <= x < left + columns
            if 0 <= from_y < height and 0 <= from_x < width and not erased:
                out[y, x] = image[from_y, from_x]
    return out


def random_images(rng, shape, dtype):
    values = rng.random(shape) * 255
    return values.astype(dtype)


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, height, width = draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    channels = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 64, 70]))
    images = random_images(rng, (n, height, width, channels), draw(st.sampled_from(SOURCES)))
    m = draw(st.integers(0, 6))
    index = rng.integers(0, n, m)
    mean, inv_std = rng.random(channels) * 100, rng.random(channels) + 0.1
    return rng, images, index, mean, inv_std, draw(st.sampled_from(REALS))


@given(problems())
@settings(deadline=None, max_examples=100)
def test_build_batch_is_the_formula(problem):
    _, images, index, mean, inv_std, dtype = problem
    rows = images.reshape(len(images), -1)
    out = np.full((len(index), rows.shape[1]), np.nan, dtype)
    _batches.build_batch(rows, index, mean, inv_std, out)
    assert_array_equal(out.reshape(-1, *images.shape[1:]), naive_scale(images[index], mean, inv_std, dtype))


@given(problems(), st.integers(0, 12))
@settings(deadline=None, max_examples=300)
def test_augment_batch_is_flip_shift_erase_scale(problem, most):
    rng, images, index, mean, inv_std, dtype = problem
    m, (height, width) = len(index), images.shape[1:3]
    flip = rng.integers(0, 2, m).astype(np.uint8)
    shift = rng.integers(-most, most + 1, (m, 2))
    erase = rng.integers(-most, most + 1, (m, 4))
    rows = images.reshape(len(images), -1)
    out = np.full((m, rows.shape[1]), np.nan, dtype)
    _batches.augment_batch(rows, height, width, index, mean, inv_std, flip, shift, erase, out)
    changed = np.zeros((m, *images.shape[1:]), images.dtype)
    for i in range(m):
        changed[i] = naive_augment(images[index[i]], flip[i], shift[i], erase[i])
    assert_array_equal(out.reshape(changed.shape), naive_scale(changed, mean, inv_std, dtype))


def test_augment_survives_the_largest_integers():
    big = np.iinfo(np.int64)
    images = np.ones((1, 4), np.uint8)
    one = np.ones(1)
    out = np.empty((1, 4), np.float32)
    for shift in ([big.max, big.min], [big.min, big.max]):
        for erase in (
            [big.min, big.min, big.max, big.max],
            [big.max, big.max, big.max, big.max],
            [0, 0, 0, 0],
        ):
            _batches.augment_batch(
                images,
                2,
                2,
                np.zeros(1, np.int64),
                0 * one,
                one,
                np.zeros(1, np.uint8),
                np.array([shift]),
                np.array([erase]),
                out,
            )
            assert_array_equal(out, 0)


@pytest.mark.parametrize(
    ("start", "size", "erased"),
    [(0, 2, [0, 1]), (-1, 2, [0]), (-7, 8, [0]), (-7, 5, []), (3, 9, [3, 4]), (5, 1, []), (1, -1, [])],
)
def test_an_erased_rectangle_is_cut_at_the_edges(start, size, erased):
    images, out = np.ones((1, 5), np.uint8), np.empty((1, 5))
    one, zero = np.ones(1), np.zeros(1)
    for height, width, erase in ((5, 1, [start, 0, size, 1]), (1, 5, [0, start, 1, size])):
        _batches.augment_batch(
            images,
            height,
            width,
            np.zeros(1, np.int64),
            zero,
            one,
            np.zeros(1, np.uint8),
            np.zeros((1, 2), np.int64),
            np.array([erase]),
            out,
        )
        assert_array_equal(np.flatnonzero(out == 0), erased)


@pytest.mark.parametrize("dtype", SOURCES)
def test_rows_may_be_apart_reversed_or_read_only(dtype, tmp_path):
    rng = np.random.default_rng(0)
    images = random_images(rng, (10, 12), dtype)
    images.tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", dtype=dtype, mode="r", shape=images.shape)
    index = np.array([3, 0, 4, 4])
    index.setflags(write=False)
    for view in (images[::2], images[::-1][:5], images[:, :6], mapped, mapped[1::2, 6:]):
        out = np.empty((4, view.shape[1]), np.float32)
        _batches.build_batch(view, index, np.array([1.0, 2.0]), np.array([0.5, 2.0]), out)
        expected = naive_scale(view[index].reshape(4, -1, 2), [1, 2], [0.5, 2], np.float32)
        assert_array_equal(out, expected.reshape(out.shape))


@pytest.mark.parametrize("bad", [-1, 3, 2**40, -(2**63)])
def test_an_index_outside_is_named_and_nothing_is_written(bad):
    images, out = np.zeros((3, 4), np.uint8), np.full((2, 4), 7, np.float32)
    index, one = np.array([2, bad]), np.ones(1)
    with pytest.raises(IndexError, match=str(bad)):
        _batches.build_batch(images, index, one, one, out)
    with pytest.raises(IndexError, match=str(bad)):
        _batches.augment_batch(
            images,
            2,
            2,
            index,
            one,
            one,
            np.zeros(2, np.uint8),
            np.zeros((2, 2), np.int64),
            np.zeros((2, 4), np.int64),
            out,
        )
    with pytest.raises(IndexError, match=str(bad)):
        _batches.channel_mean_std(images, 1, index)
    assert_array_equal(out, 7)


def test_empty_batches_and_empty_sets():
    one, nothing = np.ones(1), np.zeros(0, np.int64)
    for images in (np.zeros((0, 4), np.uint8), np.zeros((3, 4), np.uint8)):
        _batches.build_batch(images, nothing, one, one, np.empty((0, 4), np.float32))
    with pytest.raises(IndexError, match="0 images"):
        _batches.build_batch(np.zeros((0, 4), np.uint8), np.zeros(1, np.int64), one, one, np.empty((1, 4)))
    with pytest.raises(ValueError, match="not defined"):
        _batches.channel_mean_std(np.zeros((0, 4)), 1)
    with pytest.raises(ValueError, match="not defined"):
        _batches.channel_mean_std(np.zeros((3, 4)), 1, nothing)


def test_sizes_that_do_not_fit():
    images, index, one = np.zeros((3, 4), np.uint8), np.zeros(2, np.int64), np.ones(1)
    out = np.empty((2, 4), np.float32)
    for wrong in [
        (images, index, np.ones(3), np.ones(3), out),  # 4 values are not whole pixels of 3 channels
        (images, index, np.ones(0), np.ones(0), out),
        (images, index, one, np.ones(2), out),
        (images, index, one, one, out[:1]),
        (images, index, one, one, np.empty((2, 5), np.float32)),
        (np.asfortranarray(images), index, one, one, out),
        (images, index, one, one, np.empty((2, 8), np.float32)[:, ::2]),
        (images.astype(np.int16), index, one, one, out),
    ]:
        with pytest.raises((ValueError, TypeError)):
            _batches.build_batch(*wrong)
    zeros = np.zeros((2, 4), np.int64)
    good = [images, 2, 2, index, one, one, np.zeros(2, np.uint8), zeros[:, :2].copy(), zeros, out]
    _batches.augment_batch(*good)
    for place, wrong in [(1, 3), (1, -2), (6, good[6][:1]), (7, zeros), (8, zeros[:1]), (9, out[:1])]:
        with pytest.raises(ValueError):
            _batches.augment_batch(*good[:place], wrong, *good[place + 1 :])


@given(problems())
@settings(deadline=None, max_examples=60)
def test_channel_mean_std_is_numpys(problem):
    _, images, index, mean, _, _ = problem
    channels = len(mean)
    rows = images.reshape(len(images), -1)
    for chosen in (None, index):
        if chosen is not None and len(chosen) == 0:
            continue
        part = images if chosen is None else images[chosen]
        got = _batches.channel_mean_std(rows, channels, chosen)
        assert_allclose(got[0], part.astype(np.float64).mean(axis=(0, 1, 2)), rtol=1e-12)
        assert_allclose(got[1], part.astype(np.float64).std(axis=(0, 1, 2)), rtol=1e-9, atol=1e-12)


def test_moments_of_bytes_are_exact_past_what_32_bits_hold():
    images = np.full((3000, 28 * 28), 255, np.uint8)
    assert _batches.channel_mean_std(images, 1) == ([255.0], [0.0])


def test_what_is_alike_everywhere_has_no_deviation():
    images = np.tile([0.1, 1 / 3, -1e9 / 7], (50, 333))  # whose sums are rounded
    mean, std = _batches.channel_mean_std(images, 3)
    assert_array_equal(mean, images[0, :3])
    assert_array_equal(std, 0)


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_moments_do_not_cancel(offset):
    values = np.random.default_rng(0).standard_normal((200, 60)) + offset
    values[0] = 0.0 if offset == 0 else offset - 5  # the first row tells nothing about the others
    mean, std = _batches.channel_mean_std(values, 3)
    pixels = values.reshape(-1, 3)
    assert_allclose(mean, pixels.mean(axis=0), rtol=1e-13, atol=1e-13)
    assert_allclose(std, (pixels - pixels.mean(axis=0)).std(axis=0), rtol=1e-6)


def test_importing_it_does_not_import_numba():
    code = "import sys, fastcnn.kernels.cpu._batches as b; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
