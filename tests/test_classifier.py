"""CNNClassifier on small data: input forms, labels, weights, stopping, going on, errors."""

from __future__ import annotations

import pickle
import tracemalloc
from copy import copy

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import accuracy_score, log_loss, make_scorer
from sklearn.model_selection import train_test_split

import fastcnn.classifier
from fastcnn import Network
from fastcnn.architecture import build_layers
from fastcnn.classifier import CNNClassifier
from fastcnn.images import merge_scaling
from fastcnn.layers import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Residual,
    SpatialDropout,
    Tanh,
)
from fastcnn.training import builders
from fastcnn.training.augment import MixUp, RandomAffine, RandomContrast, RandomHorizontalFlip, RandomShift
from fastcnn.training.builders import BatchBuilder

SMALL = {
    "conv_channels": (8,),
    "dense_units": (16,),
    "dropout": 0.0,
    "learning_rate_init": 5e-3,
    "learning_rate": "cosine",
    "batch_size": 32,
    "max_iter": 2,
    "random_state": 0,
}


def small(**parameters):
    return CNNClassifier(**(SMALL | parameters))


@pytest.fixture(scope="module")
def digits():
    """X_train, X_test, y_train, y_test; X is uint8 (n, 8, 8)."""
    data = load_digits()
    return train_test_split(data.images.astype(np.uint8), data.target, random_state=0)


@pytest.fixture(scope="module")
def few(digits):
    """300 digits."""
    return digits[0][:300], digits[2][:300]


@pytest.fixture(scope="module")
def fitted(few):
    return small().fit(*few)


# ---------------------------------------------------------------------------------------- the whole


def test_learns_digits(digits):
    X_train, X_test, y_train, y_test = digits
    clf = CNNClassifier(
        conv_channels=(16, 32),
        dropout=0.1,
        learning_rate_init=5e-3,
        learning_rate="cosine",
        batch_size=32,
        max_iter=10,
        random_state=0,
    )
    assert clf.fit(X_train, y_train).score(X_test, y_test) > 0.97


def test_fitted_attributes(few):
    X, y = few
    clf = small().fit(X, y)
    assert clf.n_features_in_ == 64
    assert clf.image_shape_ == (8, 8, 1)
    np.testing.assert_array_equal(clf.classes_, np.arange(10))
    assert clf.n_iter_ == 2
    assert clf.best_iter_ in (1, 2)
    assert clf.t_ == 600
    assert clf.loss_ == clf.loss_curve_[-1]
    assert clf.best_loss_ == min(clf.loss_curve_)
    assert clf.validation_scores_ == clf.validation_loss_curve_ == []
    assert clf.out_activation_ == "softmax"
    assert clf.n_layers_ == len(clf.network_.layers) == 6
    assert not hasattr(clf, "feature_names_in_")
    np.testing.assert_allclose(clf.channel_offset_, [X.mean()])
    np.testing.assert_allclose(clf.channel_scale_, [X.std()])


def test_probabilities(fitted, few):
    proba = fitted.predict_proba(few[0])
    assert proba.shape == (300, 10)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(fitted.predict(few[0]), fitted.classes_[proba.argmax(axis=1)])
    np.testing.assert_allclose(fitted.predict_log_proba(few[0]), np.log(proba), rtol=1e-3, atol=1e-5)


def test_log_probability_stays_finite(few):
    clf = small(scale=None).fit(*few)
    assert np.isfinite(clf.predict_log_proba(few[0] * np.float64(1e4))).all()


def test_same_seed_same_bits(few):
    first, second, other = (small(random_state=s, dropout=0.2, n_jobs=n).fit(*few) for s, n in ((3, 1), (3, 2), (4, 1)))
    np.testing.assert_array_equal(first.predict_proba(few[0]), second.predict_proba(few[0]))
    assert first.loss_curve_ == second.loss_curve_ != other.loss_curve_


def test_threads_of_a_fitted_classifier(few):
    clf = small(n_jobs=1).fit(*few)
    expected = clf.predict_proba(few[0])
    for n_jobs in (2, 1):
        np.testing.assert_array_equal(clf.set_params(n_jobs=n_jobs).predict_proba(few[0]), expected)
        assert clf.network_.n_jobs == n_jobs
    assert clf.set_params(n_jobs=2).partial_fit(*few).network_.n_jobs == 2


def test_random_state_instance(few):
    state = np.random.RandomState(0)
    first, second = small(random_state=state).fit(*few), small(random_state=state).fit(*few)
    again = small(random_state=np.random.RandomState(0)).fit(*few)
    assert first.loss_curve_ == again.loss_curve_ != second.loss_curve_


def test_not_fitted():
    clf = CNNClassifier()
    for method in (clf.predict, clf.predict_proba, clf.predict_log_proba):
        with pytest.raises(NotFittedError):
            method(np.zeros((1, 4)))
    with pytest.raises(NotFittedError):
        clf.save("model.safetensors")


# ------------------------------------------------------------------------------------------ images


def _strided(X):
    return np.repeat(np.repeat(X, 2, axis=0), 2, axis=2)[::2, :, ::2]


def _read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


@pytest.mark.parametrize(
    "form",
    [
        lambda X: X[..., np.newaxis],
        lambda X: X.reshape(-1, 64),
        lambda X: X.tolist(),
        lambda X: X.reshape(-1, 64).tolist(),
        lambda X: X.astype(np.float32),
        lambda X: X.astype(np.float64),
        lambda X: X.astype(np.int64),
        lambda X: X.astype(">i2"),
        np.asfortranarray,
        lambda X: np.asfortranarray(X.reshape(-1, 64)),
        _strided,
        _read_only,
        lambda X: X[::-1].copy()[::-1],
    ],
)
def test_input_forms_give_the_same(form, few, fitted):
    X, y = few
    clf = small().fit(form(X), y)
    assert clf.image_shape_ == (8, 8, 1)
    np.testing.assert_allclose(clf.predict_proba(form(X)), fitted.predict_proba(X), rtol=1e-4, atol=1e-6)


def test_memmap(tmp_path, few, fitted):
    X, y = few
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    np.testing.assert_array_equal(small().fit(mapped, y).predict_proba(mapped), fitted.predict_proba(X))


def test_data_frame(few, fitted):
    X, y = few
    frame = pd.DataFrame(X.reshape(-1, 64), columns=[f"pixel{i}" for i in range(64)])
    clf = small().fit(frame, pd.Series(y))
    np.testing.assert_array_equal(clf.feature_names_in_, frame.columns)
    np.testing.assert_array_equal(clf.predict_proba(frame), fitted.predict_proba(X))
    with pytest.raises(ValueError, match="feature names"):
        clf.predict(frame[frame.columns[::-1]])


@pytest.mark.parametrize("shape", [(300, 8, 8), (300, 4, 4, 4), (300, 64)])
def test_images_are_not_copied(shape, few, monkeypatch):
    seen = []

    class Recorder(BatchBuilder):
        def __init__(self, images, *args, **kwargs):
            seen.append(images)
            super().__init__(images, *args, **kwargs)

    monkeypatch.setattr(builders, "BatchBuilder", Recorder)
    X = few[0].reshape(shape)
    small(max_iter=1, early_stopping=True, scoring="loss").fit(X, few[1]).predict(X)
    assert seen
    assert all(images.dtype == np.uint8 for images in seen)
    assert np.shares_memory(seen[0], X)
    assert np.shares_memory(seen[-1], X)


def test_memory_of_fit_and_predict(few):
    """Beside the arrays of the network: mini-batches, never all images as floats, nor a copy of them."""
    X = np.tile(few[0], (200, 1, 1))  # 3.8 MB; as float32 15 MB
    y = np.tile(few[1], 200)
    clf = small(batch_size=128, max_iter=1).fit(X[:200], y[:200])
    # Labels and indices of 60,000 images are 0.5 MB each; probabilities 2.4 MB. They make 0.5 and 1.3 times X.
    for use, most in ((lambda: clf.fit(X, y), 1.0), (lambda: clf.predict(X), 1.75)):
        tracemalloc.start()
        use()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < most * X.nbytes


@pytest.mark.parametrize(
    ("n_features", "image_shape", "expected"),
    [
        (64, None, (8, 8, 1)),
        (64, (4, 16), (4, 16, 1)),
        (64, [4, 4, 4], (4, 4, 4)),
        (60, None, (1, 60, 1)),
        (1, None, (1, 1, 1)),
        (2, None, (1, 2, 1)),
    ],
)
def test_shape_of_flat_images(n_features, image_shape, expected):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 255, (20, n_features), dtype=np.uint8), np.arange(20) % 3
    clf = small(image_shape=image_shape, conv_channels=(4, 4, 4)).fit(X, y)
    assert clf.image_shape_ == expected
    assert clf.predict_proba(X).shape == (20, 3)


def test_colour_images():
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 255, (40, 9, 7, 3), dtype=np.uint8), np.arange(40) % 2
    clf = small().fit(X, y)
    assert clf.image_shape_ == (9, 7, 3)
    np.testing.assert_allclose(clf.channel_offset_, X.mean(axis=(0, 1, 2)))
    np.testing.assert_array_equal(clf.predict(X), clf.predict(X.reshape(40, -1)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 8, 8, 3), r"\(8, 8, 3\).*\(8, 8, 1\)"),
        ((5, 4, 16), r"\(4, 16, 1\).*\(8, 8, 1\)"),
        ((5, 63), "X has 63 features, but CNNClassifier is expecting 64 features"),
        ((64,), "Expected 2D array"),
        ((5, 8, 8, 1, 1), r"\(5, 8, 8, 1, 1\) has 5 dimensions"),
        ((0, 8, 8), "0 sample"),
    ],
)
def test_wrong_shape_at_predict(fitted, shape, message):
    with pytest.raises(ValueError, match=message):
        fitted.predict(np.zeros(shape))


@pytest.mark.parametrize(
    ("X", "image_shape", "message"),
    [
        (np.zeros((4, 64)), (8, 9), r"64 features.*\(8, 9\).*72"),
        (np.zeros((4, 8, 8)), (4, 16), r"\(8, 8, 1\).*\(4, 16\)"),
        (np.zeros((4, 64)), (8, 0), "positive ints"),
        (np.zeros((4, 64)), (64,), "positive ints"),
        (np.full((4, 8, 8), np.nan), None, "NaN"),
        (np.full((4, 8, 8), np.inf), None, "infinity"),
        (np.zeros((4, 0, 8)), None, "0 feature"),
        (np.full((4, 64), "a"), None, "expected numbers"),
    ],
)
def test_wrong_images_at_fit(X, image_shape, message):
    with pytest.raises(ValueError, match=message):
        small(image_shape=image_shape).fit(X, [0, 1, 0, 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_scale_unit(few, dtype):
    X = few[0].astype(dtype) + dtype(3)
    clf = small(scale="unit").fit(X, few[1])
    low, high = (0, 255) if dtype is np.uint8 else (3, 19)
    assert (clf.channel_offset_, clf.channel_scale_) == ([low], [high - low])


def test_scale_none_and_constant_images(few):
    clf = small(scale=None).fit(*few)
    assert (clf.channel_offset_, clf.channel_scale_) == ([0], [1])
    clf = small().fit(np.full((30, 8, 8), 7, np.uint8), few[1][:30])
    assert (clf.channel_offset_, clf.channel_scale_) == ([7], [7])


@pytest.mark.parametrize("value", [255, 0.1])
def test_a_constant_channel_is_divided_by_its_value(few, value):
    """Or by 1, and whatever the weights are: sums of it are rounded. Pixels that augmentation makes 0 become -1."""
    X = np.stack([few[0], np.full_like(few[0], value, type(value))], axis=3)
    weight = np.random.default_rng(0).uniform(0.5, 2, len(X))
    weight[0] = 0
    for weights in (None, weight):
        clf = small(max_iter=1).fit(X, few[1], weights)
        assert (clf.channel_offset_[1], clf.channel_scale_[1]) == (value, max(1, value))
    offset, scale = merge_scaling("standardize", [(np.array([value]), np.zeros(1))] * 3, [0.1, 0.7, 1 / 3], False)
    assert (offset, scale) == (value, 0)


# ------------------------------------------------------------------------------------------ layers


def test_short_form():
    layers = build_layers((8, 8, 1), conv_channels=(4, 8), dense_units=16, activation="tanh", dropout=0.5).layers
    block = [Tanh(), MaxPool2D((2, 2))]
    end = [Dropout(0.5), Dense(16), Tanh(), Dropout(0.5)]
    assert layers == [Conv2D(4), *block, Conv2D(8), *block, *end]


@pytest.mark.parametrize("batch_norm", [np.True_, np.False_])  # as a grid of parameters may have it
def test_booleans_of_numpy(batch_norm, few):
    clf = small(batch_norm=batch_norm, early_stopping=np.False_, shuffle=np.True_).fit(*few)
    assert any(isinstance(layer, BatchNorm) for layer in clf.network_.layers) == batch_norm


def test_short_form_with_batch_norm():
    layers, notes = build_layers((8, 8, 1), conv_channels=4, pool="avg", dense_units=(), batch_norm=True)
    assert layers == [Conv2D(4, use_bias=False), BatchNorm(), ReLU(), AvgPool2D((2, 2))]
    assert not notes


def test_short_form_shrinks_windows():
    layers, notes = build_layers((1, 5, 1), conv_channels=(2, 2, 2), kernel_size=(3, 5), pool_size=3, dense_units=())
    convs = [Conv2D(2, (1, 5)), Conv2D(2, (1, 1)), Conv2D(2, (1, 1))]
    assert layers == [convs[0], ReLU(), MaxPool2D((1, 3)), convs[1], ReLU(), convs[2], ReLU()]
    assert notes == {
        0: "kernel 3x5 -> 1x5",
        2: "pooling 3x3 -> 1x3",
        3: "kernel 3x5 -> 1x1",
        4: "pooling 3x3 -> none",
        5: "kernel 3x5 -> 1x1",
        6: "pooling 3x3 -> none",
    }


@pytest.mark.parametrize(("size", "kernel"), [(1, 3), (2, 5), (2, 4), (3, 8)])
def test_what_a_shrunk_kernel_leaves_out_sees_only_padding(size, kernel):
    """The full window with the small one's weights in its middle gives the same."""
    ((conv, *_), _) = build_layers((size, 9, 1), conv_channels=2, kernel_size=kernel, pool=None, dense_units=())
    height = conv.kernel_size[0]
    assert height == 2 * size - 1
    x = np.random.default_rng(0).standard_normal((3, size, 9, 1))
    small_net = Network([conv], x.shape[1:], dtype="float64", random_state=0)
    full_net = Network([Conv2D(2, kernel)], x.shape[1:], dtype="float64", random_state=0)
    weight = full_net.params["0.weight"].copy()
    above = (kernel - 1) // 2 - (height - 1) // 2  # rows of padding that the small window does without
    small_net.load_params({"0.weight": weight[above : above + height], "0.bias": full_net.params["0.bias"]})
    np.testing.assert_allclose(small_net.forward(x), full_net.forward(x), atol=1e-12)


def test_summary(few):
    clf = small(conv_channels=(4, 4, 4, 4), pool_size=(2, 3)).fit(*few)
    summary = clf.summary()
    assert summary.n_params == clf.network_.n_params
    assert [layer.output_shape for layer in summary.layers][-1] == (10,)
    notes = [layer.note for layer in summary.layers if layer.note]
    assert notes == [
        "pooling 2x3 -> 2x2",
        "kernel 3x3 -> 3x1",
        "pooling 2x3 -> 2x1",
        "kernel 3x3 -> 1x1",
        "pooling 2x3 -> none",
    ]
    assert all(note in str(summary) for note in notes)
    assert "->" not in str(small().fit(*few).summary())
    with pytest.raises(NotFittedError):
        small().summary()


def test_summary_of_what_was_fitted_whatever_is_asked_for_now(few):
    clf = small().fit(*few)
    before = str(clf.summary())
    for wrong in ({"activation": "gelu"}, {"conv_channels": "many"}, {"layers": 3}):
        clf.set_params(**wrong)
        assert str(clf.summary()) == before and "conv2d" in clf._repr_html_()


def test_summary_of_flat_data():
    X = np.random.default_rng(0).random((40, 7))
    text = str(small().fit(X, np.arange(40) % 2).summary())
    assert "kernel 3x3 -> 1x3" in text and "pooling 2x2 -> 1x2" in text


def test_html(few):
    clf = small()
    assert "<svg" not in clf._repr_html_()
    clf.fit(*few)
    for html in (clf._repr_html_(), clf._repr_mimebundle_()["text/html"]):
        assert "CNNClassifier" in html and html.count("<svg") >= 1 and "Conv2D(filters=8)" in html
        assert "<summary>layers</summary>" in html and "conv2d+bias+relu" in html
    clf.set_params(conv_channels=())  # what is drawn is what was fitted
    assert "Conv2D(filters=8)" in clf._repr_html_()


@pytest.mark.parametrize(
    "parameters",
    [
        {"batch_norm": True},
        {"pool": None, "kernel_size": (3, 1)},
        {"pool": "avg", "activation": "elu"},
        {"conv_channels": (), "dense_units": ()},
        {"conv_channels": 4, "dense_units": 8},
        {"conv_channels": np.array([4, 4]), "dense_units": [8]},
        {"solver": "sgd", "learning_rate_init": 0.05, "clip_norm": 1.0},
        {"solver": "sgd", "nesterovs_momentum": False, "learning_rate": "step"},
        {"solver": "adamw", "learning_rate": "onecycle", "label_smoothing": 0.1},
        {"solver": "muon", "momentum": 0.95, "nesterovs_momentum": False, "alpha": 0.01},
        {"augment": [RandomShift(1), RandomHorizontalFlip()], "shuffle": False},
        {"dtype": "float64", "device": "auto"},
        {"layers": [Conv2D(8, activation="relu"), GlobalAvgPool2D()]},
    ],
)
def test_parameters_train(parameters, few):
    clf = small(**parameters).fit(*few)
    assert clf.loss_curve_[1] < clf.loss_curve_[0]
    assert clf.predict_proba(few[0]).dtype == parameters.get("dtype", "float32")


def test_full_form(few):
    layers = [Conv2D(4, activation="relu"), MaxPool2D(), Conv2D(4), ReLU(), Dense(8, activation="tanh")]
    clf = small(layers=layers).fit(*few)
    assert clf.network_.layers == (*layers, Dense(10))
    assert clf.layers is layers


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"layers": [Conv2D(4), "relu"]}, "layer 1"),
        ({"layers": [MaxPool2D(9)]}, "layer 0.*does not fit"),
        ({"conv_channels": (4, 0)}, "conv_channels"),
        ({"dense_units": (2.5,)}, "dense_units"),
        ({"augment": ["flip"]}, "augment"),
        ({"device": "tpu"}, "'device' parameter of CNNClassifier"),
        ({"precision": "half"}, "'precision' parameter of CNNClassifier"),
        ({"dropout": 1.0}, "'dropout' parameter of CNNClassifier"),
        ({"solver": "lbfgs"}, "'solver' parameter of CNNClassifier"),
        ({"scoring": "accuarcy"}, "'scoring' parameter of CNNClassifier"),
    ],
)
def test_wrong_parameters_change_nothing(parameters, message, few):
    X, y = few
    clf = small().fit(X, y)
    before, proba = dict(vars(clf)), clf.predict_proba(X)
    clf.set_params(**parameters)
    with pytest.raises(ValueError, match=message):
        clf.fit(X.reshape(-1, 4, 4, 4), np.where(y > 5, "a", "b"))
    assert vars(clf) == before | parameters
    np.testing.assert_array_equal(clf.predict_proba(X), proba)


# ---------------------------------------------------------------------------------- labels, weights


@pytest.mark.parametrize(
    "labels",
    [
        np.array([f"digit {i}" for i in range(10)]),
        np.array([f"digit {i}" for i in range(10)], dtype=object),
        np.array([np.str_(f"digit {i}") for i in range(10)] + [None], dtype=object)[:-1],
        np.arange(10) / 1.0 - 4,
        np.arange(10) - 5,
    ],
)
def test_labels_of_any_type(labels, few, fitted):
    X, y = few
    clf = small().fit(X, labels[y])
    np.testing.assert_array_equal(clf.classes_, np.unique(labels))
    np.testing.assert_array_equal(clf.predict(X), labels[fitted.predict(X)])
    assert clf.predict(X).dtype == labels.dtype


def test_two_classes(few):
    X, y = few
    clf = small().fit(X, y > 4)
    assert clf.classes_.tolist() == [False, True]
    assert clf.predict_proba(X).shape == (300, 2)


def test_one_class(few):
    clf = small().fit(few[0], ["only"] * 300)
    assert set(clf.predict(few[0])) == {"only"}
    np.testing.assert_array_equal(clf.predict_proba(few[0]), 1)


def test_continuous_labels(few):
    with pytest.raises(ValueError, match="continuous"):
        small().fit(few[0], few[1] + 0.5)


def test_weights_of_one_are_no_weights(few, fitted):
    clf = small().fit(*few, sample_weight=np.ones(300))
    np.testing.assert_array_equal(clf.predict_proba(few[0]), fitted.predict_proba(few[0]))


def test_weight_is_repetition(few):
    X, y = few[0][:90], few[1][:90]
    counts = np.random.default_rng(0).integers(0, 4, 90)
    common = {"dtype": "float64", "shuffle": False, "max_iter": 5}
    weighted = small(batch_size=90, **common).fit(X, y, counts)
    repeated = small(batch_size=int(counts.sum()), **common).fit(X.repeat(counts, axis=0), y.repeat(counts))
    np.testing.assert_allclose(weighted.channel_scale_, repeated.channel_scale_, rtol=1e-12)
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-6)


@pytest.mark.parametrize(
    "weight", [np.zeros(300), -np.ones(300), np.ones(299), np.full(300, np.nan), np.full(300, 1e-40)]
)
def test_wrong_sample_weight(weight, few):
    with pytest.raises(ValueError, match="weight"):
        small().fit(*few, sample_weight=weight)


def test_class_weight(few):
    X, y = few
    given = {digit: 1.0 + (digit == 3) for digit in range(10)}
    by_class = small(class_weight=given, scale="unit").fit(X, y)
    by_sample = small(scale="unit").fit(X, y, 1.0 + (y == 3))
    np.testing.assert_array_equal(by_class.predict_proba(X), by_sample.predict_proba(X))
    for labels in (y.astype(str), np.datetime64("2026-01-01") + y, y > 2):
        classes = np.unique(labels)
        some = small(class_weight={classes[1]: 2.0}, scale="unit").fit(X, labels)
        weighted = small(scale="unit").fit(X, labels, 1.0 + (labels == classes[1]))
        np.testing.assert_array_equal(some.predict_proba(X), weighted.predict_proba(X))
    with pytest.raises(ValueError, match="class_weight has 11, which is none of the classes"):
        small(class_weight={0: 2.0, 11: 1.0}).fit(X, y)
    assert small(class_weight=given | {11: 1.0}, scale="unit", max_iter=1).fit(X, y).n_iter_ == 1
    both = small(class_weight="balanced", scale="unit").fit(X, y, np.full(300, 0.5))
    balanced = small(scale="unit").fit(X, y, 30 / np.bincount(y)[y])
    np.testing.assert_allclose(both.predict_proba(X), balanced.predict_proba(X), rtol=1e-3, atol=1e-5)


# ----------------------------------------------------------------------------- validation, stopping


def test_early_stopping_restores_the_best(digits):
    X_train, X_test, y_train, y_test = digits
    clf = small(early_stopping=True, n_iter_no_change=2, tol=0.05, max_iter=20)
    clf.fit(X_train, y_train, X_val=X_test, y_val=y_test)
    assert 2 < clf.n_iter_ < 20
    assert len(clf.training_scores_) == len(clf.validation_scores_) == len(clf.validation_loss_curve_) == clf.n_iter_
    assert clf.best_iter_ == 1 + int(np.argmax(clf.validation_scores_))
    assert clf.score(X_test, y_test) == pytest.approx(max(clf.validation_scores_))
    clf.set_params(early_stopping=False, warm_start=True, learning_rate_init=1e-9, max_iter=1).fit(X_train, y_train)
    assert clf.loss_curve_[clf.best_iter_ - 1] == clf.best_loss_  # now the epoch counts whose loss is lowest


def test_validation_split_is_stratified(few, monkeypatch):
    held = []
    validate = CNNClassifier._validate
    monkeypatch.setattr(CNNClassifier, "_validate", lambda self, data: held.append(data) or validate(self, data))
    X, y = few
    clf = small(early_stopping=True, validation_fraction=0.2).fit(X, y == 3, sample_weight=np.arange(300) + 1.0)
    assert clf.t_ == 2 * 240
    assert len(held) == 2
    assert abs(held[0].labels.mean() - (y == 3).mean()) < 0.02
    assert held[0].weight is not None


def test_images_without_weight_are_not_held_out(few):
    X, y = few
    weight = np.zeros(300)
    weight[:100] = 1
    clf = small(early_stopping=True).fit(X, y, weight)
    assert clf.t_ == 2 * 290
    assert np.isfinite(clf.validation_loss_curve_).all()
    with pytest.raises(ValueError, match="class_weight times sample_weight is zero"):
        small(class_weight={digit: float(digit == 3) for digit in range(10)}).fit(X, y, y != 3)


def test_validation_without_early_stopping(few, digits):
    clf = small().fit(*few, X_val=digits[1], y_val=digits[3])
    assert len(clf.validation_scores_) == 2
    assert clf.validation_scores_[-1] == pytest.approx(clf.score(digits[1], digits[3]))
    proba = clf.predict_proba(digits[1])
    assert clf.validation_loss_curve_[-1] == pytest.approx(log_loss(digits[3], proba), rel=1e-4)


@pytest.mark.parametrize(
    "scoring",
    ["accuracy", "neg_log_loss", "loss", make_scorer(accuracy_score), lambda clf, X, y: clf.score(X, y)],
)
def test_scoring(scoring, few, digits):
    names = [f"pixel{i}" for i in range(64)]
    X, X_val = (pd.DataFrame(images.reshape(-1, 64), columns=names) for images in (few[0], digits[1]))
    clf = small(scoring=scoring).fit(X, few[1], X_val=X_val, y_val=digits[3])
    accuracy, loss = clf.score(X_val, digits[3]), log_loss(digits[3], clf.predict_proba(X_val))
    expected = -loss if scoring in ("loss", "neg_log_loss") else accuracy
    assert clf.validation_scores_[-1] == pytest.approx(expected, rel=1e-4)


def test_scoring_that_takes_no_weights(few, digits):
    def balanced(clf, X, y):
        return np.mean(clf.predict(X) == y)

    weight = np.ones(len(digits[3]))
    clf = small(scoring=balanced, max_iter=1).fit(*few, X_val=digits[1], y_val=digits[3])
    before = clf.network_
    metric = make_scorer(lambda y_true, y_pred: np.mean(y_true == y_pred))
    for scoring in (balanced, metric):
        with pytest.raises(ValueError, match="weights of the images to validate with, and scoring takes no sample_w"):
            clf.set_params(scoring=scoring).fit(*few, X_val=digits[1], y_val=digits[3], sample_weight_val=weight)
    assert clf.network_ is before


def test_what_is_set_aside_stays_so(few, monkeypatch, tmp_path):
    """Else a fit that goes on would be validated on what it was trained with before."""
    seeds = []
    split = fastcnn.classifier.train_test_split

    def noted(*args, **more):
        seeds.append(more["random_state"])
        return split(*args, **more)

    monkeypatch.setattr(fastcnn.classifier, "train_test_split", noted)
    clf = small(warm_start=True, early_stopping=True, random_state=None, max_iter=1).fit(*few)
    pickle.loads(pickle.dumps(clf)).fit(*few)
    clf.save(tmp_path / "model")
    CNNClassifier.load(tmp_path / "model").fit(*few)
    clf.fit(*few).set_params(warm_start=False).fit(*few)
    assert seeds[0] == seeds[1] == seeds[2] == seeds[3] != seeds[4]


def test_scoring_with_weights(few, digits):
    weight = np.arange(len(digits[3])) + 1.0
    scores = []
    for scoring in (None, "accuracy"):
        clf = small(scoring=scoring).fit(*few, X_val=digits[1], y_val=digits[3], sample_weight_val=weight)
        scores.append(clf.validation_scores_)
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0][-1] == pytest.approx(clf.score(digits[1], digits[3], weight))


@pytest.mark.parametrize("name", ["X_val", "y_val", "sample_weight_val"])
def test_validation_data_come_together(name, few):
    with pytest.raises(ValueError, match=f"{name} was given: X_val and y_val are needed together"):
        small().fit(*few, **{name: few[0]})


def test_numbers_as_text_are_other_labels():
    """With so many classes NumPy would look for them as text, and find them in the wrong place."""
    X, y = np.random.default_rng(0).integers(0, 256, (150, 4, 4), np.uint8), np.arange(150) % 50
    clf = small(max_iter=1)
    with pytest.raises(ValueError, match="y has labels that are not among the classes"):
        clf.fit(X, y, X_val=X, y_val=y.astype(str))
    clf.fit(X, y)
    with pytest.raises(ValueError, match="y has labels that are not among the classes"):
        clf.partial_fit(X, y.astype(str))


def test_unseen_validation_label(few):
    with pytest.raises(ValueError, match="eleven"):
        small().fit(few[0], few[1].astype(str), X_val=few[0][:1], y_val=["eleven"])


def test_stops_when_the_loss_does_not_improve(few):
    clf = small(learning_rate="constant", tol=10.0, n_iter_no_change=2, max_iter=9).fit(*few)
    assert clf.n_iter_ == 3


def test_constant_learning_rate_warns_at_the_end(few):
    with pytest.warns(ConvergenceWarning, match="Maximum iterations \\(2\\) reached"):
        small(learning_rate="constant").fit(*few)
    small(learning_rate="constant", n_iter_no_change=np.inf).fit(*few)


class Interrupt:
    def on_epoch_end(self, info):
        if info.epoch == 2:
            raise KeyboardInterrupt


def test_keyboard_interrupt_keeps_the_model(few):
    with pytest.warns(UserWarning, match="interrupted"):
        clf = small(callbacks=[Interrupt()], max_iter=5).fit(*few)
    assert clf.n_iter_ == 2
    assert clf.score(*few) > 0.5


def test_divergence_keeps_the_last_good_parameters(few):
    clf = small(solver="sgd", learning_rate_init=1e30, max_iter=3)
    with pytest.warns(ConvergenceWarning, match="diverged in epoch 1"):
        clf.fit(*few)
    assert clf.n_iter_ == 0
    assert np.isnan(clf.loss_)
    assert np.isfinite(clf.predict_proba(few[0])).all()


def test_callback_stops(few):
    class Stop:
        def on_epoch_end(self, info):
            return True

    assert small(callbacks=[Stop()], max_iter=5).fit(*few).n_iter_ == 1


class Recorder:
    def __init__(self):
        self.seen = []

    def on_fit_begin(self, info):
        self.seen.append("begin")

    def on_epoch_begin(self, epoch):
        self.seen.append(epoch)

    def on_epoch_end(self, info):
        self.seen.append(info.loss)

    def on_fit_end(self, history):
        self.seen.append(history.reason)


def test_each_fit_calls_copies_of_the_callbacks(few):
    recorder = Recorder()
    clf = small(callbacks=[recorder]).fit(*few)
    first, second = clf.loss_curve_
    seen = ["begin", 1, first, 2, second, "max_iter"]
    assert clf.callbacks_[0].seen == seen
    clf.fit(*few)
    assert clf.callbacks_[0].seen == seen and not recorder.seen
    clf.partial_fit(*few)
    assert clf.callbacks_[0].seen == ["begin", 3, clf.loss_, "max_iter"]
    assert small().fit(*few).callbacks_ == []


def test_failing_callback_changes_nothing(few, fitted):
    class Fail:
        def on_epoch_end(self, info):
            raise RuntimeError("no")

    clf = small().fit(*few).set_params(callbacks=[Fail()])
    with pytest.raises(RuntimeError, match="no"):
        clf.fit(few[0], few[1] + 1)
    np.testing.assert_array_equal(clf.classes_, np.arange(10))
    np.testing.assert_array_equal(clf.predict_proba(few[0]), fitted.predict_proba(few[0]))
    with pytest.raises(RuntimeError, match="no"):
        clf.partial_fit(*few)
    np.testing.assert_array_equal(clf.predict_proba(few[0]), fitted.predict_proba(few[0]))
    expected = small().fit(*few).partial_fit(*few)  # the optimiser and dropout, too, are as they were
    again = clf.set_params(callbacks=None).partial_fit(*few)
    np.testing.assert_array_equal(again.predict_proba(few[0]), expected.predict_proba(few[0]))


def test_verbose(few, capsys):
    small(verbose=True).fit(*few)
    assert capsys.readouterr().out.count("epoch ") == 2


# ---------------------------------------------------------------------------------------- going on


def test_partial_fit_goes_on(digits):
    X_train, X_test, y_train, y_test = digits
    clf = small(max_iter=99)
    for epoch in range(3):
        for start in range(0, len(X_train), 500):
            batch = slice(start, start + 500)
            clf.partial_fit(X_train[batch], y_train[batch], classes=np.arange(10) if epoch == 0 else None)
    assert clf.score(X_test, y_test) > 0.85
    assert clf.n_iter_ == 9
    assert clf.t_ == 3 * len(X_train)
    assert clf.network_.optimizer.t == 3 * sum(-(-n // 32) for n in (500, 500, len(X_train) - 1000))


def test_partial_fit_after_fit(few):
    clf = small().fit(*few)
    loss = clf.loss_
    assert clf.partial_fit(*few).loss_ < loss
    assert clf.n_iter_ == 3


def test_partial_fit_errors(few):
    X, y = few
    with pytest.raises(ValueError, match="classes must be passed"):
        small().partial_fit(X, y)
    clf = small().partial_fit(X, y, classes=np.arange(10))
    with pytest.raises(ValueError, match="not the same"):
        clf.partial_fit(X, y, classes=np.arange(11))
    with pytest.raises(ValueError, match=r"\[42\]"):
        clf.partial_fit(X[:2], [1, 42])
    with pytest.raises(ValueError, match=r"\(4, 16, 1\).*\(8, 8, 1\)"):
        clf.partial_fit(X.reshape(-1, 4, 16), y)
    with pytest.raises(ValueError, match="balanced"):
        clf.set_params(class_weight="balanced").partial_fit(X, y)
    assert clf.n_iter_ == 1


def test_partial_fit_with_class_weight(few):
    X, y = few
    weights = {False: 1.0, True: 3.0}
    by_class = small(class_weight=weights, scale=None).partial_fit(X, y > 4, classes=[False, True])
    by_sample = small(scale=None).partial_fit(X, y > 4, classes=[False, True], sample_weight=1.0 + 2 * (y > 4))
    np.testing.assert_array_equal(by_class.predict_proba(X), by_sample.predict_proba(X))


def test_warm_start(few):
    X, y = few
    clf = small(warm_start=True).fit(X, y)
    loss = clf.loss_
    clf.fit(X, y)
    assert clf.n_iter_ == 4
    assert clf.loss_curve_[2] < loss
    with pytest.raises(ValueError, match="warm_start"):
        clf.fit(X[:5], y[:5])
    with pytest.raises(ValueError, match="shape"):
        clf.fit(X[:, :4], y)
    with pytest.raises(ValueError, match="shape"):
        clf.set_params(conv_channels=(4,)).fit(X, y)
    with pytest.raises(ValueError, match=r"image_shape=\(4, 16\), but .* goes on with images of shape \(8, 8, 1\)"):
        clf.set_params(image_shape=(4, 16)).fit(X.reshape(len(X), -1), y)
    assert clf.n_iter_ == 4
    assert small(warm_start=False).fit(X, y).fit(X, y).n_iter_ == 2


def test_large_images_are_predicted_in_small_batches(monkeypatch, few, fitted):
    monkeypatch.setattr(fastcnn.classifier, "_BATCH_VALUES", 64 * 7)
    few_at_once = fitted.predict_proba(few[0])
    monkeypatch.undo()
    np.testing.assert_allclose(few_at_once, fitted.predict_proba(few[0]), rtol=1e-5)


# ------------------------------------------------------------------------------------------- training features


def test_averaged_parameters(few):
    X, y = few
    curves = {}
    for decay in (None, 0.9):
        clf = small(ema_decay=decay, max_iter=6).fit(X, y, X_val=X, y_val=y)
        curves[decay] = clf
        assert clf.validation_scores_[-1] == pytest.approx(clf.score(X, y))
        assert clf.score(X, y) > 0.7
    assert curves[0.9].loss_curve_ == curves[None].loss_curve_  # training itself is the same
    assert curves[0.9].validation_loss_curve_ != curves[None].validation_loss_curve_
    stopped = small(ema_decay=0.9, max_iter=6, early_stopping=True).fit(X, y, X_val=X, y_val=y)
    assert stopped.score(X, y) == pytest.approx(max(stopped.validation_scores_))


def test_diverging_average_keeps_good_parameters(few):
    clf = small(solver="sgd", learning_rate_init=1e30, max_iter=3, ema_decay=0.99)
    with pytest.warns(ConvergenceWarning, match="diverged in epoch 1"):
        clf.fit(*few)
    assert np.isfinite(clf.predict_proba(few[0])).all()


def test_micro_batches_change_rounding_only(few):
    X, y = few
    whole = small(batch_size=64, dtype="float64", n_iter_no_change=np.inf).fit(X, y)
    parts = small(batch_size=64, dtype="float64", micro_batch_size=16).fit(X, y)
    np.testing.assert_allclose(parts.predict_proba(X), whole.predict_proba(X), rtol=1e-6, atol=1e-9)


def test_flipped_images_at_test_time(few, fitted):
    X, _ = few
    plain, mirrored = fitted.predict_proba(X), fitted.predict_proba(X[:, :, ::-1])
    proba = fitted.predict_proba(X, tta="flip")
    np.testing.assert_allclose(proba, (plain + mirrored) / 2, rtol=1e-6)
    np.testing.assert_array_equal(fitted.predict(X, tta="flip"), proba.argmax(axis=1))
    np.testing.assert_allclose(fitted.predict_log_proba(X, tta="flip"), np.log(proba), rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="tta must be"):
        fitted.predict(X, tta="crop")


@pytest.mark.parametrize("tta", ["shift", "flip+shift"])
def test_moved_images_at_test_time(few, fitted, tta):
    X, _ = few

    def moved(x, down, right):
        height, width = x.shape[1:3]
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1), *[(0, 0)] * (x.ndim - 3)])
        return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]

    sides = [X, X[:, :, ::-1]] if tta == "flip+shift" else [X]
    moves = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    expected = np.mean([fitted.predict_proba(moved(x, *move)) for x in sides for move in moves], axis=0)
    proba = fitted.predict_proba(X, tta=tta)
    np.testing.assert_allclose(proba, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(fitted.predict(X, tta=tta), proba.argmax(axis=1))
    np.testing.assert_allclose(fitted.predict_log_proba(X, tta=tta), np.log(proba), rtol=1e-3, atol=1e-5)


def test_the_estimators_own_tta_is_for_calls_that_do_not_say(few, fitted):
    X, y = few
    clf = copy(fitted).set_params(tta="flip")
    flipped = fitted.predict_proba(X, tta="flip")
    np.testing.assert_array_equal(clf.predict_proba(X), flipped)
    np.testing.assert_array_equal(clf.predict_proba(X, tta=False), fitted.predict_proba(X))
    assert clf.score(X, y) == np.mean(flipped.argmax(axis=1) == y)
    with pytest.raises(ValueError, match="'tta' parameter"):
        small(tta="crop").fit(X, y)


def test_validation_during_training_goes_without_tta(few):
    X, y = few
    scores = [
        small(tta=tta, scoring=scoring, max_iter=3).fit(X, y, X_val=X, y_val=y).validation_scores_
        for tta, scoring in [(None, None), ("flip", None), ("flip", "accuracy")]
    ]
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize(
    "parameters",
    [
        {"weight_init": "orthogonal"},
        {"learning_rate": "cosine", "warmup": 0.2},
        {"activation": "silu", "batch_norm": True},
        {"augment": [RandomAffine(5), RandomContrast(), MixUp(0.2)]},
        {
            "layers": [
                Conv2D(8),
                Residual([BatchNorm(), LeakyReLU(), Conv2D(8)]),
                SpatialDropout(0.1),
                GlobalAvgPool2D(),
            ]
        },
    ],
)
def test_features_train_reproducibly_and_survive_files(parameters, few, tmp_path):
    X, y = few
    first, second = (small(**parameters, n_jobs=n, max_iter=3).fit(X, y) for n in (1, 2))
    assert first.loss_curve_ == second.loss_curve_ and first.loss_curve_[-1] < first.loss_curve_[0]
    first.save(tmp_path / "model")
    again = CNNClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(X), second.predict_proba(X))
    assert again.get_params() == {**first.get_params()}
