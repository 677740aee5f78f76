"""The networks that are compared with other frameworks, each defined once.

A network is a neutral list of layers that every framework's is built from. A layer's place in the list names
its parameters ("0.weight", "0.bias") as in fastcnn's `Network`, and so does it in PyTorch's `Sequential`.
Images are (H, W, C); padding is in pixels on each side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

CLASSES, DROPOUT = 10, 0.4


@dataclass(frozen=True)
class Conv:
    filters: int
    size: int
    stride: int = 1
    padding: int = 0
    bias: bool = True


@dataclass(frozen=True)
class Norm:
    """Batch normalisation; `momentum` is the share of the running statistics that stays, as in Keras."""

    momentum: float = 0.99
    epsilon: float = 1e-3


@dataclass(frozen=True)
class Act:
    kind: str  # "relu" or "tanh"


@dataclass(frozen=True)
class Pool:
    kind: str  # "max" or "avg"
    size: int
    stride: int


@dataclass(frozen=True)
class GlobalPool:
    """The mean over the whole image."""


@dataclass(frozen=True)
class Flatten:
    """Rows of H * W * C values; PyTorch has them as C * H * W."""


@dataclass(frozen=True)
class Dense:
    units: int


@dataclass(frozen=True)
class Dropout:
    """Of the rate that a side is told: none where losses are compared."""


Shape = tuple[int, ...]


class Net(NamedTuple):
    input_shape: Shape
    layers: tuple[Any, ...]

    @property
    def shapes(self) -> list[Shape]:
        """The shape that goes into each layer, and in the end the output's."""
        shapes = [self.input_shape]
        for layer in self.layers:
            shapes.append(_output_shape(layer, shapes[-1]))
        return shapes


def _output_shape(layer: Any, shape: Shape) -> Shape:
    match layer:
        case Conv(filters, size, stride, padding):
            return (*((n + 2 * padding - size) // stride + 1 for n in shape[:2]), filters)
        case Pool(_, size, stride):
            return (*((n - size) // stride + 1 for n in shape[:2]), shape[2])
        case GlobalPool():
            return shape[2:]
        case Flatten():
            return (shape[0] * shape[1] * shape[2],)
        case Dense(units):
            return (units,)
    return shape


RELU, TANH, HALVE = Act("relu"), Act("tanh"), Pool("max", 2, 2)
HEAD = (Flatten(), Dense(128), RELU, Dropout(), Dense(CLASSES))


def _conv3(filters: int) -> tuple[Any, ...]:
    return (Conv(filters, 3, padding=1), RELU)


def _vgg_block(filters: int) -> tuple[Any, ...]:
    return (*(Conv(filters, 3, padding=1, bias=False), Norm(), RELU) * 2, HALVE)


NETWORKS = {
    "seed": Net((28, 28, 1), (*_conv3(32), HALVE, *_conv3(64), HALVE, *HEAD)),
    "lenet5": Net(
        (28, 28, 1),
        (
            *(Conv(6, 5, padding=2), TANH, Pool("avg", 2, 2), Conv(16, 5), TANH, Pool("avg", 2, 2)),
            *(Flatten(), Dense(120), TANH, Dense(84), TANH, Dense(CLASSES)),
        ),
    ),
    "digits": Net((8, 8, 1), (*_conv3(32), *_conv3(64), HALVE, *HEAD)),
    "vgg": Net((32, 32, 3), (*_vgg_block(32), *_vgg_block(64), *_vgg_block(128), *HEAD)),
    "strided": Net(
        (64, 64, 3),
        (
            *(Conv(32, 5, stride=2, padding=2), RELU, Pool("max", 3, 2)),
            *(Conv(64, 5, padding=2), RELU, Pool("max", 3, 2)),
            *(*_conv3(128), GlobalPool(), Dense(CLASSES)),
        ),
    ),
}


def fastcnn_layers(net: Net, dropout: float = DROPOUT) -> list[Any]:
    """`net` in fastcnn's layers."""
    from fastcnn import layers as fc

    def build(layer: Any) -> Any:
        match layer:
            case Conv(filters, size, stride, padding, bias):
                return fc.Conv2D(filters, size, stride, padding, use_bias=bias)
            case Norm(momentum, epsilon):
                return fc.BatchNorm(momentum, epsilon)
            case Act(kind):
                return {"relu": fc.ReLU, "tanh": fc.Tanh}[kind]()
            case Pool(kind, size, stride):
                return {"max": fc.MaxPool2D, "avg": fc.AvgPool2D}[kind](size, stride)
            case GlobalPool():
                return fc.GlobalAvgPool2D()
            case Flatten():
                return fc.Flatten()
            case Dense(units):
                return fc.Dense(units)
            case Dropout():
                return fc.Dropout(dropout)

    return [build(layer) for layer in net.layers]
