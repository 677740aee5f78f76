"""Softmax, and softmax with cross-entropy and its gradient in one pass over the rows."""

from __future__ import annotations

import math

import numpy as np

from fastcnn.kernels.cpu.launch import Kernel, launch, unpack
from fastcnn.kernels.cpu.runtime import U, as_input, jit


@jit
def _softmax_row(x, at, n, out):
    """out[at:at+n] = softmax of x[at:at+n]; the logarithm of the sum of exponentials."""
    top = x[U(at)]
    for j in range(1, n):
        v = x[U(at + j)]
        if v > top or v != v:
            top = v
    total = x[U(at)] - x[U(at)]
    for j in range(n):
        e = math.exp(x[U(at + j)] - top)
        out[U(at + j)] = e
        total += e
    for j in range(n):
        out[U(at + j)] /= total
    return top + math.log(total)


@Kernel
def _softmax(start, stop, lane, args):
    logits, n_classes, proba = unpack(args)
    for i in range(start, stop):
        _softmax_row(logits, i * n_classes, n_classes, proba)


def softmax(logits, proba):
    """proba (N,n_classes): softmax of each row."""
    logits = as_input(logits)
    launch(_softmax, logits.shape[0], 16 * logits.size, logits.reshape(-1), logits.shape[1], proba.reshape(-1))


@Kernel
def _cross_entropy(start, stop, lane, args):
    logits, labels, weights, smoothing, scale, n_classes, losses, dlogits = unpack(args)
    for i in range(start, stop):
        at, label = i * n_classes, labels[U(i)]
        log_sum = _softmax_row(logits, at, n_classes, dlogits)
        loss = log_sum - logits[U(at + label)]
        if smoothing > 0:
            total = logits[U(at)] - logits[U(at)]
            for j in range(n_classes):
                total += log_sum - logits[U(at + j)]
            loss = (1 - smoothing) * loss + smoothing / n_classes * total
        losses[U(i)] = weights[U(i)] * loss
        factor = weights[U(i)] * scale
        for j in range(n_classes):
            dlogits[U(at + j)] = factor * (dlogits[U(at + j)] - smoothing / n_classes)
        dlogits[U(at + label)] -= factor * (1 - smoothing)


def softmax_cross_entropy(logits, labels, weights, smoothing, losses, dlogits):
    """losses (N,) and the gradient of sum(losses) / sum(weights), 0 where the weights sum to 0."""
    logits, labels, weights = as_input(logits), as_input(labels), as_input(weights)
    total = float(weights.sum(dtype=np.float64))
    kind = logits.dtype.type
    launch(
        _cross_entropy, logits.shape[0], 16 * logits.size, logits.reshape(-1), labels, weights, kind(smoothing),
        kind(1 / total if total else 0.0), logits.shape[1], losses, dlogits.reshape(-1),
    )  # fmt: skip
