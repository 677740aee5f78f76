"""CNNClassifier among scikit-learn's tools."""

from __future__ import annotations

import copy
import pickle

import joblib
import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastcnn.classifier import CNNClassifier
from fastcnn.layers import Conv2D, Dense, MaxPool2D, ReLU
from fastcnn.preprocessing import ImageScaler
from fastcnn.training.augment import RandomShift

SMALL = {
    "conv_channels": (8,),
    "dense_units": (16,),
    "dropout": 0.0,
    "learning_rate_init": 5e-3,
    "learning_rate": "cosine",
    "batch_size": 32,
    "max_iter": 6,
    "random_state": 0,
}


def small(**parameters):
    return CNNClassifier(**(SMALL | parameters))


@pytest.fixture(scope="module")
def digits():
    """400 digits as images (n, 8, 8, 1)."""
    data = load_digits()
    return data.images[:400, ..., np.newaxis].astype(np.uint8), data.target[:400]


# One thread: a second one would only wait beside the tests' other processes.
TO_CHECK = {"conv_channels": (8,), "dense_units": (16,), "dropout": 0.0, "learning_rate_init": 0.01, "n_jobs": 1}
# One batch for all, as weights stand for repetition in a batch; float32 in small ones, as it is used.
FLOAT64 = CNNClassifier(**TO_CHECK, batch_size=1000, max_iter=60, dtype="float64")
FLOAT32 = CNNClassifier(**TO_CHECK, batch_size=16, max_iter=20)


def expected_failures(estimator):
    if estimator.dtype == "float64":
        return {}
    return {"check_sample_weight_equivalence_on_dense_data": "mini-batches, and a tolerance of float32's resolution"}


@parametrize_with_checks([FLOAT64, FLOAT32], expected_failed_checks=expected_failures)
def test_checks(estimator, check):
    check(estimator)


def test_tags():
    tags = get_tags(CNNClassifier())
    assert tags.estimator_type == "classifier"
    assert tags.input_tags.two_d_array
    assert tags.input_tags.three_d_array


def test_parameters_round_trip():
    clf = CNNClassifier()
    assert clf.set_params(**clf.get_params()) is clf
    assert repr(CNNClassifier(dropout=0.5)) == "CNNClassifier(dropout=0.5)"


def test_clone_keeps_what_cannot_be_compared():
    layers = [Conv2D(4, activation="relu"), MaxPool2D(), Dense(8), ReLU()]
    clf = small(layers=layers, augment=[RandomShift(1)], class_weight={0: 2.0})
    copied = clone(clf)
    assert copied.get_params() == clf.get_params()


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda clf, path: pickle.loads(pickle.dumps(clf)),
        lambda clf, path: copy.deepcopy(clf),
        lambda clf, path: joblib.dump(clf, path) and joblib.load(path),
    ],
    ids=["pickle", "deepcopy", "joblib"],
)
def test_copies_predict_and_train_alike(duplicate, digits, tmp_path):
    X, y = digits
    clf = small(dropout=0.2).fit(X, y)
    again = duplicate(clf, tmp_path / "clf.joblib")
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
    again.partial_fit(X, y)
    assert clf.n_iter_ == 6
    clf.partial_fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search_over_images(n_jobs, digits):
    grid = {
        "conv_channels": [(4,), (8,)],
        "layers": [None, [Conv2D(8, activation="relu"), MaxPool2D()]],
    }
    search = GridSearchCV(small(), grid, cv=2, n_jobs=n_jobs, error_score="raise").fit(*digits)
    assert search.best_score_ > 0.6
    alone = small(**search.best_params_)
    best = search.cv_results_["mean_test_score"][search.best_index_]
    assert cross_val_score(alone, *digits, cv=2).mean() == best


def test_pipelines(digits):
    X, y = digits
    scaled = make_pipeline(MinMaxScaler(), small(scale=None)).fit(X.reshape(400, -1), y)
    assert scaled.score(X.reshape(400, -1), y) > 0.6
    half = make_pipeline(FunctionTransformer(lambda images: images[:, ::2]), small()).fit(X, y)
    assert half[-1].image_shape_ == (4, 8, 1)


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def test_validation_data_through_a_pipeline(digits, routing):
    """`X_val` goes through the steps before the network, as X does."""
    X, X_val, y, y_val = train_test_split(*digits, test_size=100, random_state=0)
    clf = small(scale=None, early_stopping=True, n_iter_no_change=2, tol=0.02, max_iter=30)
    clf.set_fit_request(X_val=True, y_val=True, sample_weight_val=True)
    pipeline = Pipeline([("scale", ImageScaler()), ("clf", clf)], transform_input=["X_val"])
    weight = np.linspace(1, 2, 100)
    pipeline.fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weight)
    fitted, scaled = pipeline["clf"], pipeline["scale"].transform(X_val)
    alone = clone(clf).fit(pipeline["scale"].transform(X), y, X_val=scaled, y_val=y_val, sample_weight_val=weight)
    assert 2 < fitted.n_iter_ < 30
    assert fitted.validation_scores_ == alone.validation_scores_
    best = fitted.score(scaled, y_val, sample_weight=weight)
    assert max(fitted.validation_scores_) == pytest.approx(best)


def test_validation_data_through_a_grid_search(digits, routing):
    X, X_val, y, y_val = train_test_split(*digits, test_size=100, random_state=0)
    clf = small(scale=None, early_stopping=True).set_fit_request(X_val=True, y_val=True)
    pipeline = Pipeline([("scale", ImageScaler()), ("clf", clf)], transform_input=["X_val"])
    search = GridSearchCV(pipeline, {"clf__conv_channels": [(2,), (8,)]}, cv=2, error_score="raise")
    search.fit(X, y, X_val=X_val, y_val=y_val)
    fitted = search.best_estimator_["clf"]
    assert len(fitted.validation_scores_) == fitted.n_iter_ > 0
    assert search.score(X_val, y_val) == pytest.approx(max(fitted.validation_scores_))
    with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
        search.fit(X, y, X_val=X_val, y_val=y_val, sample_weight=np.ones(len(X)))


def test_weights_through_a_grid_search(digits, routing):
    X, y = digits
    clf = small().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
    weight = 1.0 + (y == 3)
    search = GridSearchCV(clf, {"dropout": [0.0]}, cv=2, error_score="raise").fit(X, y, sample_weight=weight)
    alone = small().fit(X, y, sample_weight=weight)
    np.testing.assert_array_equal(search.predict_proba(X), alone.predict_proba(X))


def test_set_params_between_fits(digits):
    X, y = digits
    clf = small().fit(X, y)
    clf.set_params(conv_channels=(4, 4), dtype="float32", image_shape=(8, 8)).fit(X.reshape(400, 64), y[::-1])
    fresh = small(conv_channels=(4, 4), image_shape=(8, 8)).fit(X.reshape(400, 64), y[::-1])
    np.testing.assert_array_equal(clf.predict_proba(X), fresh.predict_proba(X))
