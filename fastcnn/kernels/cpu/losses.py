"""Softmax, and softmax with cross-entropy and its gradient in one pass over the rows."""

from __future__ import annotations

import math

import numpy as np

from fastcnn.kernels.cpu.launch import ExactKernel, Kernel, launch, unpack
from fastcnn.kernels.cpu.runtime import U, as_input, jit


@jit(exact=True)
def _row_maximum(x, at, n):
    """The largest of x[at:at+n]; NaN if there is one."""
    top = x[U(at)]
    for j in range(1, n):
        v = x[U(at + j)]
        if v > top or v != v:
            top = v
    return top


@Kernel
def _softmax(start, stop, lane, args):
    logits, n_classes, proba = unpack(args)
    for i in range(start, stop):
        at = i * n_classes
        top = _row_maximum(logits, at, n_classes)
        total = top - top
        for j in range(n_classes):
            e = math.exp(logits[U(at + j)] - top)
            proba[U(at + j)] = e
            total += e
        for j in range(n_classes):
            proba[U(at + j)] /= total


def softmax(logits, proba):
    """proba (N,n_classes): softmax of each row."""
    logits = as_input(logits)
    launch(_softmax, logits.shape[0], 16 * logits.size, logits.reshape(-1), logits.shape[1], proba.reshape(-1))


@ExactKernel
def _cross_entropy(start, stop, lane, args):
    logits, labels, weights, smoothing, scale, n_classes, losses, dlogits = unpack(args)
    for i in range(start, stop):
        at, label = i * n_classes, labels[U(i)]
        top = _row_maximum(logits, at, n_classes)
        total = top - top
        for j in range(n_classes):
            total += math.exp(logits[U(at + j)] - top)
        log_total = math.log(total)
        if losses.shape[0]:
            # (top - logit) first, and exactly so: added to a large top, the logarithm would be lost.
            loss = (top - logits[U(at + label)]) + log_total
            if smoothing > 0:
                others = top - top
                for j in range(n_classes):
                    others += (top - logits[U(at + j)]) + log_total
                loss = (1 - smoothing) * loss + smoothing / n_classes * others
            losses[U(i)] = weights[U(i)] * loss
        if dlogits.shape[0]:
            factor = weights[U(i)] * scale
            for j in range(n_classes):
                proba = math.exp(logits[U(at + j)] - top) / total
                dlogits[U(at + j)] = factor * (proba - smoothing / n_classes)
            dlogits[U(at + label)] -= factor * (1 - smoothing)


def softmax_cross_entropy(logits, labels, weights, smoothing, losses, dlogits):
    """losses (N,) and the gradient of sum(losses) / sum(weights), 0 where the weights sum to 0."""
    logits, labels, weights = as_input(logits), as_input(labels), as_input(weights)
    total = float(weights.sum(dtype=np.float64))
    kind, limits = logits.dtype.type, np.finfo(logits.dtype)
    if 0 < total < len(weights) * float(limits.tiny) / float(limits.eps):  # in kernels denormal weights would be zeros
        shares = (weights.astype(np.float64) / total).astype(kind)
        softmax_cross_entropy(logits, labels, shares, smoothing, losses, dlogits)
        losses *= kind(total)
        return
    scale = 1 / total if total else 0.0
    launch(
        _cross_entropy, logits.shape[0], 16 * logits.size, logits.reshape(-1), labels, weights, kind(smoothing),
        kind(scale), logits.shape[1], losses, dlogits.reshape(-1),
    )  # fmt: skip
