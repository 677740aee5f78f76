"""One optimiser step over the flat parameter vector: elementwise, so lanes own ranges of it.

Muon's step is of a matrix: its products are BLAS's, on one thread, so that they do not depend on the thread count.
"""

from __future__ import annotations

import math

import numpy as np

from fastcnn.kernels.contract import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS
from fastcnn.kernels.cpu._blas import gemm
from fastcnn.kernels.cpu.launch import Kernel, launch, unpack
from fastcnn.kernels.cpu.runtime import U, as_input, one_blas_thread


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


def muon_scratch(matrices):
    """Elements: for the largest matrix the momentum, what it becomes, and five small matrices."""
    return max((2 * rows * columns + 5 * min(rows, columns) ** 2 for _, rows, columns in matrices), default=0)


@Kernel
def _muon_momentum(start, stop, lane, args):
    grads, m, ahead, rates, nesterov = unpack(args)
    momentum, grad_scale = rates
    one = m.dtype.type(1)
    for i in range(start, stop):
        g = (one - momentum) * grad_scale * grads[U(i)]
        mean = momentum * m[U(i)] + g
        m[U(i)] = mean
        ahead[U(i)] = momentum * mean + g if nesterov else mean


@Kernel
def _muon_step(start, stop, lane, args):
    params, step, rates = unpack(args)
    rate, decay = rates
    for i in range(start, stop):
        params[U(i)] -= rate * (step[U(i)] + decay * params[U(i)])


def muon_update(params, grads, m, matrices, settings, scratch):
    """One Muon step for parts of the flat vectors, in place."""
    s, grads = settings, as_input(grads)
    for start, rows, columns in matrices:
        size, side = rows * columns, min(rows, columns)
        part = slice(start, start + size)
        ahead, step, small = np.split(scratch[: 2 * size + 5 * side * side], (size, 2 * size))
        mean = _typed((s.momentum, s.grad_scale), params)
        launch(_muon_momentum, size, size, grads[part], m[part], ahead, mean, bool(s.nesterov))
        scale, shape = 0.2 * math.sqrt(max(rows, columns)), (rows, columns)
        # A gradient that is not finite any more is for the training loop to notice.
        with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
            _orthogonalized(ahead.reshape(shape), step.reshape(shape), small.reshape(5, side, side), scale)
        launch(_muon_step, size, size, params[part], step, _typed((s.learning_rate, s.decay), params))


def _orthogonalized(u, out, small, scale):
    """`out` = scale * the Newton-Schulz iteration of `contract.muon_update` from u.

    It needs no product with u in each step: x is always some t u, and A = x x' and t are polynomials of u u', so they
    commute, and everything up to the last product happens to matrices of the shorter side.
    """
    wide = u.shape[0] <= u.shape[1]
    a, b, c = NEWTON_SCHULZ
    gram, factor, power, total, spare = small
    gemm(u, u, gram, trans_a=not wide, trans_b=wide)
    norm = math.sqrt(np.trace(gram, dtype=np.float64)) + 1e-7
    gram /= norm * norm
    for step in range(NEWTON_SCHULZ_STEPS):
        if step > 0:  # of the next x
            gemm(factor, gram, power)
            gemm(power, factor, gram)
        factor[...] = gram
        gemm(gram, gram, factor, alpha=c, beta=b)  # b A + c A A
        factor.reshape(-1)[:: len(factor) + 1] += a
        if step > 0:
            gemm(factor, total, spare)
            total, spare = spare, total
        else:
            total[...] = factor
    operands = (total, u) if wide else (u, total)
    gemm(*operands, out, alpha=scale / norm)


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
