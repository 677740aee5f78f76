"""The learning-rate range test."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fastcnn import Network
from fastcnn.layers import Conv2D, Dense, MaxPool2D
from fastcnn.training import find_learning_rate
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


def test_no_loss(loader):
    net = network()
    net.params["0.weight"][...] = np.nan
    with pytest.raises(ValueError, match="no finite number"):
        find_learning_rate(net, loader)
