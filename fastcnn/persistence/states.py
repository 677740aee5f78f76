"""What training goes on from, in a model's file: the optimiser, dropout, and the fit of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from fastcnn.engine.network import TrainingState
from fastcnn.engine.parameters import RUNNING_STATISTICS
from fastcnn.persistence.safetensors import shown
from fastcnn.persistence.values import decode, encode
from fastcnn.training.loop import EpochPart, History, Progress
from fastcnn.training.optimizers import SGD, Adam, AdamW, Muon, Optimizer

__all__ = ["Part", "Run", "Training", "run_from_json", "training_from_json"]

Arrays = Mapping[str, np.ndarray]

_OPTIMIZERS: dict[str, type[Optimizer]] = {cls.__name__: cls for cls in (Adam, AdamW, Muon, SGD)}
_RESULTS = ("best", "average", "params")  # what a fit ends with: the first of them that there is
_COPIES = ("params", "average", "before")  # of all parameters, in a checkpoint, where they are not the result


class Part(Protocol):
    """A part of a file: JSON in its header, and tensors that each have the shape of a parameter."""

    def to_json(self) -> dict[str, Any]: ...

    def tensors(self) -> Arrays:
        """By their names in the file."""

    def names(self, parameters: Sequence[str]) -> dict[str, str]:
        """Of the tensors that belong to a network with these parameters, and of which parameter each is like."""

    def take(self, arrays: Arrays) -> None:
        """Become complete, out of all tensors of the file."""


@dataclass
class Training:
    """What training goes on from, beside the parameters.

    Attributes
    ----------
    optimizer : Optimizer
        One with the same settings, not bound to a network.
    state : TrainingState
        Of the network.
    """

    optimizer: Optimizer
    state: TrainingState

    def to_json(self) -> dict[str, Any]:
        kind = type(self.optimizer).__name__
        if _OPTIMIZERS.get(kind) is not type(self.optimizer):
            raise TypeError(f"the optimiser {self.optimizer!r} cannot be stored")
        settings = {name: encode(value) for name, value in self.optimizer.settings.items()}
        dropout = [list(map(int, of_layer)) for of_layer in self.state.dropout]
        return {"optimizer": kind, "settings": settings, "step": self.state.step, "dropout": dropout}

    def tensors(self) -> Arrays:
        return {
            f"optimizer.{vector}.{name}": array
            for vector, arrays in self.state.moments.items()
            for name, array in arrays.items()
        }

    def names(self, parameters: Sequence[str]) -> dict[str, str]:
        moved = [name for name in parameters if not name.endswith(RUNNING_STATISTICS)]
        return {f"optimizer.{vector}.{name}": name for vector in type(self.optimizer).vectors() for name in moved}

    def take(self, arrays: Arrays) -> None:
        moments = {v: _of_prefix(arrays, f"optimizer.{v}.") for v in type(self.optimizer).vectors()}
        self.state = self.state._replace(moments=moments)


def training_from_json(stored: Any) -> Training | None:
    """What `Training.to_json` gave, without arrays.

    Raises
    ------
    ValueError, TypeError, KeyError
        If it did not.
    """
    if stored is None:
        return None
    if stored["optimizer"] not in _OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {sorted(_OPTIMIZERS)}, got {stored['optimizer']!r}")
    settings = {name: decode(value) for name, value in stored["settings"].items()}
    dropout = stored["dropout"]
    if not isinstance(dropout, list) or not all(
        isinstance(of_layer, list) and len(of_layer) == 2 and all(_is_count(n, 2**64) for n in of_layer)
        for of_layer in dropout
    ):
        raise ValueError("dropout must be a list of pairs of ints")
    if not _is_count(stored["step"], 2**63):
        raise ValueError(f"step must be an int >= 0, got {stored['step']!r}")
    return Training(_OPTIMIZERS[stored["optimizer"]](**settings), TrainingState(stored["step"], {}, dropout))


@dataclass
class Run:
    """The fit that a checkpoint belongs to, and where it stands.

    Attributes
    ----------
    parameters, data : dict
        The estimator's parameters and a fingerprint of what is fitted, as JSON that is compared.
    seed : int
        Drawn from `random_state`.
    progress : Progress
        Its `best` is the model's `params`, where there is one.
    """

    parameters: dict[str, Any]
    data: dict[str, Any]
    seed: int
    progress: Progress
    _stored: tuple[str, ...] = ()  # copies that are in the file, for `take`
    _result: str = "params"  # what the model's `params` are

    def _copies(self) -> dict[str, Arrays]:
        """Those that are not the result, which the file has in any case."""
        found = {name: getattr(self.progress, name) for name in _COPIES}
        result = self.progress.result
        return {name: arrays for name, arrays in found.items() if arrays is not None and arrays is not result}

    def to_json(self) -> dict[str, Any]:
        p = self.progress
        is_result = [name for name in _RESULTS if getattr(p, name) is p.result]
        return {
            "parameters": self.parameters,
            "data": self.data,
            "seed": self.seed,
            "epoch": p.epoch,
            "finished": p.finished,
            "average_steps": p.average_steps,
            "to_beat": encode(p.to_beat),
            "waited": p.waited,
            "result": is_result[0],
            "copies": list(self._copies()),
            "within": None if p.within is None else {k: encode(v) for k, v in asdict(p.within).items()},
        }

    def tensors(self) -> Arrays:
        return {f"run.{copy}.{name}": a for copy, arrays in self._copies().items() for name, a in arrays.items()}

    def names(self, parameters: Sequence[str]) -> dict[str, str]:
        return {f"run.{copy}.{name}": name for copy in self._stored for name in parameters}

    def take(self, arrays: Arrays) -> None:
        found = {copy: _of_prefix(arrays, f"run.{copy}.") for copy in self._stored}
        found[self._result] = _of_prefix(arrays, "network.")
        for name, copy in found.items():
            setattr(self.progress, name, copy)
        if not self.progress.params:
            raise ValueError("a checkpoint without parameters to go on from")


def run_from_json(stored: Any, history: History) -> Run | None:
    """What `Run.to_json` gave, without arrays.

    Raises
    ------
    ValueError, TypeError, KeyError
        If it did not.
    """
    if stored is None:
        return None
    counts = {name: stored[name] for name in ("seed", "epoch", "average_steps", "waited")}
    to_beat, copies, result = decode(stored["to_beat"]), stored["copies"], stored["result"]
    if not all(_is_count(value, 2**63) for value in counts.values()):
        raise ValueError(f"run must have ints >= 0, got {counts}")
    kinds = {"finished": bool, "data": dict, "parameters": dict}
    if not isinstance(to_beat, float) or not all(isinstance(stored[name], kind) for name, kind in kinds.items()):
        raise ValueError("run does not say whose fit it is and how far it got")
    if result not in _RESULTS or not isinstance(copies, list) or not set(copies) <= set(_COPIES) - {result}:
        raise ValueError(f"run has the parameters {result!r} and {copies!r}")
    progress = Progress(
        counts["epoch"], history, stored["finished"], {}, None, counts["average_steps"], None, to_beat,
        counts["waited"], _part_from_json(stored.get("within")),
    )  # fmt: skip
    return Run(stored["parameters"], stored["data"], counts["seed"], progress, tuple(copies), result)


def _part_from_json(stored: Any) -> EpochPart | None:
    if stored is None:
        return None
    part = EpochPart(**{name: decode(value) for name, value in stored.items()})
    for name, default in vars(EpochPart()).items():
        value = getattr(part, name)
        if not (_is_count(value, 2**63) if isinstance(default, int) else isinstance(value, float)):
            raise ValueError(f"run has {shown(value)} for {name} of an epoch")
    return part


def _of_prefix(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _is_count(value: Any, below: int) -> bool:
    return type(value) is int and 0 <= value < below
