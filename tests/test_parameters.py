"""Parameters of `CNNClassifier` arrive where they count: a fit without them would be another one."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fastcnn import CNNClassifier, Network
from fastcnn.training.schedules import make_schedule

GIVEN = {
    "learning_rate_init": 2e-3, "momentum": 0.8, "nesterovs_momentum": False, "beta_1": 0.7, "beta_2": 0.95,
    "epsilon": 1e-5, "alpha": 0.03, "clip_norm": 4.0,
}  # fmt: skip
MOMENTUM, ADAM = {"momentum": 0.8, "nesterov": False}, {"beta_1": 0.7, "beta_2": 0.95, "epsilon": 1e-5}


def small(**parameters):
    usual = {"conv_channels": (8,), "dense_units": (16,), "dropout": 0.0, "batch_size": 32, "random_state": 0}
    return CNNClassifier(**(usual | parameters))


@pytest.fixture(scope="module")
def few():
    data = load_digits()
    return data.images[:300].astype(np.uint8), data.target[:300]


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        ("adam", ADAM | {"l2": 0.03}),
        ("adamw", ADAM | {"weight_decay": 0.03}),
        ("muon", MOMENTUM | ADAM | {"weight_decay": 0.03}),
        ("sgd", MOMENTUM | {"l2": 0.03}),
    ],
)
def test_the_optimizer(solver, expected, few):
    network, *_ = small(solver=solver, weight_init="orthogonal", **GIVEN).begin_fit(*few)  # trains nothing
    assert network.optimizer.settings == expected | {"learning_rate": 2e-3, "clip_norm": 4.0}
    weight = network.params["0.weight"].reshape(-1, 8).astype(float)
    np.testing.assert_allclose(weight.T @ weight, 2 * np.eye(8), atol=1e-5)


def test_label_smoothing(few):
    X, y = few
    clf = small(label_smoothing=0.2, learning_rate_init=1e-12, max_iter=1, dtype="float64").fit(X, y)
    log_proba = clf.predict_log_proba(X)
    expected = -(0.8 * log_proba[np.arange(300), y] + 0.2 * log_proba.mean(axis=1)).mean()
    assert clf.loss_ == pytest.approx(expected, rel=1e-6)
    assert clf.partial_fit(X, y).loss_ == pytest.approx(expected, rel=1e-6)


def test_the_learning_rate(few):
    parameters = {"learning_rate": "cosine", "learning_rate_init": 5e-3, "warmup": 0.5, "max_iter": 4}
    clf = small(**parameters, warm_start=True).fit(*few)  # 10 batches an epoch
    schedule = make_schedule("cosine", 5e-3, 40, 10, 0.5)
    expected = [schedule(10 * epoch + 9) for epoch in range(4)]
    assert clf.learning_rates_ == expected
    assert clf.fit(*few).learning_rates_ == 2 * expected  # a warm start begins it anew
    assert clf.partial_fit(*few).learning_rates_[-1] == 5e-3


def test_micro_batches(few, monkeypatch):
    sizes, add = set(), Network._add_gradients

    def noted(self, x, *args, **more):
        sizes.add(len(x))
        return add(self, x, *args, **more)

    monkeypatch.setattr(Network, "_add_gradients", noted)
    small(batch_size=64, micro_batch_size=16, max_iter=1).fit(*few)
    assert max(sizes) == 16
