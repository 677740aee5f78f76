"""Activations and gradients: those of the whole network, of every layer, checked against other ways to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from fastcnn import CNNClassifier, Network
from fastcnn.inspection import activations, gradients, write_report
from fastcnn.inspection.passes import places
from fastcnn.layers import BatchNorm, Conv2D, Dense, Dropout, Layer, ReLU
from tests.inspection.networks import CHAINS, fitted, images, network

CASES = [(name, channels) for name in CHAINS for channels in (1, 3)]


@pytest.mark.parametrize(("name", "channels"), CASES)
def test_every_activation_is_the_output_of_the_network_up_to_there(name, channels):
    net, x = network(name, channels), images(3, channels)
    found = activations(net, x)
    assert {place: y.shape[1:] for place, y in found.items()} == places(net)
    for i in range(len(net.layers)):
        part = Network(net.layers[: i + 1], net.input_shape, dtype="float64")
        part.load_params({key: net.params[key] for key in part.params})
        np.testing.assert_allclose(found[str(i)], part.forward(x), rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(activations(net, x, i), found[str(i)])
    np.testing.assert_array_equal(activations(net, x, -1), found[str(len(net.layers) - 1)])


@dataclass(frozen=True)
class DroppingDense(Layer):
    """A layer of one's own that does something else in training."""

    units: int

    def param_shapes(self, in_shape):
        return Dense(self.units).param_shapes(in_shape)

    def lower(self, in_shape):
        return Dropout(0.5).lower(in_shape) + Dense(self.units).lower(in_shape)


def test_layers_that_do_something_else_in_training():
    net = Network([DroppingDense(3)], (20,), random_state=0)
    assert activations(net, np.ones((1, 20)), 0).shape == (1, 3)
    with pytest.raises(ValueError, match=r"layer '0' \(DroppingDense\) does something else in training"):
        gradients(net, np.ones((1, 20)), 0)


@pytest.mark.small
def test_within_residual_layers():
    net, x = network("residual", 3), images(2, 3)
    found = activations(net, x)
    assert list(found) == [
        "0", "1.layers.0", "1.layers.1", "1.layers.2", "1.skip.0", "1", "2.layers.0", "2.layers.1",
        "2.layers.2.layers.0", "2.layers.2", "2", "3", "4",
    ]  # fmt: skip
    np.testing.assert_allclose(found["1"], found["1.layers.2"] + found["1.skip.0"])
    np.testing.assert_allclose(found["2.layers.2"], found["2.layers.1"] + found["2.layers.2.layers.0"])
    np.testing.assert_allclose(found["2"], found["1"] + found["2.layers.2"])
    np.testing.assert_array_equal(activations(net, x, "1.skip.0"), found["1.skip.0"])


@pytest.mark.parametrize(("name", "channels"), CASES)
def test_gradients_are_differences(name, channels):
    net, x = network(name, channels), images(2, channels)
    target = np.array([2, 0])
    found = gradients(net, x, target)
    rng, step = np.random.default_rng(1), 1e-6
    for _ in range(25):
        at = tuple(rng.integers(0, n) for n in x.shape)
        difference = np.zeros_like(x)
        difference[at] = step
        ends = [net.forward(x + sign * difference)[at[0], target[at[0]]] for sign in (1, -1)]
        assert found[at] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_of_inner_layers_are_differences_of_what_follows(name):
    net, x = network(name, 3), images(2, 3)
    everything = gradients(net, x, 1, "all")
    assert set(everything) == {"input", *places(net)}
    np.testing.assert_array_equal(everything["input"], gradients(net, x, 1))
    rng, step = np.random.default_rng(2), 1e-6
    for i, shape in enumerate(np.shape(activations(net, x, i))[1:] for i in range(len(net.layers) - 1)):
        rest = Network(net.layers[i + 1 :], shape, dtype="float64")
        rest.load_params({key: net.params[_moved(key, i + 1)] for key in rest.params})
        y = activations(net, x, i)
        for _ in range(4):
            at = tuple(rng.integers(0, n) for n in y.shape)
            difference = np.zeros_like(y)
            difference[at] = step
            slope = (rest.forward(y + difference) - rest.forward(y - difference))[at[0], 1] / (2 * step)
            assert everything[str(i)][at] == pytest.approx(slope, rel=1e-4, abs=1e-7)


def _moved(key, by):
    place, _, name = key.partition(".")
    return f"{int(place) + by}.{name}"


@pytest.mark.small
def test_the_gradient_within_a_residual_layer():
    net, x = network("residual", 1), images(1, 1)
    found = gradients(net, x, 0, "all")
    np.testing.assert_array_equal(found["2.layers.2.layers.0"], found["2"])
    np.testing.assert_array_equal(found["1.skip.0"], found["1"])


@pytest.mark.small
def test_target():
    net, x = network("plain", 1), images(4, 1)
    largest = net.forward(x).argmax(axis=1)
    np.testing.assert_array_equal(gradients(net, x), gradients(net, x, largest))
    np.testing.assert_array_equal(gradients(net, x, 1), gradients(net, x, [1, 1, 1, 1]))
    dense = Network([Dropout(0.5), Dense(2, use_bias=False)], (3,), dtype="float64", random_state=0)
    np.testing.assert_allclose(gradients(dense, np.ones((1, 3)), 1), dense.params["1.weight"][:, 1][np.newaxis])
    norm = Network([Dense(2), BatchNorm(), ReLU()], (3,), dtype="float64", random_state=0)
    assert gradients(norm, np.ones((1, 3)), 1).shape == (1, 3)


@pytest.mark.small
def test_nothing_is_changed():
    net, x = network("residual", 1), images(2, 1)
    y = net.forward(x, training=True)
    before = {key: value.copy() for key, value in net.params.items()}
    gradients(net, x, 0)
    net.backward(np.ones_like(y))  # the plan of the forward pass before is still the last
    for key, value in before.items():
        np.testing.assert_array_equal(net.params[key], value)


@pytest.mark.parametrize("channels", [1, 3])
def test_classifier(channels):
    clf, X, _ = fitted(channels)
    x = clf.network_input(X)
    np.testing.assert_allclose(x, (X - clf.channel_offset_) / clf.channel_scale_, rtol=1e-4, atol=1e-5)
    logits = activations(clf, X, -1)
    np.testing.assert_allclose(logits, clf.network_.forward(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(clf.classes_[logits.argmax(axis=1)], clf.predict(X))
    np.testing.assert_array_equal(gradients(clf, X[:5], 1), gradients(clf.network_, x[:5], 1))
    flat = X.reshape(len(X), -1)
    np.testing.assert_array_equal(activations(clf, flat, 0), activations(clf, X, 0))


def test_classifiers_of_data_frames(tmp_path):
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    X = pandas.DataFrame(rng.integers(0, 255, (40, 36)), columns=[f"pixel{i}" for i in range(36)])
    y = np.arange(40) % 2
    clf = CNNClassifier(conv_channels=4, dense_units=4, max_iter=1, random_state=0).fit(X, y)
    rows = X.to_numpy()
    np.testing.assert_array_equal(activations(clf, X, 0), activations(clf, rows.reshape(40, 6, 6), 0))
    np.testing.assert_array_equal(gradients(clf, X, 0), gradients(clf, rows, 0))
    assert write_report(tmp_path / "page.html", clf, X, y, n_images=4) == 4
    assert hasattr(clf, "feature_names_in_")


@pytest.mark.small
def test_errors():
    net, x = network("residual", 1), images(2, 1)
    with pytest.raises(ValueError, match=r"no layer 5.*-5 to 4, or one of 0, 1\.layers\.0"):
        activations(net, x, 5)
    with pytest.raises(ValueError, match=r"no layer '1\.skip\.1'"):
        gradients(net, x, 0, "1.skip.1")
    with pytest.raises(ValueError, match=r"x has shape \(6, 6, 1\), expected \(n, 6, 6, 1\)"):
        activations(net, x[0])
    for target in (3, -1, [0, 3]):
        with pytest.raises(ValueError, match="target must be from 0 to 2"):
            gradients(net, x, target)
    for target in (0.5, [0, 1, 2], "a"):
        with pytest.raises(ValueError, match="target must be an int or 2 ints"):
            gradients(net, x, target)
    with pytest.raises(ValueError, match=r"outputs of shape \(n_outputs,\)"):
        gradients(Network([Conv2D(2)], (4, 4, 1)), np.zeros((1, 4, 4, 1)), 0)
    with pytest.raises(NotFittedError):
        activations(CNNClassifier(), x)
