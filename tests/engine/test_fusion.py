"""Which chains become one kernel."""

import pytest

from fastcnn.engine.fusion import fuse_ops, single_ops
from fastcnn.layers import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Residual,
    SiLU,
    Tanh,
)

pytestmark = pytest.mark.small


def lower(layers, shape=(8, 8, 2)):
    ops = []
    for layer in layers:
        ops += layer.lower(shape)
        shape = layer.output_shape(shape)
    return ops


@pytest.mark.parametrize(
    ("layers", "labels"),
    [
        ([Conv2D(4), ReLU(), MaxPool2D()], ["conv2d+bias+relu+maxpool2d"]),
        ([Conv2D(4), MaxPool2D(), ReLU()], ["conv2d+bias+maxpool2d+relu"]),
        ([Conv2D(4, use_bias=False), Tanh(), MaxPool2D(3, 2)], ["conv2d+tanh+maxpool2d"]),
        ([Conv2D(4), Conv2D(4, activation="elu")], ["conv2d+bias", "conv2d+bias+elu"]),
        ([Conv2D(4, use_bias=False), AvgPool2D()], ["conv2d", "avgpool2d"]),
        ([Conv2D(4, use_bias=False), BatchNorm(), ReLU()], ["conv2d+batchnorm+relu"]),
        ([Conv2D(4, use_bias=False), BatchNorm(), MaxPool2D(3, 2)], ["conv2d+batchnorm+maxpool2d"]),
        ([Conv2D(4, 5, use_bias=False), BatchNorm(), ReLU()], ["conv2d+batchnorm+relu"]),
        ([Conv2D(4, 5, use_bias=False), BatchNorm(), LeakyReLU()], ["conv2d", "batchnorm+leaky_relu"]),
        ([Conv2D(4, 5), BatchNorm(), ReLU()], ["conv2d+bias", "batchnorm+relu"]),
        ([ReLU(), Conv2D(4, use_bias=False), BatchNorm(), ReLU()], ["relu", "conv2d+batchnorm+relu"]),
        (
            [ReLU(), Conv2D(4, use_bias=False), BatchNorm(), ReLU(), MaxPool2D()],
            ["relu", "conv2d", "batchnorm+relu+maxpool2d"],
        ),
        (
            [ReLU(), Conv2D(4, use_bias=False), BatchNorm(), ReLU(), MaxPool2D(3, 2)],
            ["relu", "conv2d+batchnorm+relu", "maxpool2d"],
        ),
        ([Conv2D(4), BatchNorm(), ReLU(), MaxPool2D()], ["conv2d+bias", "batchnorm+relu+maxpool2d"]),
        ([BatchNorm(), MaxPool2D(2), ReLU()], ["batchnorm+maxpool2d+relu"]),
        ([BatchNorm(), ReLU(), MaxPool2D(3, 2)], ["batchnorm+relu", "maxpool2d"]),
        ([BatchNorm(), Tanh(), MaxPool2D()], ["batchnorm+tanh", "maxpool2d"]),
        ([BatchNorm(), MaxPool2D(2, padding="same")], ["batchnorm+maxpool2d"]),
        ([Conv2D(4), Dropout(0.1), MaxPool2D()], ["conv2d+bias", "dropout", "maxpool2d"]),
        ([Flatten(), Dense(5, activation="relu"), Dense(3)], ["flatten", "dense+bias+relu", "dense+bias"]),
        ([ReLU(), MaxPool2D()], ["relu", "maxpool2d"]),
    ],
)
def test_longest_chain_first(layers, labels):
    ops = lower(layers)
    groups = fuse_ops(ops, lambda kernel: True)
    assert [group.label for group in groups] == labels
    assert [op for group in groups for op in group.ops] == ops


@pytest.mark.parametrize(
    ("layers", "labels"),
    [
        ([Conv2D(4, use_bias=False), BatchNorm(), ReLU(), MaxPool2D()], ["conv2d+batchnorm+relu+maxpool2d"]),
        ([Conv2D(4), BatchNorm(), MaxPool2D(), ReLU()], ["conv2d+bias+batchnorm+maxpool2d+relu"]),
        ([Conv2D(4), BatchNorm(), SiLU(), MaxPool2D()], ["conv2d+bias+batchnorm", "silu", "maxpool2d"]),
        ([Conv2D(4), BatchNorm(), AvgPool2D()], ["conv2d+bias+batchnorm", "avgpool2d"]),
        ([Conv2D(4), ReLU(), BatchNorm(), ReLU()], ["conv2d+bias+relu", "batchnorm+relu"]),
        ([Flatten(), Dense(5, use_bias=False), BatchNorm(), Tanh()], ["flatten", "dense+batchnorm+tanh"]),
    ],
)
def test_normalisation_is_folded_in_inference(layers, labels):
    ops = lower(layers)
    assert [group.label for group in fuse_ops(ops, lambda kernel: True, "inference")] == labels
    training = fuse_ops(ops, lambda kernel: True, "training_dx")
    assert not any("fold" in group.kernel for group in training)


def test_residual():
    inner = [Conv2D(4, use_bias=False), BatchNorm(), LeakyReLU(), Conv2D(2)]
    ops = lower([Residual(inner), ReLU(), Residual([SiLU(), Conv2D(3, stride=2)], [Conv2D(3, 1, 2)])])
    assert [group.label for group in fuse_ops(ops, lambda kernel: True)] == [
        "fork", "conv2d", "batchnorm+leaky_relu", "conv2d+bias", "join+relu",
        "fork", "silu", "conv2d+bias", "swap", "conv2d+bias", "join",
    ]  # fmt: skip


def test_residual_block_ends_with_its_sum():
    inner = [Conv2D(2, use_bias=False), BatchNorm(), ReLU()]
    block, shortcut = Residual([*inner, *inner]), Residual(inner, [Conv2D(2, 1, use_bias=False)])
    normalised = "conv2d+batchnorm+relu"
    groups = fuse_ops(lower([block, MaxPool2D(), block, ReLU(), shortcut]), lambda kernel: True)
    assert [group.label for group in groups] == [
        "fork", normalised, f"{normalised}+join", "maxpool2d",
        "fork", normalised, normalised, "join+relu",
        "fork", normalised, "swap", "conv2d", "join",
    ]  # fmt: skip
    assert {group.kernel for group in groups if group.label.startswith(normalised)} == {"conv2d_batchnorm_forward"}


def test_only_what_the_backend_has():
    ops = lower([Conv2D(4, activation="relu"), MaxPool2D(), Dense(3)])
    groups = fuse_ops(ops, lambda kernel: kernel == "dense_forward")
    assert [group.label for group in groups] == ["conv2d", "bias", "relu", "maxpool2d", "flatten", "dense+bias"]
    assert [group.label for group in single_ops(ops)] == [op.label for op in ops]
