"""Where in an image a network looks: maps of what a prediction depends on."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastcnn.engine.ops import pair
from fastcnn.inspection.passes import activations, checked_target, gradients, network_input, network_of, places
from fastcnn.layers import AdaptiveMaxPool2D, AvgPool2D, GlobalAvgPool2D, MaxPool2D

__all__ = ["grad_cam", "gradient_saliency", "last_maps", "occlusion"]

_TOGETHER = 256  # images that go through the network at a time


def gradient_saliency(net: Any, x: Any, target: Any = None) -> np.ndarray:
    """How much an output changes with each pixel: the gradient's absolute value, the largest of the channels.

    Simonyan, Vedaldi and Zisserman 2014, "Deep inside convolutional networks".

    Parameters
    ----------
    net, x, target : as for `gradients`
        Of images.

    Returns
    -------
    array (n, H, W)
    """
    _check_images(net)
    return np.abs(gradients(net, x, target)).max(axis=3)


def grad_cam(net: Any, x: Any, target: Any = None, layer: int | str | None = None) -> np.ndarray:
    """Where the maps of a layer speak for an output: their sum, weighted by the mean gradient of each, from 0 on.

    Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization".

    Parameters
    ----------
    net, x, target : as for `gradients`
        Of images.
    layer : int, str or None, default=None
        A layer that gives images, as for `activations`. None: the last convolution, with the activation after it.

    Returns
    -------
    array (n, P, Q), of the height and width of the layer's output

    Raises
    ------
    ValueError
        If there is no such layer, or it does not give images.
    """
    place = last_maps(net) if layer is None else layer
    maps = activations(net, x, place)
    if maps.ndim != 4:
        raise ValueError(f"Grad-CAM needs a layer that gives images, layer {place!r} gives {maps.shape[1:]}")
    weights = gradients(net, x, target, place).mean(axis=(1, 2))
    return np.maximum(np.einsum("npqk,nk->npq", maps, weights), 0)


def last_maps(net: Any) -> int:
    """The place of the last layer with a convolution in it, or of what comes after it without making it smaller.

    Raises
    ------
    ValueError
        If there is no convolution.
    """
    network, of_places = network_of(net), places(net)
    layers, shapes = network.layers, [of_places[str(i)] for i in range(len(network.layers))]
    convolved = {int(op.layer.partition(".")[0]) for op in network.ops if op.kind == "conv2d"}
    found = [i for i in sorted(convolved) if len(shapes[i]) == 3]
    if not found:
        raise ValueError("Grad-CAM needs a network with a convolution")
    place = found[-1]
    pooling = (MaxPool2D, AvgPool2D, GlobalAvgPool2D, AdaptiveMaxPool2D)
    while place + 1 < len(layers) and shapes[place + 1] == shapes[place] and not isinstance(layers[place + 1], pooling):
        place += 1
    return place


def occlusion(
    net: Any, x: Any, target: Any = None, window: int | tuple[int, int] = 4, stride: int | tuple[int, int] = 2
) -> np.ndarray:
    """How much the probability of a class falls where a part of the image is covered.

    A window of zeros (of the scaled image: the mean, for ``scale="standardize"``) goes over the image; a pixel's value
    is the mean fall over the windows that cover it. Zeiler and Fergus 2014, "Visualizing and understanding
    convolutional networks".

    Parameters
    ----------
    net, x, target : as for `gradients`
        Of images.
    window : int or (int, int), default=4
        Height and width of what is covered; of a smaller image, all.
    stride : int or (int, int), default=2
        From one window to the next, at most the window's size. Windows at the lower and right border lie against it.

    Returns
    -------
    array (n, H, W)

    Raises
    ------
    ValueError
        If `window` or `stride` is not as described.
    """
    network = network_of(net)
    _check_images(net)
    height, width, _ = network.input_shape
    asked, steps = pair(window, "window"), pair(stride, "stride")
    if steps[0] > asked[0] or steps[1] > asked[1]:
        raise ValueError(f"stride={stride!r} leaves pixels uncovered by a window of {asked[0]}x{asked[1]}")
    high, wide = min(height, asked[0]), min(width, asked[1])
    x = network_input(net, x)
    logits = np.concatenate([network.forward(x[i : i + _TOGETHER]) for i in range(0, len(x), _TOGETHER)])
    chosen = checked_target(target, logits)
    corners = [(i, j) for i in _starts(height, high, steps[0]) for j in _starts(width, wide, steps[1])]
    falls = np.zeros((len(x), height, width), network.dtype)
    counts = np.zeros((height, width), network.dtype)
    for i, j in corners:
        counts[i : i + high, j : j + wide] += 1
    for n, image in enumerate(x):
        whole = network.predict_proba(image[np.newaxis])[0, chosen[n]]
        for start in range(0, len(corners), _TOGETHER):
            part = corners[start : start + _TOGETHER]
            covered = np.repeat(image[np.newaxis], len(part), axis=0)
            for k, (i, j) in enumerate(part):
                covered[k, i : i + high, j : j + wide] = 0
            fall = whole - network.predict_proba(covered)[:, chosen[n]]
            for k, (i, j) in enumerate(part):
                falls[n, i : i + high, j : j + wide] += fall[k]
    return falls / counts


def _starts(size: int, window: int, step: int) -> list[int]:
    return sorted({*range(0, size - window + 1, step), size - window})


def _check_images(net: Any) -> None:
    shape = network_of(net).input_shape
    if len(shape) != 3:
        raise ValueError(f"expected a network for images, this one takes inputs of shape {shape}")
