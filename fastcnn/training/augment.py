"""Random changes to training images: what may be asked for, and the numbers drawn for one batch.

Specs are frozen and hold no state; drawing takes a generator, and the compiled batch builder carries it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Augmentation",
    "Cutout",
    "Draws",
    "MixUp",
    "RandomAffine",
    "RandomBrightness",
    "RandomContrast",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomShift",
    "check_augment",
    "draw",
]


class Draws(NamedTuple):
    """What happens to each of the m images of a batch, in this order."""

    flip: NDArray[np.uint8]  # (m,): mirrored left to right where 1
    shift: NDArray[np.int64]  # (m, 2): pixels down, pixels to the right
    warp: NDArray[np.float64]  # (m, 2, 2): how (down, right) from the image's middle is turned and stretched
    erase: NDArray[np.int64]  # (m, 4): top, left, height, width of the rectangle set to 0
    contrast: NDArray[np.float64]  # (m,): how much further from its mean a channel is
    brightness: NDArray[np.float64]  # (m,): what is added, as a share of the range
    partner: NDArray[np.int64]  # (m,): the image of the batch that is mixed in
    share: NDArray[np.float64]  # (m,): how much of the image itself there is


def _check_probability(name: str, p: object) -> None:
    if not isinstance(p, Real) or not 0 <= float(p) <= 1:
        raise ValueError(f"{name}: p must be a number from 0 to 1, got {p!r}")


def _check_range(name: str, field: str, bounds: object, upper: float) -> None:
    ok = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(isinstance(b, Real) for b in bounds)
    if not ok or not 0 < bounds[0] <= bounds[1] <= upper or math.isinf(bounds[1]):  # type: ignore[index]
        limit = "" if math.isinf(upper) else f" <= {upper:g}"
        raise ValueError(f"{name}: {field} must be a pair with 0 < low <= high{limit}, got {bounds!r}")


def _check_change(name: str, change: object) -> None:
    if not isinstance(change, Real) or not 0 <= float(change) <= 1:
        raise ValueError(f"{name}: max_change must be a number from 0 to 1, got {change!r}")


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror an image left to right.

    Parameters
    ----------
    p : float in [0, 1], default=0.5
        How probable it is.

    Raises
    ------
    ValueError
        If a value is outside its range.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        _check_probability("RandomHorizontalFlip", self.p)

    def draw(self, rng: np.random.Generator, height: int, width: int, draws: Draws) -> None:
        """Fill ``draws.flip``."""
        np.less(rng.random(len(draws.flip)), self.p, out=draws.flip, casting="unsafe")


@dataclass(frozen=True)
class RandomShift:
    """Move an image by whole pixels; what is uncovered is 0.

    The same as padding an image with zeros and cropping it at a random place.

    Parameters
    ----------
    max_shift : int or (int, int), default=2
        The most pixels either way, or vertically and horizontally.

    Raises
    ------
    ValueError
        If a value is outside its range.
    """

    max_shift: int | tuple[int, int] = 2

    def __post_init__(self) -> None:
        pair = self.max_shift if isinstance(self.max_shift, (tuple, list)) else (self.max_shift, self.max_shift)
        if len(pair) != 2 or any(not isinstance(s, Integral) or not 0 <= s < 2**31 for s in pair):
            raise ValueError(
                f"RandomShift: max_shift must be an int >= 0 or a pair of them (vertical, horizontal), "
                f"got {self.max_shift!r}"
            )

    def draw(self, rng: np.random.Generator, height: int, width: int, draws: Draws) -> None:
        """Fill ``draws.shift``."""
        most = np.broadcast_to(np.asarray(self.max_shift, dtype=np.int64), 2)
        draws.shift[...] = rng.integers(-most, most, size=draws.shift.shape, endpoint=True)


@dataclass(frozen=True)
class RandomAffine:
    """Turn, stretch and slant an image about its middle, with bilinear interpolation; what is uncovered is 0.

    Parameters
    ----------
    rotation : float in [0, 180], default=10.0
        The most degrees either way.
    scale : (float, float), default=(0.9, 1.1)
        Bounds of the factor in size, drawn evenly in the logarithm.
    shear : float in [0, 80], default=0.0
        The most degrees either way.
    p : float in [0, 1], default=1.0
        How probable it is.

    Raises
    ------
    ValueError
        If a value is outside its range.
    """

    rotation: float = 10.0
    scale: tuple[float, float] = (0.9, 1.1)
    shear: float = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        _check_probability("RandomAffine", self.p)
        for field, most in (("rotation", 180.0), ("shear", 80.0)):
            value = getattr(self, field)
            if not isinstance(value, Real) or not 0 <= float(value) <= most:
                raise ValueError(f"RandomAffine: {field} must be a number of degrees from 0 to {most:g}, got {value!r}")
        _check_range("RandomAffine", "scale", self.scale, math.inf)

    def draw(self, rng: np.random.Generator, height: int, width: int, draws: Draws) -> None:
        """Fill ``draws.warp``."""
        chance, turn, size, slant = rng.random((4, len(draws.warp)))
        angle = np.deg2rad(self.rotation) * (2 * turn - 1)
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        factor = np.exp(low + (high - low) * size)
        cos, sin = factor * np.cos(angle), factor * np.sin(angle)
        tangent = np.tan(np.deg2rad(self.shear) * (2 * slant - 1))
        # (down, right), first slanted to the right, then turned to the left and stretched.
        warp = np.stack([cos - sin * tangent, -sin, sin + cos * tangent, cos], axis=1).reshape(-1, 2, 2)
        draws.warp[chance < self.p] = warp[chance < self.p]


@dataclass(frozen=True)
class Cutout:
    """Set a square at a random place to 0 (DeVries and Taylor, 2017).

    The square's middle lies anywhere in the image, so that part of it may be outside.

    Parameters
    ----------
    size : int, default=8
        Its side, in pixels.
    p : float in [0, 1], default=1.0
        How probable it is.

    Raises
    ------
    ValueError
        If a value is outside its range.
    """

    size: int = 8
    p: float = 1.0

    def __post_init__(self) -> None:
        _check_probability("Cutout", self.p)
        if not isinstance(self.size, Integral) or not 1 <= self.size < 2**31:
            raise ValueError(f"Cutout: size must be an int >= 1, got {self.size!r}")

    def draw(self, rng: np.random.Generator, height: int, width: int, draws: Draws) -> None:
        """Fill ``draws.erase``."""
        chance, middle_y, middle_x = rng.random((3, len(draws.erase)))
        draws.erase[:, 0] = np.floor(middle_y * height) - self.size // 2
        draws.erase[:, 1] = np.floor(middle_x * width) - self.size // 2
        draws.erase[:, 2:] = self.size
        draws.erase[chance >= self.p] = 0


@dataclass(frozen=True)
class RandomContrast:
    """Bring every channel's values further from their mean or closer to it.

    Parameters
    ----------
    max_change : float in [0, 1], default=0.2
        The factor is between 1 minus this and 1 plus this.

    Raises
    ------
    ValueError
        If a value is outside its range.
    """

    max_change: float = 0.2

    def __post_init__(self) -> None:
        _check_change("RandomContrast", self.max_change)

    def draw(self, rng: np.random.Generator, height: int, width: int, draws: Draws) -> None:
        """Fill ``draws.contrast``."""
        draws.contrast[...] = rng.uniform(1 - self.max_change, 1 + self.max_change, len(draws.contrast))


@dataclass(frozen=True)
class RandomBrightness:
    """Add the same to all pixels.

    Parameters
    ----------
    max_change : float in [0, 1], default=0.2
        The most either way, as a share of the range: of 255 for bytes, of 1 for floats.

    Raises
    ------
    ValueError
        If a value is outside its range.
    """

    max_change: float = 0.2

    def __post_init__(self) -> None:
        _check_change("RandomBrightness", self.max_change)

    def draw(self, rng: np.random.Generator, height: int, width: int, draws: Draws) -> None:
        """Fill ``draws.brightness``."""
        draws.brightness[...] = rng.uniform(-self.max_change, self.max_change, len(draws.brightness))


@dataclass(frozen=True)
class MixUp:
    """Blend each image with another one of its mini-batch, and their labels by the same shares (Zhang et al., 2018).

    Parameters
    ----------
    alpha : float > 0, default=0.2
        The share of the first is drawn from Beta(alpha, alpha): the smaller, the less is mixed.

    Raises
    ------
    ValueError
        If a value is outside its range.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.alpha, Real) or not 0 < float(self.alpha) < math.inf:
            raise ValueError(f"MixUp: alpha must be a positive number, got {self.alpha!r}")

    def draw(self, rng: np.random.Generator, height: int, width: int, draws: Draws) -> None:
        """Fill ``draws.partner`` and ``draws.share``."""
        draws.partner[...] = rng.permutation(len(draws.partner))
        draws.share[...] = rng.beta(self.alpha, self.alpha, len(draws.share))


@dataclass(frozen=True)
class RandomErasing:
    """Set one rectangle of an image to 0 (Zhong et al., 2017).

    Parameters
    ----------
    p : float in [0, 1], default=0.5
        How probable it is.
    scale : (float, float), default=(0.02, 0.2)
        Bounds of the rectangle's share of the image.
    ratio : (float, float), default=(0.3, 3.3)
        Bounds of its height over its width, drawn evenly in the logarithm. What would be longer or wider than the image
        is cut to it.

    Raises
    ------
    ValueError
        If a value is outside its range.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.2)
    ratio: tuple[float, float] = (0.3, 3.3)

    def __post_init__(self) -> None:
        _check_probability("RandomErasing", self.p)
        _check_range("RandomErasing", "scale", self.scale, 1.0)
        _check_range("RandomErasing", "ratio", self.ratio, math.inf)

    def draw(self, rng: np.random.Generator, height: int, width: int, draws: Draws) -> None:
        """Fill ``draws.erase``; no rectangle has size 0."""
        chance, share, shape, top, left = rng.random((5, len(draws.erase)))
        area = (self.scale[0] + (self.scale[1] - self.scale[0]) * share) * height * width
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        root_ratio = np.exp(0.5 * (low + (high - low) * shape))
        rows = np.clip(np.rint(np.sqrt(area) * root_ratio), 1, height)
        columns = np.clip(np.rint(np.sqrt(area) / root_ratio), 1, width)
        draws.erase[:, 0] = np.floor(top * (height - rows + 1))
        draws.erase[:, 1] = np.floor(left * (width - columns + 1))
        draws.erase[:, 2] = rows
        draws.erase[:, 3] = columns
        draws.erase[chance >= self.p] = 0


Augmentation = (
    RandomHorizontalFlip
    | RandomShift
    | RandomAffine
    | RandomErasing
    | Cutout
    | RandomContrast
    | RandomBrightness
    | MixUp
)

# The order in which the batch builder applies them, and in which their numbers are drawn.
_KINDS: tuple[type[Augmentation], ...] = (
    RandomHorizontalFlip, RandomShift, RandomAffine, RandomErasing, Cutout, RandomContrast, RandomBrightness, MixUp
)  # fmt: skip


def check_augment(augment: Sequence[Augmentation] | Augmentation | None) -> tuple[Augmentation, ...]:
    """The augmentations in the order they are applied, whatever order they were given in.

    Raises
    ------
    ValueError
        Something that is not an augmentation, or two of one kind.
    """
    if augment is None:
        return ()
    given = (augment,) if isinstance(augment, _KINDS) else augment
    names = ", ".join(kind.__name__ for kind in _KINDS)
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ValueError(f"augment must be None or a list of {names}, got {augment!r}")
    for item in given:
        if not isinstance(item, _KINDS):
            raise ValueError(f"augment must hold only {names}, got {item!r}")
    kinds = [type(item) for item in given]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"augment holds {kind.__name__} {kinds.count(kind)} times; once is the most")
    if {RandomErasing, Cutout} <= set(kinds):
        raise ValueError("augment holds RandomErasing and Cutout: an image has one rectangle, choose one of them")
    return tuple(sorted(given, key=lambda item: _KINDS.index(type(item))))


def draw(augment: tuple[Augmentation, ...], rng: np.random.Generator, m: int, height: int, width: int) -> Draws:
    """Draw what happens to each of ``m`` images; ``augment`` is what ``check_augment`` returned."""
    draws = unchanged(m)
    for item in augment:
        item.draw(rng, height, width, draws)
    return draws


def unchanged(m: int) -> Draws:
    """That nothing happens to ``m`` images."""
    return Draws(
        flip=np.zeros(m, np.uint8),
        shift=np.zeros((m, 2), np.int64),
        warp=np.tile(np.eye(2), (m, 1, 1)),
        erase=np.zeros((m, 4), np.int64),
        contrast=np.ones(m),
        brightness=np.zeros(m),
        partner=np.arange(m),
        share=np.ones(m),
    )
