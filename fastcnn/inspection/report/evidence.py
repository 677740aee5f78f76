"""What a report shows of a classifier, as numbers: how good it is, and what it makes of some images."""

from __future__ import annotations

import zlib
from base64 import b64encode
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from fastcnn.engine.ops import ACTIVATIONS, ConvGeometry
from fastcnn.inspection.displays.drawing import as_images
from fastcnn.inspection.displays.predictions import worst_mistakes
from fastcnn.inspection.passes import activations
from fastcnn.inspection.report.png import DIVERGING, SEQUENTIAL, data_uri
from fastcnn.inspection.saliency import grad_cam
from fastcnn.layers import BatchNorm, Dropout, Flatten, SpatialDropout

__all__ = ["ClassScore", "Evidence", "Walk", "choose_images", "look_at", "walk"]

_SILENT = (Dropout, SpatialDropout, Flatten)  # layers that change nothing one could see
_LARGEST_SIDE = 48  # of a map; larger ones are averaged
_MAP_PIXELS = 32 * 28 * 28  # of all maps of a layer together
_LONGEST_VECTOR = 1024


@dataclass(frozen=True)
class ClassScore:
    """How well one class is found."""

    name: str
    n_images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Evidence:
    """Predictions for test images.

    `images` (n, H, W, C); `y` and `predicted` are places in `names`; `confusion[i, j]`: images of class i taken for j.
    """

    names: list[str]
    images: np.ndarray
    y: np.ndarray
    proba: np.ndarray
    predicted: np.ndarray
    accuracy: float
    confusion: np.ndarray
    scores: list[ClassScore]
    mistakes: np.ndarray  # places of images, the most confident mistake first


def look_at(clf: Any, X: Any, y: Any) -> Evidence:
    """Predict X and compare with `y`.

    Raises
    ------
    ValueError
        If there are no images, X and y differ in length, or `y` has a label that the classifier does not know.
    """
    labels = np.asarray(y)
    if not len(labels) or len(X) != len(labels):
        raise ValueError(f"expected images and as many labels, at least one, got {len(X)} and {len(labels)}")
    unknown = sorted(set(labels.tolist()) - set(clf.classes_.tolist()), key=str)
    if unknown:
        raise ValueError(f"the data have the class {unknown[0]!r}, which the model does not know")
    codes = np.searchsorted(clf.classes_, labels)
    proba = clf.predict_proba(X)
    predicted = proba.argmax(axis=1)
    names = [str(name) for name in clf.classes_.tolist()]
    places = np.arange(len(names))
    scores = precision_recall_fscore_support(codes, predicted, labels=places, zero_division=0)
    return Evidence(
        names=names,
        images=as_images(X, clf.image_shape_),
        y=codes,
        proba=proba,
        predicted=predicted,
        accuracy=float(np.mean(predicted == codes)),
        confusion=confusion_matrix(codes, predicted, labels=places),
        scores=[
            ClassScore(name, int(n), float(p), float(r), float(f))
            for name, p, r, f, n in zip(names, *scores, strict=True)
        ],
        mistakes=worst_mistakes(proba, codes),
    )


def choose_images(evidence: Evidence, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of up to `n` images to show: right ones, class by class in turn, and the most confident mistakes."""
    n_right = len(evidence.y) - len(evidence.mistakes)
    mistakes = evidence.mistakes[: max(1, n // 3, n - n_right)]
    right = [np.flatnonzero((evidence.y == k) & (evidence.predicted == k)) for k in range(len(evidence.names))]
    in_turn = [int(of[turn]) for turn in range(max(map(len, right))) for of in right if turn < len(of)]
    return np.sort(np.array(in_turn[: n - len(mistakes)], int)), mistakes


@dataclass(frozen=True)
class Walk:
    """Some images on their way through the network, as JSON-ready values for the page."""

    values: dict[str, Any]
    pictures: list[str]  # data URIs


def walk(clf: Any, evidence: Evidence, chosen: list[int], max_maps: int) -> Walk:
    """The images at the places `chosen`, through every layer that changes something.

    Maps are bytes: 0 is zero and 255 the largest value of the layer among these images; where there are negative ones,
    128 is zero. Each image has one compressed vector of them: its pixels, the maps of each layer one after the other,
    and the maps of Grad-CAM for what is predicted and for what is right.
    """
    network, images = clf.network_, evidence.images[chosen]
    x = clf.network_input(images)
    levels, low, step = _levels(images)
    steps, parts = [], [levels.reshape(len(chosen), -1)]
    everything = activations(network, x)
    for i, layer in enumerate(network.layers[:-1]):
        if isinstance(layer, _SILENT):
            continue
        bytes_, description = _quantized(everything[str(i)], max_maps)
        steps.append({"place": i, "kind": type(layer).__name__, **description})
        parts.append(bytes_)
    cam_shape = None
    try:
        cams = [grad_cam(network, x, target) for target in (evidence.predicted[chosen], evidence.y[chosen])]
        cam_shape = cams[0].shape[1:]
        for cam in cams:
            highest = cam.max(axis=(1, 2), keepdims=True)
            parts.append(np.round(255 * cam / np.where(highest > 0, highest, 1)).astype(np.uint8).reshape(len(cam), -1))
    except ValueError:  # a network without convolutions
        pass
    packed = np.concatenate(parts, axis=1)
    logits = everything[str(len(network.layers) - 1)]
    # A mean over views is not what this pass gives: what is walked is the image itself.
    proba = _softmax(logits)
    values = {
        "classes": evidence.names,
        "shape": list(clf.image_shape_),
        "pixels": {"low": low, "step": step},
        "scaling": {"offset": _numbers(clf.channel_offset_), "scale": _numbers(clf.channel_scale_)},
        "colors": {"sequential": SEQUENTIAL, "diverging": DIVERGING},
        "steps": steps,
        "cam": None if cam_shape is None else list(cam_shape),
        "convolution": first_convolution(network),
        "images": [
            {
                "n": int(place),
                "y": int(evidence.y[place]),
                "predicted": int(evidence.predicted[place]),
                "logits": _numbers(logits[k], 4),
                "proba": _numbers(proba[k], 4),
                "bytes": b64encode(zlib.compress(packed[k].tobytes(), 9)).decode("ascii"),
            }
            for k, place in enumerate(chosen)
        ],
    }  # fmt: skip
    return Walk(values, [picture(image, low, step) for image in images])


def _levels(images: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Pixels as bytes, and what they stand for: ``low + step * byte``."""
    if images.dtype == np.uint8:
        return images, 0.0, 1.0
    low, high = float(images.min()), float(images.max())
    step = (high - low) / 255 or 1.0
    return np.round((images - low) / step).astype(np.uint8), low, step


def picture(image: np.ndarray, low: float, step: float) -> str:
    """An image (H, W, C) as a data URI; of two channels, or more than three, the mean."""
    levels = np.clip(np.round((np.asarray(image, float) - low) / step), 0, 255)
    return data_uri(levels if levels.shape[2] in (1, 3) else levels.mean(axis=2))


def _quantized(values: np.ndarray, max_maps: int) -> tuple[np.ndarray, dict[str, Any]]:
    """A layer's outputs for all images as bytes (n, ...), and how to read them."""
    shape = list(values.shape[1:])
    if values.ndim == 2:
        values = values[:, np.newaxis, :, np.newaxis][:, :, :_LONGEST_VECTOR]
    side = -(-max(values.shape[1:3]) // _LARGEST_SIDE) if len(shape) == 3 else 1
    rows, columns = (min(side, n) for n in values.shape[1:3])  # averaged; an image of one row keeps it
    height, width = values.shape[1] // rows, values.shape[2] // columns
    n_maps = min(values.shape[3], max_maps, max(4, _MAP_PIXELS // (height * width)))
    shown = np.sort(np.argsort(-np.abs(values).mean(axis=(0, 1, 2)), kind="stable")[:n_maps])
    maps = values[:, : height * rows, : width * columns][..., shown]
    if side > 1:
        maps = maps.reshape(len(maps), height, rows, width, columns, n_maps).mean(axis=(2, 4))
    limit, signed = float(np.abs(maps).max()) or 1.0, bool(maps.min() < 0)
    bytes_ = np.round(128 + 127 * maps / limit if signed else 255 * maps / limit).astype(np.uint8)
    description = {
        "shape": shape,
        "height": height,
        "width": width,
        "channels": shown.tolist(),
        "signed": signed,
        "limit": float(f"{limit:.6g}"),
    }
    return bytes_.transpose(0, 3, 1, 2).reshape(len(values), -1), description


def first_convolution(network: Any) -> dict[str, Any] | None:
    """The convolution that sees the image, with its numbers; None if the network begins with something else."""
    ops = [op for op in network.ops if op.kind not in ("fork", "dropout", "spatial_dropout")]
    if not ops or not isinstance(ops[0].geometry, ConvGeometry):
        return None
    head, g = ops[0], ops[0].geometry
    weight = network.params[f"{head.layer}.weight"]
    bias = network.params.get(f"{head.layer}.bias", np.zeros(g.k))
    after: list[dict[str, Any]] = []
    for op in ops[1:]:
        if op.kind == "batchnorm":
            gamma, beta, mean, variance = (
                network.params[f"{op.layer}.{name}"].astype(np.float64)
                for name in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gamma / np.sqrt(variance + op.epsilon)
            shift = beta - mean * scale
            after.append({"kind": BatchNorm.__name__, "scale": _numbers(scale, 5), "shift": _numbers(shift, 5)})
        elif op.kind in ("activation", "smooth_activation"):
            after.append({"kind": ACTIVATIONS[op.activation.code], "alpha": op.activation.alpha})
            break
        elif op.kind not in ("bias", "dropout"):
            break
    n_filters = min(g.k, max(1, 4096 // prod(weight.shape[:3])))
    return {
        "place": head.layer,
        "window": [g.r, g.s],
        "output": [g.p, g.q],
        "channels": g.c // g.groups,
        "per_group": g.k // g.groups,
        "stride": [g.stride_h, g.stride_w],
        "padding": [g.pad_top, g.pad_left],
        "dilation": [g.dilation_h, g.dilation_w],
        "weight": [_numbers(weight[..., k].ravel(), 5) for k in range(n_filters)],
        "bias": _numbers(bias[:n_filters], 5),
        "after": after,
    }


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _numbers(values: Any, digits: int = 8) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in np.asarray(values, np.float64).tolist()]
