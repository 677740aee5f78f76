"""Steps of optimisers over flat vectors, in place."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from fastcnn.kernels.contract import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS
from fastcnn.kernels.cuda import conv, dense
from fastcnn.kernels.cuda.arrays import none, workspace
from fastcnn.kernels.cuda.driver import THREADS, Kernel, branch, cuda, fork, kernel, launch, linear, types
from fastcnn.kernels.cuda.intrinsics import quotient
from fastcnn.kernels.cuda.program import replay

_PLAIN = (0, 0.0)
_SQUARES = 128  # partial sums of squares, and their sum


@cache
def step_kernels(real: Any) -> tuple[Kernel, Kernel]:
    """Adam's and SGD's."""
    zero, one = (np.dtype(real).type(value) for value in (0, 1))

    @kernel("R R R R R i i")
    def adam(p, grads, m, v, settings, size, n_decay):
        rate, beta_1, beta_2, epsilon = settings[0], settings[1], settings[2], settings[3]
        l2, decay, scale, correction_1, correction_2 = settings[4], settings[5], settings[6], settings[7], settings[8]
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            decays = i < n_decay
            g = scale * grads[i] + (l2 * p[i] if decays else zero)
            m_i = beta_1 * m[i] + (one - beta_1) * g
            v_i = beta_2 * v[i] + (one - beta_2) * g * g
            m[i], v[i] = m_i, v_i
            step = m_i / correction_1 / (math.sqrt(v_i / correction_2) + epsilon)
            p[i] -= rate * (step + (decay * p[i] if decays else zero))

    @kernel("R R R R i i i")
    def sgd(p, grads, velocity, settings, size, n_decay, nesterov):
        rate, momentum, l2, scale = settings[0], settings[1], settings[2], settings[3]
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            g = scale * grads[i] + (l2 * p[i] if i < n_decay else zero)
            v = momentum * velocity[i] - rate * g
            velocity[i] = v
            p[i] += momentum * v - rate * g if nesterov else v

    return adam, sgd


def adam_update(params, grads, m, v, settings):
    """One step of Adam or AdamW, in place."""
    s = settings
    numbers = (
        s.learning_rate,
        s.beta_1,
        s.beta_2,
        s.epsilon,
        s.l2,
        s.decay,
        s.grad_scale,
        s.correction_1,
        s.correction_2,
    )
    replay(_adam, (params, grads, m, v), (s.n_decay,), numbers)


def _adam(params, grads, m, v, settings, n_decay):
    linear(step_kernels(params.dtype)[0], params.size, params, grads, m, v, settings, params.size, n_decay)


def sgd_update(params, grads, velocity, settings):
    """One step of SGD, in place."""
    s = settings
    numbers = s.learning_rate, s.momentum, s.l2, s.grad_scale
    replay(_sgd, (params, grads, velocity), (s.n_decay, s.nesterov), numbers)


def _sgd(params, grads, velocity, settings, n_decay, nesterov):
    args = params, grads, velocity, settings, params.size, n_decay, nesterov
    linear(step_kernels(params.dtype)[1], params.size, *args)


@kernel("R D i")
def square_parts(x, parts, size):
    cells = cuda.shared.array(THREADS, types.float64)
    total = 0.0
    for i in range(cuda.grid(1), size, cuda.gridsize(1)):
        v = np.float64(x[i])
        total += v * v
    cells[cuda.threadIdx.x] = total
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        total = 0.0
        for i in range(THREADS):
            total += cells[i]
        parts[cuda.blockIdx.x] = total


@kernel("D D i")
def add_squares(parts, out, n):
    total = 0.0
    for i in range(n):
        total += parts[i]
    out[0] = total


def sum_squares(x, out):
    """out[0] (float64, (1,), on the host) = sum of squares of the flat vector x, in two stages."""
    out[...] = np.asarray(_sum_squares(x, workspace(_SQUARES, np.float64)))


def _sum_squares(x, parts):
    """The sum, on the GPU, at the end of `parts` (_SQUARES,), which holds partial sums before it."""
    blocks = max(min(-(-x.size // (8 * THREADS)), _SQUARES - 1), 1)
    total = parts[_SQUARES - 1 : _SQUARES]
    launch(square_parts, blocks, THREADS, x if x.size else none(x.dtype), parts, x.size)
    launch(add_squares, 1, 1, parts, total, blocks)
    return total


# ------------------------------------------------------------------------------------------------------------- Muon


@cache
def muon_kernels(real: Any) -> tuple[Kernel, Kernel, Kernel, Kernel]:
    """The momentum; the start of the iteration; a weighted sum; the step."""
    make = np.dtype(real).type
    one, tiny = make(1), make(1e-7)

    @kernel("R R R R i i")
    def momentum(grads, m, u, settings, size, nesterov):
        beta, scale = settings[1], settings[3]
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            g = scale * grads[i]
            m_i = beta * m[i] + (one - beta) * g
            m[i] = m_i
            u[i] = beta * m_i + (one - beta) * g if nesterov else m_i

    @kernel("R D R i i i")
    def scaled(u, square, x, rows, columns, turned):
        """x = u / (|u| + 1e-7), `turned`: transposed."""
        size = rows * columns
        norm = make(math.sqrt(square[0])) + tiny
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            row = quotient(i, columns)
            to = (i - row * columns) * rows + row if turned else i
            x[to] = u[i] / norm

    @kernel("R R R i r r")
    def weighted(a, b, out, size, of_a, of_b):
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            out[i] = of_a * a[i] + of_b * b[i]

    @kernel("R R R i i i r")
    def step(p, x, settings, rows, columns, turned, length):
        rate, decay = settings[0], settings[2]
        size = rows * columns
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            row = quotient(i, columns)
            at = (i - row * columns) * rows + row if turned else i
            p[i] -= rate * (length * x[at] + decay * p[i])

    return momentum, scaled, weighted, step


def muon_scratch(matrices):
    """For each matrix what `_parts_of` says: all are worked on at once."""
    return sum(_parts_of(rows, columns)[-1] for _, rows, columns in matrices)


@cache
def _parts_of(rows: int, columns: int) -> list[int]:
    """Where the parts of a matrix's scratch begin, and where it ends: partial sums of squares, three of its size, three
    of its shorter side's square, partial sums of the products.
    """
    short, long = min(rows, columns), max(rows, columns)
    squares = max(dense.dense_forward_scratch(short, short, n, t, 1) for n in (short, long) for t in "fd")
    gram = max(dense.dense_backward_scratch(short, short, long, t, 1) for t in "fd")
    starts = [0]
    for size in (2 * _SQUARES, *(short * long,) * 3, *(short * short,) * 3, max(squares, gram)):
        starts.append(starts[-1] + -(-size // 64) * 64)
    return starts


def muon_update(params, grads, m, matrices, settings, scratch):
    """One step of Muon (Jordan et al. 2024), scaled as AdamW's, for parts of the flat vectors, in place."""
    s = settings
    numbers = s.learning_rate, s.momentum, s.decay, s.grad_scale
    replay(_muon, (params, grads, m, scratch), (s.nesterov, tuple(matrices)), numbers)


def _muon(params, grads, m, scratch, settings, nesterov, matrices):
    end = 0
    with fork():
        for matrix in matrices:
            begin, end = end, end + _parts_of(*matrix[1:])[-1]
            with branch():
                _matrix_step(params, grads, m, scratch[begin:end], settings, nesterov, *matrix)


def _matrix_step(params, grads, m, scratch, settings, nesterov, start, rows, columns):
    a, b, c = NEWTON_SCHULZ
    momentum, scaled, weighted, step = muon_kernels(params.dtype)
    nothing = np.empty(0)  # no bias
    part, size, turned = slice(start, start + rows * columns), rows * columns, rows > columns
    short, long = min(rows, columns), max(rows, columns)
    starts = _parts_of(rows, columns)
    squares = scratch[: starts[1]].view(np.float64)
    u, x, y = (scratch[at : at + size] for at in starts[1:4])
    gram, gram_2, mixed = (scratch[at : at + short * short].reshape(short, short) for at in starts[4:7])
    rest = scratch[starts[7] :]
    x, y = x.reshape(short, long), y.reshape(short, long)
    linear(momentum, size, grads[part], m[part], u, settings, size, nesterov)
    linear(scaled, size, u, _sum_squares(u, squares), x, rows, columns, turned)
    for _ in range(NEWTON_SCHULZ_STEPS):
        conv.product_input(x, x, dense.geometry_of(x.shape), gram, rest)
        dense.dense_forward(gram, gram, nothing, _PLAIN, gram_2, rest)
        linear(weighted, gram.size, gram, gram_2, mixed, gram.size, b, c)
        dense.dense_forward(mixed, x, nothing, _PLAIN, y, rest)
        linear(weighted, size, x, y, x, size, a, 1.0)
    length = 0.2 * math.sqrt(max(rows, columns))
    linear(step, size, params[part], x, settings, rows, columns, turned, length)
