"""Searches whose fits run on a cluster."""

import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import GridSearchCV

from fastcnn import CNNClassifier
from fastcnn.kernels import get_backend

joblib = pytest.importorskip("joblib")
pytest.importorskip("distributed")

GRID = {"conv_channels": [(4,), (6,)], "dropout": [0.0, 0.2]}


def small():
    return CNNClassifier(conv_channels=(4,), dense_units=(8,), batch_size=16, max_iter=2, random_state=0)


def score(clf, X, y):
    assert X.dtype == np.uint8
    return {"accuracy": clf.score(X, y), "threads": get_backend("cpu").max_threads(clf.n_jobs)}


def test_a_grid_search_on_the_cluster(client, digits):
    X, y = digits[0][:150], digits[1][:150]

    def search():
        return GridSearchCV(small(), GRID, cv=2, scoring=score, refit="accuracy", error_score="raise")

    here = search().fit(X, y)
    with joblib.parallel_config(backend="dask", scatter=[X, y]):
        there = search().fit(X, y)
    assert there.best_params_ == here.best_params_
    np.testing.assert_array_equal(there.cv_results_["mean_test_accuracy"], here.cv_results_["mean_test_accuracy"])
    np.testing.assert_array_equal(there.cv_results_["mean_test_threads"], 1)
    np.testing.assert_array_equal(there.predict_proba(X), here.predict_proba(X))


@pytest.mark.parametrize(
    ("name", "settings"), [("IncrementalSearchCV", {"decay_rate": None}), ("HyperbandSearchCV", {})]
)
def test_searches_of_dask_ml(client, digits, name, settings):
    search = getattr(pytest.importorskip("dask_ml.model_selection"), name)
    import dask.array as da

    X, y = digits[0][:200].reshape(200, 64), digits[1][:200]
    data = da.from_array(X, chunks=(100, 64)), da.from_array(y, chunks=100)
    settings |= {"max_iter": 3, "random_state": 0}
    try:
        search(SGDClassifier(), {"alpha": np.logspace(-4, -1, 16)}, **settings).fit(*data, classes=list(range(10)))
    except RuntimeError as error:  # of dask-ml 2025.1.0 with Dask 2026.8.0
        pytest.skip(f"this dask-ml does not work with this Dask: {error}")
    grid = {"dropout": np.linspace(0, 0.7, 16)}
    found = search(small(), grid, **settings).fit(*data, classes=list(range(10)))
    assert found.best_params_["dropout"] in grid["dropout"]
    assert found.predict(X).shape == (200,)
