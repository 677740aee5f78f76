"""The short form of a network: from a few numbers to a list of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastcnn.engine.ops import Shape, pair
from fastcnn.layers import ELU, AvgPool2D, BatchNorm, Conv2D, Dense, Dropout, Layer, MaxPool2D, ReLU, Tanh

__all__ = ["build_layers"]

_ACTIVATIONS: dict[str, type[Layer]] = {"relu": ReLU, "elu": ELU, "tanh": Tanh}
_POOLS: dict[str, Any] = {"max": MaxPool2D, "avg": AvgPool2D}


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
) -> list[Layer]:
    """The layers below the last, dense one.

    For each of `conv_channels`: convolution ("same"), batch normalisation if asked for, activation,
    pooling. For each of `dense_units`: dropout, dense, batch normalisation, activation. Then dropout once
    more, for the last layer. A pooling window larger than its image shrinks to it; one of 1x1 is left out.

    Raises
    ------
    ValueError
        A size that is not a positive int.
    """
    layers: list[Layer] = []
    shape = image_shape
    after = [BatchNorm()] * batch_norm + [_ACTIVATIONS[activation]()]
    for filters in _sizes(conv_channels, "conv_channels"):
        layers += [Conv2D(filters, kernel_size, use_bias=not batch_norm), *after]
        window = tuple(map(min, pair(pool_size, "pool_size"), shape[:2]))
        if pool is not None and window != (1, 1):
            layers.append(_POOLS[pool](window))
            shape = layers[-1].output_shape(shape)
    drop = [Dropout(dropout)] if dropout else []
    for units in _sizes(dense_units, "dense_units"):
        layers += [*drop, Dense(units, use_bias=not batch_norm), *after]
    return layers + drop


def _sizes(value: Any, name: str) -> tuple[int, ...]:
    sizes = tuple(value) if hasattr(value, "__len__") else (value,)
    if not all(hasattr(n, "__index__") and not isinstance(n, bool) and n >= 1 for n in sizes):
        raise ValueError(f"{name} must be a positive int or a sequence of them, got {value!r}")
    return tuple(int(n) for n in sizes)
