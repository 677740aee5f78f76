"""Softmax and cross-entropy: a line of threads for each row."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from fastcnn.kernels.cuda.arrays import none
from fastcnn.kernels.cuda.driver import THREADS, Kernel, cuda, device_function, kernel, launch, types
from fastcnn.kernels.cuda.sums import CELLS, LINES, WIDTH


@cache
def loss_kernels(real: Any) -> tuple[Kernel, Kernel, Kernel]:
    """Softmax alone; losses with the gradient; a batch's loss and hits."""
    number, make = getattr(types, np.dtype(real).name), np.dtype(real).type
    zero, one, lowest = make(0), make(1), make(-np.inf)

    @device_function
    def largest(logits, start, lane, classes):
        best = lowest
        for c in range(lane, classes, WIDTH):
            v = logits[start + c]
            if v > best or v != v:
                best = v
        return best

    @device_function
    def largest_of(cells, line):
        best = lowest
        for lane in range(WIDTH):
            v = cells[line * WIDTH + lane]
            if v > best or v != v:
                best = v
        return best

    @device_function
    def sum_of(cells, line):
        total = zero
        for lane in range(WIDTH):
            total += cells[line * WIDTH + lane]
        return total

    @kernel("R R i i")
    def softmax(logits, proba, rows, classes):
        cells = cuda.shared.array(CELLS, number)
        lane, line = cuda.threadIdx.x, cuda.threadIdx.y
        row = cuda.blockIdx.x * LINES + line
        start, cell = row * classes, line * WIDTH + lane
        width = classes if row < rows else 0
        cells[cell] = largest(logits, start, lane, width)
        cuda.syncthreads()
        top = largest_of(cells, line)
        cuda.syncthreads()
        part = zero
        for c in range(lane, width, WIDTH):
            part += math.exp(logits[start + c] - top)
        cells[cell] = part
        cuda.syncthreads()
        total = sum_of(cells, line)
        for c in range(lane, width, WIDTH):
            proba[start + c] = math.exp(logits[start + c] - top) / total

    @kernel("R L R R R i i i i r")
    def cross_entropy(logits, labels, weights, losses, dlogits, rows, classes, has_losses, has_gradient, smoothing):
        cells = cuda.shared.array(CELLS, number)
        lane, line = cuda.threadIdx.x, cuda.threadIdx.y
        row = cuda.blockIdx.x * LINES + line
        start, cell = row * classes, line * WIDTH + lane
        width = classes if row < rows else 0

        # Each block sums all weights: so the gradient's share needs no kernel of its own.
        part = zero
        for n in range(cell, rows, CELLS):
            part += weights[n]
        cells[cell] = part
        cuda.syncthreads()
        part = zero
        for other in range(LINES):
            part += cells[other * WIDTH + lane]
        cuda.syncthreads()
        cells[cell] = part
        cuda.syncthreads()
        whole = sum_of(cells, line)
        cuda.syncthreads()

        cells[cell] = largest(logits, start, lane, width)
        cuda.syncthreads()
        top = largest_of(cells, line)
        cuda.syncthreads()
        part, shifted = zero, zero
        for c in range(lane, width, WIDTH):
            part += math.exp(logits[start + c] - top)
            shifted += logits[start + c] - top
        cells[cell] = part
        cuda.syncthreads()
        total = sum_of(cells, line)
        cuda.syncthreads()
        cells[cell] = shifted
        cuda.syncthreads()
        if row < rows:
            weight, label = weights[row], labels[row]
            if has_losses and lane == 0:
                log_total, even = math.log(total), smoothing / make(classes)
                own = log_total - (logits[start + label] - top)
                loss = (one - smoothing) * own
                if smoothing > zero:
                    loss += even * (make(classes) * log_total - sum_of(cells, line))
                losses[row] = weight * loss
            if has_gradient:
                share = weight / whole if whole != zero else zero
                for c in range(lane, width, WIDTH):
                    target = smoothing / make(classes)
                    if c == label:
                        target += one - smoothing
                    dlogits[start + c] = share * (math.exp(logits[start + c] - top) / total - target)

    @kernel("R L R D i i")
    def tally(logits, labels, losses, figures, rows, classes):
        """One block: the sum of the losses, and how many rows have their largest logit at the label."""
        loss_cells = cuda.shared.array(THREADS, types.float64)
        hit_cells = cuda.shared.array(THREADS, types.int64)
        t = cuda.threadIdx.x
        loss, hits = 0.0, 0
        for row in range(t, rows, THREADS):
            loss += losses[row]
            best, at = logits[row * classes], 0
            for c in range(1, classes):
                v = logits[row * classes + c]
                if v > best or (v != v and best == best):  # as NumPy's argmax
                    best, at = v, c
            if at == labels[row]:
                hits += 1
        loss_cells[t], hit_cells[t] = loss, hits
        left = THREADS
        while left > 1:  # halves of what is left, one on the other
            left //= 2
            cuda.syncthreads()
            if t < left:
                loss_cells[t] += loss_cells[t + left]
                hit_cells[t] += hit_cells[t + left]
        if t == 0:
            figures[0], figures[1] = loss_cells[0], np.float64(hit_cells[0])

    return softmax, cross_entropy, tally


def softmax(logits, proba):
    """proba (N,n_classes): softmax of each row."""
    rows, classes = logits.shape
    launch(loss_kernels(logits.dtype)[0], -(-rows // LINES), (WIDTH, LINES), logits, proba, rows, classes)


def softmax_cross_entropy(logits, labels, weights, smoothing, losses, dlogits):
    """losses (N,) = weight * cross-entropy; dlogits = gradient of sum(losses) / sum(weights); one kernel."""
    rows, classes = logits.shape
    nothing = none(logits.dtype)
    launch(
        loss_kernels(logits.dtype)[1], -(-rows // LINES), (WIDTH, LINES),
        logits, labels, weights, losses if losses.size else nothing, dlogits if dlogits.size else nothing,
        rows, classes, losses.size > 0, dlogits.size > 0, smoothing,
    )  # fmt: skip


def tally(logits, labels, losses, figures):
    """figures (2,), float64: the sum of losses (N,), and how many rows of logits are largest at their label."""
    rows, classes = logits.shape
    launch(loss_kernels(logits.dtype)[2], 1, THREADS, logits, labels, losses, figures, rows, classes)
