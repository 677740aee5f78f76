"""Batches out of a set of images: on the CPU, where the images lie on a device, or on the way there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastcnn.kernels.cpu import _batches
from fastcnn.training.augment import (
    Augmentation,
    Draws,
    MixUp,
    RandomAffine,
    RandomBrightness,
    RandomContrast,
    check_augment,
    draw,
    unchanged,
)
from fastcnn.training.views import PLAIN, View

__all__ = ["BatchBuilder", "DeviceBatchBuilder", "Mix", "RngKey", "StagedBatchBuilder", "builder_for", "random_stream"]

Augmentations = tuple[Augmentation, ...]
RngKey = tuple[int, int, int]  # seed, epoch, number of the batch in its epoch

_PLACED_VALUES = 2**24  # that go to a device at once

# What a stream is for; one seed gives each its own numbers. Others are 0 (an epoch's order) and 2 (that of chunks).
_AUGMENT = 1


def random_stream(key: RngKey, purpose: int) -> np.random.Generator:
    """The random numbers of one batch: a function of the key alone, so of no thread and of no other batch.

    Philox counts 256 bits up from where it starts; epoch and batch are the upper half, so streams never meet.
    """
    seed, epoch, number = key
    return np.random.Generator(
        np.random.Philox(
            key=np.array([seed % 2**64, purpose], dtype=np.uint64),
            counter=np.array([0, 0, number, epoch], dtype=np.uint64),
        )
    )


def _kernel_dtype(dtype: np.dtype[Any]) -> type[np.generic]:
    """The dtype among the batch builder's three that holds ``dtype``'s values (64-bit integers: nearly)."""
    if dtype.kind == "b" or dtype == np.uint8:
        return np.uint8
    if dtype.kind in "iuf":
        small = dtype.itemsize <= (4 if dtype.kind == "f" else 2)
        return np.float32 if small else np.float64
    raise ValueError(f"images must be of integers, floats or booleans, got dtype {dtype}")


class BatchBuilder:
    """Scaled float batches out of a set of images that stays as it is, in memory or mapped from a file.

    A set of uint8, float32 or float64 whose images are each contiguous is read in place. Anything else is
    gathered and converted batch by batch; the whole set is never copied.

    Parameters
    ----------
    images : array (n, H*W*C), (n, H, W) or (n, H, W, C)
        Not checked for NaN.
    image_shape : (H, W, C)
    mean, inv_std : floats or arrays (C,)
        A batch is ``(image - mean) * inv_std``.
    augment : list of augmentations, optional
        Applied, before scaling, to batches built with an ``rng_key``.
    dtype : float32 or float64

    Raises
    ------
    ValueError
        Sizes that do not fit ``image_shape``, or a dtype that holds no numbers.
    """

    def __init__(
        self,
        images: NDArray[Any],
        image_shape: tuple[int, int, int],
        mean: ArrayLike,
        inv_std: ArrayLike,
        augment: Sequence[Augmentation] | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        if len(image_shape) != 3:
            raise ValueError(f"image_shape must be (H, W, C), got {tuple(image_shape)}")
        height, width, channels = (int(size) for size in image_shape)
        images = self._as_array(images)
        fitting = [(height * width * channels,), (height, width, channels)]
        if channels == 1:
            fitting.append((height, width))
        if images.shape[1:] not in fitting:
            raise ValueError(
                f"images of shape {images.shape} are not (n, {', '.join(map(str, fitting[-1]))}) "
                f"nor (n, {fitting[0][0]})"
            )
        self.image_shape = (height, width, channels)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype}")
        self.mean = self._per_channel("mean", mean)
        self.inv_std = self._per_channel("inv_std", inv_std)
        self.augment = check_augment(augment)
        self.n_images = len(images)
        self._images = images
        self._source_dtype = _kernel_dtype(images.dtype)
        self._value_range = 255 if images.dtype == np.uint8 else 1
        self._in_place = self._can_be_read(images)
        if self._in_place:
            self._images = images.reshape(self.n_images, height * width * channels)

    @staticmethod
    def _as_array(images: Any) -> Any:
        return np.asarray(images)

    def _can_be_read(self, images: Any) -> bool:
        """Whether the images can be used where they lie."""
        return (
            images.dtype == self._source_dtype
            and images.dtype.isnative
            and images.flags.aligned
            and images[:1].flags.c_contiguous
        )

    def _per_channel(self, name: str, value: ArrayLike) -> NDArray[np.float64]:
        values = np.asarray(value, dtype=np.float64)
        if values.shape not in ((), (1,), self.image_shape[2:]):
            raise ValueError(f"{name} must be one number or one for each of {self.image_shape[2]} channels")
        return np.ascontiguousarray(np.broadcast_to(values, self.image_shape[2:]))

    def empty(self, size: int) -> Any:
        """An array for batches.

        Parameters
        ----------
        size : int
            Images in the largest of them.

        Returns
        -------
        array (size, H, W, C), not filled
        """
        return np.empty((size, *self.image_shape), self.dtype)

    def build(self, index: ArrayLike, out: Any, rng_key: RngKey | None = None, view: View = PLAIN) -> Mix | None:
        """Write a batch of images. May be called from several threads at once.

        Parameters
        ----------
        index : int array (m,)
            Which images.
        out : array (m, H, W, C), C-contiguous, of the builder's dtype
            What they are written to.
        rng_key : (seed, epoch, batch number) or None
            With it they are augmented; the same key changes them the same way.
        view : View
            How they are seen without it.

        Returns
        -------
        Mix or None
            Which images were mixed in, if ``augment`` holds `MixUp`: partners are places in ``index``.

        Raises
        ------
        IndexError
            An index that is not in ``[0, n)``; ``out`` is untouched.
        ValueError
            An ``out`` of another shape, dtype or layout.
        """
        rows = np.asarray(index)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise ValueError(f"index must be a vector of integers, got {rows.dtype} of shape {rows.shape}")
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        m = len(rows)
        shape = (m, *self.image_shape)
        contiguous = not isinstance(out, np.ndarray) or out.flags.c_contiguous
        if out.shape != shape or out.dtype != self.dtype or not contiguous:
            raise ValueError(
                f"out must be a C-contiguous {self.dtype} array of shape {shape}, got {out.dtype} of shape {out.shape}"
            )
        if rng_key is None or not self.augment:
            self._write(rows, (), None if view == PLAIN else _seen(view, m), out)
            return None
        draws = draw(self.augment, random_stream(rng_key, _AUGMENT), m, *self.image_shape[:2])
        self._write(rows, self.augment, draws, out)
        return Mix(draws.partner, draws.share.astype(self.dtype)) if _has(self.augment, MixUp) else None

    def _write(self, rows: NDArray[np.int64], augment: Augmentations, draws: Draws | None, out: Any) -> None:
        """The images of ``rows``, changed as drawn."""
        m, (height, width, _) = len(rows), self.image_shape
        target = out.reshape(m, self._values_per_image)
        if self._in_place:
            source = self._images
        else:
            self._check_rows(rows)  # indexing would take -1 for the last image
            source = self._images[rows].astype(self._source_dtype, order="C").reshape(m, self._values_per_image)
            rows = np.arange(m)
        if draws is None:
            _batches.build_batch(source, rows, self.mean, self.inv_std, target)
            return
        if _has(augment, RandomAffine):
            matrix = _source_places(draws, height, width)
            _batches.warp_batch(source, height, width, rows, self.mean, self.inv_std, matrix, draws.erase, target)
        else:
            moves = draws.flip, draws.shift, draws.erase
            _batches.augment_batch(source, height, width, rows, self.mean, self.inv_std, *moves, target)
        if _has(augment, RandomContrast, RandomBrightness):
            self._relight(out, draws)
        if _has(augment, MixUp):
            mixed = out[draws.partner]
            mixed -= out
            mixed *= (1 - draws.share.astype(self.dtype)).reshape(-1, 1, 1, 1)
            out += mixed

    def _check_rows(self, rows: NDArray[np.int64]) -> None:
        outside = (rows < 0) | (rows >= self.n_images)
        if outside.any():
            raise IndexError(f"index {rows[outside][0]} is not one of {self.n_images} images")

    def _relight(self, x: NDArray[Any], draws: Draws) -> None:
        """Contrast about the mean of each channel, and brightness, of scaled images in place."""
        shape = (len(x), 1, 1, 1)
        level = x.mean(axis=(1, 2), keepdims=True)
        change = (draws.brightness.reshape(shape) * self._value_range * self.inv_std).astype(self.dtype)
        x -= level
        x *= draws.contrast.reshape(shape).astype(self.dtype)
        x += level + change

    @property
    def _values_per_image(self) -> int:
        height, width, channels = self.image_shape
        return height * width * channels


class DeviceBatchBuilder(BatchBuilder):
    """A builder whose images lie on a device, as bytes if they are bytes, and which builds batches there.

    Random numbers are drawn on the host, and are those of `BatchBuilder`. Arithmetic is in the batch's dtype.

    Parameters
    ----------
    kernels : module
        A backend with `gather_images`.
    images, image_shape, mean, inv_std, augment, dtype
        As for `BatchBuilder`. Images that are on the device already stay where they are.

    Raises
    ------
    MemoryError
        If the device has no room for the images.
    ValueError
        As `BatchBuilder`.
    """

    def __init__(self, kernels: Any, images: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(images, *args, **kwargs)
        self._kernels = kernels
        high = self.mean.astype(self.dtype)
        scaling = np.stack([high, (self.mean - high).astype(self.dtype), self.inv_std.astype(self.dtype)], axis=1)
        self._scaling = kernels.place(scaling)
        self._images = self._placed()
        self._unmixed: Any = None
        self._kept: dict[str, Any] = {}

    @staticmethod
    def _as_array(images: Any) -> Any:
        return images if hasattr(images, "__cuda_array_interface__") else np.asarray(images)

    def _can_be_read(self, images: Any) -> bool:
        return not isinstance(images, np.ndarray) or super()._can_be_read(images)

    @staticmethod
    def stored(images: NDArray[Any], dtype: np.dtype[Any]) -> np.dtype[Any] | None:
        """The dtype in which images lie on the device, for batches of ``dtype``; None if it would lose digits."""
        source = np.dtype(_kernel_dtype(images.dtype))
        return source if source == np.uint8 else dtype if np.can_cast(source, dtype) else None

    def _placed(self) -> Any:
        dtype = self.stored(self._images, self.dtype)
        if dtype is None:
            raise ValueError(f"images of {self._images.dtype} on a device would lose digits in {self.dtype}")
        shape = self.n_images, self._values_per_image
        if not isinstance(self._images, np.ndarray) and self._images.dtype == dtype:
            return self._images.reshape(shape)
        placed = self._kernels.empty(self.n_images * shape[1] * dtype.itemsize).view(dtype).reshape(shape)
        each = max(1, _PLACED_VALUES // max(shape[1], 1))
        for start in range(0, self.n_images, each):
            part = np.asarray(self._images[start : start + each])
            placed[start : start + each] = part.reshape(len(part), shape[1])
        return placed

    def empty(self, size: int) -> Any:
        """An array on the device for batches of up to ``size`` images."""
        n_bytes = size * self._values_per_image * self.dtype.itemsize
        return self._kernels.empty(n_bytes).view(self.dtype).reshape(size, *self.image_shape)

    def _sent(self, name: str, values: NDArray[Any]) -> Any:
        """`values` on the device, where the next batch's of this name will be."""
        kept = self._kept.get(name)
        if kept is None or kept.size < values.size:
            kept = self._kept[name] = self._kernels.empty(values.nbytes).view(values.dtype)
        part = kept[: values.size].reshape(values.shape)
        part[...] = values
        return part

    def _write(self, rows: NDArray[np.int64], augment: Augmentations, draws: Draws | None, out: Any) -> None:
        self._check_rows(rows)
        m, (height, width, _), kernels = len(rows), self.image_shape, self._kernels
        moves, matrix = np.zeros((m, 8), np.int64), np.empty((0, 6), self.dtype)
        moves[:, 0] = rows
        if draws is not None:
            moves[:, 1], moves[:, 2:4], moves[:, 4:] = draws.flip, draws.shift, draws.erase
            if _has(augment, RandomAffine):
                matrix = _source_places(draws, height, width).astype(self.dtype)
        mixes = _has(augment, MixUp)
        with kernels.threads(None):
            if mixes and (self._unmixed is None or len(self._unmixed) < m):
                self._unmixed = self.empty(m)
            target = self._unmixed[:m] if mixes else out
            placed = self._sent("moves", moves), self._sent("matrix", matrix)
            kernels.gather_images(self._images, *placed, self._scaling, target)
            if draws is None:
                return
            if _has(augment, RandomContrast, RandomBrightness):
                light = np.stack([draws.contrast, draws.brightness * self._value_range], axis=1).astype(self.dtype)
                kernels.relight_images(target, self._sent("light", light), self._scaling)
            if mixes:
                share = draws.share.astype(self.dtype)
                partner = self._sent("partner", draws.partner)
                kernels.blend_images(target, partner, self._sent("share", share), out)


class StagedBatchBuilder(BatchBuilder):
    """A builder on the host whose batches go to a device while it computes.

    Parameters
    ----------
    kernels : module
        A backend with `staged`.
    images, image_shape, mean, inv_std, augment, dtype
        As for `BatchBuilder`.

    Raises
    ------
    ValueError
        As `BatchBuilder`.
    """

    def __init__(self, kernels: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kernels = kernels

    def empty(self, size: int) -> Any:
        """An array on the device, with a twin on the host, for batches of up to ``size`` images."""
        return self._kernels.staged((size, *self.image_shape), self.dtype)

    def _write(self, rows: NDArray[np.int64], augment: Augmentations, draws: Draws | None, out: Any) -> None:
        out.settle()
        super()._write(rows, augment, draws, out.host)
        out.upload()


def builder_for(
    kernels: Any, images: Any, image_shape: tuple[int, int, int], *args: Any, **kwargs: Any
) -> BatchBuilder:
    """The builder for networks of a backend.

    Where the backend builds batches on its device, the images lie there if they have room, else batches of theirs are
    built on the host and sent there.

    Parameters
    ----------
    kernels : module or None
        `Network.batch_kernels`.
    images, image_shape, mean, inv_std, augment, dtype
        As for `BatchBuilder`.

    Returns
    -------
    BatchBuilder

    Raises
    ------
    ValueError
        As `BatchBuilder`.
    """
    if kernels is not None and hasattr(images, "__cuda_array_interface__"):
        return DeviceBatchBuilder(kernels, kernels.place(images), image_shape, *args, **kwargs)
    builder = BatchBuilder(images, image_shape, *args, **kwargs)
    if kernels is None:
        return builder
    stored = DeviceBatchBuilder.stored(builder._images, builder.dtype)
    if stored is not None and kernels.has_room(builder.n_images * builder._values_per_image * stored.itemsize):
        try:
            return DeviceBatchBuilder(kernels, images, image_shape, *args, **kwargs)
        except MemoryError:  # others were faster
            pass
    return StagedBatchBuilder(kernels, images, image_shape, *args, **kwargs)


def _seen(view: View, m: int) -> Draws:
    """The view of m images, as if it had been drawn."""
    draws = unchanged(m)
    draws.flip[...] = view.mirrored
    draws.shift[...] = view.down, view.right
    return draws


def _has(augment: Augmentations, *kinds: type[Augmentation]) -> bool:
    return any(isinstance(item, kinds) for item in augment)


def _source_places(draws: Draws, height: int, width: int) -> NDArray[np.float64]:
    """Where the pixels of an image come from that was mirrored, then shifted, then warped: see ``warp_batch``."""
    back = np.linalg.inv(draws.warp)
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    start = middle - back @ middle - draws.shift
    places = np.concatenate([back, start[..., np.newaxis]], axis=2)
    mirrored = draws.flip == 1
    places[mirrored, 1] *= -1
    places[mirrored, 1, 2] += width - 1
    return places.reshape(-1, 6)


class Mix(NamedTuple):
    """Of each image of a batch: what was blended with it (a place in the batch, or its label), and its own share."""

    partner: NDArray[Any]  # (m,)
    share: NDArray[Any]  # (m,)
