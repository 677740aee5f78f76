"""One optimiser step over the flat parameter vector: elementwise, so lanes own ranges of it."""

from __future__ import annotations

import math

import numpy as np

from fastcnn.kernels.cpu.launch import Kernel, launch, unpack
from fastcnn.kernels.cpu.runtime import U, as_input


@Kernel
def _adam(start, stop, lane, args):
    params, grads, m, v, rates, n_decay = unpack(args)
    rate, beta_1, beta_2, epsilon, l2, decay, grad_scale, correction_1, correction_2 = rates
    one = params.dtype.type(1)
    for first, last, weighs in ((start, min(stop, n_decay), one), (max(start, n_decay), stop, one - one)):
        for i in range(first, last):
            p = params[U(i)]
            g = grad_scale * grads[U(i)] + weighs * l2 * p
            m[U(i)] = beta_1 * m[U(i)] + (one - beta_1) * g
            v[U(i)] = beta_2 * v[U(i)] + (one - beta_2) * g * g
            step = m[U(i)] / correction_1 / (math.sqrt(v[U(i)] / correction_2) + epsilon)
            params[U(i)] = p - rate * (step + weighs * decay * p)


def adam_update(params, grads, m, v, settings):
    """One Adam / AdamW step over the flat vectors, in place."""
    s = settings
    rates = (
        s.learning_rate, s.beta_1, s.beta_2, s.epsilon, s.l2, s.decay, s.grad_scale, s.correction_1, s.correction_2
    )  # fmt: skip
    launch(
        _adam,
        params.size,
        4 * params.size,
        params,
        as_input(grads),
        m,
        v,
        _typed(rates, params),
        int(s.n_decay),
    )


def _typed(values, params):
    """The settings in the parameters' precision, so that no step is computed in a wider one."""
    return tuple([params.dtype.type(value) for value in values])


@Kernel
def _sgd(start, stop, lane, args):
    params, grads, velocity, rates, nesterov, n_decay = unpack(args)
    rate, momentum, l2, decay, grad_scale = rates
    one = params.dtype.type(1)
    for first, last, weighs in ((start, min(stop, n_decay), one), (max(start, n_decay), stop, one - one)):
        for i in range(first, last):
            p = params[U(i)]
            step = rate * (grad_scale * grads[U(i)] + weighs * l2 * p)
            speed = momentum * velocity[U(i)] - step
            velocity[U(i)] = speed
            params[U(i)] = p + (momentum * speed - step if nesterov else speed) - rate * weighs * decay * p


def sgd_update(params, grads, velocity, settings):
    """One SGD step (momentum, Nesterov) over the flat vectors, in place."""
    s = settings
    rates = _typed((s.learning_rate, s.momentum, s.l2, s.decay, s.grad_scale), params)
    launch(
        _sgd,
        params.size,
        params.size,
        params,
        as_input(grads),
        velocity,
        rates,
        bool(s.nesterov),
        int(s.n_decay),
    )


@Kernel
def _sum_squares(start, stop, lane, args):
    x, out = unpack(args)
    total = 0.0
    for i in range(x.shape[0]):
        v = np.float64(x[U(i)])
        total += v * v
    out[0] = total


def sum_squares(x, out):
    """out[0] = sum of squares of the flat vector x: one item, so one lane and one order."""
    launch(_sum_squares, 1, x.size, as_input(x).reshape(-1), out)
