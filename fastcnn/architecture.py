"""The short form of a network: from a few numbers to a list of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fastcnn.engine.ops import Shape, pair
from fastcnn.layers import (
    ELU,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Layer,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    SiLU,
    Tanh,
)

__all__ = ["Architecture", "build_layers"]

_ACTIVATIONS: dict[str, type[Layer]] = {
    "relu": ReLU, "elu": ELU, "tanh": Tanh, "leaky_relu": LeakyReLU, "silu": SiLU
}  # fmt: skip
_POOLS: dict[str, Any] = {"max": MaxPool2D, "avg": AvgPool2D}


class Architecture(NamedTuple):
    """Layers, and what had to be smaller than asked for."""

    layers: list[Layer]
    notes: dict[int, str]  # place of a layer -> what was made of the window asked for


def build_layers(
    image_shape: Shape,
    *,
    conv_channels: int | Sequence[int] = (32, 64),
    kernel_size: Any = 3,
    pool: str | None = "max",
    pool_size: Any = 2,
    dense_units: int | Sequence[int] = (128,),
    activation: str = "relu",
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> Architecture:
    """The layers below the last, dense one.

    For each of `conv_channels`: convolution ("same"), batch normalisation if asked for, activation,
    pooling. For each of `dense_units`: dropout, dense, batch normalisation, activation. Then dropout once
    more, for the last layer.

    Windows fit their image. A pooling window larger than it shrinks to it; one of 1x1 is left out. Of a
    convolution's window only ``2 * size - 1`` pixels ever see an image of that size, the others nothing but
    padding: they are left out.

    Raises
    ------
    ValueError
        A size that is not a positive int.
    """
    layers: list[Layer] = []
    notes: dict[int, str] = {}
    shape = image_shape
    after = [BatchNorm()] * bool(batch_norm) + [_ACTIVATIONS[activation]()]
    asked_kernel, asked_window = pair(kernel_size, "kernel_size"), pair(pool_size, "pool_size")
    for filters in _sizes(conv_channels, "conv_channels"):
        kernel = _smaller(asked_kernel, tuple(2 * size - 1 for size in shape[:2]))
        if kernel != asked_kernel:
            notes[len(layers)] = f"kernel {_by(asked_kernel)} -> {_by(kernel)}"
        # An int where both sides are one: a layer as one would write it.
        layers += [Conv2D(filters, kernel_size if kernel == asked_kernel else kernel, use_bias=not batch_norm), *after]
        if pool is None:
            continue
        window = _smaller(asked_window, shape[:2])
        place = len(layers) - (window == (1, 1))
        if window != asked_window:
            notes[place] = f"pooling {_by(asked_window)} -> " + ("none" if window == (1, 1) else _by(window))
        if window != (1, 1):
            layers.append(_POOLS[pool](window))
            shape = layers[-1].output_shape(shape)
    drop: list[Layer] = [Dropout(dropout)] if dropout else []
    for units in _sizes(dense_units, "dense_units"):
        layers += [*drop, Dense(units, use_bias=not batch_norm), *after]
    return Architecture(layers + drop, notes)


def _smaller(asked: tuple[int, int], most: Sequence[int]) -> tuple[int, int]:
    return min(asked[0], most[0]), min(asked[1], most[1])


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _sizes(value: Any, name: str) -> tuple[int, ...]:
    sizes = tuple(value) if hasattr(value, "__len__") else (value,)
    if not all(hasattr(n, "__index__") and not isinstance(n, bool) and n >= 1 for n in sizes):
        raise ValueError(f"{name} must be a positive int or a sequence of them, got {value!r}")
    return tuple(int(n) for n in sizes)
