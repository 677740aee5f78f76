"""The file that a fit is kept in, epoch by epoch, so that it can go on where it was.

A checkpoint is a model's file with two things more: what training goes on from, and which fit it belongs to, that is
the estimator's parameters and a fingerprint of the data.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

from fastcnn.persistence.files import StrPath, remove_partial, target_of
from fastcnn.persistence.labels import labels_to_json
from fastcnn.persistence.models import SavedModel, read_model, write_model
from fastcnn.persistence.safetensors import shown
from fastcnn.persistence.states import Run
from fastcnn.persistence.values import decode, encode
from fastcnn.training.loop import Progress

__all__ = ["FREE_PARAMETERS", "Checkpoint", "fingerprint"]

# What may differ between the fit that was interrupted and the one that goes on: the network becomes the same.
FREE_PARAMETERS = frozenset(
    {"callbacks", "checkpoint", "checkpoint_every", "client", "n_jobs", "tta", "verbose", "warm_start"}
)

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_PIECE = 1 << 22  # bytes hashed together
_SHOWN = 5  # differences in a message

Params = Mapping[str, np.ndarray]


class Checkpoint:
    """The file of one fit.

    Parameters
    ----------
    path : path-like
        A file, or a folder that is there: the fit then has a file of its own in it, named by its parameters and data.
    parameters : mapping
        Of the estimator.
    classes : array (n_classes,)
    image_shape : (H, W, C)
    data : mapping of str to array or None
        What is fitted, by name.
    seed : int
        Drawn from the parameter `random_state`.
    start : (int, mapping of str to array or None)
        Epochs done before this fit, and the parameters that they led to.

    Attributes
    ----------
    saved : SavedModel or None
        What the file holds, if there is one.
    seed : int
        Of this fit: with ``random_state=None`` that of the file.

    Raises
    ------
    ValueError
        If the file is no checkpoint, or one of another fit; the message names the differences.
    TypeError
        If a parameter cannot be stored.
    OSError
        If the folder is not there, or the file cannot be read.
    """

    def __init__(
        self,
        path: StrPath,
        parameters: Mapping[str, Any],
        classes: np.ndarray,
        image_shape: tuple[int, ...],
        data: Mapping[str, np.ndarray | None],
        seed: int,
        start: tuple[int, Params | None] = (0, None),
    ) -> None:
        self._parameters = _comparable(parameters)
        self._data: dict[str, Any] = {name: None if a is None else fingerprint(a) for name, a in data.items()}
        self._image_shape = tuple(image_shape)  # the same rows may be images of two shapes
        epochs, params = start
        self._data["start"] = {"epochs": epochs, "digest": None if params is None else _digest(params)}
        self.seed, any_seed = seed, parameters.get("random_state") is None
        self.path = target_of(path)
        if self.path.is_dir():
            named = [self._parameters, self._data, labels_to_json(classes), image_shape, None if any_seed else seed]
            if parameters.get("tta") is not None:  # free, but what a search may try side by side
                named.append(parameters["tta"])
            digest = blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=16)
            self.path /= f"{digest.hexdigest()}.safetensors"
        elif not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.path.parent}: no such folder for a checkpoint")
        remove_partial(self.path)
        self._found = _identity(self.path)
        self.saved = None if self._found is None else self._read(classes)
        if self.saved is not None and self.saved.run is not None:
            if not any_seed and self.saved.run.seed != seed:
                raise self._refusal(["random_state drew another seed"])
            self.seed = self.saved.run.seed

    def _read(self, classes: np.ndarray) -> SavedModel | None:
        saved = read_model(self.path, max_parameters=2**63)  # a file that this program wrote
        run = saved.run
        if run is None or saved.training is None:
            raise ValueError(f"{self.path}: a model that is no checkpoint; the checkpoint needs another file")
        if run.progress.finished and self._data["start"]["digest"] == _digest(saved.params):
            return None  # what it led to is what this fit goes on from
        differences = list(_parameter_differences(run.parameters, self._parameters))
        if saved.classes.tolist() != classes.tolist():
            differences.append(f"the classes were {shown(saved.classes.tolist())} and are {shown(classes.tolist())}")
        if tuple(saved.image_shape) != self._image_shape:
            differences.append(f"images were {saved.image_shape} and are {self._image_shape}")
        differences += _data_differences(run.data, self._data)
        if differences:
            raise self._refusal(differences)
        return saved

    def _refusal(self, differences: list[str]) -> ValueError:
        more = [f"and {len(differences) - _SHOWN} more"] if len(differences) > _SHOWN else []
        return ValueError(
            f"{self.path}: a checkpoint of another fit: {'; '.join(differences[:_SHOWN] + more)}. Each fit needs a "
            "file of its own, which a folder gives it; without this file, training starts afresh"
        )

    def save(self, model: SavedModel, progress: Progress) -> None:
        """Write `model` as it is at `progress`: whole, or not at all.

        Raises
        ------
        ValueError
            If another fit has written the file meanwhile.
        OSError
            If it cannot be written; the old file stays as it was.
        """
        if _identity(self.path) not in (None, self._found):
            raise ValueError(f"{self.path}: another fit has written this checkpoint meanwhile; each needs its own file")
        run = Run(self._parameters, self._data, self.seed, progress)
        write_model(self.path, replace(model, params=dict(progress.result), run=run))
        self._found = _identity(self.path)


def fingerprint(array: np.ndarray) -> dict[str, Any]:
    """Shape, dtype and digest of the values of `array`, which is read piece by piece."""
    digest = blake2b(digest_size=16)
    rows = max(1, _PIECE // max(1, array[:1].nbytes))
    for first in range(0, len(array), rows):
        digest.update(np.ascontiguousarray(array[first : first + rows]).view(np.uint8).data)
    return {"dtype": array.dtype.str, "shape": list(array.shape), "digest": digest.hexdigest()}


def _digest(params: Params) -> str:
    prints = {name: fingerprint(np.atleast_1d(value)) for name, value in params.items()}
    return blake2b(json.dumps(prints, sort_keys=True).encode(), digest_size=16).hexdigest()


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells one version of a file from another; None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


# ----------------------------------------------------------------------------------------------------------- comparing


def _comparable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that must be equal, as JSON; functions by their names, tuples as lists, dicts in one order."""
    found = {}
    for name, value in parameters.items():
        if name in FREE_PARAMETERS:
            continue
        if isinstance(value, np.random.RandomState):  # the seed that is drawn from it counts
            value = "RandomState"
        elif callable(value):
            value = _name(value)
        try:
            found[name] = _listed(encode(value))
        except (TypeError, ValueError) as error:
            raise TypeError(f"the parameter {name} cannot be stored in a checkpoint: {error}") from error
    return found


def _name(function: Any, within: tuple[Any, ...] = ()) -> str:
    """What tells a function from others in every process: its name, or the text of an object that has none, such as a
    partial; and of what it holds beside that, the numbers, texts and functions.
    """
    if isinstance(function, MethodType):
        return f"{_name(function.__func__, within)} of {_name(function.__self__, within)}"
    named = hasattr(function, "__qualname__")
    text = f"{getattr(function, '__module__', '')}.{function.__qualname__}" if named else _text(function)
    if any(function is outer for outer in within):
        return text
    held: dict[str, Any] = {}
    if isinstance(function, FunctionType):
        held = _held_by(function)
    elif isinstance(function, partial):
        held = {"func": function.func, **function.keywords}
    elif not named:
        own = type(function).__repr__ is object.__repr__  # else its text says what it holds, but for functions
        held = {k: v for k, v in getattr(function, "__dict__", {}).items() if own or callable(v)}
    parts = {name: _name(value, (*within, function)) if callable(value) else value for name, value in held.items()}
    kept = {name: value for name, value in parts.items() if _is_plain(value)}
    return f"{text} [{blake2b(_text(kept).encode(), digest_size=8).hexdigest()}]" if kept else text


def _held_by(function: FunctionType) -> dict[str, Any]:
    """By name: what was bound when the function was defined; of a lambda its code."""
    code, held = function.__code__, dict(function.__kwdefaults__ or {})
    held |= {f"default {i}": value for i, value in enumerate(function.__defaults__ or ())}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # nothing yet
            held[name] = cell.cell_contents
    if function.__name__ == "<lambda>":
        held["code"] = _code(code)
    return held


def _code(constant: Any) -> Any:
    """A lambda's code, or a constant in it, without where it stands and what differs from process to process."""
    if isinstance(constant, CodeType):
        return constant.co_code, constant.co_names, tuple(map(_code, constant.co_consts))
    return tuple(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, complex, str, bytes, np.generic))


def _text(value: Any) -> str:
    return _ADDRESS.sub("", repr(value))


def _listed(value: Any) -> Any:
    if isinstance(value, list):
        return [_listed(item) for item in value]
    if isinstance(value, dict):
        if set(value) == {"tuple"}:
            return _listed(value["tuple"])
        listed = {k: _listed(item) for k, item in value.items()}
        return {"dict": sorted(listed["dict"], key=json.dumps)} if set(value) == {"dict"} else listed
    return value


def _parameter_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Of parameters that both know: an older version may have had fewer."""
    for name in sorted(set(old) & set(new)):
        if _listed(old[name]) != new[name]:
            yield f"{name} was {shown(decode(old[name]))} and is {shown(decode(new[name]))}"


def _data_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name, now in new.items():
        before = old.get(name)
        if before == now:
            continue
        if name == "start":
            yield (
                f"it began after {before and before['epochs']} epochs, or from other parameters, and this one after "
                f"{now['epochs']}"
            )
        elif before is None or now is None:
            yield f"{name} was {'not ' if before is None else ''}given and is {'not ' if now is None else ''}given"
        elif (before["dtype"], before["shape"]) != (now["dtype"], now["shape"]):
            yield f"{name} was {_described(before)} and is {_described(now)}"
        else:
            yield f"{name} has other values"


def _described(of_array: Mapping[str, Any]) -> str:
    return f"{np.dtype(of_array['dtype']).name} {tuple(of_array['shape'])}"
