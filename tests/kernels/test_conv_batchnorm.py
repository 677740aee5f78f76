"""A convolution, batch normalisation, ReLU and the sum with another branch as one kernel."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastcnn.engine.ops import IDENTITY, activation, identity_pool
from fastcnn.kernels import reference
from fastcnn.kernels.cpu import backend as cpu
from fastcnn.kernels.cpu import caches, norm, winograd_backward
from fastcnn.kernels.cpu.winograd import block_edges
from tests.cases import CONV_CASES, WINOGRAD_CASES
from tests.kernels import harness
from tests.kernels.harness import assert_close, none, same_bits_on_threads

EPSILON, MOMENTUM = 1e-3, 0.9
RELU = activation("relu")
DIRECT = [case for case in CONV_CASES if case.groups == 1 and case.dilation == 1][::3]
CASES = [(case, tile) for case in WINOGRAD_CASES for tile in (2, 4, 5, 7)] + [(case, 0) for case in DIRECT]
PARAMS = [
    pytest.param(
        case, tile, id=f"{case.name}-{tile}", marks=[pytest.mark.small] if case.small and tile in (0, 4, 7) else []
    )
    for case, tile in CASES
]
BACKENDS = [pytest.param(cpu, id="cpu"), pytest.param(reference, id="reference")]


class Problem:
    """A case with random numbers."""

    def __init__(self, case, tile, dtype, seed=0, alignment=1):
        self.alignment = alignment
        rng = np.random.default_rng(seed)
        self.g = case.geometry._replace(winograd=tile)
        self.x, self.weight, _, self.dy = harness.conv_arrays(self.g, case.n, dtype, rng)
        k = self.g.k
        self.gamma, self.beta = (1 + 0.3 * rng.standard_normal(k)).astype(dtype), rng.standard_normal(k).astype(dtype)
        self.gamma[::3] *= -1
        self.running = rng.standard_normal(k).astype(dtype), (1 + rng.random(k)).astype(dtype)
        self.other = rng.standard_normal(self.dy.shape).astype(dtype)
        self.beside = rng.standard_normal(self.x.shape).astype(dtype)

    def forward(self, backend, other=True, **changed):
        """z, y, mean, inv_std and the running statistics after it."""
        x, weight, gamma, beta = (changed.get(what, getattr(self, what)) for what in ("x", "weight", "gamma", "beta"))
        with harness.Outputs(self.alignment) as out:
            z, y = out(self.dy.shape, x.dtype), out(self.dy.shape, x.dtype)
            mean, inv_std, *moved = (out((self.g.k,), x.dtype) for _ in range(4))
            for array, value in zip(moved, self.running, strict=True):
                array[...] = value
            scratch = harness._forward_scratch(backend, self.g, identity_pool(*self.dy.shape[1:]), len(x), x.dtype, out)
            backend.conv2d_batchnorm_forward(
                x, weight, gamma, beta, *moved, MOMENTUM, EPSILON, self.g, RELU,
                self.other if other else none(4, x.dtype), z, y, mean, inv_std, scratch,
            )  # fmt: skip
        return z, y, mean, inv_std, *moved

    def backward(self, backend, forward, wanted=(True, True), beside=False):
        """dx, plus self.beside if it is asked for, dw, dgamma, dbeta."""
        z, _, mean, inv_std, *_ = forward
        normalisation = self.gamma, self.beta, mean, inv_std
        with harness.Outputs(self.alignment) as out:
            outputs = [out(a.shape, a.dtype, want) for a, want in zip((self.x, self.weight), wanted, strict=True)]
            outputs += [out((self.g.k,), self.x.dtype) for _ in range(2)]
            dz = out(z.shape, z.dtype, self.g.winograd == 0 or len(self.x) == 0)
            pool = identity_pool(*self.dy.shape[1:])
            scratch = harness._backward_scratch(backend, self.g, pool, len(self.x), self.x.dtype, out)
            before = self.dy.copy()
            backend.conv2d_batchnorm_backward(
                self.x, self.weight, z, *normalisation, self.dy, self.g, RELU,
                self.beside if beside else none(4, z.dtype), *outputs, dz, scratch,
            )  # fmt: skip
            assert_array_equal(self.dy, before)
        return tuple(outputs)


def one_after_the_other(p, forward):
    """The gradients, by the kernels of the parts."""
    z, _, mean, inv_std, *_ = forward
    c, pool = p.g.k, identity_pool(*p.dy.shape[1:])
    dz, dgamma, dbeta = np.empty_like(p.dy), np.empty_like(p.gamma), np.empty_like(p.beta)
    rows, dy = z.reshape(-1, c), p.dy.reshape(-1, c)
    cpu.batchnorm_backward(
        rows, p.gamma, p.beta, mean, inv_std, rows, dy, RELU, dz.reshape(-1, c), dgamma, dbeta
    )  # fmt: skip
    dx, dw = np.empty_like(p.x), np.empty_like(p.weight)
    with harness.Outputs() as out:
        scratch = harness._backward_scratch(cpu, p.g, pool, len(p.x), p.x.dtype, out)
        cpu.conv2d_block_backward(
            p.x, p.weight, dz, none(4, np.uint8), dz, p.g, IDENTITY, pool, dx, dw, none(1, p.x.dtype), scratch
        )  # fmt: skip
    return dx, dw, dgamma, dbeta


@pytest.mark.parametrize(("case", "tile"), PARAMS)
def test_is_one_after_the_other(case, tile, dtype):
    p = Problem(case, tile, dtype)
    z, y, mean, inv_std, *moved = found = same_bits_on_threads(lambda: p.forward(cpu))
    conv = harness.conv2d_forward(cpu, p.x, p.weight, none(1, dtype), p.g)
    assert_array_equal(z, conv)
    wide = [a.astype(np.float64) for a in (z.reshape(-1, p.g.k), p.gamma, p.beta, *p.running)]
    expected = harness.batchnorm_forward(reference, *wide, MOMENTUM, EPSILON)
    if len(p.x):
        size = np.abs(wide[0]).mean(0) + np.abs(wide[0][0])
        terms = (np.abs(wide[0]) + size) * expected[2] * np.abs(p.gamma) + np.abs(p.beta)
        other = p.other.reshape(terms.shape)
        assert_close(y.reshape(terms.shape), np.maximum(expected[0], 0) + other, terms + np.abs(other))
        assert_close(mean, expected[1], size)
        assert_close(inv_std, expected[2], expected[2] * (1 + (size * expected[2]) ** 2))
    for array, value in zip(moved, expected[3:], strict=True):
        assert_close(array, value, np.abs(value) + (1 + size**2 if len(p.x) else 0))
    assert_array_equal(p.forward(cpu, other=False)[1] + p.other, y)

    gradients = same_bits_on_threads(lambda: p.backward(cpu, found))
    for gradient, value in zip(gradients, one_after_the_other(p, found), strict=True):
        assert_array_equal(gradient, value)
    dx, *rest = p.backward(cpu, found, beside=True)
    assert_array_equal(dx, gradients[0] + p.beside)
    for gradient, value in zip(rest, gradients[1:], strict=True):
        assert_array_equal(gradient, value)


@pytest.mark.parametrize(("case", "tile"), PARAMS[::3])
def test_past_the_caches_is_the_same(case, tile, dtype, monkeypatch):
    p, past = Problem(case, tile, dtype, alignment=caches.LINE), []

    def results():
        found = p.forward(cpu)
        return *found, *p.backward(cpu, found), p.backward(cpu, found, beside=True)[0]

    expected = results()
    monkeypatch.setattr(caches, "last_cache", lambda: 1)
    for where in (norm, winograd_backward):
        monkeypatch.setattr(where, "goes_past", lambda *args: past.append(caches.goes_past(*args)) or past[-1])
    for array, value in zip(same_bits_on_threads(results), expected, strict=True):
        assert_array_equal(array, value)
    if len(p.x) and p.g.k * np.dtype(dtype).itemsize % caches.LINE == 0:
        assert any(past)


@pytest.mark.parametrize("tile", [0, 7])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_by_central_differences(backend, tile):
    case = next(case for case in WINOGRAD_CASES if case.name == "one tile")._replace(n=3)
    p, rng = Problem(case, tile, np.float64, seed=4), np.random.default_rng(1)
    dx, dw, dgamma, dbeta = p.backward(backend, p.forward(backend))

    def loss(**changed):
        return float((p.dy * p.forward(backend, **changed)[1]).sum())

    harness.directional_gradient_check(lambda v: loss(x=v), p.x, dx, rng)
    harness.directional_gradient_check(lambda v: loss(weight=v), p.weight, dw, rng)
    harness.elementwise_gradient_check(lambda v: loss(gamma=v), p.gamma, dgamma)
    harness.elementwise_gradient_check(lambda v: loss(beta=v), p.beta, dbeta)


@pytest.mark.parametrize("tile", [0, 7])
def test_only_what_is_wanted(tile, dtype):
    case = next(case for case in WINOGRAD_CASES if case.name == "one tile")
    p = Problem(case, tile, dtype)
    found = p.forward(cpu)
    whole = p.backward(cpu, found)
    for wanted in ((False, True), (True, False)):
        for part, expected in zip(p.backward(cpu, found, wanted), whole, strict=True):
            if part.size:
                assert_array_equal(part, expected)
    for backend in (cpu, reference):  # nor is anything added to what is not
        assert p.backward(backend, found, (False, True), beside=True)[0].size == 0


@pytest.mark.small
@pytest.mark.parametrize("case", harness.case_params(WINOGRAD_CASES))
def test_blocks_cover_every_pixel_once(case, dtype):
    for tile in (2, 4, 5, 7):
        g = case.geometry._replace(winograd=tile)
        if case.n:
            edges = block_edges(g, case.n, np.dtype(dtype).itemsize)
            assert edges[0] == 0 and edges[-1] == case.n * g.p * g.q
            assert (np.diff(edges) > 0).all()


def test_nan_is_seen(dtype):
    case = next(case for case in WINOGRAD_CASES if case.name == "one tile")
    p = Problem(case, 7, dtype)
    p.x[0, 1, 2, 3] = np.nan
    z, y, mean, *_ = found = p.forward(cpu)
    assert np.isnan(z).any() and np.isnan(mean).all() and np.isnan(y).all()
    assert np.isnan(p.backward(cpu, found)[1]).all()
