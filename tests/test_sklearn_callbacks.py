"""scikit-learn's own callbacks, where the installed version has them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from fastcnn import CNNClassifier
from fastcnn.preprocessing import ImageScaler

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn before 1.9")


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return data.images[:200].astype(np.uint8), data.target[:200]


def small(**parameters):
    settings = {"conv_channels": (4,), "dense_units": (), "dropout": 0.0, "batch_size": 32, "max_iter": 3}
    return CNNClassifier(**(settings | parameters), random_state=0)


class Recorder:
    """Notes what it is told, and stops training after epoch `last`."""

    def __init__(self, last=99):
        self.last, self.seen, self.scores, self.kept = last, [], [], None

    def setup(self, estimator, context):
        self.seen.append("setup")

    def teardown(self, estimator, context):
        self.seen.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None, metadata=None):
        self.seen.append(("begin", context.task_name, context.task_id, len(X), metadata is not None))

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None):
        self.seen.append(("end", context.task_name, context.task_id))
        self.scores.append(fitted_estimator.score(X, y))
        self.kept = self.kept or fitted_estimator
        return context.task_name == "epoch" and context.task_id + 1 == self.last


def test_tasks(digits):
    recorder = Recorder()
    clf = small().set_callbacks(recorder)
    assert clf.fit(*digits, sample_weight=np.ones(200)) is clf
    epochs = [event for i in range(3) for event in (("begin", "epoch", i, 200, True), ("end", "epoch", i))]
    assert recorder.seen == ["setup", ("begin", "fit", 0, 200, True), *epochs, ("end", "fit", 0), "teardown"]
    assert recorder.scores[-1] == recorder.scores[-2] == clf.score(*digits)
    assert recorder.kept.n_iter_ == 1 and recorder.kept.score(*digits) == recorder.scores[0]
    assert not [name for name in vars(clf) if "callback_fit" in name]
    assert small().fit(*digits).loss_curve_ == clf.loss_curve_


def test_a_callback_stops_training(digits):
    assert small().set_callbacks(Recorder(last=2)).fit(*digits).n_iter_ == 2


def test_teardown_after_failure(digits):
    recorder = Recorder()
    clf = small().set_callbacks(recorder)
    with pytest.raises(ValueError, match="NaN"):
        clf.fit(np.full((4, 8, 8), np.nan), [0, 1, 0, 1])
    assert recorder.seen[0] == "setup" and recorder.seen[-1] == "teardown"
    with pytest.raises(TypeError, match="FitCallback"):
        clf.set_callbacks(object())


def test_scoring_monitor_in_a_pipeline_and_a_search(digits):
    monitor = callback.ScoringMonitor(scoring="accuracy")
    clf = small(scale=None).set_callbacks(monitor)
    make_pipeline(ImageScaler(), clf).fit(*digits)
    scores = [row["accuracy"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(scores) == 3 and scores[0] <= scores[-1]
    search = GridSearchCV(clone(clf).set_callbacks(), {"conv_channels": [(2,), (4,)]}, cv=2)
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=None)).fit(*digits)
    assert search.best_estimator_.n_iter_ == 3


def test_progress_bar(digits, capsys):
    small().set_callbacks(callback.ProgressBar()).fit(*digits)
    assert "CNNClassifier" in capsys.readouterr().out
