"""What each group of ops becomes: kernel calls over buffers that have no memory yet, forward and backward.

An `emit` function adds the forward step of its group and returns what adds the backward one. `plan` calls them in
order, then gives the buffers memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastcnn.engine.ops import IDENTITY, ConvGeometry, Group, PoolGeometry, Shape, identity_pool


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
        dropout_states: Mapping[str, np.ndarray],
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


# (dy, dx or an unwanted output) -> steps emitted; and what is the input's gradient if not dx. Those of groups with a
# kernel of ADDING take one more buffer: what is added to dx.
Backward = Callable[..., "Buffer | None"]
ADDING = ("conv2d_batchnorm_forward",)


def _emit_conv2d(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer, other: Buffer | None = None) -> Backward:
    g: Any = group.head.geometry
    if e.training and group.kernel == "conv2d_norm_forward":
        return _emit_conv2d_norm(e, group, name, x, y)
    if e.winograd:
        g = g._replace(winograd=e.kernels.conv2d_algorithm(g, e.batch, e.dtype, e.training))
    if e.training and group.kernel == "conv2d_batchnorm_forward":
        return _emit_conv2d_batchnorm(e, group, name, g, (x, other), y)
    how = algorithm_name(g)
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

    weight, bias = _folded(e, group, name, weight)
    activation, pool, argmax = _after_conv2d(e, group, name)
    forward = e.scratch(name, e.kernels.conv2d_forward_scratch(g, pool, e.batch, e.dtype, e.lanes))
    e.step(name, "conv2d_block_forward", x, weight, bias, g, activation, pool, y, argmax, forward, how=how)

    def backward(dy: Buffer, dx: Buffer | np.ndarray) -> None:
        scratch = e.scratch(name, e.kernels.conv2d_backward_scratch(g, pool, e.batch, e.dtype, e.lanes))
        db = e.grad(group, "bias", "bias")
        args = (x, weight, y, argmax, dy, g, activation, pool, dx, dw, db, scratch)
        e.step(name, "conv2d_block_backward", *args, how=how)

    return backward


def _after_conv2d(e: Emitter, group: Group, name: str) -> tuple[Any, Any, Any]:
    """Activation, pool and argmax of a convolution's group; the identity where there is none."""
    g: Any = group.head.geometry
    act, pooling = group.find("activation"), group.find("maxpool2d")
    activation = act.activation if act else IDENTITY
    if not pooling:
        return activation, identity_pool(g.p, g.q, g.k), e.none(4, np.uint8)
    pool: Any = pooling.geometry
    kind = argmax_dtype(pool)
    if not e.training:
        return activation, pool, e.none(4, kind)
    return activation, pool, e.batched(f"{name} argmax", pooling.out_shape, "workspace", kind)


def _emit_conv2d_norm(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    g: Any = group.head.geometry
    op: Any = group.find("batchnorm")
    weight = e.param(group, "conv2d", "weight")
    vectors = [e.param(group, "batchnorm", what) for what in ("weight", "bias", "running_mean", "running_var")]
    activation, pool, argmax = _after_conv2d(e, group, name)
    mean, inv_std = (e.buffer(f"{name} {what}", (g.k,), "workspace") for what in ("mean", "inv_std"))
    taps = g.r * g.s * g.c
    patches = e.buffer(f"{name} patches", (taps + taps * taps,), "workspace", np.float64)
    folded = e.buffer(f"{name} weight", weight.shape, "scratch"), e.buffer(f"{name} bias", (g.k,), "scratch")
    scratch = e.scratch(name, e.kernels.conv2d_forward_scratch(g, pool, e.batch, e.dtype, e.lanes))
    args = (x, weight, *vectors, op.momentum, op.epsilon, g, activation, pool, y, argmax, mean, inv_std, patches)
    e.step(name, "conv2d_norm_forward", *args, *folded, scratch, how=algorithm_name(g))

    def backward(dy: Buffer, dx: Buffer | np.ndarray) -> None:
        scratch = e.scratch(name, e.kernels.conv2d_backward_scratch(g, pool, e.batch, e.dtype, e.lanes))
        dw, dgamma = e.grad(group, "conv2d", "weight"), e.grad(group, "batchnorm", "weight")
        args = (x, weight, vectors[0], mean, inv_std, patches, y, argmax, dy, g, activation, pool, dw, dgamma)
        dbeta = e.grad(group, "batchnorm", "bias")
        e.step(name, "conv2d_norm_backward", *args, dbeta, scratch, how=algorithm_name(g))

    return backward


def _emit_conv2d_batchnorm(
    e: Emitter, group: Group, name: str, g: Any, inputs: tuple[Buffer, Buffer | None], y: Buffer
) -> Backward:  # fmt: skip
    (x, other), op, act = inputs, group.find("batchnorm"), group.find("activation")
    assert op is not None and act is not None
    weight, pool = e.param(group, "conv2d", "weight"), identity_pool(g.p, g.q, g.k)
    gamma, beta, *running = (
        e.param(group, "batchnorm", what) for what in ("weight", "bias", "running_mean", "running_var")
    )  # fmt: skip
    z = e.batched(f"{name} before", (g.p, g.q, g.k), "workspace")
    mean, inv_std = (e.buffer(f"{name} {what}", (g.k,), "workspace") for what in ("mean", "inv_std"))
    scratch = e.scratch(name, e.kernels.conv2d_forward_scratch(g, pool, e.batch, e.dtype, e.lanes))
    e.step(
        name, "conv2d_batchnorm_forward", x, weight, gamma, beta, *running, op.momentum, op.epsilon, g, act.activation,
        e.none(4) if other is None else other, z, y, mean, inv_std, scratch, how=algorithm_name(g),
    )  # fmt: skip

    def backward(dy: Buffer, dx: Buffer | np.ndarray, beside: Buffer | None = None) -> None:
        dw = e.grad(group, "conv2d", "weight")
        dgamma, dbeta = (e.grad(group, "batchnorm", what) for what in ("weight", "bias"))
        dz = e.none(4) if g.winograd else e.batched(f"{name} before, gradient", (g.p, g.q, g.k), "scratch")
        scratch = e.scratch(name, e.kernels.conv2d_backward_scratch(g, pool, e.batch, e.dtype, e.lanes))
        more = e.none(4) if beside is None else beside
        args = x, weight, z, gamma, beta, mean, inv_std, dy, g, act.activation, more, dx, dw, dgamma, dbeta, dz, scratch
        e.step(name, "conv2d_batchnorm_backward", *args, how=algorithm_name(g))

    return backward


def algorithm_name(g: ConvGeometry) -> str:
    """How a convolution is computed, for people to read."""
    return f"winograd F({g.winograd}x{g.winograd}, {g.r}x{g.s})" if g.winograd else "direct"


def _folded(e: Emitter, group: Group, name: str, weight: np.ndarray) -> tuple[Any, Any]:
    """Weight and bias of a group, with batch normalisation's scale and shift in them if it follows (in inference)."""
    bias = e.param(group, "bias", "bias")
    norm = group.find("batchnorm")
    if norm is None:
        return weight, bias
    c = weight.shape[-1]
    new_weight, new_bias = (
        e.buffer(f"{name} {what}", shape, "scratch") for what, shape in (("weight", weight.shape), ("bias", (c,)))
    )
    vectors = (e.param(group, "batchnorm", what) for what in ("weight", "bias", "running_mean", "running_var"))
    old = weight.reshape(-1, c)
    e.step(name, "batchnorm_fold", old, bias, *vectors, norm.epsilon, new_weight.reshape(old.shape), new_bias)
    return new_weight, new_bias


def argmax_dtype(pool: PoolGeometry) -> Any:
    """The narrowest dtype that holds a place in the window."""
    return np.uint8 if pool.r * pool.s <= 256 else np.int32


def _emit_dense(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    (n_in,), (n_out,) = group.head.in_shape, group.head.out_shape
    act = group.find("activation")
    activation = act.activation if act else IDENTITY
    weight, bias = _folded(e, group, name, e.param(group, "dense", "weight"))
    scratch = e.scratch(name, e.kernels.dense_forward_scratch(e.batch, n_in, n_out, e.dtype, e.lanes))
    e.step(name, "dense_forward", x, weight, bias, activation, y, scratch)

    def backward(dy: Buffer, dx: Buffer | np.ndarray) -> None:
        scratch = e.scratch(name, e.kernels.dense_backward_scratch(e.batch, n_in, n_out, e.dtype, e.lanes))
        dw, db = e.grad(group, "dense", "weight"), e.grad(group, "bias", "bias")
        e.step(name, "dense_backward", x, weight, y, dy, activation, dx, dw, db, scratch)

    return backward


def _emit_bias(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    c = group.head.in_shape[-1]
    e.step(name, "bias_forward", rows(x, c), e.param(group, "bias", "bias"), rows(y, c))

    def backward(dy: Buffer, dx: Buffer | np.ndarray) -> None:
        e.step(name, "bias_backward", rows(dy, c), e.grad(group, "bias", "bias"))
        if isinstance(dx, Buffer):
            e.step(name, "activation_backward", flat(dy), flat(dy), IDENTITY, flat(dx))

    return backward


def _emit_activation(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    activation = group.head.activation
    e.step(name, "activation_forward", flat(x), activation, flat(y))
    return lambda dy, dx: e.step(name, "activation_backward", flat(y), flat(dy), activation, flat(dx))


def _emit_smooth_activation(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    activation = group.head.activation
    e.step(name, "activation_forward", flat(x), activation, flat(y))
    return lambda dy, dx: e.step(name, "activation_backward", flat(x), flat(dy), activation, flat(dx))


def _emit_join(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer, other: Buffer) -> Backward:
    """The end of two branches: their sum, and an activation."""
    act = group.find("activation")
    activation = act.activation if act else IDENTITY
    e.step(name, "add_forward", flat(x), flat(other), activation, flat(y))

    def backward(dy: Buffer, dx: Buffer | np.ndarray) -> Buffer | None:
        if act is None:
            return dy
        e.step(name, "activation_backward", flat(y), flat(dy), activation, flat(dx))
        return None

    return backward


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
    xr, yr = rows(x, c), rows(y, c)
    act = group.find("activation")
    activation = act.activation if act else IDENTITY
    if not e.training:
        e.step(name, "batchnorm_inference", xr, gamma, beta, *running, op.epsilon, activation, yr)
    mean, inv_std = (e.buffer(f"{name} {what}", (c,), "workspace") for what in ("mean", "inv_std"))
    pooling = group.find("maxpool2d")
    if pooling:
        return _emit_batchnorm_pool(e, group, name, (x, y), (mean, inv_std), activation, pooling.geometry)
    if e.training:
        args = (xr, gamma, beta, *running, op.momentum, op.epsilon, activation, yr, mean, inv_std)
        e.step(name, "batchnorm_forward", *args)

    def backward(dy: Buffer, dx: Buffer | np.ndarray) -> None:
        dgamma, dbeta = e.grad(group, "batchnorm", "weight"), e.grad(group, "batchnorm", "bias")
        out = rows(dx, c) if isinstance(dx, Buffer) else e.none(2)
        seen = yr if act else rows(dy, c)  # without an activation y is not looked at, and need not live so long
        args = (xr, gamma, beta, mean, inv_std, seen, rows(dy, c), activation, out, dgamma, dbeta)
        e.step(name, "batchnorm_backward", *args)

    return backward


def _emit_batchnorm_pool(
    e: Emitter, group: Group, name: str, ends: tuple[Buffer, Buffer], moments: tuple[Buffer, Buffer], activation: Any,
    pool: Any,
) -> Backward:  # fmt: skip
    (x, y), (mean, inv_std), op = ends, moments, group.head
    vectors = [e.param(group, "batchnorm", what) for what in ("weight", "bias", "running_mean", "running_var")]
    argmax = e.batched(f"{name} argmax", group.out_shape, "workspace", argmax_dtype(pool))
    args = (x, *vectors, op.momentum, op.epsilon, activation, pool, y, argmax, mean, inv_std)
    e.step(name, "batchnorm_pool_forward", *args)

    def backward(dy: Buffer, dx: Buffer | np.ndarray) -> None:
        dgamma, dbeta = e.grad(group, "batchnorm", "weight"), e.grad(group, "batchnorm", "bias")
        args = (x, vectors[0], mean, inv_std, y, argmax, dy, activation, pool, dx, dgamma, dbeta)
        e.step(name, "batchnorm_pool_backward", *args)

    return backward


def _emit_dropout(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    rate, features = group.head.rate, prod(group.in_shape)
    if not e.training:
        raise AssertionError("dropout is left out of inference plans")
    mask = e.batched(f"{name} mask", (features,), "workspace", np.uint8)
    state = e.dropout_states[group.head.layer]
    e.step(name, "dropout_forward", rows(x, features), rate, state, rows(y, features), mask)
    return lambda dy, dx: e.step(name, "dropout_backward", rows(dy, features), mask, rate, rows(dx, features))


def _emit_spatial_dropout(e: Emitter, group: Group, name: str, x: Buffer, y: Buffer) -> Backward:
    rate, (height, width, c) = group.head.rate, group.in_shape
    mask, shape = e.batched(f"{name} mask", (c,), "workspace", np.uint8), (e.batch, height * width, c)
    args = x.reshape(shape), rate, e.dropout_states[group.head.layer], y.reshape(shape), mask
    e.step(name, "spatial_dropout_forward", *args)
    return lambda dy, dx: e.step(
        name,
        "spatial_dropout_backward",
        dy.reshape(shape),
        mask,
        rate,
        dx.reshape(shape),
    )


def rows(buffer: Buffer, columns: int) -> Buffer:
    """As a table of so many columns."""
    return buffer.reshape((prod(buffer.shape) // columns, columns))


def flat(buffer: Any) -> Buffer:
    """As a vector."""
    return buffer.reshape((prod(buffer.shape),))


# Where branches join, `other` is the end of the other one: (emitter, group, name, x, y[, other]).
EMIT: dict[str, Callable[..., Backward]] = {
    "conv2d": _emit_conv2d,
    "join": _emit_join,
    "dense": _emit_dense,
    "bias": _emit_bias,
    "activation": _emit_activation,
    "smooth_activation": _emit_smooth_activation,
    "maxpool2d": _emit_maxpool2d,
    "avgpool2d": _emit_avgpool2d,
    "batchnorm": _emit_batchnorm,
    "dropout": _emit_dropout,
    "spatial_dropout": _emit_spatial_dropout,
}
