"""What X may look like as images, and how its pixels are scaled for a network.

Nothing here copies a whole set of images to float; a set of uint8 stays uint8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isqrt, prod
from typing import Any

import numpy as np

from fastcnn.kernels.cpu import _batches

__all__ = [
    "as_rows",
    "chunks",
    "fit_scaling",
    "measure_scaling",
    "merge_scaling",
    "resolve_image_shape",
    "row_contiguous",
    "usable_scaling",
]

ImageShape = tuple[int, int, int]

_CHUNK = 256  # images looked at together


def as_rows(X: Any) -> tuple[Any, ImageShape | None]:
    """Images as rows.

    Parameters
    ----------
    X : array-like (n, H, W), (n, H, W, C) or (n, H*W*C)

    Returns
    -------
    rows : (n, H*W*C), a view where X's layout allows one; 2-D input (or what is no array at all) as it came
    shape : (H, W, C), or None for 2-D input

    Raises
    ------
    ValueError
        More than four dimensions, images of different shapes, or a dtype that holds no numbers.
    TypeError
        X is nothing like an array.
    """
    if not hasattr(X, "ndim"):
        if hasattr(X, "columns"):  # a data frame, though none of pandas
            return X, None
        X = _as_array(X)
    _check_dtype(X)
    if X.ndim > 4:
        raise ValueError(
            f"X of shape {tuple(X.shape)} has {X.ndim} dimensions: expected (n, H, W), (n, H, W, C) or (n, H*W*C)"
        )
    if X.ndim < 3:
        return X, None
    X = np.asarray(X)
    height, width, channels = X.shape[1:] if X.ndim == 4 else (*X.shape[1:], 1)
    return X.reshape(len(X), height * width * channels), (height, width, channels)


def _as_array(X: Any) -> np.ndarray:
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise ValueError(
            f"X is a {type(X).__name__} that no array can be made of: are its images of one shape?"
        ) from error
    if array.ndim == 0 and array.dtype == object:
        raise TypeError(f"X is a {type(X).__name__}, expected an array of images")
    return array


def _check_dtype(X: Any) -> None:
    """ValueError where X holds no numbers. (What complex numbers and objects are is left to scikit-learn.)"""
    dtype = getattr(X, "dtype", None)
    if not isinstance(dtype, np.dtype):  # a data frame: its columns have dtypes of their own
        return
    if dtype.kind not in "biufcO":
        raise ValueError(f"X has dtype {dtype}, expected numbers")
    if dtype.kind == "O" and X.ndim == 1 and len(X) and hasattr(next(iter(X)), "shape"):
        raise ValueError(f"X is a vector of {len(X)} arrays, expected one array: np.stack(X), if they are of one shape")


def row_contiguous(rows: np.ndarray) -> np.ndarray:
    """`rows` with each row in one piece, as compiled code needs it: a copy only if it was not so."""
    return rows if rows[:1].flags.c_contiguous else np.ascontiguousarray(rows)


def resolve_image_shape(asked: Any, found: ImageShape | None, n_features: int) -> ImageShape:
    """The images' (H, W, C).

    Parameters
    ----------
    asked : (H, W), (H, W, C) or None
        The parameter `image_shape`.
    found : (H, W, C) or None
        The shape that X itself has; None if X is flat.
    n_features : int
        Values in a row of X. Without any shape, a square number is a square image, another one (1,
        n_features, 1).

    Raises
    ------
    ValueError
        If the three do not agree; the message names the two that differ.
    """
    shape = None if asked is None else _checked_shape(asked)
    if shape is None and found is None:
        side = isqrt(n_features)
        return (side, side, 1) if side * side == n_features else (1, n_features, 1)
    if shape is None or found is None:
        shape = shape or found
        assert shape is not None
        if prod(shape) != n_features:
            raise ValueError(
                f"X has {n_features} features a row, but image_shape={asked} stands for images of {prod(shape)} values"
            )
    elif shape != found:
        raise ValueError(f"X has images of shape {found}, but image_shape={asked} was asked for")
    return shape


def _checked_shape(shape: Any) -> ImageShape:
    sizes = tuple(shape)
    if len(sizes) not in (2, 3) or not all(
        hasattr(n, "__index__") and not isinstance(n, bool) and n >= 1 for n in sizes
    ):
        raise ValueError(f"image_shape must be (H, W) or (H, W, C) of positive ints, got {shape!r}")
    height, width, channels = (int(n) for n in (*sizes, 1)[:3])
    return height, width, channels


def chunks(n: int, size: int = _CHUNK) -> Iterator[slice]:
    """Slices that go through `n` items, `size` at a time."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def fit_scaling(
    kind: str | None,
    rows: np.ndarray,
    image_shape: ImageShape,
    index: np.ndarray,
    weight: np.ndarray | None = None,
    limit: float = inf,
) -> tuple[np.ndarray, np.ndarray]:
    """What a network's input is made with: ``(pixel - offset) / scale``, channel by channel.

    Parameters
    ----------
    kind : "standardize", "unit" or None
        "standardize": mean and standard deviation of each channel. "unit": uint8 by 255; floats by the
        smallest and largest value there are, whatever the channel. None: as it is.
    rows : array (n, H*W*C), row-contiguous
    image_shape : (H, W, C)
    index : int64 array (m,), at least one
        The images to look at.
    weight : array (n,) or None
        For "standardize": how often each image counts.
    limit : float
        For None: the largest number that the network's dtype holds.

    Returns
    -------
    offset, scale : float64 arrays (C,)
        A channel without spread is divided by its value, or by 1 if that is less.

    Raises
    ------
    ValueError
        If values are so large that mean, deviation or range are not finite, or above `limit`.
    """
    return usable_scaling(*measure_scaling(kind, rows, image_shape, index, weight, limit))


def usable_scaling(offset: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `measure_scaling` found, fit to divide by.

    A channel without spread becomes 0, whatever its scale is. This one is such that the pixel 0, with which
    augmentation fills what was moved away, does not become a large number.
    """
    return offset, np.where(scale == 0, np.maximum(1.0, np.abs(offset)), scale)


def measure_scaling(
    kind: str | None,
    rows: np.ndarray,
    image_shape: ImageShape,
    index: np.ndarray,
    weight: np.ndarray | None = None,
    limit: float = inf,
) -> tuple[np.ndarray, np.ndarray]:
    """As `fit_scaling`, but a channel without spread has scale 0; for `merge_scaling`."""
    channels = image_shape[2]
    offset, scale = np.zeros(channels), np.ones(channels)
    if kind == "standardize":
        if weight is None or np.ptp(weight[index]) == 0:
            offset[:], scale[:] = _batches.channel_mean_std(rows, channels, index)
        else:
            offset[:], scale[:] = _weighted_mean_std(rows, channels, index, weight)
    elif kind == "unit" and rows.dtype == np.uint8:
        scale[:] = 255
    elif kind == "unit":
        low = min(float(rows[index[part]].min()) for part in chunks(len(index)))
        high = max(float(rows[index[part]].max()) for part in chunks(len(index)))
        offset[:], scale[:] = low, high - low
    elif kind is None and rows.dtype == np.float64:
        largest = max(float(np.abs(rows[index[part]]).max()) for part in chunks(len(index)))
        if largest > limit:
            raise ValueError(f"X has values up to {largest:.3g}, too large for the network's dtype without scaling")
    if not (np.isfinite(offset).all() and np.isfinite(scale).all()):
        raise ValueError(f'X has values too large for scale="{kind}": their mean, deviation or range is not finite')
    return offset, scale


def merge_scaling(
    kind: str | None, parts: Sequence[tuple[np.ndarray, np.ndarray]], weights: Sequence[float], is_uint8: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What `measure_scaling` would find in all images together, from what it found in parts of them.

    Parameters
    ----------
    kind : as for `fit_scaling`
    parts : sequence of (offset, scale), at least one
    weights : sequence of float
        How much each part weighs: its images, or the sum of their weights.
    is_uint8 : bool
        Whether the pixels are.
    """
    if len(parts) == 1 or kind is None or (kind == "unit" and is_uint8):
        return parts[0]
    offsets, scales = (np.array(values) for values in zip(*parts, strict=True))
    if kind == "unit":
        low = offsets.min(axis=0)
        return low, (offsets + scales).max(axis=0) - low
    first = offsets[0]  # what is alike everywhere is not rounded
    offset = first + np.average(offsets - first, axis=0, weights=weights)
    return offset, np.sqrt(np.average(scales**2 + (offsets - offset) ** 2, axis=0, weights=weights))


def _weighted_mean_std(
    rows: np.ndarray, channels: int, index: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As if each image were there `weight` times; two passes, so that nothing cancels. Deviations are from a pixel that
    counts: a channel that is alike everywhere has none, however sums are rounded.
    """
    first = rows[index[weight[index] > 0][0]].reshape(-1, channels)[0].astype(np.float64)

    def weighted_mean(of: Any) -> np.ndarray:
        total = np.zeros(channels)
        for part in chunks(len(index)):
            pixels = rows[index[part]].astype(np.float64).reshape(-1, rows.shape[1] // channels, channels) - first
            total += np.tensordot(weight[index[part]], of(pixels).mean(axis=1), axes=1)
        return total / weight[index].sum()

    with np.errstate(over="ignore", invalid="ignore"):  # an infinite result is noticed by who asked
        mean = weighted_mean(lambda pixels: pixels)
        return first + mean, np.sqrt(weighted_mean(lambda pixels: (pixels - mean) ** 2))
