"""Averages of parameters over the steps of training."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastcnn.training.averaging import ParameterAverage

pytestmark = pytest.mark.small


def network(*values):
    params = {"0.weight": np.array(values, dtype=float), "1.running_mean": np.zeros(2)}

    def load_params(given):
        for name, value in given.items():
            params[name][...] = value

    return SimpleNamespace(params=params, load_params=load_params)


def test_the_formula():
    net = network(1.0, 2.0)
    average = ParameterAverage(net, 0.9)
    expected = net.params["0.weight"].copy()
    for t in range(1, 200):
        net.params["0.weight"] += 1
        net.params["1.running_mean"][...] = t
        average.update()
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * net.params["0.weight"]
    assert_allclose(average.values["0.weight"], expected)
    assert 180 < average.values["1.running_mean"][0] < 199


def test_in_place_and_back():
    net = network(1.0, 2.0)
    average = ParameterAverage(net, 0.5)
    net.params["0.weight"] += 10
    average.update()
    live = net.params["0.weight"].copy()
    with pytest.raises(KeyError), average.in_place():
        assert_array_equal(net.params["0.weight"], average.values["0.weight"])
        raise KeyError
    assert_array_equal(net.params["0.weight"], live)


def test_it_goes_on_where_another_one_was():
    net = network(1.0, 2.0)
    whole, first = ParameterAverage(net, 0.9), ParameterAverage(net, 0.9)
    for average, steps in ((whole, 3), (first, 3)):
        net.params["0.weight"][...] = 1, 2
        for _ in range(steps):
            net.params["0.weight"] += 1
            average.update()
    second = ParameterAverage(network(7.0, 8.0), 0.9)
    second.resume(first.values, first.steps)
    second._network.params["0.weight"][...] = net.params["0.weight"] + 1
    net.params["0.weight"] += 1
    second.update()
    whole.update()
    assert_array_equal(second.values["0.weight"], whole.values["0.weight"])


@pytest.mark.parametrize("decay", [0, 1, -0.5])
def test_wrong_decay(decay):
    with pytest.raises(ValueError, match="decay"):
        ParameterAverage(network(1.0), decay)
