"""Weights of PyTorch and Keras in this package's names, shapes and order.

Both come as a sequence of arrays in the order of the layers. What is expected follows from the layers, so that a
network that is not equal is noticed at the first array that does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from fastcnn.layers import BatchNorm, Conv2D, Dense, Layer, Residual

__all__ = ["keras_params", "torch_params"]

Shape = tuple[int, ...]
MIXED: Shape = ()  # in place of an image: units and a flattened image were added up
Params = dict[str, np.ndarray]
# (array, the layer, its name there, shape of the image that it sees or that was flattened for it, shape expected)
_Convert = Callable[[np.ndarray, Layer, str, Shape, Shape], np.ndarray]


def torch_params(layers: Sequence[Layer], image_shape: Shape, state_dict: Mapping[str, Any]) -> tuple[Params, int]:
    """Parameters of ``[*layers, Dense(n_classes)]`` by name, and n_classes."""
    named = [(name, _array(value)) for name, value in state_dict.items() if not name.endswith("num_batches_tracked")]
    return _params(layers, image_shape, named, lambda last: last.shape[0], _of_torch)


def keras_params(layers: Sequence[Layer], image_shape: Shape, weights: Sequence[Any]) -> tuple[Params, int]:
    """Parameters of ``[*layers, Dense(n_classes)]`` by name, and n_classes."""
    named = [(f"array {i}", _array(value)) for i, value in enumerate(weights)]
    return _params(layers, image_shape, named, lambda last: last.shape[-1], _of_keras)


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _params(
    layers: Sequence[Layer],
    image_shape: Shape,
    named: list[tuple[str, np.ndarray]],
    outputs: Callable[[np.ndarray], int],
    convert: _Convert,
) -> tuple[Params, int]:
    if not named or named[-1][1].ndim != 1:
        raise ValueError("the last array must be the bias of the last dense layer")
    n_classes = outputs(named[-1][1])
    found: Params = {}
    arrays = iter(named)
    for place, layer, of, shape, image in _parameters([*layers, Dense(n_classes)], image_shape, image_shape):
        expected = layer.param_shapes(shape)[of]
        name, array = next(arrays, ("", None))
        if array is None:
            raise ValueError(f"there is no array for {place}, {of} of {layer}")
        try:
            found[place] = convert(array, layer, of, image, expected)
        except ValueError as error:
            raise ValueError(f"{name} is {array.shape}, which is not for {place}, {of} of {layer}: {error}") from error
    if rest := [name for name, _ in arrays]:
        raise ValueError(f"more arrays than the layers have: {', '.join(rest[:5])}")
    return found, n_classes


def _parameters(
    layers: Sequence[Layer], shape: Shape, image: Shape, before: str = ""
) -> Iterator[tuple[str, Layer, str, Shape, Shape]]:
    """Of each parameter its name in the network, its layer, its name there, the shape of the layer's input, and the
    image of this input.
    """
    for i, layer in enumerate(layers):
        if isinstance(layer, Residual):
            yield from _parameters(layer.layers, shape, image, f"{before}{i}.layers.")
            yield from _parameters(layer.skip, shape, image, f"{before}{i}.skip.")
        else:
            for name in layer.param_shapes(shape):
                yield f"{before}{i}.{name}", layer, name, shape, image
        shape, image = _after(layer, shape, image)


def _after(layer: Layer, shape: Shape, image: Shape) -> tuple[Shape, Shape]:
    """The shape of a layer's output, and its image: what it is, or what was flattened to it, as long as that has an
    order that differs from program to program; `MIXED` if a Residual has added up two orders.
    """
    after = layer.output_shape(shape)
    if len(after) == 3 or isinstance(layer, Dense):
        return after, after
    if isinstance(layer, Residual):
        ends = {_at_end(chain, shape, image) for chain in (layer.layers, layer.skip)}
        return after, ends.pop() if len(ends) == 1 else MIXED
    flattened = [op.in_shape for op in layer.lower(shape) if op.kind == "flatten" and len(op.in_shape) == 3]
    image = flattened[-1] if flattened else image
    ordered = image == MIXED or (len(image) == 3 and min(prod(image[:2]), image[2]) > 1)
    return after, image if ordered else after


def _at_end(layers: Sequence[Layer], shape: Shape, image: Shape) -> Shape:
    """The image after all layers."""
    for layer in layers:
        shape, image = _after(layer, shape, image)
    return image


def _of_torch(array: np.ndarray, layer: Layer, name: str, image: Shape, expected: Shape) -> np.ndarray:
    if isinstance(layer, Conv2D) and name == "weight":
        return _checked(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array, expected)
    if image == MIXED:
        raise ValueError("a Residual before it adds units to a flattened image, whose order is another in PyTorch")
    array = _checked(array.T, expected)
    of_pixels = name == "weight" if isinstance(layer, Dense) else isinstance(layer, BatchNorm)
    if not of_pixels or len(image) != 3 or prod(image) != expected[0]:
        return array
    h, w, c = image  # PyTorch flattened channels, height, width
    return array.reshape(c, h, w, -1).transpose(1, 2, 0, 3).reshape(expected)


def _of_keras(array: np.ndarray, layer: Layer, name: str, image: Shape, expected: Shape) -> np.ndarray:
    depthwise = isinstance(layer, Conv2D) and name == "weight" and layer.groups == image[-1] > 1
    if depthwise and array.ndim == 4 and prod(array.shape) == prod(expected) and array.shape[:2] == expected[:2]:
        array = array.reshape(expected)  # (R, S, C, filters for each channel)
    return _checked(array, expected)


def _checked(array: np.ndarray, expected: Shape) -> np.ndarray:
    if array.shape != expected:
        raise ValueError(f"{array.shape} here, expected {expected}")
    return array
