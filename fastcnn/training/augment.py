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
    "Draws",
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
    erase: NDArray[np.int64]  # (m, 4): top, left, height, width of the rectangle set to 0


def _check_probability(name: str, p: object) -> None:
    if not isinstance(p, Real) or not 0 <= float(p) <= 1:
        raise ValueError(f"{name}: p must be a number from 0 to 1, got {p!r}")


def _check_range(name: str, field: str, bounds: object, upper: float) -> None:
    ok = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(isinstance(b, Real) for b in bounds)
    if not ok or not 0 < bounds[0] <= bounds[1] <= upper or math.isinf(bounds[1]):  # type: ignore[index]
        limit = "" if math.isinf(upper) else f" <= {upper:g}"
        raise ValueError(f"{name}: {field} must be a pair with 0 < low <= high{limit}, got {bounds!r}")


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror an image left to right with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        _check_probability("RandomHorizontalFlip", self.p)

    def draw(self, rng: np.random.Generator, height: int, width: int, draws: Draws) -> None:
        """Fill ``draws.flip``."""
        np.less(rng.random(len(draws.flip)), self.p, out=draws.flip, casting="unsafe")


@dataclass(frozen=True)
class RandomShift:
    """Move an image by whole pixels, up to ``max_shift`` either way; what is uncovered is 0.

    ``max_shift`` is one number or a pair (vertical, horizontal). The same as padding an image with zeros and
    cropping it at a random place.
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
class RandomErasing:
    """Set one rectangle of an image to 0 with probability ``p`` (Zhong et al., 2017).

    ``scale`` bounds the rectangle's share of the image, ``ratio`` its height over its width (drawn evenly in
    the logarithm). A rectangle longer or wider than the image is cut to it.
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


Augmentation = RandomHorizontalFlip | RandomShift | RandomErasing

# The order in which the batch builder applies them, and in which their numbers are drawn.
_KINDS: tuple[type[Augmentation], ...] = (RandomHorizontalFlip, RandomShift, RandomErasing)


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
    return tuple(sorted(given, key=lambda item: _KINDS.index(type(item))))


def draw(augment: tuple[Augmentation, ...], rng: np.random.Generator, m: int, height: int, width: int) -> Draws:
    """Draw what happens to each of ``m`` images; ``augment`` is what ``check_augment`` returned."""
    draws = Draws(np.zeros(m, np.uint8), np.zeros((m, 2), np.int64), np.zeros((m, 4), np.int64))
    for item in augment:
        item.draw(rng, height, width, draws)
    return draws
