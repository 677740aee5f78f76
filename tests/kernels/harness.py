"""How tests call kernels: outputs and scratch are allocated here, filled with NaN, between guards.

`Outputs` hands out arrays that lie inside larger ones; when its block ends, it looks whether a kernel wrote
outside of them. The functions named after kernels call one kernel of a backend so, and return its outputs.
"""

import numpy as np
import pytest

from fastcnn.engine.ops import IDENTITY, identity_pool
from fastcnn.kernels.cpu import launch, runtime

GUARD = 64  # elements on either side
FLOAT_GUARD, INT_GUARD = -7.0e7, 173
TOLERANCE = 64  # units of rounding, of the sum of the magnitudes of all terms


def case_params(cases):
    """The cases as pytest parameters; the small ones marked."""
    return [pytest.param(c, id=c.name, marks=[pytest.mark.small] if c.small else []) for c in cases]


class Outputs:
    """Allocates what kernels write to, and on leaving fails if they wrote elsewhere. Arrays begin at multiples of
    `alignment` bytes.
    """

    def __init__(self, alignment=1):
        self.alignment = alignment

    def __enter__(self):
        self._guarded = []
        return self

    def __call__(self, shape, dtype, wanted=True):
        """An array to write to; of size zero where it is not wanted, and then nothing may be written there."""
        dtype = np.dtype(dtype)
        guard, fill = (FLOAT_GUARD, np.nan) if dtype.kind == "f" else (INT_GUARD, INT_GUARD + 1)
        size = int(np.prod(shape))
        room = -(-self.alignment // dtype.itemsize)
        whole = np.full(size + 2 * GUARD + room, guard, dtype)
        shift = -whole[GUARD:].ctypes.data % self.alignment // dtype.itemsize
        whole = whole[shift : len(whole) - room + shift]
        inner = whole[GUARD : GUARD + size]
        if not wanted:
            self._guarded.append((whole, guard))
            return inner[:0].reshape((0,) * len(shape))
        inner[...] = fill
        self._guarded += [(whole[:GUARD], guard), (whole[GUARD + size :], guard)]
        return inner.reshape(shape)

    def __exit__(self, exception, *_):
        if exception is None:
            for around, guard in self._guarded:
                assert (around == guard).all(), "a kernel wrote outside of its outputs"


def none(ndim, dtype):
    """An output that is not wanted, or a bias that is not there."""
    return np.empty((0,) * ndim, dtype)


def argmax_dtype(pool):
    return np.uint8 if pool.r * pool.s <= 256 else np.int32


def same_bits_on_threads(call):
    """The outputs of `call()` on one thread, after seeing that two threads give the same bits.

    Two threads run however little there is to do, or small cases would show nothing.
    """
    with runtime.threads(1):
        one = call()
    with runtime.threads(2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "SMALL", 0)
        two = call()
    for a, b in zip(as_tuple(one), as_tuple(two), strict=True):
        assert_same_bits(a, b)
    return one


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def assert_same_bits(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def assert_close(actual, expected, magnitude, tolerance=TOLERANCE):
    """|actual - expected| within rounding; `magnitude`: the sum of the magnitudes of the terms."""
    assert actual.shape == expected.shape
    eps = np.finfo(actual.dtype).eps
    error = np.abs(actual.astype(np.float64) - expected)
    allowed = tolerance * eps * (np.abs(magnitude) + np.finfo(np.float32).tiny)
    bad = ~((error <= allowed) | (np.isnan(actual) & np.isnan(expected)))
    assert not bad.any(), (
        f"{bad.sum()} of {bad.size} differ, first at {tuple(int(i[0]) for i in np.nonzero(bad))}: "
        f"{actual[bad][0]!r} is not {np.broadcast_to(expected, actual.shape)[bad][0]!r}"
    )


def unusual_twins(array):
    """The same values, in a read-only array and in one that is not contiguous."""
    read_only = array.copy()
    read_only.flags.writeable = False
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan if array.dtype.kind == "f" else 0, array.dtype)
    wide[..., ::2] = array
    backwards = np.asfortranarray(array)[::-1].copy(order="F")[::-1]
    return read_only, wide[..., ::2], backwards


def directional_gradient_check(loss, x, gradient, rng, directions=3):
    """`gradient` of `loss` at x (float64) against central differences along random directions."""
    step = 1e-6
    for _ in range(directions):
        v = rng.standard_normal(x.shape)
        numeric = (loss(x + step * v) - loss(x - step * v)) / (2 * step)
        analytic = float((gradient * v).sum())
        scale = float(np.abs(gradient * v).sum()) + 1e-3
        assert abs(numeric - analytic) <= 2e-7 * scale + 2e-9 * abs(loss(x)), (numeric, analytic)


def elementwise_gradient_check(loss, x, gradient):
    """`gradient` of `loss` at x (float64) against central differences in each element."""
    step, numeric = 1e-6, np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        numeric[at] = (loss(up) - loss(down)) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------------------------------------ convolution


def conv_arrays(geometry, n, dtype, rng):
    """x, weight, bias, dy."""
    g = geometry
    shapes = ((n, g.h, g.w, g.c), (g.r, g.s, g.c // g.groups, g.k), (g.k,), (n, g.p, g.q, g.k))
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def _no_pool(g):
    return identity_pool(g.p, g.q, g.k)


def _forward_scratch(backend, g, pool, n, dtype, out):
    return out((backend.conv2d_forward_scratch(g, pool, n, dtype, runtime.lanes()),), dtype)


def _backward_scratch(backend, g, pool, n, dtype, out):
    return out((backend.conv2d_backward_scratch(g, pool, n, dtype, runtime.lanes()),), dtype)


def conv2d_forward(backend, x, weight, bias, g):
    with Outputs() as out:
        y = out((len(x), g.p, g.q, g.k), x.dtype)
        backend.conv2d_forward(x, weight, bias, g, y, _forward_scratch(backend, g, _no_pool(g), len(x), x.dtype, out))
    return y


def conv2d_backward_input(backend, dy, weight, g):
    with Outputs() as out:
        dx = out((len(dy), g.h, g.w, g.c), dy.dtype)
        scratch = _backward_scratch(backend, g, _no_pool(g), len(dy), dy.dtype, out)
        backend.conv2d_backward_input(dy, weight, g, dx, scratch)
    return dx


def conv2d_backward_weight(backend, x, dy, g, wants=(True, True)):
    with Outputs() as out:
        dw = out((g.r, g.s, g.c // g.groups, g.k), dy.dtype, wants[0])
        db = out((g.k,), dy.dtype, wants[1])
        scratch = _backward_scratch(backend, g, _no_pool(g), len(dy), dy.dtype, out)
        backend.conv2d_backward_weight(x, dy, g, dw, db, scratch)
    return dw, db


def conv2d_block_forward(backend, x, weight, bias, g, activation, pool, want_argmax=True):
    """y, argmax."""
    with Outputs() as out:
        shape = (len(x), pool.p, pool.q, g.k)
        y = out(shape, x.dtype)
        pooled = pool.r * pool.s > 1 or pool.stride_h * pool.stride_w > 1
        argmax = out(shape, argmax_dtype(pool), pooled and want_argmax)
        scratch = _forward_scratch(backend, g, pool, len(x), x.dtype, out)
        backend.conv2d_block_forward(x, weight, bias, g, activation, pool, y, argmax, scratch)
    return y, argmax


def conv2d_block_backward(backend, x, weight, y, argmax, dy, g, activation, pool, wants=(True, True, True)):
    """dx, dw, db."""
    with Outputs() as out:
        dx = out((len(dy), g.h, g.w, g.c), dy.dtype, wants[0])
        dw = out((g.r, g.s, g.c // g.groups, g.k), dy.dtype, wants[1])
        db = out((g.k,), dy.dtype, wants[2])
        scratch = _backward_scratch(backend, g, pool, len(dy), dy.dtype, out)
        before = dy.copy()
        backend.conv2d_block_backward(x, weight, y, argmax, dy, g, activation, pool, dx, dw, db, scratch)
        np.testing.assert_array_equal(dy, before)
    return dx, dw, db


# ------------------------------------------------------------------------------------------------------ dense


def dense_forward(backend, x, weight, bias, activation=IDENTITY):
    (n, n_in), n_out = x.shape, weight.shape[1]
    with Outputs() as out:
        y = out((n, n_out), x.dtype)
        scratch = out((backend.dense_forward_scratch(n, n_in, n_out, x.dtype, runtime.lanes()),), x.dtype)
        backend.dense_forward(x, weight, bias, activation, y, scratch)
    return y


def dense_backward(backend, x, weight, y, dy, activation=IDENTITY, wants=(True, True, True)):
    """dx, dw, db."""
    (n, n_in), n_out = x.shape, weight.shape[1]
    with Outputs() as out:
        dx = out(x.shape, x.dtype, wants[0])
        dw = out(weight.shape, x.dtype, wants[1])
        db = out((n_out,), x.dtype, wants[2])
        scratch = out((backend.dense_backward_scratch(n, n_in, n_out, x.dtype, runtime.lanes()),), x.dtype)
        before = dy.copy()
        backend.dense_backward(x, weight, y, dy, activation, dx, dw, db, scratch)
        np.testing.assert_array_equal(dy, before)
    return dx, dw, db


# ---------------------------------------------------------------------------------------------------- pooling


def maxpool2d_forward(backend, x, g, want_argmax=True):
    """y, argmax."""
    with Outputs() as out:
        shape = (len(x), g.p, g.q, g.c)
        y = out(shape, x.dtype)
        argmax = out(shape, argmax_dtype(g), want_argmax)
        backend.maxpool2d_forward(x, g, y, argmax)
    return y, argmax


def maxpool2d_backward(backend, dy, argmax, g):
    with Outputs() as out:
        dx = out((len(dy), g.h, g.w, g.c), dy.dtype)
        backend.maxpool2d_backward(dy, argmax, g, dx)
    return dx


def avgpool2d_forward(backend, x, g):
    with Outputs() as out:
        y = out((len(x), g.p, g.q, g.c), x.dtype)
        backend.avgpool2d_forward(x, g, y)
    return y


def avgpool2d_backward(backend, dy, g):
    with Outputs() as out:
        dx = out((len(dy), g.h, g.w, g.c), dy.dtype)
        backend.avgpool2d_backward(dy, g, dx)
    return dx


# ------------------------------------------------------------------------- elementwise, normalisation, losses


def bias_forward(backend, x, bias):
    with Outputs() as out:
        y = out(x.shape, x.dtype)
        backend.bias_forward(x, bias, y)
    return y


def bias_backward(backend, dy):
    with Outputs() as out:
        db = out(dy.shape[1:], dy.dtype)
        backend.bias_backward(dy, db)
    return db


def activation_forward(backend, x, activation):
    with Outputs() as out:
        y = out(x.shape, x.dtype)
        backend.activation_forward(x, activation, y)
    return y


def activation_backward(backend, y, dy, activation):
    with Outputs() as out:
        dx = out(y.shape, y.dtype)
        backend.activation_backward(y, dy, activation, dx)
    return dx


def add_forward(backend, a, b, activation):
    with Outputs() as out:
        y = out(a.shape, a.dtype)
        backend.add_forward(a, b, activation, y)
    return y


def spatial_dropout_forward(backend, x, rate, state):
    """y, mask."""
    with Outputs() as out:
        y, mask = out(x.shape, x.dtype), out((x.shape[0], x.shape[2]), np.uint8)
        backend.spatial_dropout_forward(x, rate, state, y, mask)
    return y, mask


def spatial_dropout_backward(backend, dy, mask, rate):
    with Outputs() as out:
        dx = out(dy.shape, dy.dtype)
        backend.spatial_dropout_backward(dy, mask, rate, dx)
    return dx


def dropout_forward(backend, x, rate, state):
    """y, mask."""
    with Outputs() as out:
        y, mask = out(x.shape, x.dtype), out(x.shape, np.uint8)
        backend.dropout_forward(x, rate, state, y, mask)
    return y, mask


def dropout_backward(backend, dy, mask, rate):
    with Outputs() as out:
        dx = out(dy.shape, dy.dtype)
        backend.dropout_backward(dy, mask, rate, dx)
    return dx


def batchnorm_forward(backend, x, gamma, beta, running_mean, running_var, momentum, epsilon, activation=IDENTITY):
    """y, mean, inv_std, and the running statistics after the call (those given stay as they are)."""
    with Outputs() as out:
        y, mean, inv_std = (out(shape, x.dtype) for shape in (x.shape, gamma.shape, gamma.shape))
        moved = out(gamma.shape, x.dtype), out(gamma.shape, x.dtype)
        moved[0][...], moved[1][...] = running_mean, running_var
        backend.batchnorm_forward(x, gamma, beta, *moved, momentum, epsilon, activation, y, mean, inv_std)
    return y, mean, inv_std, *moved


def batchnorm_inference(backend, x, gamma, beta, running_mean, running_var, epsilon, activation=IDENTITY):
    with Outputs() as out:
        y = out(x.shape, x.dtype)
        backend.batchnorm_inference(x, gamma, beta, running_mean, running_var, epsilon, activation, y)
    return y


def batchnorm_pool_forward(backend, x, gamma, beta, running_mean, running_var, momentum, epsilon, activation, g):
    """y, argmax, mean, inv_std, and the running statistics after the call."""
    with Outputs() as out:
        shape = (len(x), g.p, g.q, g.c)
        y, argmax, mean, inv_std = out(shape, x.dtype), out(shape, np.uint8), *(out(gamma.shape, x.dtype) for _ in "mi")
        moved = out(gamma.shape, x.dtype), out(gamma.shape, x.dtype)
        moved[0][...], moved[1][...] = running_mean, running_var
        backend.batchnorm_pool_forward(
            x, gamma, beta, *moved, momentum, epsilon, activation, g, y, argmax, mean, inv_std
        )
    return y, argmax, mean, inv_std, *moved


def batchnorm_pool_backward(backend, x, gamma, mean, inv_std, y, argmax, dy, activation, g, want_dx=True):
    """dx, dgamma, dbeta."""
    with Outputs() as out:
        dx = out(x.shape, x.dtype, want_dx)
        dgamma, dbeta = out(gamma.shape, x.dtype), out(gamma.shape, x.dtype)
        args = x, gamma, mean, inv_std, y, argmax, dy, activation, g, dx, dgamma, dbeta
        backend.batchnorm_pool_backward(*args)
    return dx, dgamma, dbeta


def batchnorm_fold(backend, weight, bias, gamma, beta, running_mean, running_var, epsilon):
    """new_weight, new_bias."""
    with Outputs() as out:
        new_weight, new_bias = out(weight.shape, weight.dtype), out(gamma.shape, weight.dtype)
        backend.batchnorm_fold(weight, bias, gamma, beta, running_mean, running_var, epsilon, new_weight, new_bias)
    return new_weight, new_bias


def batchnorm_backward(backend, x, gamma, mean, inv_std, dy, want_dx=True, y=None, beta=None, activation=IDENTITY):
    """dx, dgamma, dbeta; y and beta only where there is an activation."""
    with Outputs() as out:
        dx = out(x.shape, x.dtype, want_dx)
        dgamma, dbeta = out(gamma.shape, x.dtype), out(gamma.shape, x.dtype)
        y, beta = dy if y is None else y, gamma if beta is None else beta
        backend.batchnorm_backward(x, gamma, beta, mean, inv_std, y, dy, activation, dx, dgamma, dbeta)
    return dx, dgamma, dbeta


def softmax(backend, logits):
    with Outputs() as out:
        proba = out(logits.shape, logits.dtype)
        backend.softmax(logits, proba)
    return proba


def softmax_cross_entropy(backend, logits, labels, weights, smoothing, want_dlogits=True):
    """losses, dlogits."""
    with Outputs() as out:
        losses = out(labels.shape, logits.dtype)
        dlogits = out(logits.shape, logits.dtype, want_dlogits)
        backend.softmax_cross_entropy(logits, labels, weights, smoothing, losses, dlogits)
    return losses, dlogits
