"""Mini-batches that are built on the GPU, or its simulator: those of the CPU's builder."""

import math
from importlib import import_module

import numpy as np
import pytest

from fastcnn import CNNClassifier
from fastcnn.kernels import get_backend
from fastcnn.layers import Conv2D, MaxPool2D, ReLU
from fastcnn.training import batches, builders
from fastcnn.training.augment import (
    Cutout,
    MixUp,
    RandomAffine,
    RandomBrightness,
    RandomContrast,
    RandomErasing,
    RandomHorizontalFlip,
    RandomShift,
)
from fastcnn.training.batches import BatchLoader
from fastcnn.training.builders import BatchBuilder, DeviceBatchBuilder, StagedBatchBuilder, builder_for
from fastcnn.training.views import View
from tests.gpu import SIMULATED, unavailable

pytestmark = [pytest.mark.cuda, pytest.mark.small]

if unavailable():
    pytest.skip(f"no GPU and no simulator: {unavailable()}", allow_module_level=True)

KERNELS = get_backend("cuda")
SHAPE, MEAN, INV_STD = (6, 5, 2), [60.0, 100.0], [0.02, 0.01]
AUGMENT = {
    "nothing": [],
    "flips": [RandomHorizontalFlip()],
    "moves": [RandomHorizontalFlip(), RandomShift((2, 9)), RandomErasing(0.8)],
    "cutout": [Cutout(4)],
    "warp": [RandomHorizontalFlip(), RandomShift(1), RandomAffine(30, (0.7, 1.4), 20, p=0.8), RandomErasing(0.5)],
    "light": [RandomShift(1), RandomContrast(0.5), RandomBrightness(0.3)],
    "mixup": [RandomHorizontalFlip(), RandomContrast(), MixUp(0.5)],
}


def images_of(dtype, n=9, shape=SHAPE):
    values = np.random.default_rng(0).integers(0, 256, (n, *shape))
    return values.astype(dtype) if np.dtype(dtype).kind != "f" else (values / 255).astype(dtype)


def arguments(dtype="uint8", augment=(), out="float32"):
    scale = 1 if np.dtype(dtype).kind != "f" else 255
    return images_of(dtype), SHAPE, np.array(MEAN) / scale, np.array(INV_STD) * scale, augment, out


def built(builder, index, key=None, **kwargs):
    out = builder.empty(len(index))
    mix = builder.build(index, out, key, **kwargs)
    return np.asarray(out), mix


@pytest.mark.parametrize("augment", AUGMENT.values(), ids=AUGMENT)
@pytest.mark.parametrize(
    ("source", "dtype"), [("uint8", "float32"), ("float32", "float32"), ("uint8", "float64"), ("float64", "float64")]
)
def test_a_batch_is_that_of_the_cpu(augment, source, dtype):
    args = arguments(source, augment, dtype)
    here, there = BatchBuilder(*args), builder_for(KERNELS, *args)
    assert isinstance(there, DeviceBatchBuilder)
    for number, index in enumerate(([3, 0, 8, 3, 5, 1, 2], [4], [7, 6])):
        (expected, mix), (actual, other) = (built(b, index, (11, 2, number)) for b in (here, there))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 if dtype == "float32" else 1e-12)
        assert (mix is None) == (other is None)
        for a, b in zip(mix or (), other or (), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("augment", AUGMENT.values(), ids=AUGMENT)
def test_a_batch_of_more_values_than_one_launch_counts(augment, monkeypatch):
    args = arguments(augment=augment)
    whole, mix = built(builder_for(KERNELS, *args), [3, 0, 8, 3, 5], (11, 2, 0))
    on_gpu = import_module(KERNELS.gather_images.__module__)
    replay, launched = on_gpu.replay, []
    monkeypatch.setattr(on_gpu, "COUNTED", 2 * math.prod(SHAPE) + 1)
    monkeypatch.setattr(on_gpu, "replay", lambda *args: (launched.append(args[0]), replay(*args)))
    parts, other = built(builder_for(KERNELS, *args), [3, 0, 8, 3, 5], (11, 2, 0))
    assert launched.count(on_gpu._gather) == 3 and launched.count(on_gpu._blend) == 3 * (mix is not None)
    np.testing.assert_array_equal(parts, whole)
    for a, b in zip(mix or (), other or (), strict=True):
        np.testing.assert_array_equal(a, b)


def test_views_and_no_augmentation_without_a_key():
    args = arguments(augment=AUGMENT["light"])
    for builder in BatchBuilder(*args), builder_for(KERNELS, *args):
        plain, _ = built(builder, [2, 7])
        mirrored, _ = built(builder, [2, 7], view=View(mirrored=True))
        np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
        moved, _ = built(builder, [2, 7], view=View(True, 1, -2))
        np.testing.assert_array_equal(moved[:, 1:, :-2], mirrored[:, :-1, 2:])
        np.testing.assert_allclose(moved[:, :1], np.broadcast_to(-np.multiply(MEAN, INV_STD), moved[:, :1].shape))


def test_a_mean_that_is_large_beside_the_spread():
    images = (1e6 + np.random.default_rng(0).normal(size=(4, 60))).astype(np.float32)
    args = images, SHAPE, 1e6 + 1 / 3, 1.0
    expected, _ = built(BatchBuilder(*args), [0, 3])
    actual, _ = built(builder_for(KERNELS, *args), [0, 3])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("form", ["rows", "grey", "mapped", "strided", "int16"])
def test_sets_of_every_form(form, tmp_path):
    images = images_of("uint8", shape=(6, 10, 1))
    if form == "mapped":
        images.tofile(tmp_path / "images")
        images = np.memmap(tmp_path / "images", np.uint8, "r", shape=images.shape)
    given = {
        "rows": images.reshape(9, -1), "grey": images[..., 0], "strided": images[::2], "int16": images.astype(np.int16)
    }.get(form, images)  # fmt: skip
    args = given, (6, 10, 1), 100.0, 0.01
    expected, _ = built(BatchBuilder(*args), [4, 1])
    np.testing.assert_allclose(built(builder_for(KERNELS, *args), [4, 1])[0], expected, rtol=0, atol=1e-5)


def test_placed_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr(builders, "_PLACED_VALUES", 150)
    args = arguments()
    expected, _ = built(BatchBuilder(*args), range(9))
    np.testing.assert_allclose(built(builder_for(KERNELS, *args), range(9))[0], expected, rtol=0, atol=1e-5)


def test_the_host_builds_what_does_not_fit(monkeypatch):
    assert type(builder_for(None, *arguments())) is BatchBuilder
    assert type(builder_for(KERNELS, *arguments("float64"))) is StagedBatchBuilder  # digits would be lost
    with monkeypatch.context() as patch:
        patch.setattr(KERNELS, "has_room", lambda n_bytes: n_bytes < 9 * 60)
        assert type(builder_for(KERNELS, *arguments())) is StagedBatchBuilder

    def full(n_bytes):
        raise MemoryError("the GPU is full")

    monkeypatch.setattr(KERNELS, "empty", full)
    assert type(builder_for(KERNELS, *arguments())) is StagedBatchBuilder


def test_images_that_are_there_already_are_not_copied():
    placed = KERNELS.place(images_of("uint8"))
    builder = builder_for(KERNELS, placed, *arguments()[1:])
    assert builder._images._memory is placed._memory
    expected, _ = built(BatchBuilder(*arguments()), [5, 0])
    np.testing.assert_allclose(built(builder, [5, 0])[0], expected, rtol=0, atol=1e-5)


def test_index_and_out_are_checked():
    builder = builder_for(KERNELS, *arguments())
    with pytest.raises(IndexError, match="index 9 is not one of 9 images"):
        builder.build([0, 9], builder.empty(2))
    with pytest.raises(IndexError, match="index -1"):
        builder.build([-1], builder.empty(1))
    with pytest.raises(ValueError, match="out must be"):
        builder.build([0, 1], builder.empty(3))
    with pytest.raises(ValueError, match="lose digits"):
        DeviceBatchBuilder(KERNELS, *arguments("float64"))


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("kind", [DeviceBatchBuilder, StagedBatchBuilder])
def test_an_epoch(kind, threaded, monkeypatch):
    monkeypatch.setattr(batches, "_THREAD_PAYS", 0 if threaded else 2**62)
    args = arguments(augment=AUGMENT["moves"])
    epochs = []
    for builder in BatchBuilder(*args), kind(KERNELS, *args):
        loader = BatchLoader(builder, np.arange(9), None, 4, True, 3)
        # A copy of each batch, made as the network makes its own.
        epochs.append([(b.rows, np.array(np.asarray(KERNELS.place(b.x))), b.y) for b in loader.epoch(1)])
    assert [len(rows) for rows, *_ in epochs[0]] == [4, 4, 1]
    for here, there in zip(*epochs, strict=True):
        for expected, actual in zip(here, there, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


LAYERS = [Conv2D(3), ReLU(), MaxPool2D()]


def classifier(**parameters):
    return CNNClassifier(**{"layers": LAYERS, "max_iter": 2, "batch_size": 4, "random_state": 0} | parameters)


@pytest.mark.parametrize("augment", [None, AUGMENT["mixup"]], ids=["plain", "mixup"])
def test_a_fit_is_that_of_the_cpu(augment):
    X, y = images_of("uint8", 10, (6, 6, 1)), np.arange(10) % 2
    here, there = (classifier(device=d, augment=augment).fit(X, y, X_val=X, y_val=y) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(there.loss_curve_, here.loss_curve_, rtol=1e-4)
    assert there.training_scores_ == pytest.approx(here.training_scores_)
    for tta in None, "flip":
        np.testing.assert_allclose(there.predict_proba(X, tta), here.predict_proba(X, tta), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            there.predict_log_proba(X, tta), here.predict_log_proba(X, tta), rtol=1e-3, atol=1e-4
        )


def test_a_fit_of_images_that_are_sent_batch_by_batch(monkeypatch):
    monkeypatch.setattr(batches, "_THREAD_PAYS", 0)
    X, y = images_of("uint8", 10, (6, 6, 1)), np.arange(10) % 2
    here = classifier(augment=AUGMENT["mixup"]).fit(X, y)
    monkeypatch.setattr(KERNELS, "has_room", lambda n_bytes: False)
    there = classifier(device="cuda", augment=AUGMENT["mixup"]).fit(X, y)
    np.testing.assert_allclose(there.loss_curve_, here.loss_curve_, rtol=1e-4)
    np.testing.assert_allclose(there.predict_proba(X, "flip"), here.predict_proba(X, "flip"), rtol=1e-3, atol=1e-4)


def test_a_staged_array_is_sliced_with_its_twin():
    array = KERNELS.staged((4, 3), np.float32)
    part = array[:2]
    part.settle()
    part.host[...] = [[1, 2, 3], [4, 5, 6]]
    part.upload()
    np.testing.assert_array_equal(np.asarray(KERNELS.place(part)), [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(np.asarray(KERNELS.place(array))[:2], [[1, 2, 3], [4, 5, 6]])


def test_images_on_the_gpu_go_into_fit_and_predict():
    X, y = images_of("uint8", 8, (6, 6, 1)), np.arange(8) % 2
    clf = classifier(device="cuda").fit(X, y)
    placed, labels = KERNELS.place(X), KERNELS.place(y)
    again = classifier(device="cuda").fit(placed, labels)
    for name, value in clf.network_.params.items():
        np.testing.assert_array_equal(again.network_.params[name], value)
    expected = clf.predict_proba(X)
    assert isinstance(expected, np.ndarray)
    for given in placed, placed.reshape(8, 36), placed.reshape(8, 6, 6):
        np.testing.assert_array_equal(clf.predict_proba(given), expected)
    floats = KERNELS.place(X.astype(np.float64))  # another dtype than the network's goes through the host
    np.testing.assert_allclose(clf.predict_proba(floats), expected, rtol=1e-5)
    np.testing.assert_allclose(clf.network_input(placed), clf.network_input(X))
    with pytest.raises(ValueError, match="expecting images of shape"):
        clf.predict(KERNELS.place(X[:, :5]))


def test_outputs_stay_there_where_that_is_asked_for():
    net = classifier(device="cuda").fit(images_of("uint8", 8, (6, 6, 1)), np.arange(8) % 2).network_
    x = KERNELS.place(np.random.default_rng(0).normal(size=(3, 6, 6, 1)).astype(np.float32))
    for method in net.forward, net.predict_proba:
        there = method(x, to_numpy=False)
        assert hasattr(there, "__cuda_array_interface__") and there.shape == (3, 2)
        kept = np.asarray(there)
        np.testing.assert_array_equal(kept, method(x))
        method(KERNELS.place(np.zeros((3, 6, 6, 1), np.float32)))
        np.testing.assert_array_equal(np.asarray(there), kept)  # memory of its own
    if not SIMULATED:
        assert there.__cuda_array_interface__["stream"]


@pytest.mark.parametrize("method", ["forward", "predict_proba"])
def test_the_input_has_been_read_when_an_output_stays_there(method, monkeypatch):
    net = classifier(device="cuda").fit(images_of("uint8", 8, (6, 6, 1)), np.arange(8) % 2).network_
    x, waited = np.zeros((3, 6, 6, 1), np.float32), []
    plan, ready = net._plan_for(3, "inference"), net._ready
    monkeypatch.setattr(plan, "forward", lambda: waited.append("run"))
    monkeypatch.setattr(net, "_ready", lambda *args: (waited.append("copied"), ready(*args))[1])
    monkeypatch.setattr(KERNELS, "passed", lambda: (waited.append("marked"), lambda: waited.append("waited"))[1])
    getattr(net, method)(x, to_numpy=False)
    assert waited == ["copied", "marked", "run", "waited"]
    getattr(net, method)(x)  # its result is waited for anyway
    assert waited[4:] == ["copied", "run"]
