"""A model in one safetensors file: arrays, and a JSON header that says what they are.

The format (https://github.com/huggingface/safetensors#format) is 8 bytes of header size, a JSON header with
the dtype, shape and place of each tensor, then the tensors. Its free-text part, ``__metadata__``, holds
under "fastcnn" what this project adds, again as JSON.

Files are not trusted. The header says which layers there are; from them follow the name, dtype and shape of
every tensor and so the size of the file, and all of it is compared before an array is allocated.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, BinaryIO

import numpy as np
from safetensors.numpy import save as to_bytes

from fastcnn import __version__
from fastcnn.layers import Layer
from fastcnn.persistence.files import StrPath, replacing
from fastcnn.persistence.values import decode, encode
from fastcnn.training.loop import History

__all__ = ["SavedModel", "read_model", "write_model"]

FORMAT_VERSION = 1

_MAX_HEADER = 1 << 24  # bytes; the header of a network of a thousand layers has some 200,000
_DTYPES = {"float32": "F32", "float64": "F64"}
_CLASSES = {"bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "object", "str"}
_CLASSES |= {"uint8", "uint16", "uint32", "uint64"}


@dataclass
class SavedModel:
    """What a file holds: values and arrays, nothing fitted.

    Attributes
    ----------
    parameters : dict
        Of the estimator.
    layers : sequence of layer specs
        With the last, dense one.
    image_shape : (H, W, C)
    dtype : "float32" or "float64"
    classes : array (n_classes,), sorted
    offset, scale : float64 arrays (C,)
        The network's input is ``(pixel - offset) / scale``.
    params : dict of str to array
        Of the network, by name.
    history : History
    feature_names : list of str or None
    version : str
        Of the fastcnn that wrote the file.
    """

    parameters: dict[str, Any]
    layers: Sequence[Layer]
    image_shape: tuple[int, int, int]
    dtype: str
    classes: np.ndarray
    offset: np.ndarray
    scale: np.ndarray
    params: dict[str, np.ndarray]
    history: History = field(default_factory=History)
    feature_names: list[str] | None = None
    version: str = ""


# ------------------------------------------------------------------------------------------ writing


def write_model(path: StrPath, model: SavedModel) -> None:
    """Write `model` to `path`: whole, or not at all.

    Raises
    ------
    TypeError
        A value that a file cannot hold; nothing is written then.
    OSError
        The file cannot be written; an old file stays as it was.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "fastcnn_version": __version__,
        "parameters": {name: _encoded(name, value) for name, value in model.parameters.items()},
        "layers": [encode(layer) for layer in model.layers],
        "image_shape": [int(n) for n in model.image_shape],
        "dtype": model.dtype,
        "classes": _classes_to_json(model.classes),
        "history": {name: encode(value) for name, value in asdict(model.history).items()},
        "feature_names": model.feature_names,
    }
    tensors = {f"network.{name}": np.ascontiguousarray(value) for name, value in model.params.items()}
    tensors["input.offset"] = np.ascontiguousarray(model.offset, np.float64)
    tensors["input.scale"] = np.ascontiguousarray(model.scale, np.float64)
    content = to_bytes(tensors, {"fastcnn": json.dumps(header, allow_nan=False)})
    with replacing(path) as file:
        file.write(content)


def _encoded(name: str, value: Any) -> Any:
    try:
        return encode(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the parameter {name} cannot be stored: {error}") from error


def _classes_to_json(classes: np.ndarray) -> dict[str, Any]:
    name = "str" if classes.dtype.kind == "U" else classes.dtype.name
    values = [encode(value) for value in classes.tolist()]
    if name not in _CLASSES or any(value is None or isinstance(value, list) for value in values):
        raise TypeError(f"classes {classes!r} cannot be stored: expected numbers, booleans or strings")
    return {"dtype": name, "values": values}


# ------------------------------------------------------------------------------------------ reading


def read_model(path: StrPath) -> SavedModel:
    """The model in the file `path`.

    Raises
    ------
    OSError
        The file cannot be read; FileNotFoundError if it is not there.
    ValueError
        It is not a file that `write_model` wrote, or it is damaged; the message says what is wrong.
    """
    try:
        with open(path, "rb") as file:
            return _read(file)
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else error
        raise ValueError(f"{os.fspath(path)}: not a model that can be read: {reason}") from error


def _read(file: BinaryIO) -> SavedModel:
    entries, start = _read_header(file)
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("fastcnn"), str):
        raise ValueError("a safetensors file, but none of fastcnn's")
    header = _parse(metadata["fastcnn"])
    if header.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"format {header.get('format_version')!r} of fastcnn {header.get('fastcnn_version')!r}; "
            f"this version reads format {FORMAT_VERSION}"
        )
    model = _model(header)
    expected = _expected_tensors(model)
    places = _check_tensors(entries, expected, os.fstat(file.fileno()).st_size - start)
    arrays = {name: _read_array(file, start + places[name], *expected[name]) for name in expected}
    model.offset, model.scale = arrays.pop("input.offset"), arrays.pop("input.scale")
    if not (np.isfinite(model.offset).all() and np.isfinite(model.scale).all() and model.scale.all()):
        raise ValueError("the input's offset and scale must be finite, and the scale not 0")
    model.params = {name.removeprefix("network."): value for name, value in arrays.items()}
    return model


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The JSON header and where the tensors start."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError("no safetensors file, or cut off")
    return _parse(file.read(length)), 8 + length


def _parse(text: str | bytes) -> dict[str, Any]:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("the header is not a JSON object")
    return values


def _model(header: Mapping[str, Any]) -> SavedModel:
    """All but the arrays."""
    layers = [decode(layer) for layer in _typed(header, "layers", list)]
    if not all(isinstance(layer, Layer) for layer in layers):
        raise ValueError("layers holds what is no layer")
    shape = _typed(header, "image_shape", list)
    if len(shape) != 3 or not all(type(n) is int and 1 <= n < 2**31 for n in shape):
        raise ValueError(f"image_shape must be three positive ints, got {shape}")
    if header["dtype"] not in _DTYPES:
        raise ValueError(f"dtype must be one of {sorted(_DTYPES)}, got {header['dtype']!r}")
    names = header["feature_names"]
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("feature_names must be null or a list of strings")
    if names is not None and len(names) != prod(shape):
        raise ValueError(f"{len(names)} feature_names for images of {prod(shape)} values")
    nothing = np.empty(0)
    return SavedModel(
        parameters={name: decode(value) for name, value in _typed(header, "parameters", dict).items()},
        layers=layers,
        image_shape=(shape[0], shape[1], shape[2]),
        dtype=header["dtype"],
        classes=_classes_from_json(_typed(header, "classes", dict)),
        offset=nothing,
        scale=nothing,
        params={},
        history=_history_from_json(_typed(header, "history", dict)),
        feature_names=names,
        version=str(header["fastcnn_version"]),
    )


def _typed(header: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(header[name], kind):
        raise ValueError(f"{name} must be a JSON {'object' if kind is dict else 'array'}")
    return header[name]


def _history_from_json(stored: Mapping[str, Any]) -> History:
    history = History(**{name: decode(value) for name, value in stored.items()})
    for name, default in vars(History()).items():
        value = getattr(history, name)
        if isinstance(default, list):
            good = isinstance(value, list) and all(isinstance(item, (int, float)) for item in value)
        elif isinstance(default, float) or default is None:
            good = isinstance(value, (int, float, type(default)))
        else:
            good = type(value) is type(default)
        if not good:
            raise ValueError(f"history has {_shown(value)} for {name}")
    return history


def _classes_from_json(stored: Mapping[str, Any]) -> np.ndarray:
    name, values = stored["dtype"], decode(_typed(stored, "values", list))
    if name not in _CLASSES:
        raise ValueError(f"classes must have one of the dtypes {sorted(_CLASSES)}, got {name!r}")
    if not values or not all(isinstance(value, (bool, int, float, str)) for value in values):
        raise ValueError("classes must be numbers, booleans or strings, at least one")
    if name == "str" and not all(isinstance(value, str) for value in values):
        raise ValueError("classes of dtype str must be strings")
    classes = np.array(values, dtype=name)
    if not np.array_equal(np.unique(classes), classes):
        raise ValueError("classes must be sorted and different")
    return classes


def _expected_tensors(model: SavedModel) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape), by what the header says of the model."""
    shape: tuple[int, ...] = model.image_shape
    channels = (shape[2],)
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "input.offset": ("float64", channels),
        "input.scale": ("float64", channels),
    }
    for i, layer in enumerate(model.layers):
        for name, of_param in layer.param_shapes(shape).items():
            expected[f"network.{i}.{name}"] = (model.dtype, of_param)
        shape = layer.output_shape(shape)
    if shape != (len(model.classes),):
        raise ValueError(f"the layers end in shape {shape}, but there are {len(model.classes)} classes")
    return expected


def _check_tensors(
    entries: Mapping[str, Any], expected: Mapping[str, tuple[str, tuple[int, ...]]], size: int
) -> dict[str, int]:
    """Where each tensor starts, once they all are as expected and fill the `size` bytes without a gap."""
    if missing := sorted(set(expected) - set(entries)):
        raise ValueError(f"tensor {missing[0]!r} is missing")
    if unknown := sorted(set(entries) - set(expected)):
        raise ValueError(f"tensor {unknown[0]!r} does not belong to the layers")
    places: dict[str, int] = {}
    ends: list[tuple[int, int]] = []
    for name, (dtype, shape) in expected.items():
        entry = entries[name]
        start, n_bytes = entry["data_offsets"][0], prod(shape) * np.dtype(dtype).itemsize
        wanted = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, start + n_bytes]}
        if type(start) is not int or entry != wanted:
            raise ValueError(f"tensor {name!r} is {_shown(entry)}, expected {_shown(wanted)}")
        places[name] = start
        ends.append((start, start + n_bytes))
    reached = 0
    for start, end in sorted(ends):
        if start != reached:
            raise ValueError("the tensors overlap or leave gaps")
        reached = end
    if reached != size:
        raise ValueError(f"{size} bytes of tensors, expected {reached}: cut off, or something was added")
    return places


def _shown(entry: Any) -> str:
    return re.sub(r"\s+", " ", repr(entry))[:200]


def _read_array(file: BinaryIO, start: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(shape, np.dtype(dtype).newbyteorder("<"))
    file.seek(start)
    if file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:  # type: ignore[attr-defined]
        raise ValueError("cut off")
    return array.astype(dtype, copy=False)
