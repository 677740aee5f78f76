"""A network's parameters and their gradients: two flat vectors, and the parts of them by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from fastcnn.engine.memory import aligned
from fastcnn.engine.ops import ACTIVATIONS, Op, Shape
from fastcnn.layers import Layer
from fastcnn.training.initializers import initialize
from fastcnn.training.optimizers import Matrix

__all__ = ["RUNNING_STATISTICS", "Parameters"]

RUNNING_STATISTICS = ("running_mean", "running_var")  # parameters that training moves but no gradient does


class Parameters:
    """Zeros for all parameters of a chain of layers, where a backend's arrays lie.

    Weights come first in the flat vectors (weight decay stops there), then the rest; each begins at a cache line.

    Attributes
    ----------
    flat, flat_grads : vectors
    n_decay : int
        Elements of `flat` that decay.
    values, grads : dict of str to array
        Parts by name, "0.weight"; running statistics are arrays of their own and have no gradient.
    n_trained : int
    """

    def __init__(self, layers: Sequence[Layer], shape: Shape, dtype: np.dtype[Any], kernels: ModuleType) -> None:
        self.dtype, self._kernels = dtype, kernels
        shapes: dict[str, Shape] = {}
        for i, layer in enumerate(layers):
            shapes |= {f"{i}.{name}": s for name, s in layer.param_shapes(shape).items()}
            shape = layer.output_shape(shape)
        trained = [name for name in shapes if not name.endswith(RUNNING_STATISTICS)]
        decayed = [name for name in trained if len(shapes[name]) > 1]
        others = [name for name in trained if len(shapes[name]) == 1]

        per_line = aligned(1) // dtype.itemsize
        starts: dict[str, int] = {}
        size = 0
        for name in decayed + others:
            starts[name] = size
            size += -(-prod(shapes[name]) // per_line) * per_line
        self.n_decay = size if not others else starts[others[0]]
        self.flat, self.flat_grads = self.zeros(size), self.zeros(size)
        self._places = {name: (starts[name], shapes[name]) for name in shapes if name in starts}
        self.n_trained = sum(prod(shapes[name]) for name in trained)

        self.grads = self.views(self.flat_grads)
        views = self.views(self.flat)
        self.values = {
            name: views[name] if name in views else self.zeros(prod(shapes[name])).reshape(shapes[name])
            for name in shapes
        }

    def zeros(self, size: int) -> Any:
        """A vector of the backend's."""
        vector = self._kernels.empty(size * self.dtype.itemsize).view(self.dtype)
        vector[...] = 0
        return vector

    def views(self, flat: Any) -> dict[str, Any]:
        """The parts of a flat vector by the names of the trained parameters."""
        return {name: flat[start : start + prod(s)].reshape(s) for name, (start, s) in self._places.items()}

    def initialize(self, ops: Sequence[Op], rng: np.random.Generator, kind: str) -> None:
        """Initial values."""
        if kind != "orthogonal":
            self._initialize(ops, rng, kind)
            return
        from fastcnn.kernels.cpu.runtime import one_blas_thread  # only here: it imports Numba

        with one_blas_thread():  # the QR decomposition is LAPACK's
            self._initialize(ops, rng, kind)

    def _initialize(self, ops: Sequence[Op], rng: np.random.Generator, kind: str) -> None:
        for i, op in enumerate(ops):
            if op.kind in ("conv2d", "dense"):
                weight = self.values[f"{op.layer}.weight"]
                fan_in = prod(weight.shape[:-1])
                fan_out = weight.shape[-1] // op.groups * prod(weight.shape[:-2])
                name = _following_activation(ops[i + 1 :])
                weight[...] = initialize(weight.shape, fan_in, fan_out, name, rng, self.dtype, kind)
            elif op.kind == "batchnorm":
                self.values[f"{op.layer}.weight"][...] = 1
                self.values[f"{op.layer}.running_var"][...] = 1

    def hidden_matrices(self, ops: Sequence[Op]) -> list[Matrix]:
        """The weights of all layers but the last, one column for each filter or unit; not those of grouped
        convolutions, whose filters see channels of their own.
        """
        weighty = [op for op in ops if op.kind in ("conv2d", "dense")][:-1]
        found = []
        for op in weighty:
            if op.groups == 1:
                start, (*rows, columns) = self._places[f"{op.layer}.weight"]
                found.append(Matrix(start, prod(rows), columns))
        return found

    def load(self, params: Mapping[str, Any]) -> None:
        """Copy values in; ValueError, and nothing is changed, if a name or a shape is wrong."""
        if missing := sorted(set(self.values) - set(params)):
            raise ValueError(f"missing parameters: {', '.join(missing)}")
        if unknown := sorted(set(params) - set(self.values)):
            raise ValueError(f"unknown parameters: {', '.join(unknown)}; expected {', '.join(self.values)}")
        arrays = {name: np.array(value) for name, value in params.items()}  # copies: they may be ours, exchanged
        for name, value in arrays.items():
            if value.shape != self.values[name].shape:
                raise ValueError(f"{name} has shape {value.shape}, expected {self.values[name].shape}")
            if value.dtype.kind not in "fiu":
                raise ValueError(f"{name} has dtype {value.dtype}, expected numbers")
        for name, value in arrays.items():
            self.values[name][...] = value

    def flattened(self, what: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """A flat vector, on the host, out of its parts by name; ValueError if they are not those."""
        if set(arrays) != set(self._places):
            raise ValueError(f"{what} has {sorted(arrays)}, expected {sorted(self._places)}")
        flat = np.zeros(self.flat.size, self.dtype)
        for name, view in self.views(flat).items():
            if arrays[name].shape != view.shape:
                raise ValueError(f"{what} of {name} has shape {arrays[name].shape}, expected {view.shape}")
            view[...] = arrays[name]
        return flat


def _following_activation(ops: Sequence[Op]) -> str | None:
    """The activation that a weight's output runs into, past bias, normalisation and pooling."""
    skipped = 0  # joins until the weight's branch is back in the chain
    for op in ops:
        skipped += (op.kind == ("fork" if skipped else "swap")) - (op.kind == "join" and skipped > 0)
        if skipped:
            continue
        if op.kind.endswith("activation"):
            return ACTIVATIONS[op.activation.code]
        if op.kind in ("conv2d", "dense"):
            return None
    return None
