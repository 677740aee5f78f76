"""scikit-learn's meta-estimators over images, in a process of its own: `python meta_estimators.py BACKEND N_JOBS
[some]`.

Prints as JSON what each one scored (some: a grid search alone), and the threads that a fit in its workers may use.
"""

from __future__ import annotations

import json
import sys
import warnings

import joblib
import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_val_score, learning_curve
from sklearn.multiclass import OneVsRestClassifier

from fastcnn import CNNClassifier
from fastcnn.kernels import get_backend
from fastcnn.layers import Conv2D, MaxPool2D

warnings.simplefilter("error")


def small(**parameters):
    settings = {"conv_channels": (4,), "dense_units": (8,), "dropout": 0.1, "batch_size": 16, "max_iter": 4}
    return CNNClassifier(**(settings | parameters), learning_rate_init=0.01, random_state=0)


def score(clf, X, y):
    """The accuracy, and the threads of this process."""
    return {"accuracy": clf.score(X, y), "threads": get_backend("cpu").max_threads(clf.n_jobs)}


def run(backend: str, n_jobs: int, some: bool) -> dict[str, object]:
    data = load_digits(n_class=3)
    X, y = data.images[:150, ..., np.newaxis].astype(np.uint8), data.target[:150]
    grid = {"conv_channels": [(4,), (4, 4)], "layers": [None, [Conv2D(4, activation="relu"), MaxPool2D()]]}
    small().fit(X, y)  # threads are there when workers are forked

    def proba(meta):
        return meta.fit(X, y).predict_proba(X).tolist()

    search = GridSearchCV(small(), grid, cv=2, n_jobs=n_jobs, scoring=score, refit="accuracy").fit(X, y)
    found: dict[str, object] = {
        "threads": sorted({int(n) for n in search.cv_results_["mean_test_threads"]}),
        "grid": search.cv_results_["mean_test_accuracy"].tolist(),
        "best": search.predict_proba(X).tolist(),
    }
    if some:
        return found
    halving = HalvingGridSearchCV(
        small(), {"dropout": [0.0, 0.2]}, cv=2, factor=2, n_jobs=n_jobs, random_state=0, error_score="raise"
    ).fit(X, y)
    linear = LogisticRegression()
    # scikit-learn 1.9 sends a module to the workers here, which the standard pickle refuses, whatever the estimator.
    calibration_jobs = 1 if backend == "multiprocessing" else n_jobs
    return found | {
        "halving": halving.cv_results_["mean_test_score"].tolist(),
        "cross_val_score": cross_val_score(small(), X, y, cv=3, n_jobs=n_jobs).tolist(),
        "learning_curve": learning_curve(small(), X, y, train_sizes=[0.5, 1.0], cv=2, n_jobs=n_jobs)[2].tolist(),
        "calibration": proba(CalibratedClassifierCV(small(), cv=2, n_jobs=calibration_jobs)),
        "voting": proba(VotingClassifier([("a", small()), ("b", small(max_iter=1))], voting="soft", n_jobs=n_jobs)),
        "stacking": proba(StackingClassifier([("a", small())], linear, cv=2, n_jobs=n_jobs)),
        "one against the rest": proba(OneVsRestClassifier(small(), n_jobs=n_jobs)),
    }


if __name__ == "__main__":
    with joblib.parallel_config(sys.argv[1]):
        json.dump(run(sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["some"]), sys.stdout)
