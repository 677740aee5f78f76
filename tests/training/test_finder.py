"""The learning-rate range test."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits

from fastcnn import CNNClassifier, Network
from fastcnn.layers import Conv2D, Dense, MaxPool2D
from fastcnn.training import find_learning_rate
from fastcnn.training.augment import MixUp, RandomShift
from fastcnn.training.batches import BatchLoader
from fastcnn.training.builders import BatchBuilder
from fastcnn.training.optimizers import SGD


@pytest.fixture(scope="module")
def loader():
    data = load_digits()
    builder = BatchBuilder(data.images[:500], (8, 8, 1), 4.9, 1 / 6.0)
    return BatchLoader(builder, data.target[:500], batch_size=32)


def network(**settings):
    return Network([Conv2D(8, activation="relu"), MaxPool2D(), Dense(10)], (8, 8, 1), random_state=0, **settings)


def test_finds_where_the_loss_falls(loader):
    net = network(optimizer=SGD(0.1))
    before = {name: value.copy() for name, value in net.params.items()}
    found = find_learning_rate(net, loader, lowest=1e-5, highest=100, steps=80)
    for name, value in net.params.items():
        np.testing.assert_array_equal(value, before[name])
    assert len(found.losses) == len(found.learning_rates) < 80  # it diverged before the highest
    assert found.learning_rates[0] == pytest.approx(1e-5)
    assert 1e-3 < found.suggestion < 1
    assert found.suggestion < found.learning_rates[found.losses.argmin()]


@pytest.mark.parametrize("wrong", [{"lowest": 0}, {"lowest": 2.0}, {"steps": 5}, {"smoothing": 1.0}, {"too_much": 1}])
def test_wrong_values(wrong, loader):
    with pytest.raises(ValueError, match="expected"):
        find_learning_rate(network(), loader, **wrong)


def test_of_a_classifier():
    X, y = load_digits(return_X_y=True)
    X, names = X[:500].astype(np.uint8), np.array([f"digit {label}" for label in y[:500]])
    parameters = {"conv_channels": (8,), "dense_units": (), "dropout": 0.0, "batch_size": 32, "random_state": 0}
    clf = CNNClassifier(**parameters, augment=[MixUp(), RandomShift(1)], label_smoothing=0.1, early_stopping=True)
    before = vars(clf).copy()
    found = find_learning_rate(clf, X, names)
    assert vars(clf) == before
    assert 1e-3 < found.suggestion < 0.2
    again = find_learning_rate(clf, X, names)
    np.testing.assert_array_equal(again.losses, found.losses)
    drawn = np.random.RandomState(0)
    find_learning_rate(clone(clf).set_params(random_state=drawn), X, names, steps=10)
    assert drawn.randint(10**9) == np.random.RandomState(0).randint(10**9)
    in_parts = clone(clf).set_params(micro_batch_size=8, batch_norm=True)
    network, loader, settings = in_parts.begin_fit(X, names)
    assert settings == {"label_smoothing": 0.1, "micro_batch_size": 8}
    find_learning_rate(in_parts, X, names, steps=10)
    network, loader, _ = clf.begin_fit(X, names)
    assert len(loader.rows) == 450 and len(loader) == 15  # a tenth is set aside
    np.testing.assert_array_equal(find_learning_rate(network, loader, steps=10).learning_rates[[0, -1]], [1e-6, 1.0])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        find_learning_rate(clf, X, names[:10])
    with pytest.raises(ValueError, match="batch_size"):
        find_learning_rate(CNNClassifier(batch_size=0), X, names)


def test_images_that_weigh_nothing_have_no_loss():
    X, y = load_digits(return_X_y=True)
    order = np.argsort(y[:500], kind="stable")
    X, y = X[order], y[order]
    parameters = {"conv_channels": (8,), "dense_units": (), "batch_size": 16, "shuffle": False, "random_state": 0}
    found = find_learning_rate(CNNClassifier(**parameters, class_weight={0: 0.0}), X, y)
    assert found.losses.min() > 0.1 and 1e-4 < found.suggestion < 0.2
    builder = BatchBuilder(X[:20], (8, 8, 1), 4.9, 1 / 6.0)
    nothing = BatchLoader(builder, y[:20], np.zeros(20), batch_size=8)
    with pytest.raises(ValueError, match="the weight of every image is 0"):
        find_learning_rate(network(), nothing)


@pytest.mark.parametrize("seed", range(3))
def test_the_default_classifier(seed):
    """Losses of single mini-batches go up and down by chance from the first step on; that is no fall."""
    X, y = load_digits(return_X_y=True)
    found = find_learning_rate(CNNClassifier(batch_size=32, random_state=seed), X[:500], y[:500])
    assert 3e-4 < found.suggestion < 5e-3


def test_what_has_no_batches():
    class Cluster:
        def begin_fit(self, X, y):
            return None, object(), {}

    with pytest.raises(TypeError, match="Cluster has no mini-batches"):
        find_learning_rate(Cluster(), None, None)


def test_no_loss(loader):
    net = network()
    net.params["0.weight"][...] = np.nan
    with pytest.raises(ValueError, match="no finite number"):
        find_learning_rate(net, loader)
