"""Chunks of a Dask array as images: looked at once, checked, then loaded by tasks when training wants them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from fastcnn.distributed.rounds import Images
from fastcnn.image_estimator import ImageEstimator
from fastcnn.images import ImageShape, measure_scaling, row_contiguous
from fastcnn.labels import check_labels, kind_of, places

__all__ = [
    "ChunkFacts",
    "Found",
    "Look",
    "as_labels",
    "inspect_chunk",
    "is_dask_array",
    "load_chunk",
    "merged_labels",
    "split",
]


def is_dask_array(X: Any) -> bool:
    """Without importing Dask for those who have none."""
    return type(X).__module__.startswith("dask.array") and hasattr(X, "to_delayed")


class Look(NamedTuple):
    """How chunks are looked at."""

    image_shape: ImageShape
    scale: str | None
    limit: float  # see `fit_scaling`
    digest: bool  # whether a checkpoint will want to know the data again
    ends: bool = False  # whether the smallest and the largest values are asked for


class ChunkFacts(NamedTuple):
    """What is to be known of a chunk before training."""

    n_images: int
    labels: np.ndarray  # that it has, sorted
    counts: np.ndarray  # of each
    heaviest: np.ndarray  # of each, the largest weight of its images
    weight: float  # of all images
    scaling: tuple[np.ndarray, np.ndarray] | None  # `measure_scaling`; None of no images
    is_uint8: bool
    digests: tuple[bytes, ...]  # of images, labels, weights; empty ones where nobody asks
    ends: np.ndarray | None = None  # (2, C): smallest and largest of each channel, if they were asked for


class Found(NamedTuple):
    """What labels and weights stand for, once all chunks are known."""

    classes: np.ndarray
    class_weight: np.ndarray | None  # of each class


def split(X: Any, y: Any, sample_weight: Any) -> list[tuple[Any, Any, Any]]:
    """The chunks of images, labels and weights, as delayed values.

    Raises
    ------
    ValueError
        If they are not cut up alike and cannot be.
    """
    import dask.array as da

    if X.ndim > 1:
        X = X.rechunk(dict.fromkeys(range(1, X.ndim), -1))
    columns = [_blocks(X)]
    for name, values in (("y", y), ("sample_weight", sample_weight)):
        if values is None:
            columns.append([None] * X.numblocks[0])
            continue
        if not is_dask_array(values):
            values = np.asarray(values)
            if np.isnan(X.shape[0]):
                raise ValueError(f"X has chunks of unknown size: {name} must be a dask array with the same chunks")
            if len(values) != X.shape[0]:
                raise ValueError(f"{name} has {len(values)} entries for {X.shape[0]} images")
            values = da.from_array(values, chunks=(X.chunks[0], *values.shape[1:]))
        elif not np.isnan(X.shape[0]) and not np.isnan(values.shape[0]):
            if values.shape[0] != X.shape[0]:
                raise ValueError(f"{name} has {values.shape[0]} entries for {X.shape[0]} images")
            values = values.rechunk({0: X.chunks[0]})
        if values.ndim != 1:
            raise ValueError(f"{name} must have one dimension, got shape {values.shape}")
        if values.numblocks[0] != X.numblocks[0]:
            raise ValueError(f"{name} has {values.numblocks[0]} chunks, X has {X.numblocks[0]}")
        columns.append(_blocks(values))
    return list(zip(*columns, strict=True))


def _blocks(array: Any) -> list[Any]:
    return list(array.to_delayed().ravel())


# ---------------------------------------------------------------------------------------------- tasks on the workers


def inspect_chunk(number: int, x: Any, y: Any, weight: Any, look: Look) -> ChunkFacts:
    """Check a chunk and say what training must know of it beforehand.

    Raises
    ------
    ValueError
        If it cannot be used; the message begins with its number.
    """
    x, y = np.asarray(x), np.asarray(y)
    if len(x) == len(y) == 0:
        nothing = np.empty(0, y.dtype), np.empty(0, np.int64), np.empty(0)
        return ChunkFacts(0, *nothing, 0.0, None, x.dtype == np.uint8, (b"",) * 3)
    rows, y, weight = _checked(number, x, y, weight, look.image_shape)
    labels, place, counts = np.unique(y, return_inverse=True, return_counts=True)
    weights = np.ones(len(y)) if weight is None else weight
    heaviest = np.zeros(len(labels))
    np.maximum.at(heaviest, place, weights)
    digests = tuple(_digest(values) if look.digest else b"" for values in (rows, y.astype(str), weight))
    scaling = None
    if look.scale is None or weight is None or weight.any():
        try:
            scaling = measure_scaling(look.scale, rows, look.image_shape, np.arange(len(rows)), weight, look.limit)
        except ValueError as error:
            raise ValueError(f"chunk {number}: {error}") from error
    ends = None
    if look.ends and rows.dtype != np.uint8:
        pixels = rows.reshape(-1, look.image_shape[2])
        ends = np.array([pixels.min(axis=0), pixels.max(axis=0)], np.float64)
    return ChunkFacts(
        len(rows), labels, counts, heaviest, float(weights.sum()), scaling, rows.dtype == np.uint8, digests, ends
    )


def load_chunk(number: int, x: Any, y: Any, weight: Any, image_shape: ImageShape, found: Found) -> Images:
    """The images of a chunk, with labels from 0 and all weights multiplied."""
    rows, y, weight = _checked(number, np.asarray(x), np.asarray(y), weight, image_shape)
    labels = as_labels(y, found.classes, number)
    if found.class_weight is not None:
        weight = found.class_weight[labels] * (1 if weight is None else weight)
    return Images(rows, labels, weight)


def as_labels(y: np.ndarray, classes: np.ndarray, number: int, name: str = "y") -> np.ndarray:
    """Places in `classes`; ValueError with the chunk's number where a label is none of them."""
    try:
        return places(y, classes, name)
    except ValueError as error:
        raise ValueError(f"chunk {number}: {error}") from error


class _Checks(ImageEstimator):
    """scikit-learn's checks of images, for what is known of them."""

    def __init__(self, image_shape: ImageShape) -> None:
        self.image_shape = self.image_shape_ = image_shape
        self.n_features_in_ = int(np.prod(image_shape))


def _checked(
    number: int, x: np.ndarray, y: np.ndarray, weight: Any, image_shape: ImageShape
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    try:
        rows, y = _Checks(image_shape)._check_images(x, y)
        check_labels(y)
        if weight is not None:
            weight = np.asarray(weight, np.float64)  # all zero is no fault: other chunks may have what weighs
            if weight.shape != y.shape or not np.isfinite(weight).all() or (weight < 0).any():
                raise ValueError(f"sample_weight must have {len(y)} finite numbers, none below 0")
    except ValueError as error:
        raise ValueError(f"chunk {number}: {error}") from error
    return row_contiguous(rows), y, weight


def _digest(values: np.ndarray | None) -> bytes:
    digest = blake2b(digest_size=16)
    if values is not None:
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    return digest.digest()


def merged_labels(numbers: Sequence[int], facts: Sequence[ChunkFacts]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All labels of chunks that are not empty, sorted, how often each is there, and what its heaviest image weighs.

    Raises
    ------
    ValueError
        If chunks have labels of different kinds: text, numbers, dates; the message says which.
    """
    kinds: dict[str, int] = {}
    for number, fact in zip(numbers, facts, strict=True):
        kinds.setdefault(kind_of(fact.labels), number)
    if len(kinds) > 1:
        raise ValueError("y has " + " and ".join(f"{kind} in chunk {number}" for kind, number in kinds.items()))
    labels, place = np.unique(np.concatenate([fact.labels for fact in facts]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([fact.counts for fact in facts])).astype(np.int64)
    heaviest = np.zeros(len(labels))
    np.maximum.at(heaviest, place, np.concatenate([fact.heaviest for fact in facts]))
    return labels, counts, heaviest
