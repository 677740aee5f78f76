"""Mini-batches of every kind of set, and the epoch's loader."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fastcnn.training import augment as augmentation
from fastcnn.training import batches, builders
from fastcnn.training.augment import (
    MixUp,
    RandomAffine,
    RandomBrightness,
    RandomContrast,
    RandomErasing,
    RandomHorizontalFlip,
    RandomShift,
)
from fastcnn.training.batches import BatchLoader
from fastcnn.training.builders import BatchBuilder

pytestmark = pytest.mark.small

AUGMENT = [RandomHorizontalFlip(), RandomShift(2), RandomErasing()]


def images_of(dtype, shape=(12, 5, 4, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def built(builder, index, rng_key=None):
    out = np.full((len(index), *builder.image_shape), np.nan, builder.dtype)
    builder.build(index, out, rng_key)
    return out


def build_threads():
    return [t for t in threading.enumerate() if t.name.startswith("fastcnn-batches")]


@pytest.fixture(params=["threaded", "in place"])
def threaded(request, monkeypatch):
    monkeypatch.setattr(batches, "_THREAD_PAYS", 0 if request.param == "threaded" else 2**62)
    return request.param == "threaded"


@pytest.mark.parametrize("dtype", ["u1", "?", "i1", "i2", "u4", "i8", "f2", "f4", "f8", ">f4", ">i2", "g"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("out_dtype", [np.float32, np.float64])
def test_every_dtype_and_form_gives_the_formula(dtype, flat, out_dtype):
    images = images_of(dtype)
    mean, inv_std = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.25, 2.0])
    index = [3, 0, 11, 3]
    builder = BatchBuilder(images.reshape(12, -1) if flat else images, (5, 4, 3), mean, inv_std, dtype=out_dtype)
    expected = ((images[index].astype(np.float64) - mean) * inv_std).astype(out_dtype)
    assert_array_equal(built(builder, index), expected)


def test_layouts_that_are_not_contiguous(tmp_path):
    images = images_of(np.float32, (12, 6, 4))
    images.tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", dtype=np.float32, mode="r", shape=images.shape)
    padded = np.zeros((12, 4 * 24 + 1), np.uint8)  # float32 at addresses that are no multiple of 4
    padded[:, :96] = images.reshape(12, 24).view(np.uint8)
    unaligned = np.ndarray((12, 6, 4), np.float32, padded.data, strides=(97, 16, 4))
    for view in (
        images[::3],
        images[::-1],
        images[:, ::2],
        images[:, :, ::-1],
        np.asfortranarray(images),
        mapped,
        mapped[::2, 1:],
        np.broadcast_to(images[0], images.shape),
        unaligned,
    ):
        builder = BatchBuilder(view, (*view.shape[1:], 1), 2.0, 0.5)
        index = np.arange(len(view))[::-1]
        assert_array_equal(built(builder, index)[..., 0], (view[index] - np.float32(2)) * np.float32(0.5))


def test_a_contiguous_set_is_not_copied(tmp_path):
    images_of(np.uint8).tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", dtype=np.uint8, mode="r", shape=(12, 5, 4, 3))
    for images in (images_of(np.uint8), images_of(np.float64), images_of(np.float32)[::2], mapped):
        builder = BatchBuilder(images, (5, 4, 3), 0, 1)
        assert builder._in_place and np.shares_memory(builder._images, images)


def test_index_and_out_are_checked():
    for images in (images_of(np.uint8), images_of(np.int64)):  # read in place, and gathered first
        builder = BatchBuilder(images, (5, 4, 3), 0, 1)
        for bad in (-1, 12):
            with pytest.raises(IndexError, match=str(bad)):
                built(builder, [0, bad])
        assert built(builder, []).shape == (0, 5, 4, 3)
        for index in ([0.5], [[1]], [True]):
            with pytest.raises(ValueError, match="index"):
                built(builder, index)
        for out in (
            np.empty((2, 60), np.float32),
            np.empty((2, 5, 4, 3)),
            np.empty((2, 5, 4, 6), "f4")[..., ::2],
        ):
            with pytest.raises(ValueError, match="out must be"):
                builder.build([0, 1], out)
    empty = BatchBuilder(np.zeros((0, 5, 4, 3), np.uint8), (5, 4, 3), 0, 1)
    assert built(empty, []).shape == (0, 5, 4, 3)
    with pytest.raises(IndexError, match="0 images"):
        built(empty, [0])


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_shape": (5, 4)},
        {"image_shape": (5, 4, 1)},
        {"mean": [1, 2]},
        {"inv_std": np.ones((3, 1))},
        {"dtype": np.float16},
        {"augment": ["flip"]},
        {"images": np.zeros((2, 5, 4, 3), complex)},
        {"images": np.zeros((2, 5, 4, 3), object)},
        {"images": np.zeros((2, 20), np.uint8)},
    ],
)
def test_a_builder_refuses_what_does_not_fit(arguments):
    good = {"images": images_of(np.uint8), "image_shape": (5, 4, 3), "mean": 0, "inv_std": 1}
    with pytest.raises(ValueError):
        BatchBuilder(**{**good, **arguments})


def test_augmentation_is_a_function_of_the_key():
    images = images_of(np.uint8, (64, 9, 8, 3))
    builder = BatchBuilder(images, (9, 8, 3), 0, 1, augment=AUGMENT)
    index = np.arange(64)
    first = built(builder, index, (1, 2, 3))
    assert_array_equal(built(builder, index, (1, 2, 3)), first)
    assert_array_equal(built(builder, index), images)  # no key: as it is
    for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (1, 3, 2)):
        assert not np.array_equal(built(builder, index, key), first)
    gathered = BatchBuilder(images.astype(np.int32), (9, 8, 3), 0, 1, augment=AUGMENT[::-1])
    assert_array_equal(built(gathered, index, (1, 2, 3)), first)


def test_an_unscaled_shift_fills_with_the_scaled_zero():
    builder = BatchBuilder(np.full((1, 4, 4), 9, np.uint8), (4, 4, 1), 5.0, 2.0, augment=RandomShift((4, 4)))
    seen = np.unique([built(builder, [0], (0, 0, number)) for number in range(20)])
    assert_array_equal(seen, [-10.0, 8.0])


@given(st.integers(0, 30), st.integers(1, 12), st.booleans(), st.integers(0, 2**64), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("pays", [0, 2**62])
def test_an_epoch_holds_each_image_once(pays, n, batch_size, shuffle, seed, epoch):
    images = np.arange(n * 4).reshape(n, 2, 2).astype(np.float32)
    y, weight = np.arange(n) * 10, np.arange(n) / 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_THREAD_PAYS", pays)
        loader = BatchLoader(BatchBuilder(images, (2, 2, 1), 0, 1), y, weight, batch_size, shuffle, seed)
        seen = []
        for batch in loader.epoch(epoch):
            assert_array_equal(batch.x[..., 0], images[batch.rows])
            assert_array_equal(batch.y, y[batch.rows])
            assert_array_equal(batch.sample_weight, weight[batch.rows])
            seen.append(batch.rows.copy())
    assert len(seen) == len(loader)
    assert [len(rows) for rows in seen[:-1]] == [batch_size] * (len(seen) - 1)
    rows = np.concatenate([np.zeros(0, np.int64), *seen])
    assert_array_equal(rows, loader.order(epoch))
    assert_array_equal(np.sort(rows), np.arange(n))
    if not shuffle:
        assert_array_equal(rows, np.arange(n))


def test_epochs_repeat_and_differ(threaded):
    images = images_of(np.uint8, (50, 6, 6, 1))

    def run(seed, epoch):
        builder = BatchBuilder(images, (6, 6, 1), 0, 1, augment=AUGMENT)
        loader = BatchLoader(builder, np.arange(50), None, 16, True, seed)
        return np.concatenate([batch.x.copy() for batch in loader.epoch(epoch)])

    assert_array_equal(run(3, 1), run(3, 1))
    assert not np.array_equal(run(3, 1), run(3, 2))
    assert not np.array_equal(run(3, 1), run(4, 1))


def test_rows_choose_a_part():
    rows = np.array([7, 2, 5])
    loader = BatchLoader(BatchBuilder(images_of(np.uint8), (5, 4, 3), 0, 1), np.arange(12), None, 2, True, rows=rows)
    for epoch in range(3):
        order = np.concatenate([batch.y for batch in loader.epoch(epoch)])
        assert_array_equal(np.sort(order), [2, 5, 7])


def test_lengths_and_batch_size_are_checked():
    builder = BatchBuilder(images_of(np.uint8), (5, 4, 3), 0, 1)
    with pytest.raises(ValueError, match="y has 11"):
        BatchLoader(builder, np.zeros(11))
    with pytest.raises(ValueError, match="sample_weight has 3"):
        BatchLoader(builder, np.zeros(12), np.ones(3))
    with pytest.raises(ValueError, match="batch_size"):
        BatchLoader(builder, np.zeros(12), batch_size=0)


def test_the_batch_size_may_be_a_small_integer_of_numpy():
    """Whose multiples would wrap."""
    builder = BatchBuilder(np.zeros((150, 2, 2), np.uint8), (2, 2, 1), 0, 1)
    loader = BatchLoader(builder, np.arange(150), None, np.int8(60))
    assert [len(batch.x) for batch in loader.epoch(0)] == [60, 60, 30]


def test_the_next_batch_does_not_touch_the_current_one(monkeypatch):
    monkeypatch.setattr(batches, "_THREAD_PAYS", 0)
    images = images_of(np.uint8)
    loader = BatchLoader(BatchBuilder(images, (5, 4, 3), 0, 1), np.arange(12), None, 1)
    built_numbers = []
    done = threading.Condition()
    build = loader.builder.build

    def noted(index, out, rng_key=None):
        build(index, out, rng_key)
        with done:
            built_numbers.append(rng_key[2])
            done.notify_all()

    monkeypatch.setattr(loader.builder, "build", noted)
    for number, batch in enumerate(loader.epoch(0)):
        following = min(number + 1, 11)
        with done:
            assert done.wait_for(lambda n=following: n in built_numbers, timeout=30)
        assert_array_equal(batch.x, images[batch.rows])


@pytest.mark.parametrize("how", ["break", "close", "error", "interrupt"])
def test_leaving_early_joins_the_thread(how, threaded):
    loader = BatchLoader(BatchBuilder(images_of(np.uint8), (5, 4, 3), 0, 1), np.arange(12), None, 2)
    if how == "break":
        for _ in loader.epoch(0):
            break
    elif how == "close":
        epoch = loader.epoch(0)
        next(epoch)
        assert bool(build_threads()) == threaded
        epoch.close()
    else:
        error = KeyboardInterrupt if how == "interrupt" else RuntimeError
        with pytest.raises(error):
            for _ in loader.epoch(0):
                raise error
    assert not build_threads()
    assert len(list(loader.epoch(0))) == 6  # and it goes on working


def test_a_failing_build_surfaces_where_its_batch_is_asked_for(threaded):
    loader = BatchLoader(
        BatchBuilder(images_of(np.uint8), (5, 4, 3), 0, 1),
        np.arange(12),
        None,
        2,
        False,
        rows=np.array([0, 1, 2, 3, 99, 5]),
    )
    seen = []
    with pytest.raises(IndexError, match="99"):
        for batch in loader.epoch(0):
            seen.append(batch.y)  # noqa: PERF401
    assert len(seen) == 2
    assert not build_threads()


# ------------------------------------------------------------------------------------------- warped, lit, mixed


def warped(images, monkeypatch, augment=(), **values):
    """`images` with the drawn numbers replaced by `values`."""
    original = augmentation.draw

    def fixed(*args):
        draws = original(*args)
        return draws._replace(**{name: np.asarray(value, getattr(draws, name).dtype) for name, value in values.items()})

    monkeypatch.setattr(builders, "draw", fixed)
    builder = BatchBuilder(images, images.shape[1:], 0.0, 1.0, [RandomAffine(), *augment], dtype=np.float64)
    return built(builder, np.arange(len(images)), (0, 0, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_quarter_turns_are_exact(dtype, monkeypatch):
    images = images_of(dtype, (3, 5, 5, 2))
    turns = [np.rint([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in np.pi / 2 * np.arange(3)]
    out = warped(images, monkeypatch, warp=turns)
    assert_array_equal(out, [np.rot90(image, k) for k, image in enumerate(images)])


def test_a_warp_that_changes_nothing_is_the_plain_augmentation(monkeypatch):
    images = images_of(np.uint8)
    plain = BatchBuilder(images, (5, 4, 3), [1, 2, 3], [0.5, 0.3, 0.1], AUGMENT)
    still = BatchBuilder(images, (5, 4, 3), [1, 2, 3], [0.5, 0.3, 0.1], [*AUGMENT, RandomAffine(0, (1, 1))])
    original = augmentation.draw
    monkeypatch.setattr(builders, "draw", lambda _, *args: original(plain.augment, *args))
    index = [3, 0, 11, 3, 5, 7]
    for batch in range(5):
        key = (1, 2, batch)
        np.testing.assert_allclose(built(still, index, key), built(plain, index, key), rtol=1e-6, atol=1e-6)


def test_warp_is_bilinear_and_zero_outside(monkeypatch):
    images = images_of(np.float64, (1, 6, 7, 2))
    warp = np.array([[[0.9, 0.3], [-0.2, 1.2]]])
    out = warped(images, monkeypatch, warp=warp, shift=[[1, -2]], erase=[[0, 0, 2, 1]])
    back, middle = np.linalg.inv(warp[0]), np.array([2.5, 3.0])
    padded = np.zeros((30, 30, 2))
    padded[10:16, 10:17] = images[0]
    for y, x in np.ndindex(6, 7):
        row, column = back @ (np.array([y, x]) - middle) + middle - [1, -2] + 10
        top, left = int(np.floor(row)), int(np.floor(column))
        a, b = row - top, column - left
        corners = padded[top : top + 2, left : left + 2]
        expected = (1 - a) * ((1 - b) * corners[0, 0] + b * corners[0, 1])
        expected += a * ((1 - b) * corners[1, 0] + b * corners[1, 1])
        np.testing.assert_allclose(out[0, y, x], 0 if y < 2 and x < 1 else expected, atol=1e-9)


@pytest.mark.parametrize(("dtype", "value_range"), [(np.uint8, 255), (np.float64, 1), (np.bool_, 1)])
def test_contrast_and_brightness(dtype, value_range, monkeypatch):
    images = images_of(np.uint8) > 99 if dtype is np.bool_ else images_of(dtype)
    light = [RandomContrast(), RandomBrightness()]
    contrast, brightness = np.linspace(0.5, 1.5, 12), np.linspace(-0.2, 0.2, 12)
    out = warped(
        images, monkeypatch, light, warp=np.tile(np.eye(2), (12, 1, 1)), contrast=contrast, brightness=brightness
    )
    level = images.mean(axis=(1, 2), keepdims=True)
    factor, change = contrast.reshape(-1, 1, 1, 1), brightness.reshape(-1, 1, 1, 1) * value_range
    np.testing.assert_allclose(out, level + factor * (images - level) + change, atol=1e-9)


def test_mixup():
    images, y = images_of(np.uint8), np.arange(12)
    builder = BatchBuilder(images, (5, 4, 3), 0.0, 1.0, [MixUp(1.0)], dtype=np.float64)
    (batch,) = BatchLoader(builder, y, batch_size=12, shuffle=True).epoch(0)
    share = batch.mix.share
    assert share.min() < 0.2 and share.max() > 0.8
    images, mixed = images.astype(float), share.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(batch.x, mixed * images[batch.y] + (1 - mixed) * images[batch.mix.partner], atol=1e-9)
    assert built(builder, [3])[0].tolist() == images[3].tolist()  # without a key nothing is mixed


def test_mixed_labels_keep_their_weights():
    """Each counts as much as its image does in the mean of pixels; one without weight not at all."""
    images, y = images_of(np.uint8), np.arange(12)
    builder = BatchBuilder(images, (5, 4, 3), 0.0, 1.0, [MixUp(1.0)], dtype=np.float64)
    (plain,) = BatchLoader(builder, y, None, batch_size=12).epoch(0)
    weight = np.linspace(1, 2, 12)
    weight[:6] = 0
    (batch,) = BatchLoader(builder, y, weight, batch_size=12).epoch(0)
    assert_array_equal(batch.x, plain.x)
    share = plain.mix.share
    np.testing.assert_allclose(batch.sample_weight * batch.mix.share, share * weight[y[batch.rows]])
    others = (1 - share) * weight[batch.mix.partner]
    np.testing.assert_allclose(batch.sample_weight * (1 - batch.mix.share), others, atol=1e-15)
    assert ((0 <= batch.mix.share) & (batch.mix.share <= 1)).all()
    assert (batch.sample_weight == 0).any()  # both of them weigh nothing


def test_the_same_key_warps_alike_whatever_the_thread():
    images = images_of(np.uint8)
    everything = [*AUGMENT, RandomAffine(20, (0.8, 1.2), 10), RandomContrast(), RandomBrightness(), MixUp()]
    builder = BatchBuilder(images, (5, 4, 3), 1.0, 0.5, everything)
    alone = built(builder, np.arange(12), (5, 1, 2))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(built(builder, np.arange(12), (5, 1, 2)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in found:
        assert_array_equal(other, alone)
    assert not np.array_equal(built(builder, np.arange(12), (5, 1, 3)), alone)
