"""The kernels as dull Python loops, one scalar at a time: slow twins that are right by inspection.

They return new float64 arrays. Letters as everywhere: N batch, H W input, C channels in, K channels out,
R S window, P Q output.
"""

from itertools import product
from math import exp, expm1, log, tanh

import numpy as np


def _tap(g, p, q, r, s):
    """The pixel of the image under tap (r, s) of output pixel (p, q), or None where that is padding."""
    i = p * g.stride_h - g.pad_top + r * getattr(g, "dilation_h", 1)
    j = q * g.stride_w - g.pad_left + s * getattr(g, "dilation_w", 1)
    return (i, j) if 0 <= i < g.h and 0 <= j < g.w else None


def _multiplications(n, g):
    """For each product that a convolution sums: its places in y, x and weight."""
    c_group, k_group = g.c // g.groups, g.k // g.groups
    for image, p, q, r, s in product(range(n), range(g.p), range(g.q), range(g.r), range(g.s)):
        pixel = _tap(g, p, q, r, s)
        if pixel is None:
            continue
        for k, c in product(range(g.k), range(c_group)):
            channel = k // k_group * c_group + c
            yield (image, p, q, k), (image, *pixel, channel), (r, s, c, k)


def conv2d_forward(x, weight, bias, g):
    y = np.zeros((len(x), g.p, g.q, g.k))
    for at_y, at_x, at_w in _multiplications(len(x), g):
        y[at_y] += float(x[at_x]) * float(weight[at_w])
    for at in np.ndindex(y.shape):
        if len(bias):
            y[at] += bias[at[-1]]
    return y


def conv2d_backward(x, weight, dy, g):
    """dx, dw, db."""
    dx, dw, db = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(g.k)
    for at_y, at_x, at_w in _multiplications(len(x), g):
        dx[at_x] += float(dy[at_y]) * float(weight[at_w])
        dw[at_w] += float(dy[at_y]) * float(x[at_x])
    for at in np.ndindex(dy.shape):
        db[at[-1]] += dy[at]
    return dx, dw, db


def _window(g, p, q):
    """The pixels of the image under output pixel (p, q), each with its place r * S + s in the window."""
    for r, s in product(range(g.r), range(g.s)):
        pixel = _tap(g, p, q, r, s)
        if pixel is not None:
            yield r * g.s + s, pixel


def maxpool2d_forward(x, g):
    """y, argmax."""
    y, argmax = np.zeros((len(x), g.p, g.q, g.c)), np.zeros((len(x), g.p, g.q, g.c), int)
    for n, p, q, c in np.ndindex(y.shape):
        winner = None
        for place, (i, j) in _window(g, p, q):
            v = float(x[n, i, j, c])
            if winner is None or v > winner or (v != v and winner == winner):
                winner, argmax[n, p, q, c] = v, place
        y[n, p, q, c] = winner
    return y, argmax


def at_argmax(x, argmax, g):
    """The pixels of x that argmax names, (N,P,Q,C)."""
    picked = np.zeros(argmax.shape)
    for n, p, q, c in np.ndindex(argmax.shape):
        i, j = dict(_window(g, p, q))[int(argmax[n, p, q, c])]
        picked[n, p, q, c] = x[n, i, j, c]
    return picked


def maxpool2d_backward(dy, argmax, g):
    dx = np.zeros((len(dy), g.h, g.w, g.c))
    for n, p, q, c in np.ndindex(dy.shape):
        for place, (i, j) in _window(g, p, q):
            if place == argmax[n, p, q, c]:
                dx[n, i, j, c] += dy[n, p, q, c]
    return dx


def _averaged(g, p, q):
    return g.r * g.s if g.count_include_pad else len(list(_window(g, p, q)))


def avgpool2d_forward(x, g):
    y = np.zeros((len(x), g.p, g.q, g.c))
    for n, p, q, c in np.ndindex(y.shape):
        y[n, p, q, c] = sum(float(x[n, i, j, c]) for _, (i, j) in _window(g, p, q)) / _averaged(g, p, q)
    return y


def avgpool2d_backward(dy, g):
    dx = np.zeros((len(dy), g.h, g.w, g.c))
    for n, p, q, c in np.ndindex(dy.shape):
        for _, (i, j) in _window(g, p, q):
            dx[n, i, j, c] += dy[n, p, q, c] / _averaged(g, p, q)
    return dx


def activate(v, activation):
    """The activation of one number."""
    if activation.code == 1:
        return v if v > 0 or v != v else 0.0
    if activation.code == 2:
        return v if v > 0 else activation.alpha * expm1(v)
    if activation.code == 4:
        return v if v > 0 else activation.alpha * v
    if activation.code == 5:
        return v / (1 + exp(-v)) if v > -700 or v != v else 0.0
    return tanh(v) if activation.code == 3 else v


def slope(v, activation):
    """The derivative of the activation at its input v."""
    if activation.code == 1:
        return 1.0 if v > 0 else 0.0
    if activation.code == 2:
        return 1.0 if v > 0 else activation.alpha * exp(v)
    if activation.code == 4:
        return 1.0 if v > 0 else activation.alpha
    if activation.code == 5:
        s = 1 / (1 + exp(-v))
        return s * (1 + v * (1 - s))
    return 1 - tanh(v) ** 2 if activation.code == 3 else 1.0


def dense_forward(x, weight, bias, activation):
    """y, and z before the activation."""
    z = np.zeros((x.shape[0], weight.shape[1]))
    for n, k in np.ndindex(z.shape):
        z[n, k] = sum(float(x[n, c]) * float(weight[c, k]) for c in range(x.shape[1]))
        z[n, k] += bias[k] if len(bias) else 0.0
    y = np.zeros(z.shape)
    for at in np.ndindex(z.shape):
        y[at] = activate(float(z[at]), activation)
    return y, z


def dense_backward(x, weight, z, dy, activation):
    """dx, dw, db."""
    dx, dw, db = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(weight.shape[1])
    for n, k in np.ndindex(dy.shape):
        dz = float(dy[n, k]) * slope(float(z[n, k]), activation)
        db[k] += dz
        for c in range(x.shape[1]):
            dx[n, c] += dz * weight[c, k]
            dw[c, k] += dz * x[n, c]
    return dx, dw, db


def softmax(logits):
    proba = np.zeros(logits.shape)
    for n, row in enumerate(logits):
        powers = [exp(float(v) - float(max(row))) for v in row]
        for k, power in enumerate(powers):
            proba[n, k] = power / sum(powers)
    return proba


def softmax_cross_entropy(logits, labels, weights, smoothing):
    """losses, dlogits."""
    n_classes, total = logits.shape[1], sum(float(w) for w in weights)
    proba = softmax(logits)
    losses, dlogits = np.zeros(len(logits)), np.zeros(logits.shape)
    for n, k in np.ndindex(logits.shape):
        target = smoothing / n_classes + (1 - smoothing if k == labels[n] else 0.0)
        losses[n] -= weights[n] * target * log(proba[n, k])
        if total:
            dlogits[n, k] = weights[n] * (proba[n, k] - target) / total
    return losses, dlogits
