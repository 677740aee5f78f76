"""Maps of where a network looks, computed by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from fastcnn import Network
from fastcnn.inspection import activations, grad_cam, gradient_saliency, gradients, occlusion
from fastcnn.inspection.saliency import last_maps
from fastcnn.layers import BatchNorm, Conv2D, Dense, Flatten, GlobalAvgPool2D, Layer, MaxPool2D, ReLU, Residual
from tests.inspection.networks import images, network


@dataclass(frozen=True)
class ConvPool(Layer):
    """A layer of one's own."""

    filters: int

    def param_shapes(self, in_shape):
        return Conv2D(self.filters).param_shapes(in_shape)

    def lower(self, in_shape):
        convolution = Conv2D(self.filters)
        return convolution.lower(in_shape) + MaxPool2D().lower(convolution.output_shape(in_shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_gradient_saliency_is_the_largest_difference_of_the_channels(channels):
    net, x = network("normalised", channels), images(2, channels)
    found = gradient_saliency(net, x, [1, 2])
    assert found.shape == (2, 6, 6)
    step = 1e-6
    for n, target in ((0, 1), (1, 2)):
        for i, j in ((0, 0), (2, 5), (3, 3)):
            slopes = []
            for c in range(channels):
                moved = x.copy()
                moved[n, i, j, c] += step
                slopes.append((net.forward(moved) - net.forward(x))[n, target] / step)
            assert found[n, i, j] == pytest.approx(np.abs(slopes).max(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_grad_cam_of_averaged_maps(channels):
    """With a mean over each map and one dense layer, the gradient of a map is its weight divided by its pixels."""
    net = Network([Conv2D(4), ReLU(), GlobalAvgPool2D(), Dense(3)], (6, 6, channels), dtype="float64", random_state=0)
    x = images(2, channels)
    maps, weight = activations(net, x, 1), net.params["3.weight"]
    expected = np.zeros((2, 6, 6))
    for k in range(4):
        expected += maps[..., k] * weight[k, 2] / 36
    np.testing.assert_allclose(grad_cam(net, x, 2), np.where(expected > 0, expected, 0), rtol=1e-9, atol=1e-15)


def test_grad_cam_by_hand():
    net, x = network("residual", 3), images(3, 3)
    maps, slopes = activations(net, x, "1.skip.0"), gradients(net, x, [0, 1, 2], "1.skip.0")
    found = grad_cam(net, x, [0, 1, 2], "1.skip.0")
    for n in range(3):
        total = sum(slopes[n, ..., k].mean() * maps[n, ..., k] for k in range(4))
        np.testing.assert_allclose(found[n], np.maximum(total, 0), rtol=1e-9, atol=1e-12)


@pytest.mark.small
@pytest.mark.parametrize(
    ("layers", "place"),
    [
        ([Conv2D(2), ReLU(), MaxPool2D(), Dense(2)], 1),
        ([Conv2D(2), ReLU(), MaxPool2D(1), ReLU(), Dense(2)], 1),
        ([Conv2D(2), MaxPool2D(), Conv2D(3), BatchNorm(), ReLU(), Flatten(), Dense(2)], 4),
        ([Residual([Conv2D(1)]), Dense(2)], 0),
        ([ConvPool(2), Residual([ReLU()]), ReLU(), MaxPool2D(), Dense(2)], 2),
    ],
)
def test_where_grad_cam_looks(layers, place):
    assert last_maps(Network(layers, (4, 4, 1))) == place


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("window", "stride"), [(2, 1), (3, 2), ((4, 2), (3, 1)), (9, 9)])
def test_occlusion_by_brute_force(channels, window, stride):
    net, x = network("plain", channels), images(2, channels)
    (high, wide), (down, right) = (np.broadcast_to(value, 2) for value in (window, stride))
    high, wide = min(high, 6), min(wide, 6)
    covered_by: dict = {(i, j): [] for i in range(6) for j in range(6)}
    rows, columns = {*range(0, 7 - high, down), 6 - high}, {*range(0, 7 - wide, right), 6 - wide}
    for top in rows:
        for left in columns:
            other = x[1:2].copy()
            other[:, top : top + high, left : left + wide] = 0
            fall = net.predict_proba(x[1:2])[0, 2] - net.predict_proba(other)[0, 2]
            for i in range(top, top + high):
                for j in range(left, left + wide):
                    covered_by[i, j].append(fall)
    expected = np.array([[np.mean(covered_by[i, j]) for j in range(6)] for i in range(6)])
    np.testing.assert_allclose(occlusion(net, x, [0, 2], window, stride)[1], expected, rtol=1e-9, atol=1e-12)


def test_occlusion_finds_what_matters():
    net = Network([Dense(2)], (6, 6, 3), dtype="float64")
    weight = np.zeros((6, 6, 3, 2))
    weight[1:3, 4:6, :, 1] = 1
    net.load_params({"0.weight": weight.reshape(-1, 2), "0.bias": np.zeros(2)})
    falls = occlusion(net, np.full((1, 6, 6, 3), 0.2), 1, 1, 1)[0]
    seen = np.zeros((6, 6), bool)
    seen[1:3, 4:6] = True
    assert (falls[seen] > 0.01).all() and (falls[~seen] == 0).all()


@pytest.mark.small
def test_errors():
    dense = Network([Dense(2)], (5,))
    for function in (gradient_saliency, occlusion):
        with pytest.raises(ValueError, match=r"for images, this one takes inputs of shape \(5,\)"):
            function(dense, np.zeros((1, 5)))
    with pytest.raises(ValueError, match="needs a network with a convolution"):
        grad_cam(Network([Dense(2)], (4, 4, 1)), np.zeros((1, 4, 4, 1)))
    net, x = network("plain", 1), images(1, 1)
    with pytest.raises(ValueError, match=r"gives images, layer 5 gives \(5,\)"):
        grad_cam(net, x, 0, 5)
    with pytest.raises(ValueError, match=r"stride=3 leaves pixels uncovered by a window of 2x2"):
        occlusion(net, x, 0, 2, 3)
