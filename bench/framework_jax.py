"""JAX's side of `bench.peers`."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bench.framework import BETA_1, BETA_2, EPSILON, LEARNING_RATE, Call, Framework
from bench.machine import usable_cores
from bench.networks import Act, Conv, Dense, Dropout, Flatten, GlobalPool, Net, Norm, Pool

AXES = ("NHWC", "HWIO", "NHWC")  # images, weights, outputs


class Jax(Framework):
    """A jitted step that gives its state away, and a jitted prediction."""

    packages = ("jax", "jaxlib")

    def __init__(self, net: Net, data: dict[str, np.ndarray], threads: int) -> None:
        super().__init__(net, data, threads)
        # XLA takes the cores the process may use when it starts, and has no setting for it.
        if threads < usable_cores():
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

    def modes(self, what: str) -> list[str]:
        return ["jit"]

    def reset(self) -> None:
        jax.clear_caches()

    def _params(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Those that are trained, and running statistics."""
        params = {name: jnp.array(value) for name, value in self.data.items() if name not in ("x", "labels")}
        running = {name: params.pop(name) for name in list(params) if ".running_" in name}
        return params, running

    def trainer(self, mode: str, batch: int, dropout: float) -> Call:
        def loss_of(params: Any, running: Any, x: Any, labels: Any, key: Any) -> Any:
            logits, running = _jax_forward(self.net, params, running, x, dropout, key)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
            return -picked.mean(), running

        def step(state: Any, x: Any, labels: Any) -> Any:
            params, running, means, squares, t = state
            t = t + 1
            key = jax.random.fold_in(jax.random.key(0), t)
            (loss, running), grads = jax.value_and_grad(loss_of, has_aux=True)(params, running, x, labels, key)
            means = {k: BETA_1 * m + (1 - BETA_1) * grads[k] for k, m in means.items()}
            squares = {k: BETA_2 * v + (1 - BETA_2) * grads[k] ** 2 for k, v in squares.items()}
            bias_1, bias_2 = 1 - BETA_1**t, 1 - BETA_2**t
            params = {
                k: p - LEARNING_RATE * (means[k] / bias_1) / (jnp.sqrt(squares[k] / bias_2) + EPSILON)
                for k, p in params.items()
            }
            return (params, running, means, squares, t), loss

        jitted = jax.jit(step, donate_argnums=0)
        x, labels = jnp.array(self.data["x"][:batch]), jnp.array(self.data["labels"][:batch])
        params, running = self._params()
        zeros = [{k: jnp.zeros_like(p) for k, p in params.items()} for _ in range(2)]
        state: Any = (params, running, *zeros, jnp.array(0))

        def call() -> Any:
            nonlocal state
            state, loss = jitted(state, x, labels)
            return loss

        return call

    def predictor(self, mode: str, batch: int) -> Call:
        params, running = self._params()
        forward = jax.jit(lambda params, running, x: _jax_forward(self.net, params, running, x, 0.0, None)[0])
        x = jnp.array(self.data["x"][:batch])
        return lambda: forward(params, running, x)


def _jax_forward(net: Net, params: Any, running: Any, x: Any, dropout: float, key: Any) -> tuple[Any, Any]:
    """Logits and the running statistics afterwards; training where there is a key."""
    running = dict(running)
    for i, layer in enumerate(net.layers):
        weight, bias = params.get(f"{i}.weight"), params.get(f"{i}.bias")
        match layer:
            case Conv(_, _, stride, padding):
                axes = ("NHWC", "HWIO", "NHWC")
                x = lax.conv_general_dilated(
                    x, weight, (stride, stride), [(padding, padding)] * 2, dimension_numbers=axes
                )
                x = x if bias is None else x + bias
            case Norm(momentum, epsilon):
                names = (f"{i}.running_mean", f"{i}.running_var")
                if key is None:
                    mean, var = (running[name] for name in names)
                else:
                    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
                    for name, value in zip(names, (mean, var), strict=True):
                        running[name] = momentum * running[name] + (1 - momentum) * value
                x = (x - mean) * (weight * lax.rsqrt(var + epsilon)) + bias
            case Act(kind):
                x = {"relu": jax.nn.relu, "tanh": jnp.tanh}[kind](x)
            case Pool(kind, size, stride):
                start, combine = {"max": (-jnp.inf, lax.max), "avg": (0.0, lax.add)}[kind]
                x = lax.reduce_window(x, start, combine, (1, size, size, 1), (1, stride, stride, 1), "VALID")
                x = x / size**2 if kind == "avg" else x
            case GlobalPool():
                x = x.mean((1, 2))
            case Flatten():
                x = x.reshape(len(x), -1)
            case Dense():
                x = x @ weight + bias
            case Dropout() if dropout and key is not None:
                x = jnp.where(jax.random.bernoulli(key, 1 - dropout, x.shape), x / (1 - dropout), 0)
    return x, running
