"""A convolution of small windows, batch normalisation, activation and pooling as one kernel."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastcnn.engine.fusion import SMALL_WINDOW
from fastcnn.engine.ops import activation, conv_geometry, identity_pool, pool_geometry
from fastcnn.kernels import reference
from fastcnn.kernels.cpu import backend as cpu
from tests.kernels import harness
from tests.kernels.harness import assert_close, same_bits_on_threads

EPSILON, MOMENTUM = 1e-5, 0.9
CASES = {  # images, filters, window, padding, pool
    "grey": ((5, 9, 8, 1), 8, 3, "same", 2),
    "no pooling": ((5, 9, 8, 1), 8, 3, "same", None),
    "colour": ((3, 7, 8, 3), 16, 3, "same", 2),
    "valid": ((4, 9, 11, 2), 8, (2, 4), "valid", None),
    "5x5, overlapping windows": ((3, 9, 9, 1), 9, 5, "same", (3, 2)),
    "1x1": ((6, 5, 4, 4), 8, 1, "same", None),
    "wide padding": ((2, 3, 4, 1), 8, 3, 4, 2),
    "asymmetric padding": ((2, 6, 5, 2), 8, 3, ((2, 0), (0, 3)), None),
    "one image": ((1, 6, 6, 1), 8, 3, "same", 2),
    "bands": ((2, 40, 37, 3), 8, 3, "same", 2),
    "wider than the image": ((3, 16, 1, 1), 8, 5, "same", None),
    "wider than the padded image": ((3, 6, 2, 2), 8, (3, 9), ((1, 1), (8, 4)), (3, 2)),
    "recipe": ((37, 28, 28, 1), 32, 3, "same", 2),
}
SMALL = {"grey", "no pooling", "1x1"}
NAMES = [pytest.param(name, marks=[pytest.mark.small] if name in SMALL else []) for name in CASES]
BACKENDS = [pytest.param(cpu, id="cpu"), pytest.param(reference, id="reference")]


class Problem:
    """A case with random numbers."""

    def __init__(self, name, dtype, act="relu", seed=0):
        shape, k, window, padding, pool = CASES[name]
        rng = np.random.default_rng(seed)
        self.g = conv_geometry(shape[1:], k, window, padding=padding)
        out = self.g.p, self.g.q, k
        sizes = () if pool is None else (pool if isinstance(pool, tuple) else (pool,))
        self.pool = pool_geometry(out, *sizes) if sizes else identity_pool(*out)
        self.act = activation(act)
        self.x = (rng.standard_normal(shape) + 0.5).astype(dtype)
        self.weight = rng.standard_normal((self.g.r, self.g.s, self.g.c, k)).astype(dtype)
        self.gamma, self.beta = (1 + 0.3 * rng.standard_normal(k)).astype(dtype), rng.standard_normal(k).astype(dtype)
        self.gamma[::3] *= -1
        self.running = rng.standard_normal(k).astype(dtype), (1 + rng.random(k)).astype(dtype)
        self.dy = rng.standard_normal((shape[0], self.pool.p, self.pool.q, k)).astype(dtype)

    def forward(self, backend, x=None, weight=None, gamma=None, beta=None):
        """y, argmax, mean, inv_std, the running statistics after it, and what the gradient needs."""
        x, weight = self.x if x is None else x, self.weight if weight is None else weight
        gamma, beta = self.gamma if gamma is None else gamma, self.beta if beta is None else beta
        g, pool, k, taps = self.g, self.pool, self.g.k, self.g.r * self.g.s * self.g.c
        with harness.Outputs() as out:
            shape = len(x), pool.p, pool.q, k
            y = out(shape, x.dtype)
            argmax = out(shape, harness.argmax_dtype(pool), pool.r * pool.s > 1)
            mean, inv_std, *moved = (out((k,), x.dtype) for _ in range(4))
            patches, folded = out((taps + taps**2,), np.float64), (out(weight.shape, x.dtype), out((k,), x.dtype))
            for array, value in zip(moved, self.running, strict=True):
                array[...] = value
            scratch = harness._forward_scratch(backend, g, pool, len(x), x.dtype, out)
            backend.conv2d_norm_forward(
                x, weight, gamma, beta, *moved, MOMENTUM, EPSILON, g, self.act, pool, y, argmax, mean, inv_std,
                patches, *folded, scratch,
            )  # fmt: skip
        return y, argmax, mean, inv_std, *moved, patches

    def backward(self, backend, forward):
        """dw, dgamma, dbeta."""
        y, argmax, mean, inv_std, _, _, patches = forward
        with harness.Outputs() as out:
            dw, dgamma, dbeta = (out(a.shape, a.dtype) for a in (self.weight, self.gamma, self.beta))
            scratch = harness._backward_scratch(backend, self.g, self.pool, len(self.x), self.x.dtype, out)
            before = self.dy.copy()
            backend.conv2d_norm_backward(
                self.x, self.weight, self.gamma, mean, inv_std, patches, y, argmax, self.dy, self.g, self.act,
                self.pool, dw, dgamma, dbeta, scratch,
            )  # fmt: skip
            assert_array_equal(self.dy, before)
        return dw, dgamma, dbeta

    def wide(self):
        """The same in float64."""
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(self, name, value.astype(np.float64))
        self.running = tuple(a.astype(np.float64) for a in self.running)
        return self


@pytest.mark.parametrize("act", ["identity", "relu", "elu"])
@pytest.mark.parametrize("name", NAMES)
def test_is_one_after_the_other(name, act, dtype):
    p, right = Problem(name, dtype, act), Problem(name, dtype, act).wide()
    y, argmax, mean, inv_std, *rest = found = same_bits_on_threads(lambda: p.forward(cpu))
    expected = right.forward(reference)
    terms = np.abs(p.weight).sum((0, 1, 2)).max() * (np.abs(p.x).max() + 1) + 1
    size = terms * (np.abs(expected[3] * p.gamma).max() + 1) + np.abs(p.beta).max()
    assert_close(y, expected[0], np.full(y.shape, size))
    if argmax.size:
        alike = (argmax == expected[1]) | ((y == 0) & (act == "relu"))  # where all are cut off, any of them may win
        assert alike.mean() > 0.99  # all but what ties within rounding
    for actual, value in zip((mean, inv_std, *rest[:2]), expected[2:6], strict=True):
        assert_close(actual, value, np.full(value.shape, terms**2))

    kept = y.astype(np.float64), argmax, *expected[2:]
    actual = same_bits_on_threads(lambda: p.backward(cpu, found))
    for gradient, value in zip(actual, right.backward(reference, kept), strict=True):
        assert_close(gradient, value, np.full(value.shape, size * np.sqrt(p.dy.size) * 4))


@pytest.mark.small
@pytest.mark.parametrize("name", ["grey", "no pooling", "valid"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_by_central_differences(backend, name):
    p, rng = Problem(name, np.float64, "elu", seed=4), np.random.default_rng(1)
    dw, dgamma, dbeta = p.backward(backend, p.forward(backend))

    def loss(**changed):
        return float((p.dy * p.forward(backend, **changed)[0]).sum())

    harness.directional_gradient_check(lambda v: loss(weight=v), p.weight, dw, rng)
    harness.elementwise_gradient_check(lambda v: loss(gamma=v), p.gamma, dgamma)
    harness.elementwise_gradient_check(lambda v: loss(beta=v), p.beta, dbeta)


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_of_images_far_from_zero(backend, dtype):
    p = Problem("grey", dtype)
    p.g = conv_geometry(p.x.shape[1:], 8, 3, padding="valid")
    p.pool = identity_pool(p.g.p, p.g.q, p.g.k)
    p.x = (p.x + 1000).astype(dtype)
    inv_std = p.forward(backend)[3]
    wide = p.wide()
    patches = np.lib.stride_tricks.sliding_window_view(wide.x[..., 0], (3, 3), (1, 2))
    z = np.einsum("npqrs,rsk->npqk", patches - 1000, wide.weight[:, :, 0])
    assert_close(inv_std, 1 / np.sqrt(z.var((0, 1, 2)) + EPSILON), np.full(8, 1.0 if backend is cpu else 1e3))


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_images(backend, dtype):
    p = Problem("grey", dtype)
    p.x, p.dy = p.x[:0], p.dy[:0]
    found = p.forward(backend)
    assert found[0].size == 0
    for moved, before in zip(found[4:6], p.running, strict=True):
        assert_array_equal(moved, before)
    for gradient in p.backward(backend, found):
        assert_array_equal(gradient, 0)


@pytest.mark.small
def test_nan_is_seen(dtype):
    p = Problem("grey", dtype)
    p.x[1, 2, 3, 0] = np.nan
    y, _, mean, *_ = found = p.forward(cpu)
    assert np.isnan(mean).all() and np.isnan(y).all()
    assert np.isnan(p.backward(cpu, found)[1]).all()


def test_windows_of_the_limit():
    CASES["limit"] = (2, 4, 40, 1), 8, (1, SMALL_WINDOW), "valid", None
    p = Problem("limit", np.float64)
    expected = p.forward(reference)
    for actual, value in zip(p.backward(cpu, p.forward(cpu)), p.backward(reference, expected), strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-9, atol=1e-9)
