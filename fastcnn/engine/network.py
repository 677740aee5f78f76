"""`Network`: a chain of layers with its parameters, run by plans. The engine without scikit-learn."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from math import prod
from typing import Any, NamedTuple

import numpy as np

from fastcnn.engine.emit import algorithm_name
from fastcnn.engine.fusion import fuse_ops, single_ops
from fastcnn.engine.ops import IDENTITY, Group, Op, Shape
from fastcnn.engine.parameters import Parameters
from fastcnn.engine.plan import Plan, compile_plan
from fastcnn.kernels import choose_device, get_backend
from fastcnn.kernels.contract import COUNTED, PRECISIONS
from fastcnn.layers import Layer
from fastcnn.training.optimizers import Adam

_KEPT_PLANS = 4  # the full and the last mini-batch, in training and in inference
# In inference: of what goes into and comes out of the largest step, so that the next step finds it in the cache.
_PART_BYTES, _LEAST_PART = 1 << 23, 16
_GPU_PART_BYTES = 1 << 30
_networks: weakref.WeakSet[Network] = weakref.WeakSet()


class TrainingState(NamedTuple):
    """What training goes on from, beside the parameters.

    Parameters
    ----------
    step : int
        Of the optimiser.
    moments : dict of dict of array
        Its vectors by name, cut up by parameter.
    dropout : sequence of (int, int)
        Of each such layer: seed, masks drawn.
    """

    step: int
    moments: Mapping[str, Mapping[str, np.ndarray]]
    dropout: Sequence[Sequence[int]]


class Network:
    """A chain of layers, compiled for the batches it sees.

    Parameters
    ----------
    layers : sequence of layer specs
        Of `fastcnn.layers`; nothing is added to them.
    input_shape : tuple of int
        One sample's shape: (H, W, C), or (n_in,) for a chain of dense layers.
    dtype : "float32" or "float64"
        Of the parameters and the computation.
    device : "cpu", "cuda", "auto" or "reference"
        "cuda": parameters, gradients and all that lies between them live on the GPU. "auto": "cuda" where it works,
        else "cpu". "reference" runs the readable NumPy kernels.
    random_state : None, int, numpy Generator or RandomState
        Seeds the initial parameters and dropout.
    n_jobs : int or None
        Threads; None or -1: all that Numba may use, in a task of Dask all of its worker's; with None one in the
        workers of a `multiprocessing` pool. Results do not depend on it.
    fuse : bool
        Run fused kernels where there are some. Switched off, every op runs alone.
    optimizer : an optimiser of `fastcnn.training.optimizers` or None
        None: Adam with learning rate 1e-3.
    winograd : bool or None
        Compute 3x3 and 5x5 convolutions by Winograd's algorithm where a rule of their shapes says that it is faster.
        Its mean error is two to five times the direct sum's in inference, in training up to some thirty times, which
        is still rounding. None: yes, unless the environment variable FASTCNN_WINOGRAD is 0.
    weight_init : "auto", "he", "glorot" or "orthogonal"
        Initial weights. "auto": He before ReLU and its kin, else Glorot.
    precision : "float32", "tf32", "bf16" or "fp16"
        What a GPU's tensor cores may round the factors of products of float32 to; sums are float32, and so is all
        that is stored. "float32": to 21 bits, by three products in place of one. Elsewhere it has no effect.

    Attributes
    ----------
    params, grads : dict of str to array
        Views by name, "0.weight": the number is the layer's place in the list. On the GPU they are read-only copies, as
        they are at the time; `load_params` is the way back.
    device : str
        "cpu", "cuda" or "reference"; "auto" has become one of the first two.
    plan : Plan
        The plan last run (before the first batch: an inference plan for one sample).
    output_shape : tuple of int
    accuracy : float
        Weighted share of the last `train_step`'s samples whose largest output was their label's, before the update; of
        blends, as much as the label's share. 0 before the first.
    n_params : int
        Trainable parameters.

    Raises
    ------
    ValueError
        If a layer does not fit the shape it gets; the message names the layer.
    ImportError, RuntimeError
        If `device` is "cuda" and cannot be used: they say why.
    """

    _last_plan: Plan | None
    _to_go_back: Plan | None  # has a forward pass that no backward pass has used up
    _kept_memory: np.ndarray | None  # of the last plan made: plans run one at a time, so that one serves all

    def __init__(
        self,
        layers: Sequence[Layer],
        input_shape: Sequence[int],
        *,
        dtype: str = "float32",
        device: str = "cpu",
        random_state: Any = None,
        n_jobs: int | None = None,
        fuse: bool = True,
        optimizer: Any = None,
        winograd: bool | None = None,
        weight_init: str = "auto",
        precision: str = "float32",
    ) -> None:
        self.layers = tuple(layers)
        self.input_shape = _checked_shape(input_shape)
        self.dtype = _checked_dtype(dtype)
        self.device = choose_device(device)
        self.precision = _checked_precision(precision)
        self.n_jobs, self.fuse = n_jobs, fuse
        self.winograd = os.environ.get("FASTCNN_WINOGRAD") != "0" if winograd is None else bool(winograd)
        self._kernels = get_backend(self.device)
        self._kernels.max_threads(n_jobs)
        self.ops = _lower(self.layers, self.input_shape)
        self.output_shape = self.ops[-1].out_shape if self.ops else self.input_shape

        rng = _generator(random_state)
        self._parameters = Parameters(self.layers, self.input_shape, self.dtype, self._kernels)
        self._parameters.initialize(self.ops, rng, weight_init)
        self._bind(Adam() if optimizer is None else optimizer)
        dropouts = [op for op in self.ops if op.kind.endswith("dropout")]
        seeds = rng.integers(0, 2**63, size=len(dropouts), dtype=np.uint64)
        self._dropout = np.stack([seeds, np.zeros_like(seeds)], axis=1)
        self._reset_transients()

    def _bind(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        p = self._parameters
        optimizer.bind(p.flat.size, p.n_decay, self.dtype, p.hidden_matrices(self.ops), self._kernels.place)

    # ------------------------------------------------------------------------------------------------------- parameters

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The parameters by name, as views; on the GPU as read-only copies."""
        return _on_host(self._parameters.values)

    @property
    def grads(self) -> dict[str, np.ndarray]:
        """The gradients by the names of their parameters, as views; on the GPU as read-only copies."""
        return _on_host(self._parameters.grads)

    @property
    def n_params(self) -> int:
        """Trainable parameters."""
        return self._parameters.n_trained

    def load_params(self, params: Mapping[str, Any]) -> None:
        """Copy parameters in.

        Parameters
        ----------
        params : mapping of str to array
            All of them, with the names and shapes of the attribute `params`.

        Raises
        ------
        ValueError
            If a name is missing or unknown, or a shape differs; nothing is changed then.
        """
        with self._lock:
            self._parameters.load(params)
            self._to_go_back = None  # a gradient would be that of neither

    def training_state(self) -> TrainingState:
        """Copies of what training goes on from, beside `params`.

        Returns
        -------
        TrainingState
            The optimiser's step and moments, by the names of the parameters, and the counters of dropout.
        """
        with self._lock:
            state = self.optimizer.state_dict()
            step = state.pop("t")
            return TrainingState(
                step, {name: self._parameters.views(flat) for name, flat in state.items()}, self._dropout.tolist()
            )

    def load_training_state(self, state: TrainingState) -> None:
        """Go on from another network's state.

        Parameters
        ----------
        state : TrainingState
            What its `training_state` gave; with the same layers and the same kind of optimiser.

        Raises
        ------
        ValueError
            If names, shapes or the number of dropout layers differ; nothing is changed then.
        """
        dropout = np.asarray(state.dropout, np.uint64).reshape(-1, 2)
        if dropout.shape != self._dropout.shape:
            raise ValueError(f"the state of {len(dropout)} dropout layers, expected {len(self._dropout)}")
        flats = {name: self._parameters.flattened(name, arrays) for name, arrays in state.moments.items()}
        with self._lock:
            self.optimizer.load_state_dict({"t": state.step, **flats})
            self._dropout[...] = dropout

    # ------------------------------------------------------------------------------------------------------------- runs

    @property
    def batch_kernels(self) -> Any:
        """The backend if it builds mini-batches where its arrays lie, else None."""
        return self._kernels if hasattr(self._kernels, "gather_images") else None

    @property
    def plan(self) -> Plan:
        """The plan last run; ``plan.describe()`` tells what was fused and which kernels run."""
        with self._lock:
            return self._last_plan or self._plan_for(1, "inference")

    def kernels(self, batch: int = 256) -> list[tuple[Group, str]]:
        """What one kernel each computes in inference, and the algorithm where there are several.

        Parameters
        ----------
        batch : int, default=256
            Images together.

        Returns
        -------
        list of (Group, str)
            The ops that a kernel computes, and how.
        """
        described = []
        for group in self._inference_groups:
            geometry: Any = group.head.geometry
            how = ""
            if group.head.kind == "conv2d":
                tile = self._kernels.conv2d_algorithm(geometry, batch, self.dtype, False) if self.winograd else 0
                how = algorithm_name(geometry._replace(winograd=tile))
            described.append((group, how))
        return described

    def forward(self, x: Any, training: bool = False, *, to_numpy: bool = True) -> Any:
        """The last layer's output.

        Parameters
        ----------
        x : array-like of shape (N, ...)
            Samples of the shape `input_shape`.
        training : bool, default=False
            Whether dropout and batch statistics are on, so that `backward` can follow.
        to_numpy : bool, default=True
            False: where the network computes on a GPU, an array that stays there.

        Returns
        -------
        ndarray of shape (N, ...)
            Outputs of the shape `output_shape`.

        Raises
        ------
        ValueError
            If `x` has another shape, or no numbers.
        """
        x = self._checked_input(x)
        with self._lock:
            if training or (self.device == "cuda" and not to_numpy):
                output = self._run_forward(x, "training_dx" if training else "inference", not to_numpy).output
                return np.array(output) if to_numpy else output.copy()
            y = np.empty((len(x), *self.output_shape), self.dtype)
            for part in self._parts(len(x)):
                y[part] = np.asarray(self._run_forward(x[part], "inference").output)
            return y

    def backward(self, dy: Any) -> np.ndarray:
        """Gradients of the last ``forward(x, training=True)``: of the parameters, in `grads`, and of `x`.

        Parameters
        ----------
        dy : array-like of shape (N, ...)
            The gradient of the output.

        Returns
        -------
        ndarray of shape (N, ...)
            The gradient of `x`.

        Raises
        ------
        ValueError
            If there was no such call, or its gradients were computed already (the backward pass needs the memory of
            what it goes back through), or `dy` has not the output's shape.
        TypeError
            If `dy` is not of real numbers.
        """
        with self._lock:
            plan = self._to_go_back
            if plan is None:
                raise ValueError("backward() needs a forward(x, training=True) of its own right before it")
            dy = np.asarray(dy)
            if dy.shape != plan.output_grad.shape:
                raise ValueError(f"dy has shape {dy.shape}, expected {plan.output_grad.shape}")
            if not np.can_cast(dy.dtype, self.dtype, "same_kind"):
                raise TypeError(f"dy has dtype {dy.dtype}, expected {self.dtype}")
            self._to_go_back = None
            plan.output_grad[...] = dy
            with self._kernels.threads(plan.lanes):
                plan.backward()
            return np.array(plan.input_grad)

    def train_step(
        self,
        x: Any,
        labels: Any,
        sample_weight: Any = None,
        label_smoothing: float = 0.0,
        *,
        mix: Any = None,
        micro_batch_size: int | None = None,
    ) -> float:
        """Forward, softmax and cross-entropy, backward, one update by the optimiser.

        Parameters
        ----------
        x : array-like of shape (N, ...)
            Samples of the shape `input_shape`.
        labels : array-like of int, shape (N,)
            From 0 to n_classes - 1.
        sample_weight : array-like of shape (N,) or None
            How much each sample counts.
        label_smoothing : float in [0, 1)
            Share of each label's weight that goes to all classes evenly.
        mix : (labels, shares) or None
            Of samples that are blends: the other one's label, and the first one's share in [0, 1].
        micro_batch_size : int or None
            Samples that go through the network together: gradients are added up over parts of the batch, and the
            memory needed is a part's. Batch normalisation then knows a part's statistics only.

        Returns
        -------
        float
            The weighted mean loss of the batch, before the update.

        Raises
        ------
        ValueError
            If a value is not as described; nothing is changed then.
        """
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing!r}")
        if micro_batch_size is not None and not (hasattr(micro_batch_size, "__index__") and micro_batch_size >= 1):
            raise ValueError(f"micro_batch_size must be an int from 1 on, got {micro_batch_size!r}")
        x = self._checked_input(x)
        n, flat, flat_grads = len(x), self._parameters.flat, self._parameters.flat_grads
        if sample_weight is None and mix is None and (micro_batch_size or n) >= n > 0:
            labels = self._checked_labels(n, labels)
            with self._lock:
                with self._kernels.threads(self.n_jobs) as lanes:
                    plan = self._ready(x, "training", lanes)
                    with self._precise():
                        plan.train(labels, label_smoothing)
                    self.optimizer.update(self._kernels, flat, flat_grads)
                # While a GPU is waited for, another thread may give it the next batch to build.
                loss, hits = plan.figures()
                self.accuracy = hits / n
                return loss / n
        labels, weights = self._checked_targets(n, labels, sample_weight)
        if mix is not None:
            mix = self._checked_targets(n, *mix)
            if (mix[1] > 1).any():
                raise ValueError("the shares of mix must be in [0, 1]")
        total = float(weights.sum(dtype=np.float64))
        size = int(micro_batch_size or n)
        parts = [slice(start, start + size) for start in range(0, n, size)] if n > size else [slice(0, n)]
        added = self._parameters.zeros(flat_grads.size) if len(parts) > 1 else None
        sum_of_losses = right = 0.0
        with self._lock:
            for part in parts:
                other = None if mix is None else (mix[0][part], mix[1][part])
                sums = self._add_gradients(x[part], labels[part], weights[part], label_smoothing, other, total)
                sum_of_losses, right = sum_of_losses + sums[0], right + sums[1]
                if added is not None:
                    with self._kernels.threads(self.n_jobs):
                        self._kernels.add_forward(added, flat_grads, IDENTITY, added)
            if added is not None:
                flat_grads[...] = added
            with self._kernels.threads(self.n_jobs):
                self.optimizer.update(self._kernels, flat, flat_grads)
            self.accuracy = right / total if total else 0.0
        return sum_of_losses / total if total else 0.0

    def _add_gradients(
        self,
        x: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        smoothing: float,
        mix: tuple[np.ndarray, np.ndarray] | None,
        total: float,
    ) -> tuple[float, float]:
        """Fill `grads` with the gradient of the sum of losses / `total`; that sum, and that of the weights of hits."""
        place = self._kernels.place
        placed = place(np.empty(len(x), self.dtype))
        plan = self._run_forward(x, "training")
        with self._kernels.threads(plan.lanes):  # which it has memory for, whatever `n_jobs` is by now
            args = plan.output, place(labels), place(weights), smoothing, placed, plan.output_grad
            self._kernels.softmax_cross_entropy(*args)
            losses, logits, dlogits = map(np.asarray, (placed, plan.output, plan.output_grad))
            found = logits.argmax(axis=1)
            hits = (found == labels).astype(np.float64)
            here = float(weights.sum(dtype=np.float64))
            if here != total:  # a part of a batch: its gradient is of its own mean loss
                dlogits *= here / total if total else 0.0
            if mix is not None:
                # Cross-entropy is linear in the target: a share of it goes from one label to the other.
                rows, (others, shares) = np.arange(len(x)), mix
                hits = shares * hits + (1 - shares) * (found == others)
                moved = weights * (1 - shares) * (1 - smoothing)
                losses += moved * (logits[rows, labels] - logits[rows, others])
                dlogits[rows, labels] += moved / total if total else 0
                dlogits[rows, others] -= moved / total if total else 0
            if dlogits is not plan.output_grad:  # copies of what is on a GPU
                plan.output_grad[...] = dlogits
            plan.backward()
        return float(losses.sum(dtype=np.float64)), float(weights @ hits)

    def predict_proba(self, x: Any, *, to_numpy: bool = True) -> Any:
        """Softmax of the outputs.

        Parameters
        ----------
        x : array-like of shape (N, ...)
            Samples of the shape `input_shape`.
        to_numpy : bool, default=True
            False: where the network computes on a GPU, an array that stays there.

        Returns
        -------
        ndarray of shape (N, n_classes)
            Each row sums to 1.

        Raises
        ------
        ValueError
            If `x` has another shape, or no numbers, or the output is no vector.
        """
        self._check_output("predict_proba")
        x = self._checked_input(x)
        with self._lock:
            proba = self._kernels.place(np.empty((len(x), *self.output_shape), self.dtype))
            for part in self._parts(len(x)):
                plan = self._run_forward(x[part], "inference", not to_numpy)
                with self._kernels.threads(self.n_jobs):
                    self._kernels.softmax(plan.output, proba[part])
        return np.asarray(proba) if to_numpy else proba

    def _parts(self, n: int) -> list[slice]:
        """A batch cut into equal parts, at least one: on a CPU so that images stay in its cache from step to step, on a
        GPU so that they leave most of its memory free.
        """
        count = -(-n // self._part)
        size = -(-n // max(1, count))
        return [slice(start, start + size) for start in range(0, n, size)] if n else [slice(0, 0)]

    def _ready(self, x: np.ndarray, mode: str, lanes: int) -> Plan:
        """The plan for `x`, which is its input now."""
        self._to_go_back = None
        plan = self._plan_for(len(x), mode, lanes)
        if mode != "inference":
            self._dropout[:, 1] += 1
            if self._placed_dropout is not self._dropout:
                self._placed_dropout[...] = self._dropout
        plan.input[...] = x
        self._last_plan = plan
        return plan

    def _run_forward(self, x: np.ndarray, mode: str, read: bool = False) -> Plan:
        """`read`: on a GPU, whatever becomes of the output, the caller may write to `x` from now on: it may be in
        page-locked memory, or another library's.
        """
        with self._kernels.threads(self.n_jobs) as lanes:  # a task of Dask, or another n_jobs, has more or fewer
            plan = self._ready(x, mode, lanes)
            wait = self._kernels.passed() if read and self.device == "cuda" else None
            plan.forward()
        if wait is not None:
            wait()
        self._to_go_back = plan if mode == "training_dx" else None  # unless an interrupt came
        return plan

    def _plan_for(self, batch: int, mode: str, lanes: int | None = None) -> Plan:
        lanes = lanes or self._kernels.max_threads(self.n_jobs)
        plan = self._plans.pop((batch, mode, lanes), None)
        if plan is None:
            if self.device == "cuda" and batch > self._largest_part:
                raise ValueError(
                    f"{batch} images are too many at once: kernels count a layer's values for all of them in 32 bits, "
                    f"which is enough for {self._largest_part}"
                )
            with suppress(MemoryError):
                plan = self._compiled_plan(batch, mode, lanes)
            if plan is None:  # once more, without what earlier plans hold; in a handler, the traceback would hold it
                self._plans.clear()
                self._kept_memory = self._last_plan = self._to_go_back = None
                try:
                    plan = self._compiled_plan(batch, mode, lanes)
                except MemoryError as error:
                    raise MemoryError(f"{error}: {_smaller_batch(batch, mode, error)}") from error
            self._kept_memory = plan.memory
            while len(self._plans) >= _KEPT_PLANS:
                self._plans.pop(next(iter(self._plans)))
        self._plans[batch, mode, lanes] = plan  # the most recent last
        return plan

    def _compiled_plan(self, batch: int, mode: str, lanes: int) -> Plan:
        groups = self._inference_groups if mode == "inference" else self._make_groups(mode)
        with self._precise():
            return compile_plan(
                groups, self.input_shape, batch, self.dtype, self._kernels, mode,
                lanes=lanes, params=self._parameters.values, grads=self._parameters.grads,
                dropout_states=self._dropout_states, winograd=self.winograd, fuse=self.fuse, memory=self._kept_memory,
            )  # fmt: skip

    def _precise(self) -> AbstractContextManager[None]:
        """Where launches are recorded: what tensor cores may round to, if there are any."""
        return self._kernels.precise(self.precision) if hasattr(self._kernels, "precise") else nullcontext()

    # ----------------------------------------------------------------------------------------------------------- checks

    def _checked_input(self, x: Any) -> Any:
        on_gpu = self.device == "cuda" and hasattr(x, "__cuda_array_interface__")
        if on_gpu:
            x = self._kernels.place(x)
        else:
            x = np.asarray(x)
        if x.ndim == 0 or x.shape[1:] != self.input_shape:
            expected = ", ".join(map(str, self.input_shape))
            raise ValueError(f"x has shape {x.shape}, expected (n, {expected})")
        if x.dtype.kind not in "fiub":
            raise ValueError(f"x has dtype {x.dtype}, expected numbers")
        return x

    def _check_output(self, what: str) -> None:
        if len(self.output_shape) != 1:
            raise ValueError(f"{what} needs an output of shape (n_classes,), this network gives {self.output_shape}")

    def _checked_labels(self, n: int, labels: Any) -> np.ndarray:
        self._check_output("train_step")
        labels = np.asarray(labels)
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be {n} integers, got shape {labels.shape}, dtype {labels.dtype}")
        labels = labels.astype(np.int64, copy=False)
        if n and (labels.min() < 0 or labels.max() >= self.output_shape[0]):
            wrong = labels[(labels < 0) | (labels >= self.output_shape[0])][0]
            raise ValueError(f"label {wrong} is out of range: expected 0 to {self.output_shape[0] - 1}")
        return labels

    def _checked_targets(self, n: int, labels: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray]:
        labels = self._checked_labels(n, labels)
        if sample_weight is None:
            return labels, np.ones(n, self.dtype)
        weights = np.asarray(sample_weight, self.dtype)
        if weights.shape != (n,):
            raise ValueError(f"sample_weight has shape {weights.shape}, expected ({n},)")
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError("weights and shares must be finite and not negative")
        return labels, weights

    # ------------------------------------------------------------------------------------------------ pickle, copies

    def _reset_transients(self) -> None:
        self._lock = threading.RLock()
        _networks.add(self)
        self._plans: dict[tuple[int, str, int], Plan] = {}
        self._kept_memory = None
        self._last_plan = self._to_go_back = None
        self.accuracy = 0.0
        layers = [op.layer for op in self.ops if op.kind.endswith("dropout")]
        self._placed_dropout = self._kernels.place(self._dropout)
        self._dropout_states = {layer: self._placed_dropout[i] for i, layer in enumerate(layers)}
        self._inference_groups = self._make_groups("inference")
        if self.device == "cuda":
            largest = max(prod(shape) for shape in (self.input_shape, *(op.out_shape for op in self.ops)))
            self._largest_part = max(1, COUNTED // largest)
        bytes_at_once = _GPU_PART_BYTES if self.device == "cuda" else _PART_BYTES
        values = max((prod(group.in_shape) + prod(group.out_shape) for group in self._inference_groups), default=1)
        self._part = max(_LEAST_PART, bytes_at_once // (values * self.dtype.itemsize))
        if self.device == "cuda":
            self._part = min(self._part, self._largest_part)

    def _make_groups(self, mode: str) -> tuple[Group, ...]:
        if not self.fuse:
            return single_ops(self.ops)
        return fuse_ops(self.ops, lambda kernel: hasattr(self._kernels, kernel), mode)

    def __getstate__(self) -> dict[str, Any]:
        """Values only: specs, parameters, optimiser and dropout state; plans are compiled again where it
        wakes up.
        """
        with self._lock:
            config = {
                "layers": self.layers, "input_shape": self.input_shape, "dtype": self.dtype.name, "device": self.device,
                "n_jobs": self.n_jobs, "fuse": self.fuse, "winograd": self.winograd, "precision": self.precision,
            }  # fmt: skip
            params = {name: np.array(value) for name, value in self._parameters.values.items()}
            return {
                "config": config, "params": params, "dropout": self._dropout.copy(),
                "optimizer": self.optimizer.unbound(), "optimizer_state": self.optimizer.state_dict(),
            }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        config = state["config"]
        self.layers, self.input_shape = config["layers"], config["input_shape"]
        self.dtype, self.device = np.dtype(config["dtype"]), device_at_hand(config["device"])
        self.n_jobs, self.fuse, self.winograd = config["n_jobs"], config["fuse"], config["winograd"]
        self.precision = config.get("precision", PRECISIONS[0])
        self._kernels = get_backend(self.device)
        self.ops = _lower(self.layers, self.input_shape)
        self.output_shape = self.ops[-1].out_shape if self.ops else self.input_shape
        self._parameters = Parameters(self.layers, self.input_shape, self.dtype, self._kernels)
        self._parameters.load(state["params"])
        self._bind(state["optimizer"])
        self.optimizer.load_state_dict(state["optimizer_state"])
        self._dropout = np.array(state["dropout"])  # joblib may have it in a file that it only reads
        self._reset_transients()


def device_at_hand(device: str) -> str:
    """`device`, or with a warning "cpu" if this machine does not have it: where a model was trained is not always where
    it is used.
    """
    device = choose_device(device)
    try:
        get_backend(device)
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        warnings.warn(f"device {device!r} is not to be had here, the CPU takes its place: {error}", stacklevel=3)
        return "cpu"
    return device


def _lower(layers: Sequence[Layer], shape: Shape) -> tuple[Op, ...]:
    ops: list[Op] = []
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise ValueError(f"layer {i} is {layer!r}, expected a layer of fastcnn.layers")
        try:
            lowered = layer.lower(shape)
        except ValueError as error:
            raise ValueError(f"layer {i}, {layer}: {error}") from error
        ops += [op.at(i) for op in lowered]
        shape = layer.output_shape(shape)
    return tuple(ops)


def _checked_shape(shape: Sequence[int]) -> Shape:
    sizes = tuple(shape) if hasattr(shape, "__len__") else ()
    if len(sizes) not in (1, 3) or not all(hasattr(n, "__index__") and n >= 1 for n in sizes):
        raise ValueError(f"input_shape must be (H, W, C) or (n_in,) of positive ints, got {shape!r}")
    return tuple(int(n) for n in sizes)


def _checked_dtype(dtype: Any) -> np.dtype[Any]:
    result = np.dtype(dtype)
    if result not in (np.float32, np.float64):
        raise ValueError(f'dtype must be "float32" or "float64", got {dtype!r}')
    return result


def _checked_precision(precision: str) -> str:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    return precision


def _generator(random_state: Any) -> np.random.Generator:
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31 - 1))
    return np.random.default_rng(random_state)


def _smaller_batch(batch: int, mode: str, error: MemoryError) -> str:
    """Advice: the memory of a plan grows with its batch."""
    asked, free = getattr(error, "asked", 0), getattr(error, "free", None)
    fitting = max(1, batch // 2 if not asked or free is None else int(0.9 * batch * free / asked))
    fitting = min(fitting, batch - 1)
    if batch == 1:
        advice = "it is too large"
    elif mode == "inference":
        advice = f"try {fitting} images at once"
    else:
        advice = f"try batch_size={fitting}, or micro_batch_size"
    return f"it was for a batch of {batch}; {advice}"


def _on_host(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays, or read-only copies of those that are on a GPU, where a write would be lost."""
    found = {}
    for name, array in arrays.items():
        found[name] = host = np.asarray(array)
        if host is not array:
            host.flags.writeable = False
    return found


def _after_fork_in_child() -> None:
    """A thread that ran a batch of a network when another one forked does not exist in the child."""
    for network in list(_networks):
        network._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
