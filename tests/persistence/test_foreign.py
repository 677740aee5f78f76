"""Weights of PyTorch and Keras: equal networks give equal outputs."""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastcnn import CNNClassifier
from fastcnn.layers import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    MaxPool2D,
    ReLU,
    Residual,
)
from fastcnn.persistence import keras_params, torch_params

SHAPE = (8, 6, 3)
LAYERS = [
    Conv2D(4, padding=1, use_bias=False), BatchNorm(epsilon=1e-5), ReLU(), MaxPool2D(), Conv2D(4, groups=4, padding=1),
    Residual([Conv2D(5, 3, padding=1), ReLU(), Conv2D(5, 1)], skip=[Conv2D(5, 1, use_bias=False)]),
    Flatten(), BatchNorm(epsilon=1e-5), Dropout(0.2), Dense(7), ReLU(),
]  # fmt: skip


def images():
    return np.random.default_rng(0).normal(size=(9, *SHAPE)).astype(np.float32)


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_pytorch():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 5, 1))
            self.b = nn.Conv2d(4, 5, 1, bias=False)

        def forward(self, x):
            return self.a(x) + self.b(x)

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, groups=4, padding=1), Branches(), nn.Flatten(), nn.BatchNorm1d(60), nn.Dropout(0.2),
        nn.Linear(60, 7), nn.ReLU(), nn.Linear(7, 4),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(5):  # running statistics of their own
            model(torch.randn(20, 3, *SHAPE[:2]) * 2 + 1)
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    X = images()
    model.eval()
    with torch.no_grad():
        expected = model(torch.from_numpy((X - 0.5) / 2).permute(0, 3, 1, 2)).softmax(1).numpy()
    clf = CNNClassifier.from_torch_state_dict(
        model.state_dict(), LAYERS, SHAPE, classes=["a", "b", "c", "d"], offset=0.5, scale=2.0
    )
    assert_allclose(clf.predict_proba(X), expected, atol=1e-5)
    assert_array_equal(clf.predict(X), np.array(["a", "b", "c", "d"])[expected.argmax(axis=1)])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras 3.15 itself, with NumPy 2
def test_keras():
    backends = [name for name in ("torch", "tensorflow", "jax") if find_spec(name)]
    if not backends or not find_spec("keras"):
        pytest.skip("needs keras, and something that it runs on")
    os.environ.setdefault("KERAS_BACKEND", backends[0])
    import keras

    layers = keras.layers
    model = keras.Sequential([
        keras.Input(SHAPE), layers.Conv2D(4, 3, padding="same", use_bias=False), layers.BatchNormalization(),
        layers.ReLU(), layers.MaxPooling2D(), layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
        layers.Conv2D(5, 3, 2, "same"), layers.Flatten(), layers.Dense(7, activation="tanh"),
        layers.Dense(4, activation="softmax"),
    ])  # fmt: skip
    rng = np.random.default_rng(1)
    model.set_weights([w + np.abs(rng.normal(scale=0.2, size=w.shape)) for w in model.get_weights()])
    ours = [
        Conv2D(4, use_bias=False), BatchNorm(), ReLU(), MaxPool2D(), Conv2D(8, groups=4), Conv2D(5, 3, 2),
        Dense(7, activation="tanh"),
    ]  # fmt: skip
    clf = CNNClassifier.from_keras_weights(model.get_weights(), ours, SHAPE)
    assert_allclose(clf.predict_proba(images()), keras.ops.convert_to_numpy(model(images())), atol=1e-5)


def test_keras_s_layout_without_keras():
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 3, 4), (4,), (4,), (4,), (4,), (3, 3, 4, 2), (8,), (96, 5), (5,)]
    weights = [np.abs(rng.normal(size=shape)).astype(np.float32) for shape in shapes]
    layers = [Conv2D(4, use_bias=False), BatchNorm(), ReLU(), MaxPool2D(), Conv2D(8, groups=4)]
    clf = CNNClassifier.from_keras_weights(weights, layers, SHAPE, offset=[0.1, 0.2, 0.3], scale=[1, 2, 4])
    found = clf.network_.params
    names = ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    for name, array in zip(names, weights, strict=False):
        assert_array_equal(found[name], array)
    for c, m in ((0, 0), (2, 1), (3, 0)):  # the second filter of channel 2 is filter 5
        assert_array_equal(found["4.weight"][:, :, 0, 2 * c + m], weights[5][:, :, c, m])
    assert_array_equal(found["5.weight"], weights[7])
    assert_allclose(clf.network_input(images()), (images() - [0.1, 0.2, 0.3]) / [1, 2, 4], rtol=1e-5, atol=1e-6)


def torch_arrays(rng, n_classes=4):
    """A state dict as PyTorch has it for `LAYERS`."""
    shapes = {
        "0.weight": (4, 3, 3, 3), "1.weight": (4,), "1.bias": (4,), "1.running_mean": (4,), "1.running_var": (4,),
        "1.num_batches_tracked": (), "4.weight": (4, 1, 3, 3), "4.bias": (4,), "5.a.0.weight": (5, 4, 3, 3),
        "5.a.0.bias": (5,), "5.a.2.weight": (5, 5, 1, 1), "5.a.2.bias": (5,), "5.b.weight": (5, 4, 1, 1),
        "7.weight": (60,), "7.bias": (60,), "7.running_mean": (60,), "7.running_var": (60,), "9.weight": (7, 60),
        "9.bias": (7,), "11.weight": (n_classes, 7), "11.bias": (n_classes,),
    }  # fmt: skip
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def test_pytorch_s_layout_without_pytorch():
    """Each weight is where a formula of indices says."""
    state = torch_arrays(np.random.default_rng(0))
    params, n_classes = torch_params(LAYERS, SHAPE, state)
    assert n_classes == 4
    r, s, c, k = 1, 2, 2, 3
    assert params["0.weight"][r, s, c, k] == state["0.weight"][k, c, r, s]
    assert params["5.layers.2.weight"][0, 0, c, k] == state["5.a.2.weight"][k, c, 0, 0]
    assert params["5.skip.0.weight"][0, 0, c, k] == state["5.b.weight"][k, c, 0, 0]
    y, x, channel = 3, 1, 4  # of the image (4, 3, 5) that is flattened
    ours, theirs = (y * 3 + x) * 5 + channel, (channel * 4 + y) * 3 + x
    assert params["9.weight"][ours, 6] == state["9.weight"][6, theirs]
    assert params["7.running_var"][ours] == state["7.running_var"][theirs]
    assert_array_equal(params["11.weight"], state["11.weight"].T)


def test_global_pooling_and_dense_layers_of_images():
    rng = np.random.default_rng(0)
    last = {"a": rng.normal(size=(2, 3)), "b": rng.normal(size=2)}
    assert_array_equal(torch_params([GlobalAvgPool2D()], SHAPE, last)[0]["1.weight"], last["a"].T)
    image = {"a": rng.normal(size=(2, 4 * 3 * 3)), "b": rng.normal(size=2)}
    weight = torch_params([AvgPool2D()], SHAPE, image)[0]["1.weight"]
    assert_array_equal(weight, image["a"].reshape(2, 3, 4, 3).transpose(2, 3, 1, 0).reshape(36, 2))


def test_a_bias_with_as_many_values_as_the_image_stays_as_it_is():
    rng = np.random.default_rng(0)
    state = {"a": rng.normal(size=(12, 3, 1, 1)), "b": rng.normal(size=12)}
    last = {"c": rng.normal(size=(2, 48)), "d": rng.normal(size=2)}
    params, _ = torch_params([Conv2D(12, 1)], (2, 2, 3), state | last)
    assert_array_equal(params["0.bias"], state["b"])


def test_flattened_twice():
    rng = np.random.default_rng(0)
    state = {"a": rng.normal(size=(2, 12)), "b": rng.normal(size=2)}
    once, _ = torch_params([Flatten()], (2, 2, 3), state)
    twice, _ = torch_params([Flatten(), Flatten()], (2, 2, 3), state)
    assert_array_equal(twice["2.weight"], once["1.weight"])
    assert_array_equal(once["1.weight"], state["a"].reshape(2, 3, 2, 2).transpose(2, 3, 1, 0).reshape(12, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"0.weight": np.zeros((4, 3, 5, 5))},
            r"0.weight is \(4, 3, 5, 5\), which is not for 0.weight, weight of Conv2D",
        ),
        ({"9.bias": None}, "which is not for 9.bias"),
        ({"11.bias": None}, "the last array must be the bias"),
        ({"12.bias": np.zeros(4)}, "more arrays than the layers have: 12.bias"),
        ({"1.bias": "text"}, "1.bias is"),
    ],
)
def test_networks_that_are_not_equal(change, message):
    state = torch_arrays(np.random.default_rng(0)) | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        CNNClassifier.from_torch_state_dict(state, LAYERS, SHAPE)


def test_too_few_arrays():
    weights = [np.zeros((3, 3, 3, 4)), np.zeros(4)]
    with pytest.raises(ValueError, match=r"there is no array for 1.weight, weight of Dense"):
        keras_params([Conv2D(4)], SHAPE, weights)
    with pytest.raises(ValueError, match="the last array must be"):
        keras_params([Conv2D(4)], SHAPE, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": [1, 0, 2, 3]}, "classes must be 4 sorted, different labels"),
        ({"classes": [0, 1]}, "classes must be 4"),
        ({"scale": 0.0}, "scale not 0"),
        ({"offset": np.nan}, "offset and scale must be finite"),
        ({"image_shape": (8, 6)}, r"image_shape must be \(H, W, C\)"),
        ({"no_such": 1}, "has no parameter 'no_such'"),
        ({"max_iter": -1}, "max_iter"),
    ],
)
def test_arguments(arguments, message):
    state = torch_arrays(np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        CNNClassifier.from_torch_state_dict(state, **{"layers": LAYERS, "image_shape": SHAPE} | arguments)


def test_residuals_of_flattened_images_are_refused():
    """By PyTorch's; Keras flattens as this package does."""
    weights = [np.zeros((144, 144)), np.zeros(144), np.zeros((144, 3)), np.zeros(3)]
    for layers in ([Flatten(), Residual([Dense(144)])], [Residual([Dense(144)], [Flatten()]), ReLU()]):
        with pytest.raises(ValueError, match="a Residual before it adds units to a flattened image"):
            torch_params(layers, SHAPE, {f"{i}": w.T for i, w in enumerate(weights)})
        assert keras_params(layers, SHAPE, weights)[1] == 3


def test_residuals_that_end_in_one_order():
    """Of units, which have but one; or of images that both branches flatten, whose order the next layer knows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, *SHAPE)).astype(np.float32)
    flat = x.transpose(0, 3, 1, 2).reshape(9, -1)  # as PyTorch has it

    def matrices(*units):
        arrays = {}
        for i, (n_in, n_out) in enumerate(units):
            arrays |= {f"{i}.weight": rng.normal(scale=0.1, size=(n_out, n_in)), f"{i}.bias": rng.normal(size=n_out)}
        return arrays

    def dense(arrays, i, x):
        return x @ arrays[f"{i}.weight"].T + arrays[f"{i}.bias"]

    units = matrices((144, 144), (144, 144), (144, 3))
    clf = CNNClassifier.from_torch_state_dict(units, [Residual([Dense(144)], [Dense(144)])], SHAPE)
    expected = dense(units, 2, dense(units, 0, flat) + dense(units, 1, flat))
    assert_allclose(clf.predict_proba(x), softmax(expected), rtol=1e-4, atol=1e-6)
    images = matrices((144, 3))
    clf = CNNClassifier.from_torch_state_dict(images, [Residual([ReLU(), Flatten()], [Flatten()])], SHAPE)
    expected = dense(images, 0, np.maximum(flat, 0) + flat)
    assert_allclose(clf.predict_proba(x), softmax(expected), rtol=1e-4, atol=1e-6)
