"""A model in one safetensors file: arrays, and under "fastcnn" in its header JSON that says what they are.

Files are not trusted. The header says which layers there are; from them follow the name, dtype and shape of every
tensor and so the size of the file, and all of it is compared before an array is allocated.

Format 2 has what format 1 has, and beside it "versions" of packages, "training" (what training goes on from), "run"
(the fit that a checkpoint belongs to) and "split_seed".
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any, BinaryIO

import numpy as np

from fastcnn import __version__
from fastcnn.layers import Layer, Residual
from fastcnn.persistence.files import StrPath
from fastcnn.persistence.labels import labels_from_json, labels_to_json
from fastcnn.persistence.safetensors import (
    DTYPES,
    Expected,
    parse_object,
    read_header,
    read_tensors,
    shown,
    write_tensors,
)
from fastcnn.persistence.states import Part, Run, Training, run_from_json, training_from_json
from fastcnn.persistence.values import decode, encode
from fastcnn.training.loop import History

__all__ = ["MAX_LAYERS", "MAX_PARAMETERS", "SavedModel", "read_model", "write_model"]

FORMAT_VERSION = 2
MAX_LAYERS = 10_000  # with those within others
MAX_PARAMETERS = 1 << 26  # read unless more is asked for: 256 MiB of float32, as much again for each moment

_OLDEST_FORMAT = 1
_MAX_VALUES = 1 << 26  # of an image, anywhere in the network, unless more parameters than that are asked for
_PACKAGES = ("numpy", "numba", "scikit-learn", "scipy")


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
    split_seed : int or None
        By which the fits that go on set images aside.
    version : str
        Of the fastcnn that wrote the file.
    versions : dict of str to str
        Of Python and the packages it wrote it with.
    training : Training or None
        What training goes on from.
    run : Run or None
        The fit that a checkpoint belongs to. `params` are what it would end with, were it to end here.
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
    split_seed: int | None = None
    version: str = __version__
    versions: dict[str, str] = field(default_factory=dict)
    training: Training | None = None
    run: Run | None = None

    @property
    def parts(self) -> list[Part]:
        """What not every file has."""
        return [part for part in (self.training, self.run) if part is not None]


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
        "versions": _versions(),
        "parameters": {name: _encoded(name, value) for name, value in model.parameters.items()},
        "layers": [encode(layer) for layer in model.layers],
        "image_shape": [int(n) for n in model.image_shape],
        "dtype": model.dtype,
        "classes": labels_to_json(model.classes),
        "history": {name: encode(value) for name, value in asdict(model.history).items()},
        "feature_names": model.feature_names,
        "split_seed": model.split_seed,
        "training": None if model.training is None else model.training.to_json(),
        "run": None if model.run is None else model.run.to_json(),
    }
    tensors = {f"network.{name}": value for name, value in model.params.items()}
    tensors["input.offset"] = np.asarray(model.offset, np.float64)
    tensors["input.scale"] = np.asarray(model.scale, np.float64)
    for part in model.parts:
        tensors |= part.tensors()
    write_tensors(path, tensors, {"fastcnn": json.dumps(header, allow_nan=False)})


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _encoded(name: str, value: Any) -> Any:
    try:
        return encode(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the parameter {name} cannot be stored: {error}") from error


# ------------------------------------------------------------------------------------------ reading


def read_model(path: StrPath, max_parameters: int = MAX_PARAMETERS) -> SavedModel:
    """The model in the file `path`, if its network has no more than `max_parameters`, and no more values of an image in
    any layer than that or 2**26.

    Raises
    ------
    OSError
        The file cannot be read; FileNotFoundError if it is not there.
    ValueError
        It is not a file that `write_model` wrote, or it is damaged; the message says what is wrong.
    """
    try:
        with open(path, "rb") as file:
            return _read(file, max_parameters)
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else error
        raise ValueError(f"{os.fspath(path)}: not a model that can be read: {reason}") from error


def _read(file: BinaryIO, max_parameters: int) -> SavedModel:
    entries, start = read_header(file)
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("fastcnn"), str):
        raise ValueError("a safetensors file, but none of fastcnn's")
    header = parse_object(metadata["fastcnn"])
    found = header.get("format_version")
    if type(found) is not int or not _OLDEST_FORMAT <= found <= FORMAT_VERSION:
        raise ValueError(
            f"format {found!r} of fastcnn {header.get('fastcnn_version')!r}; "
            f"this version reads formats {_OLDEST_FORMAT} to {FORMAT_VERSION}"
        )
    model = _model(header)
    shapes = _shapes(model, max_parameters)
    expected = _expected_tensors(model, shapes)
    arrays = read_tensors(file, entries, start, expected)
    model.offset, model.scale = arrays["input.offset"], arrays["input.scale"]
    if not (np.isfinite(model.offset).all() and np.isfinite(model.scale).all() and model.scale.all()):
        raise ValueError("the input's offset and scale must be finite, and the scale not 0")
    model.params = {name: arrays[f"network.{name}"] for name in shapes}
    for part in model.parts:
        part.take(arrays)
    return model


def _model(header: Mapping[str, Any]) -> SavedModel:
    """All but the arrays."""
    layers = [decode(layer) for layer in _typed(header, "layers", list)]
    if not all(isinstance(layer, Layer) for layer in layers):
        raise ValueError("layers holds what is no layer")
    if (n := sum(map(_n_layers, layers))) > MAX_LAYERS:
        raise ValueError(f"{n} layers, more than {MAX_LAYERS}")
    shape = _typed(header, "image_shape", list)
    if len(shape) != 3 or not all(type(n) is int and 1 <= n < 2**31 for n in shape):
        raise ValueError(f"image_shape must be three positive ints, got {shape}")
    if header["dtype"] not in DTYPES:
        raise ValueError(f"dtype must be one of {sorted(DTYPES)}, got {header['dtype']!r}")
    names = header["feature_names"]
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("feature_names must be null or a list of strings")
    if names is not None and len(names) != prod(shape):
        raise ValueError(f"{len(names)} feature_names for images of {prod(shape)} values")
    split_seed = header.get("split_seed")
    if split_seed is not None and not (type(split_seed) is int and 0 <= split_seed < 2**32):
        raise ValueError(f"split_seed must be null or an int from 0 to 2**32 - 1, got {shown(split_seed)}")
    nothing = np.empty(0)
    history = _history_from_json(_typed(header, "history", dict))
    return SavedModel(
        parameters={name: decode(value) for name, value in _typed(header, "parameters", dict).items()},
        layers=layers,
        image_shape=(shape[0], shape[1], shape[2]),
        dtype=header["dtype"],
        classes=labels_from_json(_typed(header, "classes", dict)),
        offset=nothing,
        scale=nothing,
        params={},
        history=history,
        feature_names=names,
        split_seed=split_seed,
        version=str(header["fastcnn_version"]),
        versions={str(name): str(of) for name, of in (header.get("versions") or {}).items()},
        training=training_from_json(header.get("training")),
        run=run_from_json(header.get("run"), history),
    )


def _n_layers(layer: Layer) -> int:
    inner = (*layer.layers, *layer.skip) if isinstance(layer, Residual) else ()
    return 1 + sum(map(_n_layers, inner))


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
            raise ValueError(f"history has {shown(value)} for {name}")
    return history


def _shapes(model: SavedModel, max_parameters: int) -> dict[str, tuple[int, ...]]:
    """Of each parameter of the network, by what the header says of the layers."""
    shape: tuple[int, ...] = model.image_shape
    most = max(_MAX_VALUES, max_parameters)
    too_many = f"more than {most:,} values, which a larger max_parameters allows"
    if prod(shape) > most:
        raise ValueError(f"images of {shape}: {too_many}")
    shapes: dict[str, tuple[int, ...]] = {}
    n_parameters = 0
    for i, layer in enumerate(model.layers):
        of_layer = layer.param_shapes(shape)
        shapes |= {f"{i}.{name}": of_param for name, of_param in of_layer.items()}
        n_parameters += sum(map(prod, of_layer.values()))
        if n_parameters > max_parameters:
            raise ValueError(f"more than max_parameters={max_parameters:,} parameters in layers 0 to {i}")
        largest = max((op.out_shape for op in layer.lower(shape)), key=prod)
        if prod(largest) > most:
            raise ValueError(f"layer {i} makes {largest} of an image: {too_many}")
        shape = layer.output_shape(shape)
    if shape != (len(model.classes),):
        raise ValueError(f"the layers end in shape {shape}, but there are {len(model.classes)} classes")
    return shapes


def _expected_tensors(model: SavedModel, shapes: Mapping[str, tuple[int, ...]]) -> Expected:
    """Name -> (dtype, shape) of all tensors."""
    channels = model.image_shape[2:]
    names = {f"network.{name}": name for name in shapes}
    for part in model.parts:
        names |= part.names(list(shapes))
    by_name = {name: (model.dtype, shapes[like]) for name, like in names.items()}
    return by_name | {"input.offset": ("float64", channels), "input.scale": ("float64", channels)}
