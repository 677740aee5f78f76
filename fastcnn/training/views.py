"""Views of an image, over which test-time augmentation takes the mean."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PLAIN", "TTA", "View", "views_of"]


class View(NamedTuple):
    """An image mirrored left to right, or not, and then moved by so many pixels; what is uncovered is 0."""

    mirrored: bool = False
    down: int = 0
    right: int = 0


PLAIN = View()
_MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))

# The image itself comes first.
TTA: dict[str, tuple[View, ...]] = {
    "flip": (PLAIN, View(True)),
    "shift": tuple(View(False, *move) for move in _MOVES),
    "flip+shift": tuple(View(mirrored, *move) for mirrored in (False, True) for move in _MOVES),
}


def views_of(tta: str | bool | None) -> tuple[View, ...]:
    """The views of one of `TTA`; the image alone for None and False.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if tta is None or tta is False:
        return (PLAIN,)
    if not isinstance(tta, str) or tta not in TTA:
        raise ValueError(f"tta must be one of {', '.join(map(repr, TTA))}, False or None, got {tta!r}")
    return TTA[tta]
