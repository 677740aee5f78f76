"""Classes as JSON and back: any labels that can be sorted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastcnn.persistence.values import DATES, decode, encode

__all__ = ["labels_from_json", "labels_to_json"]

_NAMES = {"bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "object", "str", "bytes"}
_NAMES |= {"uint8", "uint16", "uint32", "uint64", *DATES}
_MOST_LETTERS = 1 << 24
_PLAIN = (bool, int, float, str, bytes)


def labels_to_json(labels: np.ndarray) -> dict[str, Any]:
    """`labels` as JSON.

    Raises
    ------
    TypeError
        If they are neither numbers, booleans, strings, bytes nor dates.
    ValueError
        If there are very many of them with very long names.
    """
    kind = labels.dtype.kind
    name = {"U": "str", "T": "str", "S": "bytes"}.get(kind, labels.dtype.name)
    values = (labels.astype(np.int64) if kind in "mM" else labels).tolist()
    if name not in _NAMES or not all(isinstance(value, (_PLAIN, np.generic)) for value in values):
        raise TypeError(f"classes {labels!r} cannot be stored: expected numbers, booleans, strings, bytes or dates")
    if name in ("str", "bytes"):
        _check_letters(values)
    return {"dtype": name, "values": [encode(value) for value in values]}


def labels_from_json(stored: Mapping[str, Any]) -> np.ndarray:
    """What `labels_to_json` was given: sorted, different labels, at least one; ValueError if it is not that."""
    name, values = stored["dtype"], decode(stored["values"])
    if name not in _NAMES:
        raise ValueError(f"classes must have one of the dtypes {sorted(_NAMES)}, got {name!r}")
    if not isinstance(values, list) or not values or not all(isinstance(value, _PLAIN) for value in values):
        raise ValueError("classes must be numbers, booleans, strings, bytes or dates, at least one")
    if name in ("str", "bytes") and not all(type(value).__name__ == name for value in values):
        raise ValueError(f"classes of dtype {name} must be {name}")
    if name in ("str", "bytes"):
        _check_letters(values)
    if name in DATES:
        classes = np.array(values, np.int64).astype(name)
    else:
        classes = np.array(values, dtype=name)
    if not np.array_equal(np.unique(classes), classes):
        raise ValueError("classes must be sorted and different")
    return classes


def _check_letters(values: list[Any]) -> None:
    """An array has room for the longest name in each place: a small file must not ask for much memory."""
    longest = max(map(len, values))
    if len(values) * longest > _MOST_LETTERS:
        raise ValueError(f"{len(values)} classes with names of up to {longest} letters are too large to be stored")
