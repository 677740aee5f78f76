"""CNNClassifier among scikit-learn's tools."""

from __future__ import annotations

import copy
import pickle

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import VotingClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastcnn.classifier import CNNClassifier
from fastcnn.layers import Conv2D, Dense, MaxPool2D, ReLU
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


TO_CHECK = {"conv_channels": (8,), "dense_units": (16,), "dropout": 0.0, "learning_rate_init": 0.01}
# One batch for all, as weights stand for repetition in a batch; float32 in small ones, as it is used.
FLOAT64 = CNNClassifier(**TO_CHECK, batch_size=1000, max_iter=60, dtype="float64")
FLOAT32 = CNNClassifier(**TO_CHECK, batch_size=16, max_iter=20)


def expected_failures(estimator):
    if estimator.dtype == "float64":
        return {}
    return {"check_sample_weight_equivalence_on_dense_data": "its tolerance is 1e-7, float32's resolution"}


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


def test_meta_estimators(digits):
    X, y = digits
    vote = VotingClassifier([("a", small()), ("b", small(random_state=1))], voting="soft")
    calibrated = CalibratedClassifierCV(small(), cv=2)
    for meta in (vote, calibrated):
        assert meta.fit(X, y).score(X, y) > 0.6


def test_set_params_between_fits(digits):
    X, y = digits
    clf = small().fit(X, y)
    clf.set_params(conv_channels=(4, 4), dtype="float32", image_shape=(8, 8)).fit(X.reshape(400, 64), y[::-1])
    fresh = small(conv_channels=(4, 4), image_shape=(8, 8)).fit(X.reshape(400, 64), y[::-1])
    np.testing.assert_array_equal(clf.predict_proba(X), fresh.predict_proba(X))
