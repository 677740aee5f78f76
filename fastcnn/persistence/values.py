"""Parameter values as JSON and back: plain values, layers and augmentations; never code.

What JSON has no word for is an object with one key that says what it is: ``{"tuple": [...]}``, ``{"float":
"inf"}``.
"""

from __future__ import annotations

import os
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

__all__ = ["DATES", "decode", "encode"]

_UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns")
DATES = {f"{kind}64[{unit}]" for kind in ("datetime", "timedelta") for unit in _UNITS}

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
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return {"date": [value.dtype.name, int(value.astype(np.int64))]}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.ndarray):
        return encode(value.tolist())
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.random.RandomState):
        return {"random_state": _mersenne_twister(value)}
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


def _mersenne_twister(value: np.random.RandomState) -> dict[str, Any]:
    state = value.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        raise TypeError(f"{value!r} cannot be stored")
    return {
        "key": state["state"]["key"].tolist(),
        "pos": int(state["state"]["pos"]),
        "has_gauss": int(state["has_gauss"]),
        "gauss": float(state["gauss"]),
    }


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


def _decode_date(content: list[Any]) -> np.datetime64 | np.timedelta64:
    name, value = content
    if name not in DATES:
        raise ValueError(f"{name!r} is no dtype of dates")
    return np.int64(value).astype(name)


def _decode_random_state(content: dict[str, Any]) -> np.random.RandomState:
    key, pos, has_gauss, gauss = (content[name] for name in ("key", "pos", "has_gauss", "gauss"))
    words = isinstance(key, list) and len(key) == 624 and all(type(word) is int and 0 <= word < 2**32 for word in key)
    if not (words and type(pos) is int and 0 <= pos <= 624 and has_gauss in (0, 1) and isinstance(gauss, float)):
        raise ValueError("not the state of a RandomState")
    state = np.random.RandomState(0)
    state.set_state(("MT19937", np.array(key, np.uint32), pos, has_gauss, gauss))
    return state


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "bytes": bytes.fromhex,
    "date": _decode_date,
    "random_state": _decode_random_state,
    "tuple": lambda content: tuple(map(decode, content)),
    "dict": lambda content: {decode(key): decode(item) for key, item in content},
    "spec": lambda content: layers.from_dict(_decode_fields(content)),
    "augmentation": _decode_augmentation,
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
