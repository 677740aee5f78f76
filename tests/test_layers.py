"""Layer specs: shapes, parameters, values that compare, and JSON."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcnn.layers import (
    ELU,
    AdaptiveMaxPool2D,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Residual,
    SiLU,
    SpatialDropout,
    Tanh,
    from_dict,
    to_dict,
)

pytestmark = pytest.mark.small

SPECS = [
    Conv2D(8),
    Conv2D(6, (3, 5), stride=2, padding=((0, 1), (2, 3)), dilation=(1, 2), groups=2, use_bias=False, activation="elu"),
    MaxPool2D(3, 2, 1),
    AvgPool2D((2, 3), padding="same", count_include_pad=True),
    GlobalAvgPool2D(),
    AdaptiveMaxPool2D((2, 1)),
    Flatten(),
    Dense(10, activation="tanh"),
    Dropout(0.25),
    BatchNorm(0.9, 1e-5),
    ReLU(),
    ELU(0.5),
    Tanh(),
    LeakyReLU(0.2),
    SiLU(),
    SpatialDropout(0.1),
    Residual([Conv2D(4), ReLU()], [Conv2D(4, 1)]),
]


@pytest.mark.parametrize(
    ("layer", "in_shape", "out_shape", "params"),
    [
        (Conv2D(32), (28, 28, 1), (28, 28, 32), {"weight": (3, 3, 1, 32), "bias": (32,)}),
        (Conv2D(6, 5, padding="valid", use_bias=False), (32, 32, 3), (28, 28, 6), {"weight": (5, 5, 3, 6)}),
        (Conv2D(8, 3, stride=2, groups=4), (7, 9, 4), (4, 5, 8), {"weight": (3, 3, 1, 8), "bias": (8,)}),
        (Conv2D(2, 3, padding=2, dilation=2), (5, 5, 1), (5, 5, 2), {"weight": (3, 3, 1, 2), "bias": (2,)}),
        (MaxPool2D(), (7, 7, 3), (3, 3, 3), {}),
        (MaxPool2D(3, 2), (55, 55, 96), (27, 27, 96), {}),
        (AvgPool2D(2, padding="same"), (7, 7, 3), (4, 4, 3), {}),
        (GlobalAvgPool2D(), (7, 5, 3), (3,), {}),
        (AdaptiveMaxPool2D(), (7, 4, 3), (2, 2, 3), {}),
        (AdaptiveMaxPool2D((3, 2)), (2, 1, 5), (2, 1, 5), {}),
        (Flatten(), (7, 5, 3), (105,), {}),
        (Dense(10), (105,), (10,), {"weight": (105, 10), "bias": (10,)}),
        (Dense(10, use_bias=False), (7, 5, 3), (10,), {"weight": (105, 10)}),
        (BatchNorm(), (4, 4, 3), (4, 4, 3), {n: (3,) for n in ("weight", "bias", "running_mean", "running_var")}),
        (Dropout(0.1), (9,), (9,), {}),
        (SpatialDropout(0.1), (4, 5, 2), (4, 5, 2), {}),
        (Residual([ReLU()]), (4, 5, 2), (4, 5, 2), {}),
        (
            Residual([ReLU(), Conv2D(3, stride=2)], [Conv2D(3, 1, 2, use_bias=False)]),
            (4, 5, 2),
            (2, 3, 3),
            {"layers.1.weight": (3, 3, 2, 3), "layers.1.bias": (3,), "skip.0.weight": (1, 1, 2, 3)},
        ),
    ],
)
def test_shapes(layer, in_shape, out_shape, params):
    assert layer.output_shape(in_shape) == out_shape
    assert layer.param_shapes(in_shape) == params


@pytest.mark.parametrize("layer", SPECS, ids=str)
def test_specs_are_values(layer):
    assert from_dict(json.loads(json.dumps(to_dict(layer)))) == layer
    again = pickle.loads(pickle.dumps(layer))
    assert again == layer and hash(again) == hash(layer)


@given(filters=st.integers(1, 40), kernel=st.integers(1, 7), stride=st.integers(1, 4), size=st.integers(1, 20))
def test_same_padding_gives_the_ceiling(filters, kernel, stride, size):
    p, q, k = Conv2D(filters, kernel, stride).output_shape((size, size, 2))
    assert (p, q, k) == (-(-size // stride), -(-size // stride), filters)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv2D(0), "filters must be a positive int, got 0"),
        (lambda: Conv2D(True), "filters must be a positive int"),
        (lambda: Conv2D(4, kernel_size=(3, 0)), "kernel_size must be an int >= 1 or a pair"),
        (lambda: Conv2D(4, activation="softmax"), "activation must be None or one of"),
        (lambda: Dropout(1.0), r"rate must be in \[0, 1\), got 1.0"),
        (lambda: BatchNorm(epsilon=0), "epsilon must be positive"),
        (lambda: ELU(-1), "alpha must be positive"),
        (lambda: ELU(float("inf")), "alpha must be positive and finite"),
        (lambda: LeakyReLU(0), "alpha must be positive"),
        (lambda: SpatialDropout(-0.1), r"rate must be in \[0, 1\)"),
        (lambda: SpatialDropout(0.1).output_shape((9,)), r"takes images \(H, W, C\)"),
        (lambda: Residual(Conv2D(3)), "layers must be a list of layers"),
        (lambda: Residual([Conv2D(3)], ["conv"]), "skip must be a list of layers"),
        (lambda: Residual([Conv2D(3)]).output_shape((4, 4, 2)), r"\(4, 4, 3\), which cannot be added to \(4, 4, 2\)"),
        (lambda: Conv2D(4, padding="full").output_shape((5, 5, 1)), "padding must be"),
        (lambda: Conv2D(4, groups=3).output_shape((5, 5, 2)), "groups=3 must divide"),
        (lambda: Conv2D(4, 7, padding="valid").output_shape((5, 5, 1)), "7x7 .* does not fit into an image of 5x5"),
        (lambda: MaxPool2D(2, padding=2).output_shape((5, 5, 1)), "nothing but padding"),
        (lambda: MaxPool2D().output_shape((9,)), r"takes images \(H, W, C\)"),
        (lambda: from_dict({"layer": "Lambda"}), "unknown layer 'Lambda'"),
        (lambda: from_dict({"layer": ["ReLU"]}), r"unknown layer \['ReLU'\]"),
        (lambda: ELU(10**400), "alpha must be finite"),
        (lambda: from_dict({"layer": "Dense", "width": 3}), "Dense has no field 'width'"),
        (lambda: from_dict({"layer": "Dense"}), "Dense: .*units"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(1, 4), st.integers(1, 4))
def test_adaptive_windows_cover_the_image(size, rows, columns):
    shape = (*size, 2)
    (op,) = AdaptiveMaxPool2D((rows, columns)).lower(shape)
    g = op.geometry
    assert op.out_shape == (min(rows, size[0]), min(columns, size[1]), 2)
    assert ((g.p - 1) * g.stride_h + g.r, (g.q - 1) * g.stride_w + g.s) == size
    assert g.stride_h <= g.r and g.stride_w <= g.s


def test_a_layer_deep_within_others_is_lowered_once():
    """A file may nest as many as it likes: twice at each depth would never end."""
    asked = []

    class Asked(ReLU):
        def lower(self, in_shape):
            asked.append(in_shape)
            return super().lower(in_shape)

    layer = Asked()
    for _ in range(12):
        layer = Residual([layer])
    assert len(layer.lower((2, 2, 1))) == 25 and len(asked) == 1
    assert layer.output_shape((2, 2, 1)) == (2, 2, 1) and len(asked) == 2
    assert layer.param_shapes((2, 2, 1)) == {} and len(asked) <= 2 + 12


def test_sizes_are_pythons_integers():
    """Kernels are compiled for these; one of 4 bytes would be read as one of 8."""
    conv, dense = Conv2D(np.int32(8), groups=np.int16(2)), Dense(np.int32(3))
    assert (type(conv.filters), type(conv.groups), type(dense.units)) == (int, int, int)
    assert conv == Conv2D(8, groups=2) and dense == Dense(3)


def test_numpys_numbers_become_pythons():
    layers = [
        Conv2D(np.int64(8), np.int32(3), (np.int8(1), 1), ((np.int64(1), 1), (0, 0)), use_bias=np.False_),
        MaxPool2D(np.int64(2), np.int64(2)), AvgPool2D(2, count_include_pad=np.True_), AdaptiveMaxPool2D(np.int64(2)),
        BatchNorm(np.float32(0.5), np.float32(0.5)), Dropout(np.float32(0.25)), SpatialDropout(np.float32(0.25)),
        ELU(np.float32(0.5)), LeakyReLU(np.float32(0.5)), Dense(np.int16(3), use_bias=np.True_),
    ]  # fmt: skip
    described = json.loads(json.dumps([to_dict(layer) for layer in layers]))
    assert [from_dict(values) for values in described] == layers


def test_adaptive_pooling_takes_images_only():
    with pytest.raises(ValueError, match=r"takes images \(H, W, C\), got an input of shape \(5,\)"):
        AdaptiveMaxPool2D().output_shape((5,))
    with pytest.raises(ValueError, match="output_size"):
        AdaptiveMaxPool2D(0)
