"""Transformers of images: values, shapes, errors, and their place in pipelines."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastcnn import CNNClassifier
from fastcnn.preprocessing import ImageFlattener, ImageReshaper, ImageScaler

ALL = [ImageScaler(), ImageScaler(scale="unit"), ImageFlattener(), ImageReshaper()]


@parametrize_with_checks([*ALL, ImageScaler(dtype="float32")])
def test_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def colour():
    """uint8 (20, 5, 4, 3), the channels of different brightness."""
    return (np.random.default_rng(0).integers(0, 80, (20, 5, 4, 3)) + np.array([0, 50, 150])).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_standardize(colour, dtype):
    X = colour.astype(dtype)
    scaler = ImageScaler().fit(X)
    result = scaler.transform(X)
    assert result.shape == X.shape and result.dtype == (np.float64 if dtype is np.float64 else np.float32)
    expected = (X.astype(float) - X.mean(axis=(0, 1, 2), dtype=float)) / X.std(axis=(0, 1, 2), dtype=float)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaler.inverse_transform(result), X, atol=1e-4)
    np.testing.assert_array_equal(X, colour)  # nothing was done in place


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.uint8, 0, 255), (np.float32, 3, 229)])
def test_unit(colour, dtype, low, high):
    X = colour.clip(3, 229).astype(dtype)
    X.flat[:2] = 3, 229
    result = ImageScaler(scale="unit").fit_transform(X)
    np.testing.assert_allclose(result, (X.astype(float) - low) / (high - low), rtol=1e-6)


def test_scaler_agrees_with_the_classifier(colour):
    y = np.arange(20) % 2
    settings = {"conv_channels": (4,), "dense_units": (), "dropout": 0.0, "max_iter": 2, "random_state": 0}
    alone = CNNClassifier(**settings).fit(colour, y)
    scaled = make_pipeline(ImageScaler(), CNNClassifier(scale=None, **settings)).fit(colour, y)
    np.testing.assert_allclose(scaled.predict_proba(colour), alone.predict_proba(colour), rtol=1e-5)


@pytest.mark.parametrize("form", [lambda X: X, lambda X: X.reshape(20, -1), lambda X: X[..., 0], np.asfortranarray])
def test_scaler_keeps_the_form(colour, form):
    X = form(colour)
    shape = (5, 4, 3) if X.ndim == 2 else None
    result = ImageScaler(image_shape=shape, dtype="float64").fit_transform(X)
    assert result.shape == X.shape and result.dtype == np.float64
    np.testing.assert_allclose(result.reshape(20, -1).mean(), 0, atol=1e-9)


@pytest.mark.parametrize("kind", [np.int64, np.uint16, bool, np.float16, np.float32, np.float64])
def test_dtype_of_the_result(colour, kind):
    X = colour.astype(kind)
    scaler = ImageScaler().fit(X)
    assert scaler.transform(X).dtype == (np.float64 if kind is np.float64 else np.float32)
    assert ImageScaler(dtype="float64").fit_transform(X).dtype == np.float64


def test_data_frames():
    frame = pd.DataFrame(np.arange(16.0).reshape(4, 4), columns=list("abcd"))
    scaler = ImageScaler().set_output(transform="pandas").fit(frame)
    assert list(scaler.transform(frame).columns) == list("abcd")
    assert set(scaler.transform(frame).dtypes) == {np.dtype("float64")}
    assert set(scaler.transform(frame.astype("int64")).dtypes) == {np.dtype("float32")}
    with pytest.raises(ValueError, match="feature names"):
        scaler.transform(frame[list("dcba")])


def test_images_do_not_become_frames(colour):
    scaler = ImageScaler().set_output(transform="pandas")
    assert scaler.fit_transform(colour).shape == scaler.transform(colour).shape == (20, 5, 4, 3)
    assert scaler.set_output(transform="polars").transform(colour).shape == (20, 5, 4, 3)
    rows, scaler = colour.reshape(20, -1), scaler.set_output(transform="pandas")
    assert isinstance(scaler.fit(rows).transform(rows), pd.DataFrame)


@pytest.mark.parametrize("transformer", [ImageScaler(image_shape=(5, 4, 3)), ImageReshaper((5, 4, 3))])
def test_what_cannot_be_fitted_changes_nothing(transformer, colour):
    transformer = clone(transformer)
    with pytest.raises(ValueError, match="59 features"):
        transformer.fit(np.zeros((2, 59)))
    with pytest.raises(NotFittedError):
        transformer.transform(colour)
    expected = transformer.fit_transform(colour)
    with pytest.raises(ValueError, match="image_shape"):
        transformer.fit(np.zeros((2, 4, 5, 3)))
    np.testing.assert_array_equal(transformer.transform(colour), expected)


def test_flatten_and_reshape_are_each_other_s_inverse(colour):
    flattener, reshaper = ImageFlattener().fit(colour), ImageReshaper((5, 4, 3)).fit(colour)
    rows = flattener.transform(colour)
    assert rows.shape == (20, 60) and np.shares_memory(rows, colour)
    np.testing.assert_array_equal(flattener.inverse_transform(rows), colour)
    images = reshaper.transform(rows)
    assert np.shares_memory(images, colour)
    np.testing.assert_array_equal(images, colour)
    np.testing.assert_array_equal(reshaper.inverse_transform(images), rows)
    assert ImageReshaper().fit_transform(colour[..., 0]).shape == (20, 5, 4, 1)


@pytest.mark.parametrize("transformer", [ImageScaler(), ImageFlattener(), ImageReshaper()])
@pytest.mark.parametrize("output", ["default", "pandas"])
def test_there_and_back_without_a_warning(transformer, output):
    """What comes back has names or none, whatever `fit` saw."""
    frame = pd.DataFrame(np.arange(48.0).reshape(3, 16), columns=[f"pixel{i}" for i in range(16)])
    for X in (frame, frame.to_numpy()):
        fitted = clone(transformer).fit(X)
        if not isinstance(transformer, ImageReshaper):
            fitted.set_output(transform=output)
        back = fitted.inverse_transform(fitted.transform(X))
        np.testing.assert_allclose(back.reshape(3, 16), frame, atol=1e-4)
    if isinstance(transformer, ImageScaler):
        with pytest.raises(ValueError, match="feature names"):
            clone(transformer).fit(frame).inverse_transform(frame[frame.columns[::-1]])


@pytest.mark.parametrize("transformer", [ImageScaler(), ImageFlattener(), ImageReshaper()])
def test_errors(transformer, colour):
    transformer = clone(transformer)
    with pytest.raises(NotFittedError):
        transformer.transform(colour)
    transformer.fit(colour)
    name = type(transformer).__name__
    with pytest.raises(ValueError, match=rf"\(4, 5, 3\).*{name} is expecting images of shape \(5, 4, 3\)"):
        transformer.transform(colour.reshape(20, 4, 5, 3))
    with pytest.raises(ValueError, match=f"59 features, but {name} is expecting 60"):
        transformer.transform(np.zeros((2, 59)))
    with pytest.raises(ValueError, match="NaN"):
        transformer.transform(np.full((1, 5, 4, 3), np.nan))
    with pytest.raises(ValueError, match="'scale' parameter of ImageScaler"):
        ImageScaler(scale="max").fit(colour)
    with pytest.raises(ValueError, match=r"60 features.*\(5, 4\).*20"):
        ImageReshaper((5, 4)).fit(colour.reshape(20, -1))


def test_in_a_pipeline():
    data = load_digits()
    X, y = data.images[:300].astype(np.uint8), data.target[:300]
    linear = make_pipeline(ImageScaler(), ImageFlattener(), LogisticRegression(max_iter=200))
    assert cross_val_score(linear, X, y, cv=2, error_score="raise").mean() > 0.85
    cnn = CNNClassifier(conv_channels=(8,), batch_size=32, max_iter=6, random_state=0)
    assert make_pipeline(ImageReshaper(), cnn).fit(X.reshape(300, 64), y).score(X.reshape(300, 64), y) > 0.8
