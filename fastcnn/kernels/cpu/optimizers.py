"""One optimiser step over the flat parameter vector: elementwise, so lanes own ranges of it.

Muon's step is of matrices: lanes own whole ones, and multiply with the micro-kernel.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from fastcnn.kernels.contract import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS
from fastcnn.kernels.cpu.launch import Kernel, address_for, call, empty, launch, unpack
from fastcnn.kernels.cpu.lowering import DEPTH, PIXELS, offsets, panel_offsets
from fastcnn.kernels.cpu.microkernel import ADD, ZERO, multiply_rows_address, panel_width
from fastcnn.kernels.cpu.packing import fill_zero
from fastcnn.kernels.cpu.runtime import U, as_input
from fastcnn.kernels.cpu.transposition import transpose


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
    rate, momentum, l2, grad_scale = rates
    one = params.dtype.type(1)
    for first, last, weighs in ((start, min(stop, n_decay), one), (max(start, n_decay), stop, one - one)):
        for i in range(first, last):
            p = params[U(i)]
            step = rate * (grad_scale * grads[U(i)] + weighs * l2 * p)
            speed = momentum * velocity[U(i)] - step
            velocity[U(i)] = speed
            params[U(i)] = p + (momentum * speed - step if nesterov else speed)


def sgd_update(params, grads, velocity, settings):
    """One SGD step (momentum, Nesterov) over the flat vectors, in place."""
    s = settings
    rates = _typed((s.learning_rate, s.momentum, s.l2, s.grad_scale), params)
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


# ---------------------------------------------------------------------------------------------------------------- Muon
#
# Here a matrix stands upright, its shorter side across, in panels as the micro-kernel reads them: [column / width][row]
# [width]. So do the squares of that side, filled up with zeros to whole panels.


@lru_cache(maxsize=16)
def _muon_places(matrices: tuple[Any, ...], width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """By matrix (the largest first): its place, rows and columns, where its scratch and its tables begin; these tables;
    and the elements of scratch.
    """
    places, tables, scratch, table = [], [], 0, 0
    for start, rows, columns in sorted(matrices, key=lambda matrix: -matrix[1] * matrix[2]):
        long, short = max(rows, columns), min(rows, columns)
        panels = -(-short // width)
        places.append((start, rows, columns, scratch, table))
        own = [offsets(panels, long * width), offsets(panels, panels * width * width)]
        own += [panel_offsets(short, width, long * width), offsets(long, width)]
        tables += own
        table += sum(map(len, own))
        scratch += 2 * long * panels * width + 5 * (panels * width) ** 2
    return np.array(places, np.int64).reshape(-1, 5), np.concatenate(tables or [offsets(0, 0)]), scratch


def muon_scratch(matrices):
    """Elements: of each matrix the momentum and what it becomes, and five squares of the shorter side."""
    return _muon_places(tuple(matrices), panel_width(4))[2]


@Kernel
def _square(start, stop, lane, args):
    """The square c = a b of symmetric squares that commute: the lower half, and its mirror image."""
    a, b, c, short, side, width, scratch, multiply, rows, panels = unpack(args)
    per_pass = max(1, DEPTH // width)
    for column in range(0, side, width):
        for first in range(0, panels.shape[0], per_pass):
            tile = (
                scratch, a, rows, scratch, c + column * side, rows, panels[first : first + per_pass], width, 1,
                scratch, b + column * side + first * width * width, width, 0, width, ADD if first > 0 else ZERO,
            )  # fmt: skip
            call(multiply, column, short, lane, tile)
        for row in range(column + width, side, width):
            lower, upper = c + column * side + row * width, c + row * side + column * width
            transpose(scratch, lower, width, width, width, scratch, upper, width)


@Kernel
def _muon_matrices(start, stop, lane, args):
    """The steps of the matrices start..stop; each has one lane to itself, so no sum depends on how many there are.

    The Newton-Schulz iteration needs no product with u in each step: x is always some t u, and A = x x' and t are
    polynomials of u u', so they commute, and everything up to the last product happens to squares.
    """
    params, grads, m, scratch, rates, nesterov, newton_schulz, width, kernels, places, tables = unpack(args)
    momentum, grad_scale, rate, decay = rates
    multiply, square = kernels
    a, b, c = newton_schulz
    number = params.dtype.type
    for item in range(start, stop):
        first, n_rows, n_columns, u, table = (
            places[item, 0], places[item, 1], places[item, 2], places[item, 3], places[item, 4]
        )  # fmt: skip
        long, short = max(n_rows, n_columns), min(n_rows, n_columns)
        along, across = (n_columns, 1) if n_rows >= n_columns else (1, n_columns)
        count = (short + width - 1) // width
        side = count * width
        tall_panels, panels = tables[table : table + count], tables[table + count : table + 2 * count]
        table += 2 * count
        columns, rows = tables[table : table + short], tables[table + short : table + short + long]

        step = u + long * side
        fill_zero(scratch, u, step)
        for j0 in range(0, short, width):
            for i in range(long):
                place, to = first + i * along + j0 * across, u + (j0 * long + i * width)
                for j in range(min(width, short - j0)):
                    g = (number(1) - momentum) * grad_scale * grads[U(place + j * across)]
                    mean = momentum * m[U(place + j * across)] + g
                    m[U(place + j * across)] = mean
                    scratch[U(to + j)] = momentum * mean + g if nesterov else mean

        size = side * side
        gram = step + long * side
        factor, power, total, spare = gram + size, gram + 2 * size, gram + 3 * size, gram + 4 * size
        fill_zero(scratch, gram, gram + 5 * size)
        for column in range(0, side, width):
            for i in range(0, long, PIXELS):
                tile = (
                    scratch, u + i * width, columns, scratch, gram + column * side, rows, panels[:1],
                    min(PIXELS, long - i), width, scratch, u + column * long + i * width, width, 0, width,
                    ADD if i > 0 else ZERO,
                )  # fmt: skip
                call(multiply, 0, short, lane, tile)
        trace = 0.0
        for i in range(short):
            trace += scratch[U(gram + i // width * width * side + i * width + i % width)]
        norm = math.sqrt(trace) + 1e-7
        for i in range(size):
            scratch[U(gram + i)] *= number(1 / (norm * norm))

        for iteration in range(NEWTON_SCHULZ_STEPS):
            if iteration > 0:  # of the next x
                call(square, 0, 1, lane, (factor, gram, power, short, side, width, scratch, multiply, rows, panels))
                call(square, 0, 1, lane, (power, factor, gram, short, side, width, scratch, multiply, rows, panels))
            call(square, 0, 1, lane, (gram, gram, factor, short, side, width, scratch, multiply, rows, panels))
            for i in range(size):
                scratch[U(factor + i)] = b * scratch[U(gram + i)] + c * scratch[U(factor + i)]
            for i in range(short):
                scratch[U(factor + i // width * width * side + i * width + i % width)] += a
            if iteration > 0:
                call(square, 0, 1, lane, (factor, total, spare, short, side, width, scratch, multiply, rows, panels))
                total, spare = spare, total
            else:
                for i in range(size):
                    scratch[U(total + i)] = scratch[U(factor + i)]

        per_pass = max(1, DEPTH // width)
        for column in range(0, side, width):
            for k in range(0, count, per_pass):
                tile = (
                    scratch, u, rows, scratch, step + column * long, rows, tall_panels[k : k + per_pass], width, 1,
                    scratch, total + column * side + k * width * width, width, 0, width, ADD if k > 0 else ZERO,
                )  # fmt: skip
                call(multiply, 0, long, lane, tile)
        scale = number(0.2 * math.sqrt(long) / norm)
        for j0 in range(0, short, width):
            for i in range(long):
                place, source = first + i * along + j0 * across, step + (j0 * long + i * width)
                for j in range(min(width, short - j0)):
                    p = params[U(place + j * across)]
                    params[U(place + j * across)] = p - rate * (scale * scratch[U(source + j)] + decay * p)


def muon_update(params, grads, m, matrices, settings, scratch):
    """One Muon step for parts of the flat vectors, in place."""
    s, width = settings, panel_width(params.itemsize)
    places, tables, _ = _muon_places(tuple(matrices), width)
    multiply, table = multiply_rows_address(params.dtype), empty(np.int64)
    square = address_for(_square, 0, 0, 0, 0, 0, 0, empty(params.dtype), multiply, table, table)
    work = sum(4 * matrix.rows * matrix.columns * min(matrix.rows, matrix.columns) for matrix in matrices)
    launch(
        _muon_matrices, len(places), work, params, as_input(grads), m, scratch,
        _typed((s.momentum, s.grad_scale, s.learning_rate, s.decay), params), bool(s.nesterov),
        _typed(NEWTON_SCHULZ, params), width, (multiply, square), places, tables,
    )  # fmt: skip


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
