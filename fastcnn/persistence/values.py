"""Parameter values as JSON and back: plain values, layers and augmentations; never code.

What JSON has no word for is an object with one key that says what it is: ``{"tuple": [...]}``, ``{"float":
"inf"}``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from math import isfinite
from typing import Any

import numpy as np

from fastcnn import layers
from fastcnn.training.augment import (
    Cutout,
    MixUp,
    RandomAffine,
    RandomBrightness,
    RandomContrast,
    RandomErasing,
    RandomHorizontalFlip,
    RandomShift,
)

__all__ = ["decode", "encode"]

_AUGMENTATIONS: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        Cutout, MixUp, RandomAffine, RandomBrightness, RandomContrast, RandomErasing, RandomHorizontalFlip, RandomShift
    )
}  # fmt: skip


def encode(value: Any) -> Any:
    """`value` as what `json` can write.

    Raises
    ------
    TypeError
        If there is no such form, of a function for example.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.ndarray):
        return encode(value.tolist())
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, layers.Layer):
        return {"spec": {name: encode(item) for name, item in layers.to_dict(value).items()}}
    if type(value).__name__ in _AUGMENTATIONS:
        fields = {name: encode(item) for name, item in asdict(value).items()}
        return {"augmentation": {"name": type(value).__name__} | fields}
    raise TypeError(f"{value!r} cannot be stored")


def decode(value: Any) -> Any:
    """What `encode` was given (arrays come back as lists, NumPy's numbers as Python's).

    Raises
    ------
    ValueError
        If `value` does not come from `encode`.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"{_short(value)} is not a stored value")
    ((kind, content),) = value.items()
    if kind not in _DECODERS:
        raise ValueError(f"{kind!r} is not a kind of stored value: expected one of {sorted(_DECODERS)}")
    try:
        return _DECODERS[kind](content)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{_short(value)} is not a stored value: {error}") from error


def _decode_fields(content: dict[str, Any]) -> dict[str, Any]:
    return {name: decode(item) for name, item in content.items()}


def _decode_augmentation(content: dict[str, Any]) -> Any:
    fields = _decode_fields(content)
    return _AUGMENTATIONS[fields.pop("name")](**fields)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "tuple": lambda content: tuple(map(decode, content)),
    "dict": lambda content: {decode(key): decode(item) for key, item in content},
    "spec": lambda content: layers.from_dict(_decode_fields(content)),
    "augmentation": _decode_augmentation,
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
