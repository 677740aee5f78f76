"""Optimisers: hyper-parameters, flat state and one kernel call per step.

An optimiser is bound to one network's flat parameter vector. Its mathematics is in the backend's kernels
`adam_update`, `sgd_update` and `muon_update` (formulas in `kernels.contract`); here are the settings that these take,
bias corrections, gradient clipping and state. L2 and weight decay count for the first `n_decay` parameters only:
the weights, not biases and not batch normalisation's vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from inspect import signature
from math import isfinite, sqrt
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np


class AdamSettings(NamedTuple):
    """What `adam_update` takes beside its vectors."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float
    l2: float
    decay: float
    n_decay: int
    grad_scale: float
    correction_1: float
    correction_2: float


class SGDSettings(NamedTuple):
    """What `sgd_update` takes beside its vectors."""

    learning_rate: float
    momentum: float
    nesterov: bool
    l2: float
    n_decay: int
    grad_scale: float


class MuonSettings(NamedTuple):
    """What `muon_update` takes beside its matrices."""

    learning_rate: float
    momentum: float
    nesterov: bool
    decay: float
    grad_scale: float


class Matrix(NamedTuple):
    """A part of the flat vector that is a matrix, row by row."""

    start: int
    rows: int
    columns: int


class Optimizer(ABC):
    """What all optimisers share: binding, clipping by the global norm, state.

    Attributes
    ----------
    learning_rate : float
        Of the next step; a schedule sets it before each one.
    t : int
        Steps done.
    """

    _vectors: ClassVar[tuple[str, ...]]  # names of the flat state vectors

    _scratch: Any = None  # memory of steps that need some

    def __init__(self, learning_rate: float, clip_norm: float | None) -> None:
        self.learning_rate = _positive("learning_rate", learning_rate)
        self.clip_norm = None if clip_norm is None else _positive("clip_norm", clip_norm)
        self.t = 0
        self._shape: tuple[int, ...] | None = None  # of the vectors it is bound to
        self._dtype: np.dtype[Any] | None = None
        self._n_decay = 0
        self._matrices: tuple[Matrix, ...] = ()
        self._state: dict[str, np.ndarray] = {}
        self._squares = np.zeros(1)

    def bind(
        self,
        n_params: int,
        n_decay: int,
        dtype: Any,
        matrices: Sequence[Matrix] = (),
        place: Callable[[np.ndarray], Any] = np.asarray,
    ) -> None:
        """Allocate the state for one network's parameters.

        Parameters
        ----------
        n_params : int
            Parameters in all.
        n_decay : int
            The first so many decay.
        dtype : dtype
            Of the parameters.
        matrices : sequence of Matrix, default=()
            What `Muon` treats as matrices, in the order of their places: the weights of hidden layers.
        place : callable, default=np.asarray
            The backend's: the state lies where its kernels read it.

        Raises
        ------
        ValueError
            If it is bound already (two networks would mix their moments), `n_decay` exceeds `n_params`, or `dtype` is
            too coarse for a setting.
        """
        if self._shape is not None:
            raise ValueError(f"this {type(self).__name__} belongs to another network: make a new one for each")
        if not 0 <= n_decay <= n_params:
            raise ValueError(f"n_decay must be between 0 and n_params={n_params}, got {n_decay}")
        for name, limit in {"beta_1": 1, "beta_2": 1, "epsilon": 0}.items():
            value = getattr(self, name, None)
            if value is not None and np.dtype(dtype).type(value) == limit:
                raise ValueError(f"{name}={value} cannot be told from {limit} in {dtype}")
        self._shape, self._dtype, self._n_decay = (int(n_params),), np.dtype(dtype), int(n_decay)
        self._matrices = tuple(matrices)
        self._state = {name: place(np.zeros(n_params, dtype)) for name in self._vectors}

    def reset(self) -> None:
        """Forget the past: moments and step counter go to zero."""
        self.t = 0
        for vector in self._state.values():
            vector[...] = 0

    def update(self, kernels: Any, params: np.ndarray, grads: np.ndarray) -> None:
        """One step on the flat vectors, in place.

        Parameters
        ----------
        kernels : module
            The backend: `adam_update`, `sgd_update`, `muon_update` and `sum_squares` of `kernels.contract`.
        params, grads : array (n_params,)

        Raises
        ------
        ValueError
            If it is not bound to vectors of this size and dtype.
        """
        for name, vector in (("params", params), ("grads", grads)):
            if vector.shape != self._shape or vector.dtype != self._dtype:
                raise ValueError(
                    f"{name} has shape {vector.shape} and dtype {vector.dtype}, "
                    f"but the optimiser is bound to shape {self._shape} and dtype {self._dtype}"
                )
        self._reserve(kernels)
        scale = self._grad_scale(kernels, grads)
        self.t += 1
        self._step(kernels, params, grads, scale)

    def _reserve(self, kernels: Any) -> None:  # noqa: B027 - most need none
        """Take the large memory that a step needs, before anything of it is done: a GPU may have no room."""

    @abstractmethod
    def _step(self, kernels: Any, params: np.ndarray, grads: np.ndarray, grad_scale: float) -> None:
        """Call the kernel for step `t`."""

    def _grad_scale(self, kernels: Any, grads: np.ndarray) -> float:
        """What brings the gradient's norm down to `clip_norm` (Pascanu, Mikolov and Bengio 2013)."""
        if self.clip_norm is None:
            return 1.0
        kernels.sum_squares(grads, self._squares)
        norm = sqrt(self._squares[0])
        return self.clip_norm / norm if norm > self.clip_norm else 1.0

    @property
    def settings(self) -> dict[str, Any]:
        """What another one like it is made with."""
        return {name: getattr(self, name) for name in signature(type(self)).parameters}

    def unbound(self) -> Self:
        """One with the same settings, for another network.

        Returns
        -------
        Optimizer
            Of this class.
        """
        other = copy(self)
        other.t, other._shape, other._dtype, other._n_decay = 0, None, None, 0
        other._matrices, other._state, other._squares, other._scratch = (), {}, np.zeros(1), None
        return other

    @classmethod
    def vectors(cls) -> tuple[str, ...]:
        """Names of the flat vectors of its state."""
        return cls._vectors

    def state_dict(self) -> dict[str, Any]:
        """Copies of the state.

        Returns
        -------
        dict
            "t" and the flat vectors by name.
        """
        return {"t": self.t} | {name: np.array(vector) for name, vector in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from another optimiser's state, after `bind`.

        Parameters
        ----------
        state : mapping
            What its `state_dict` gave.

        Raises
        ------
        ValueError
            If a name is missing or unknown, or a shape or kind differs; nothing is changed then.
        """
        expected = {"t", *self._state}
        if set(state) != expected:
            raise ValueError(f"the state has {sorted(state)}, expected {sorted(expected)}")
        t = np.asarray(state["t"])
        if t.shape != () or t.dtype.kind not in "iu" or t < 0:
            raise ValueError(f"t must be an int >= 0, got {state['t']!r}")
        vectors = {name: np.asarray(state[name]) for name in self._state}
        for name, vector in vectors.items():
            if vector.shape != self._state[name].shape or vector.dtype.kind != "f":
                raise ValueError(
                    f"{name} has shape {vector.shape} and dtype {vector.dtype}, expected "
                    f"{self._state[name].shape} and {self._state[name].dtype}"
                )
        self.t = int(t)
        for name, vector in vectors.items():
            self._state[name][...] = vector


class Adam(Optimizer):
    """Adam [1]_, with bias correction.

    Parameters
    ----------
    learning_rate : float > 0
    beta_1, beta_2 : float in [0, 1)
        Decay of the running means of the gradient and of its square.
    epsilon : float > 0
        Added to the root of the second moment.
    l2 : float >= 0
        L2 penalty ``l2 / 2 * |w|^2``, which adds ``l2 * w`` to the gradient of the weights.
    clip_norm : float > 0 or None
        Longest gradient (norm over all parameters) before it is scaled down.

    Raises
    ------
    ValueError
        If a value is outside its range.

    References
    ----------
    .. [1] Kingma and Ba 2015, "Adam: a method for stochastic optimization", algorithm 1.
    """

    _vectors = ("m", "v")

    def __init__(
        self,
        learning_rate: float = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        l2: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, clip_norm)
        self.beta_1 = _fraction("beta_1", beta_1)
        self.beta_2 = _fraction("beta_2", beta_2)
        self.epsilon = _positive("epsilon", epsilon)
        self.l2 = _not_negative("l2", l2)
        self.weight_decay = 0.0

    def _step(self, kernels: Any, params: np.ndarray, grads: np.ndarray, grad_scale: float) -> None:
        self._adam(kernels, params, grads, grad_scale, 0, params.size)

    def _adam(
        self, kernels: Any, params: np.ndarray, grads: np.ndarray, grad_scale: float, start: int, stop: int
    ) -> None:
        """The step of the parameters start..stop."""
        part = slice(start, stop)
        settings = AdamSettings(
            learning_rate=float(self.learning_rate),
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            l2=self.l2,
            decay=self.weight_decay,
            n_decay=min(max(self._n_decay - start, 0), stop - start),
            grad_scale=grad_scale,
            correction_1=1.0 - self.beta_1**self.t,
            correction_2=1.0 - self.beta_2**self.t,
        )
        kernels.adam_update(params[part], grads[part], self._state["m"][part], self._state["v"][part], settings)


class AdamW(Adam):
    """Adam with decoupled weight decay [1]_.

    Apart from the gradient's step, each step shrinks the weights by learning_rate * weight_decay.

    Parameters
    ----------
    learning_rate, beta_1, beta_2, epsilon : float
        As in `Adam`.
    weight_decay : float >= 0
        See above.
    clip_norm : float > 0 or None
        As in `Adam`.

    Raises
    ------
    ValueError
        If a value is outside its range.

    References
    ----------
    .. [1] Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon, 0.0, clip_norm)
        self.weight_decay = _not_negative("weight_decay", weight_decay)


class Muon(AdamW):
    """Muon [1]_: the hidden layers' weights take steps that are orthogonal matrices, all others those of AdamW.

    The momentum of a layer's gradient, as a matrix with one column for each filter or unit, is brought close to the
    nearest matrix whose singular values are all alike: so each of its directions counts, however weak. Steps are scaled
    to be about as long as Adam's, so that learning rates and weight decay carry over [2]_. What a step costs beyond
    AdamW's grows with the square of a matrix's shorter side times the longer one, whatever the mini-batch.

    Parameters
    ----------
    learning_rate : float > 0
        As in `Adam`.
    momentum : float in [0, 1)
        Decay of the mean of the matrices' gradients.
    nesterov : bool
        Take the gradient as if it were met after the momentum's step.
    beta_1, beta_2, epsilon, weight_decay : float
        As in `AdamW`.
    clip_norm : float > 0 or None
        As in `Adam`.

    Raises
    ------
    ValueError
        If a value is outside its range.

    References
    ----------
    .. [1] Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    .. [2] Liu et al. 2025, "Muon is scalable for LLM training", equation 4.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon, weight_decay, clip_norm)
        self.momentum = _fraction("momentum", momentum)
        self.nesterov = bool(nesterov)

    def _reserve(self, kernels: Any) -> None:
        if self._scratch is None:
            size = kernels.muon_scratch(self._matrices) * self._dtype.itemsize  # type: ignore[union-attr]
            self._scratch = kernels.empty(size).view(self._dtype)

    def _step(self, kernels: Any, params: np.ndarray, grads: np.ndarray, grad_scale: float) -> None:
        settings = MuonSettings(
            learning_rate=float(self.learning_rate),
            momentum=self.momentum,
            nesterov=self.nesterov,
            decay=self.weight_decay,
            grad_scale=grad_scale,
        )
        kernels.muon_update(params, grads, self._state["m"], self._matrices, settings, self._scratch)
        starts = [0, *(start + rows * columns for start, rows, columns in self._matrices)]
        for start, stop in zip(starts, [*(matrix.start for matrix in self._matrices), params.size], strict=True):
            if start < stop:
                self._adam(kernels, params, grads, grad_scale, start, stop)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, classical or Nesterov's [1]_.

    Parameters
    ----------
    learning_rate : float > 0
    momentum : float in [0, 1)
    nesterov : bool
        Take the gradient as if it were met after the momentum's step.
    l2 : float >= 0
        As in `Adam`.
    clip_norm : float > 0 or None
        As in `Adam`.

    Raises
    ------
    ValueError
        If a value is outside its range.

    References
    ----------
    .. [1] Sutskever, Martens, Dahl and Hinton 2013, "On the importance of initialization and momentum in
       deep learning", section 2.
    """

    _vectors = ("velocity",)

    def __init__(
        self,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = True,
        l2: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, clip_norm)
        self.momentum = _fraction("momentum", momentum)
        self.nesterov = bool(nesterov)
        self.l2 = _not_negative("l2", l2)

    def _step(self, kernels: Any, params: np.ndarray, grads: np.ndarray, grad_scale: float) -> None:
        settings = SGDSettings(
            learning_rate=float(self.learning_rate),
            momentum=self.momentum,
            nesterov=self.nesterov,
            l2=self.l2,
            n_decay=self._n_decay,
            grad_scale=grad_scale,
        )
        kernels.sgd_update(params, grads, self._state["velocity"], settings)


def _positive(name: str, value: float) -> float:
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    return float(value)


def _not_negative(name: str, value: float) -> float:
    if not (isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
    return float(value)


def _fraction(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")
    return float(value)
