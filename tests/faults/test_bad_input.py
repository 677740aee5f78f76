"""What cannot be used is refused with an error that says what is wrong, and changes nothing."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.exceptions import ConvergenceWarning

from fastcnn import CNNClassifier

X = np.random.default_rng(0).integers(0, 256, (40, 6, 6)).astype(np.uint8)
y = np.arange(40) % 3
ONES = np.ones(40)


def small(**parameters):
    given = {"conv_channels": (4,), "dense_units": (8,), "max_iter": 2, "batch_size": 16, "random_state": 0}
    return CNNClassifier(**given | parameters)


def spoilt(value, dtype=np.float64, of=X):
    """`of` with one `value` among the others."""
    array = of.astype(dtype)
    array[(3, 2, 2)[: of.ndim]] = value
    return array


@pytest.fixture(scope="module")
def fitted():
    return small().fit(X, y)


TOO_LARGE = 'X has values too large for scale="{}": their mean, deviation or range is not finite'

# What X is -> what is said of it, wherever it is given.
IMAGES = {
    "NaN": (lambda: spoilt(np.nan), ValueError, r"Input X contains NaN"),
    "infinity": (
        lambda: spoilt(np.inf),
        ValueError,
        r"Input X contains infinity or a value too large for dtype\('float64'\)",
    ),
    "infinity in float32": (
        lambda: spoilt(-np.inf, np.float32),
        ValueError,
        r"Input X contains infinity or a value too large for dtype\('float32'\)",
    ),
    "beyond float64": (
        lambda: X.astype(np.longdouble) * np.longdouble(10) ** 400,
        ValueError,
        r"Input X contains infinity or a value too large",
    ),
    "no images": (lambda: X[:0], ValueError, r"Found array with 0 sample\(s\)"),
    "complex": (lambda: X + 1j, ValueError, r"Complex data not supported"),
    "strings": (lambda: X.astype(str), ValueError, r"X has dtype <U3, expected numbers"),
    "bytes": (lambda: X.astype("S3"), ValueError, r"X has dtype \|S3, expected numbers"),
    "dates": (lambda: X.astype("M8[s]"), ValueError, r"X has dtype datetime64\[s\], expected numbers"),
    "records": (
        lambda: np.zeros(X.shape, [("a", float)]),
        ValueError,
        r"X has dtype \[\('a', '<f8'\)\], expected numbers",
    ),
    "objects with None": (lambda: spoilt(None, object), ValueError, r"Input X contains NaN"),
    "objects with a string": (lambda: spoilt("a", object), ValueError, r"could not convert string to float"),
    "sparse": (
        lambda: scipy.sparse.csr_array(X.reshape(40, 36)),
        TypeError,
        r"Sparse data was passed for X, but dense data is required",
    ),
    "five dimensions": (
        lambda: X[..., None, None],
        ValueError,
        r"X of shape \(40, 6, 6, 1, 1\) has 5 dimensions: expected \(n, H, W\), \(n, H, W, C\) or \(n, H\*W\*C\)",
    ),
    "one dimension": (lambda: X[:, 0, 0], ValueError, r"Expected 2D array, got 1D array instead"),
    "a number": (lambda: 3.0, ValueError, r"Expected 2D array, got scalar array instead"),
    "None": (lambda: None, TypeError, r"X is a NoneType, expected an array of images"),
    "a dict": (lambda: {"a": 1}, TypeError, r"X is a dict, expected an array of images"),
    "a generator": (lambda: (image for image in X), TypeError, r"X is a generator, expected an array of images"),
    "a list of images of different shapes": (
        lambda: [X[0], X[0, :5]] * 20,
        ValueError,
        r"X is a list that no array can be made of: are its images of one shape\?",
    ),
    "an array of arrays": (
        lambda: np.array([*X, None], object)[:-1],
        ValueError,
        r"X is a vector of 40 arrays, expected one array: np.stack\(X\)",
    ),
    "a column of arrays": (
        lambda: pd.Series(list(X))[1:],
        ValueError,
        r"X is a vector of 39 arrays, expected one array: np.stack\(X\)",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_images(name, fitted):
    make, kind, message = IMAGES[name]
    with pytest.raises(kind, match=f"^{message}"):
        fitted.predict(make())
    if name != "None":
        with pytest.raises(kind, match=f"^validation data: {message}"):
            small().fit(X, y, X_val=make(), y_val=y[: 0 if name == "no images" else None])
    before = fitted.predict_proba(X)
    with pytest.raises(kind, match=f"^{message}"):
        fitted.fit(make(), y[: 0 if name == "no images" else None])
    np.testing.assert_array_equal(fitted.predict_proba(X), before)
    with pytest.raises(kind, match=f"^{message}"):
        small().partial_fit(make(), y[: 0 if name == "no images" else None], classes=[0, 1, 2])


@pytest.mark.parametrize("shape", [(40, 0, 6), (40, 6, 0), (40, 6, 6, 0), (40, 0)])
def test_images_without_pixels(shape, fitted):
    with pytest.raises(ValueError, match=r"^Found array with 0 feature\(s\)"):
        small().fit(np.empty(shape), y)
    with pytest.raises(ValueError, match=r"(images of shape|has 0 features|0 feature)"):
        fitted.predict(np.empty(shape))


@pytest.mark.parametrize("scale", ["standardize", "unit"])
@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce")  # scikit-learn's check
def test_values_whose_range_is_not_finite(scale):
    with pytest.raises(ValueError, match=TOO_LARGE.format(scale)):
        small(scale=scale).fit((X - 128.0) * 1e306, y)


def test_weighted_values_whose_range_is_not_finite():
    with pytest.raises(ValueError, match=TOO_LARGE.format("standardize")):
        small().fit(X * 1e300, y, 1.0 + y)


def test_values_beyond_float32():
    with pytest.raises(
        ValueError, match=r"X has values up to 1e\+39, too large for the network's dtype without scaling"
    ):
        small(scale=None).fit(spoilt(1e39), y)
    clf = small(scale="unit").fit(X * 1e300, y)  # scaling makes them small
    np.testing.assert_array_equal(clf.predict(X * 1e300), clf.predict(X * 1e300))


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba"])
def test_values_too_large_to_predict_with(method, fitted):
    message = (
        r"the network's output is not finite for image 3 of X: its pixels \(from \d+ to 1e\+300\) are too large for"
    )
    with pytest.raises(ValueError, match=message):
        getattr(fitted, method)(spoilt(1e300))


LABELS = {
    "NaN": (spoilt(np.nan, of=y), ValueError, r"Input y contains NaN"),
    "infinity": (spoilt(np.inf, of=y), ValueError, r"Input y contains infinity"),
    "None": (spoilt(None, object, y), ValueError, r"y has missing labels \(None or NaN\)"),
    "strings and None": (
        np.array(["a", "b", None, "a"] * 10, object),
        ValueError,
        r"y has missing labels \(None or NaN\)",
    ),
    "strings and NaN": (
        np.array(["a", "b", np.nan, "a"] * 10, object),
        ValueError,
        r"(Input contains NaN|y has missing labels)",
    ),
    "no date": (np.array(["2020-01-01", "NaT"] * 20, "M8[D]"), ValueError, r"y has missing labels \(NaT\)"),
    "mixed": (
        spoilt("a", object, y),
        ValueError,
        r"Unknown label type: y has dtype object and labels of type int and str: expected strings",
    ),
    "objects": (
        y.astype(object),
        ValueError,
        r"Unknown label type: y has dtype object and labels of type int: expected strings, or an array",
    ),
    "records": (np.zeros(40, [("a", int)]), ValueError, r"y has dtype \[\('a', '<i8'\)\], expected numbers or strings"),
    "continuous": (np.linspace(0, 1, 40), ValueError, r"Unknown label type: continuous"),
    "complex": (y + 1j, ValueError, r"Complex data not supported"),
    "matrix": (np.eye(3)[y], ValueError, r"y should be a 1d array, got an array of shape \(40, 3\) instead"),
    "one number": (3, ValueError, r"y should be a 1d array, got an array of shape \(\) instead"),
    "None at all": (None, ValueError, r"(This CNNClassifier estimator requires y|requires y)"),
    "too few": (y[:-1], ValueError, r"Found input variables with inconsistent numbers of samples: \[40, 39\]"),
    "sparse": (scipy.sparse.csr_array(np.eye(3)[y]), TypeError, r"Sparse data was passed"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels(name):
    labels, kind, message = LABELS[name]
    with pytest.raises(kind, match=f"^{message}"):
        small().fit(X, labels)
    if labels is not None:
        with pytest.raises(kind, match=f"^validation data: {message}"):
            small().fit(X, y, X_val=X, y_val=labels)


def test_one_class_is_learnt():
    clf = small().fit(X, np.zeros(40))
    assert set(clf.predict(X)) == {0}


WEIGHTS = {
    "negative": (np.r_[-1, ONES[1:]], r"Negative values in data passed to `sample_weight`"),
    "NaN": (np.r_[np.nan, ONES[1:]], r"Input sample_weight contains NaN"),
    "infinity": (np.r_[np.inf, ONES[1:]], r"Input sample_weight contains infinity"),
    "all zero": (
        0 * ONES,
        r"(Sample weights must contain at least one non-zero number|sample_weight is zero for every image)",
    ),
    "too many": (np.ones(41), r"sample_weight.shape == \(41,\), expected \(40,\)"),
    "matrix": (np.ones((40, 2)), r"Sample weights must be 1D array or scalar"),
    "strings": (["a"] * 40, r"could not convert string to float"),
    "huge": (np.r_[1e300, ONES[1:]], r"sample_weight has values up to 1e\+300, too large for float32"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_sample_weights(name):
    weight, message = WEIGHTS[name]
    with pytest.raises(ValueError, match=f"^{message}"):
        small().fit(X, y, weight)
    with pytest.raises(ValueError, match=f"^{message}"):
        small().partial_fit(X, y, [0, 1, 2], weight)
    with pytest.raises(ValueError, match=f"^validation data: {message}"):
        small().fit(X, y, X_val=X, y_val=y, sample_weight_val=weight)


@pytest.mark.parametrize("weight", [-1, np.nan, np.inf])
def test_class_weights(weight):
    with pytest.raises(ValueError, match=r"^class_weight must be finite and not negative, and not 0 for all"):
        small(class_weight={0: weight, 1: 1, 2: 1}).fit(X, y)
    with pytest.raises(ValueError, match=r"^class_weight must be finite"):
        small(class_weight={0: 0, 1: 0, 2: 0}).fit(X, y)
    with pytest.raises(ValueError, match=r"^class_weight times sample_weight has values up to 1e\+300, too large"):
        small(class_weight={0: 1e300, 1: 1, 2: 1}).fit(X, y)


def test_validation_images_of_another_shape():
    message = (
        r"^validation data: X has images of shape \(5, 6, 1\), but CNNClassifier is expecting images of shape \(6, 6"
    )
    with pytest.raises(ValueError, match=message):
        small().fit(X, y, X_val=X[:, :5], y_val=y)
    with pytest.raises(ValueError, match=r"^validation data: X has images of shape \(6, 6, 3\)"):
        small().fit(X, y, X_val=np.stack([X] * 3, axis=-1), y_val=y)
    with pytest.raises(
        ValueError, match=r"^validation data: y has labels that are not among the classes \[0 1 2\]: \[3\]"
    ):
        small().fit(X, y, X_val=X, y_val=y + 1)


@pytest.mark.parametrize("scale", [None, "standardize", "unit"])
def test_training_images_that_scaling_makes_infinite(scale):
    """They are no divergence, whose parameters and moments would be lost."""
    huge, message = X.astype(np.float64), r"^X has values up to 1e\+60, too large for"
    huge[3, 2, 2] = 1e60
    clf = small(scale=scale, warm_start=True).fit(X, y)
    before = clf.network_
    for train in (clf.fit, clf.partial_fit):
        with pytest.raises(ValueError, match=message):
            train(huge, y)
        assert clf.network_ is before
    if scale != "unit":  # which it decides
        with pytest.raises(ValueError, match=message):
            small(scale=scale).fit(huge, y, np.where(np.arange(len(y)) == 3, 0, 1))


@pytest.mark.parametrize("scale", [None, "standardize", "unit"])
def test_validation_images_that_scaling_makes_infinite(scale):
    huge = X.astype(np.float64)
    huge[3, 2, 2] = 1e300
    with pytest.raises(ValueError, match=r"^validation data: X has values up to 1e\+300, too large for float32"):
        small(scale=scale).fit(X, y, X_val=huge, y_val=y)
    huge[3, 2, 2] = 300
    small(scale=scale).fit(X, y, X_val=huge, y_val=y)


def test_images_that_may_not_be_written(tmp_path, fitted):
    np.save(tmp_path / "x.npy", X)
    read_only = X.copy()
    read_only.flags.writeable = False
    expected = fitted.predict_proba(X)
    for images in (np.load(tmp_path / "x.npy", mmap_mode="r"), read_only):
        np.testing.assert_array_equal(fitted.predict_proba(images), expected)
        clf = small().fit(images, y, X_val=images, y_val=y)
        np.testing.assert_array_equal(clf.predict_proba(X), expected)
        small().partial_fit(images, y, classes=[0, 1, 2])


# ------------------------------------------------------------------------------------------------ diverging training


@pytest.mark.parametrize(
    "parameters", [{}, {"ema_decay": 0.5}, {"early_stopping": True}, {"scoring": "accuracy"}], ids=str
)
@pytest.mark.parametrize("solver", ["adam", "adamw", "muon", "sgd"])
def test_a_learning_rate_of_a_million(solver, parameters):
    clf = small(solver=solver, learning_rate_init=1e6, max_iter=30, n_iter_no_change=30, **parameters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clf.fit(X, y, **({"X_val": X, "y_val": y} if "scoring" in parameters else {}))
    said = [str(warning.message) for warning in caught]
    diverged = clf._history.reason == "diverged"
    assert said == [message for message in said if diverged and message.startswith("Training diverged in epoch ")]
    assert len(said) == diverged and (diverged or solver == "adam")
    assert all(np.isfinite(value).all() for value in clf.network_.params.values())
    assert np.isfinite(clf.predict_proba(X)).all()  # a finite loss was computed with what is kept
    assert np.isfinite(clf.loss_curve_).all()
    clf.set_params(learning_rate_init=1e-3, max_iter=2).fit(X, y)
    assert np.isfinite(clf.loss_)


def test_a_network_that_gives_no_finite_validation_loss_has_diverged(monkeypatch):
    clf = small(max_iter=3)
    monkeypatch.setattr(CNNClassifier, "_validate", lambda self, held_out: (np.nan, np.nan))
    with pytest.warns(ConvergenceWarning, match="Training diverged in epoch 1"):
        clf.fit(X, y, X_val=X, y_val=y)
    assert clf.validation_scores_ == []
