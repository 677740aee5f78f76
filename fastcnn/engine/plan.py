"""Plans: everything a batch of one size needs, decided before the first one comes.

`compile_plan` walks the groups that fusion made, emits one step per kernel call (and, for training, the
backward steps in reverse), gives every buffer an offset in one arena from its lifetime, and binds kernels to
views. Running a plan is a loop over bound steps, without decisions and without allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastcnn.engine.memory import Lifetime, plan_arena
from fastcnn.engine.ops import IDENTITY, Group, PoolGeometry, Shape, identity_pool

MODES = ("inference", "training", "training_dx")


@dataclass(frozen=True, eq=False)
class Buffer:
    """A buffer before it has memory. `kind`: activation, gradient, workspace (forward to backward) or scratch
    (one step).
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    kind: str
    base: Buffer | None = None

    @property
    def size(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def reshape(self, shape: Shape) -> Buffer:
        """The same memory under another shape."""
        return Buffer(self.name, shape, self.dtype, self.kind, self.base or self)


class Step(NamedTuple):
    """One kernel call: what it stands for, the kernel's name, the kernel, its arguments, the algorithm where
    there are several.
    """

    label: str
    name: str
    kernel: Callable[..., None]
    args: tuple[Any, ...]
    how: str = ""


class Emitter:
    """Collects steps over unbound buffers."""

    def __init__(
        self,
        kernels: ModuleType,
        batch: int,
        dtype: np.dtype[Any],
        lanes: int,
        params: Mapping[str, np.ndarray],
        grads: Mapping[str, np.ndarray],
        dropout_states: Mapping[int, np.ndarray],
        training: bool,
        winograd: bool,
        fuse: bool,
    ) -> None:
        self.kernels, self.batch, self.dtype, self.lanes = kernels, batch, dtype, lanes
        self.params, self.grads, self.dropout_states, self.training = params, grads, dropout_states, training
        self.winograd, self.fuse = winograd, fuse
        self.steps: list[Step] = []

    def buffer(self, name: str, shape: Shape, kind: str, dtype: Any = None) -> Buffer:
        return Buffer(name, shape, np.dtype(dtype or self.dtype), kind)

    def batched(self, name: str, shape: Shape, kind: str, dtype: Any = None) -> Buffer:
        return self.buffer(name, (self.batch, *shape), kind, dtype)

    def scratch(self, name: str, size: int) -> Buffer:
        return self.buffer(name, (size,), "scratch")

    def none(self, ndim: int, dtype: Any = None) -> np.ndarray:
        """An output that is not wanted, or a bias that is not there."""
        return np.empty((0,) * ndim, dtype or self.dtype)

    def step(self, label: str, name: str, *args: Any, how: str = "") -> None:
        self.steps.append(Step(label, name, getattr(self.kernels, name), args, how))

    def param(self, group: Group, kind: str, name: str) -> np.ndarray:
        op = group.find(kind)
        return self.none(1) if op is None else self.params[f"{op.layer}.{name}"]

    def grad(self, group: Group, kind: str, name: str) -> np.ndarray:
        op = group.find(kind)
        return self.none(1) if op is None else self.grads[f"{op.layer}.{name}"]


Backward = Callable[[Buffer, "Buffer | np.ndarray"], None]  # (dy, dx or an unwanted output) -> steps emitted


def _emit_conv2d(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    g: Any = group.head.geometry
    if e.winograd:
        g = g._replace(winograd=e.kernels.conv2d_algorithm(g, e.batch, e.dtype))
    how = f"winograd F({g.winograd}x{g.winograd}, {g.r}x{g.s})" if g.winograd else "direct"
    weight, dw = e.param(group, "conv2d", "weight"), e.grad(group, "conv2d", "weight") if e.training else None
    if not e.fuse:
        pool: PoolGeometry = identity_pool(g.p, g.q, g.k)
        forward = e.scratch(name, e.kernels.conv2d_forward_scratch(g, pool, e.batch, e.dtype, e.lanes))
        e.step(name, "conv2d_forward", x, weight, e.none(1), g, y, forward, how=how)

        def backward_single(dy: Buffer, dx: Buffer | np.ndarray) -> None:
            size = e.kernels.conv2d_backward_scratch(g, pool, e.batch, e.dtype, e.lanes)
            e.step(name, "conv2d_backward_weight", x, dy, g, dw, e.none(1), e.scratch(name, size), how=how)
            if isinstance(dx, Buffer):
                e.step(name, "conv2d_backward_input", dy, weight, g, dx, e.scratch(name, size), how=how)

        return backward_single

    act = group.find("activation")
    pooling = group.find("maxpool2d")
    activation = act.activation if act else IDENTITY
    pool = pooling.geometry if pooling else identity_pool(g.p, g.q, g.k)  # type: ignore[assignment]
    argmax: Any = e.none(4, np.uint8)
    if pooling and e.training:
        argmax = e.batched(f"{name} argmax", pooling.out_shape, "workspace", argmax_dtype(pool))
    elif pooling:
        argmax = e.none(4, argmax_dtype(pool))
    bias = e.param(group, "bias", "bias")
    forward = e.scratch(name, e.kernels.conv2d_forward_scratch(g, pool, e.batch, e.dtype, e.lanes))
    e.step(name, "conv2d_block_forward", x, weight, bias, g, activation, pool, y, argmax, forward, how=how)

    def backward(dy: Buffer, dx: Buffer | np.ndarray) -> None:
        scratch = e.scratch(name, e.kernels.conv2d_backward_scratch(g, pool, e.batch, e.dtype, e.lanes))
        db = e.grad(group, "bias", "bias")
        args = (x, weight, y, argmax, dy, g, activation, pool, dx, dw, db, scratch)
        e.step(name, "conv2d_block_backward", *args, how=how)

    return backward


def argmax_dtype(pool: PoolGeometry) -> Any:
    """The narrowest dtype that holds a place in the window."""
    return np.uint8 if pool.r * pool.s <= 256 else np.int32


def _emit_dense(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    (n_in,), (n_out,) = group.head.in_shape, group.head.out_shape
    act = group.find("activation")
    activation = act.activation if act else IDENTITY
    weight, bias = e.param(group, "dense", "weight"), e.param(group, "bias", "bias")
    scratch = e.scratch(name, e.kernels.dense_forward_scratch(e.batch, n_in, n_out, e.dtype, e.lanes))
    e.step(name, "dense_forward", x, weight, bias, activation, y, scratch)

    def backward(dy: Buffer, dx: Buffer | np.ndarray) -> None:
        scratch = e.scratch(name, e.kernels.dense_backward_scratch(e.batch, n_in, n_out, e.dtype, e.lanes))
        dw, db = e.grad(group, "dense", "weight"), e.grad(group, "bias", "bias")
        e.step(name, "dense_backward", x, weight, y, dy, activation, dx, dw, db, scratch)

    return backward


def _emit_bias(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    c = group.head.in_shape[-1]
    e.step(name, "bias_forward", _rows(x, c), e.param(group, "bias", "bias"), _rows(y, c))

    def backward(dy: Buffer, dx: Buffer | np.ndarray) -> None:
        e.step(name, "bias_backward", _rows(dy, c), e.grad(group, "bias", "bias"))
        if isinstance(dx, Buffer):
            e.step(name, "activation_backward", _flat(dy), _flat(dy), IDENTITY, _flat(dx))

    return backward


def _emit_activation(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    activation = group.head.activation
    e.step(name, "activation_forward", _flat(x), activation, _flat(y))
    return lambda dy, dx: e.step(name, "activation_backward", _flat(y), _flat(dy), activation, _flat(dx))


def _emit_maxpool2d(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    pool: Any = group.head.geometry
    kind = "workspace" if e.training else "scratch"
    argmax = e.batched(f"{name} argmax", group.out_shape, kind, argmax_dtype(pool))
    e.step(name, "maxpool2d_forward", x, pool, y, argmax)
    return lambda dy, dx: e.step(name, "maxpool2d_backward", dy, argmax, pool, dx)


def _emit_avgpool2d(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    e.step(name, "avgpool2d_forward", x, group.head.geometry, y)
    return lambda dy, dx: e.step(name, "avgpool2d_backward", dy, group.head.geometry, dx)


def _emit_batchnorm(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    op, c = group.head, group.in_shape[-1]
    gamma, beta = e.param(group, "batchnorm", "weight"), e.param(group, "batchnorm", "bias")
    running = e.param(group, "batchnorm", "running_mean"), e.param(group, "batchnorm", "running_var")
    xr, yr = _rows(x, c), _rows(y, c)
    act = group.find("activation")
    activation = act.activation if act else IDENTITY
    if not e.training:
        e.step(name, "batchnorm_inference", xr, gamma, beta, *running, op.epsilon, activation, yr)
    mean, inv_std = (e.buffer(f"{name} {what}", (c,), "workspace") for what in ("mean", "inv_std"))
    if e.training:
        args = (xr, gamma, beta, *running, op.momentum, op.epsilon, activation, yr, mean, inv_std)
        e.step(name, "batchnorm_forward", *args)

    def backward(dy: Buffer, dx: Buffer | np.ndarray) -> None:
        dgamma, dbeta = e.grad(group, "batchnorm", "weight"), e.grad(group, "batchnorm", "bias")
        out = _rows(dx, c) if isinstance(dx, Buffer) else e.none(2)
        seen = yr if act else _rows(dy, c)  # without an activation y is not looked at, and need not live so long
        args = (xr, gamma, mean, inv_std, seen, _rows(dy, c), activation, out, dgamma, dbeta)
        e.step(name, "batchnorm_backward", *args)

    return backward


def _emit_dropout(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    rate, features = group.head.rate, prod(group.in_shape)
    if not e.training:
        raise AssertionError("dropout is left out of inference plans")
    mask = e.batched(f"{name} mask", (features,), "workspace", np.uint8)
    state = e.dropout_states[group.head.layer]
    e.step(name, "dropout_forward", _rows(x, features), rate, state, _rows(y, features), mask)
    return lambda dy, dx: e.step(
        name,
        "dropout_backward",
        _rows(dy, features),
        mask,
        rate,
        _rows(dx, features),  # type: ignore[arg-type]
    )


def _rows(buffer: Buffer, columns: int) -> Buffer:
    return buffer.reshape((prod(buffer.shape) // columns, columns))


def _flat(buffer: Any) -> Buffer:
    return buffer.reshape((prod(buffer.shape),))


_EMIT: dict[str, Callable[[Emitter, Group, str, Buffer, Buffer], Backward]] = {
    "conv2d": _emit_conv2d,
    "dense": _emit_dense,
    "bias": _emit_bias,
    "activation": _emit_activation,
    "maxpool2d": _emit_maxpool2d,
    "avgpool2d": _emit_avgpool2d,
    "batchnorm": _emit_batchnorm,
    "dropout": _emit_dropout,
}


class Plan:
    """Bound steps over one arena, for batches of exactly `batch` samples.

    Attributes
    ----------
    input, output : arrays (batch, ...); write the one, run, read the other
    output_grad, input_grad : arrays or None; of training plans
    memory : array (bytes,), where the arena lies: other plans may use it before and after this one runs
    """

    def __init__(
        self, mode: str, batch: int, steps: tuple[Step, ...], n_forward: int, buffers: Mapping[Buffer, np.ndarray],
        ends: Mapping[str, np.ndarray | None], memory: np.ndarray, arena_bytes: int,
        record: Callable[..., Callable[[], None]],
    ) -> None:  # fmt: skip
        self.memory = memory
        self.mode, self.batch, self.buffers, self.arena_bytes = mode, batch, buffers, arena_bytes
        self.forward_steps, self.backward_steps = steps[:n_forward], steps[n_forward:]
        self.input, self.output = ends["input"], ends["output"]
        self.output_grad, self.input_grad = ends["output_grad"], ends["input_grad"]
        self._forward, self._backward = (
            record([(step.kernel, step.args) for step in part]) for part in (self.forward_steps, self.backward_steps)
        )

    def forward(self) -> None:
        """`input` -> `output`."""
        self._forward()

    def backward(self) -> None:
        """`output_grad` -> the parameters' gradients (and `input_grad` where the mode has it)."""
        self._backward()

    def describe(self) -> str:
        """What was fused, which kernel runs each step, and the bytes of every buffer, as text."""
        lines = [f"plan: {self.mode}, batch {self.batch}", ""]
        for title, steps in (("forward", self.forward_steps), ("backward", self.backward_steps)):
            if steps:
                lines += [title, *(f"  {step.label:<36} {step.name:<24} {step.how}".rstrip() for step in steps)]
        lines += ["", f"{'buffer':<38} {'kind':<10} {'shape':<22} {'dtype':<8} {'bytes':>12}"]
        for buffer in self.buffers:
            shape = "x".join(map(str, buffer.shape))
            lines.append(f"  {buffer.name:<36} {buffer.kind:<10} {shape:<22} {buffer.dtype!s:<8} {buffer.size:>12,}")
        total = sum(buffer.size for buffer in self.buffers)
        lines.append(f"  {'arena (buffers share memory)':<36} {'':<10} {'':<22} {'':<8} {self.arena_bytes:>12,}")
        lines.append(f"  {'sum of the buffers':<36} {'':<10} {'':<22} {'':<8} {total:>12,}")
        return "\n".join(lines)


def compile_plan(
    groups: Sequence[Group],
    in_shape: Shape,
    batch: int,
    dtype: np.dtype[Any],
    kernels: ModuleType,
    mode: str,
    *,
    lanes: int,
    params: Mapping[str, np.ndarray],
    grads: Mapping[str, np.ndarray],
    dropout_states: Mapping[int, np.ndarray],
    winograd: bool = True,
    fuse: bool = True,
    memory: np.ndarray | None = None,
) -> Plan:
    """Bind `groups` to kernels and memory for batches of `batch` samples of `in_shape`.

    `mode`: "inference"; "training" (no gradient of the input is computed); "training_dx" (it is). `winograd`:
    let the backend choose Winograd's algorithm where its rule says that it is faster. `fuse`: use kernels that do
    several things at once. `memory`: another plan's, taken for this one's arena if it is large enough.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    training = mode != "inference"
    e = Emitter(kernels, batch, dtype, lanes, params, grads, dropout_states, training, winograd, fuse)

    x = first = e.batched("input", tuple(in_shape), "activation")
    emitted: list[tuple[Group, str, Buffer, Buffer, Backward | None]] = []
    for group in groups:
        name = f"{group.head.layer}: {group.label}"
        backward: Backward | None = None
        if group.head.kind == "flatten":
            y = x.reshape((batch, *group.out_shape))
        elif group.head.kind == "dropout" and not training:
            y = x
        else:
            y = e.batched(name, group.out_shape, "activation")
            backward = _EMIT[group.head.kind](e, group, name, x, y)
        emitted.append((group, name, x, y, backward))
        x = y
    n_forward = len(e.steps)

    output_grad = input_grad = None
    if training:
        dy = output_grad = e.batched("output gradient", x.shape[1:], "gradient")
        needed = _first_needing_gradient(groups, mode)
        for i in reversed(range(needed, len(emitted))):
            _, name, before, _, backward = emitted[i]
            if backward is None:
                dy = dy.reshape(before.shape)
                continue
            dx: Any = e.none(len(before.shape))
            if i > needed or mode == "training_dx":
                dx = e.batched(f"{name} gradient", before.shape[1:], "gradient")
            backward(dy, dx)
            dy = dx
        input_grad = dy if mode == "training_dx" else None

    ends = {"input": first, "output": x, "output_grad": output_grad, "input_grad": input_grad}
    return _bind(e, mode, n_forward, ends, memory)


def _first_needing_gradient(groups: Sequence[Group], mode: str) -> int:
    if mode == "training_dx":
        return 0
    return next((i for i, group in enumerate(groups) if any(op.params for op in group.ops)), len(groups))


def _bind(e: Emitter, mode: str, n_forward: int, ends: Mapping[str, Buffer | None], memory: np.ndarray | None) -> Plan:
    """Lifetimes -> offsets -> views, and the steps with views in place of buffers."""
    n_steps = len(e.steps)
    # What the caller writes or reads between the steps: the input before them, the output and its gradient
    # after the forward ones.
    outside = {"input": (-1, -1), "output": (n_forward, n_steps), "output_grad": (n_forward - 1, n_forward)}
    lives: dict[Buffer, tuple[int, int]] = {}

    def use(buffer: Buffer, first: int, last: int) -> None:
        base = buffer.base or buffer
        was = lives.get(base, (first, last))
        lives[base] = min(was[0], first), max(was[1], last)

    for name, end in ends.items():
        if end is not None:
            use(end, *outside.get(name, (n_steps, n_steps)))
    for i, step in enumerate(e.steps):
        for arg in step.args:
            if isinstance(arg, Buffer):
                use(arg, i, i)

    offsets, total = plan_arena([Lifetime(b.size, first, last) for b, (first, last) in lives.items()])
    arena = memory if memory is not None and memory.size >= total else aligned_empty(total)
    views = {
        b: arena[offset : offset + b.size].view(b.dtype).reshape(b.shape)
        for b, offset in zip(lives, offsets, strict=True)
    }

    def bound(value: Any) -> Any:
        if not isinstance(value, Buffer):
            return value
        return views[value.base or value].reshape(value.shape)

    steps = tuple(step._replace(args=tuple(bound(arg) for arg in step.args)) for step in e.steps)
    arrays = {name: bound(end) for name, end in ends.items()}
    return Plan(mode, e.batch, steps, n_forward, views, arrays, arena, total, e.kernels.record)


def aligned_empty(size: int, alignment: int = 64) -> np.ndarray:
    """`size` bytes (uint8) starting at a multiple of `alignment`."""
    raw = np.empty(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + size]
