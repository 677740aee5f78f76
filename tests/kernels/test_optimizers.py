"""The update kernels over flat vectors."""

from math import sqrt

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastcnn.kernels import reference
from fastcnn.training.optimizers import AdamSettings, Matrix, MuonSettings, SGDSettings
from tests.kernels.harness import Outputs, assert_close, same_bits_on_threads

SIZES = [pytest.param(n, marks=[pytest.mark.small] if n < 300 else []) for n in (0, 1, 7, 130, 1000, 100_003)]
ADAM = {
    "plain": AdamSettings(1e-3, 0.9, 0.999, 1e-8, 0.0, 0.0, 0, 1.0, 0.1, 0.001),
    "l2": AdamSettings(1e-2, 0.9, 0.999, 1e-8, 0.01, 0.0, 4, 1.0, 0.19, 0.002),
    "decoupled decay": AdamSettings(1e-2, 0.8, 0.99, 1e-7, 0.0, 0.1, 5, 0.25, 0.5, 0.3),
}
SGD = {
    "plain": SGDSettings(0.1, 0.0, False, 0.0, 0, 1.0),
    "momentum": SGDSettings(0.1, 0.9, False, 0.01, 4, 0.5),
    "nesterov": SGDSettings(0.1, 0.9, True, 0.01, 5, 0.5),
}

MUON = {
    "plain": MuonSettings(0.1, 0.0, False, 0.0, 1.0),
    "momentum": MuonSettings(0.1, 0.9, False, 0.01, 0.5),
    "nesterov": MuonSettings(0.1, 0.95, True, 0.1, 0.5),
}
MATRICES = [Matrix(0, 9, 4), Matrix(40, 4, 9), Matrix(76, 1, 5), Matrix(90, 7, 1), Matrix(97, 6, 6)]
BIG = [Matrix(16, 288, 48), Matrix(14_000, 70, 150)]


def start(n, dtype):
    """params, grads and two vectors of state."""
    rng = np.random.default_rng(n)
    vectors = rng.standard_normal((4, n))
    return [v.astype(dtype) for v in (vectors[0], vectors[1], 0.1 * vectors[2], np.square(vectors[3]))]


def update(kernel, n, dtype, settings, n_state):
    """What the kernel makes of `start`: params and state."""
    params, grads, *state = start(n, dtype)
    with Outputs() as out:
        changed = [out((n,), dtype) for _ in range(1 + n_state)]
        for array, value in zip(changed, (params, *state), strict=False):
            array[...] = value
        before = grads.copy()
        kernel(changed[0], grads, *changed[1:], settings)
        assert_array_equal(grads, before)
    return tuple(changed)


def naive_adam(p, grad, m, v, s, decays):
    g = s.grad_scale * grad + (s.l2 * p if decays else 0)
    m = s.beta_1 * m + (1 - s.beta_1) * g
    v = s.beta_2 * v + (1 - s.beta_2) * g * g
    step = m / s.correction_1 / (sqrt(v / s.correction_2) + s.epsilon)
    return p - s.learning_rate * (step + (s.decay * p if decays else 0)), m, v


def naive_sgd(p, grad, velocity, s, decays):
    g = s.grad_scale * grad + (s.l2 * p if decays else 0)
    velocity = s.momentum * velocity - s.learning_rate * g
    return p + (s.momentum * velocity - s.learning_rate * g if s.nesterov else velocity), velocity


@pytest.mark.small
@pytest.mark.parametrize("name", ADAM)
def test_adam_formula(backend, name):
    settings = ADAM[name]
    vectors = start(9, np.float64)
    expected = [naive_adam(*(float(a[i]) for a in vectors), settings, i < settings.n_decay) for i in range(9)]
    actual = update(backend.adam_update, 9, np.float64, settings, 2)
    for a, b in zip(actual, zip(*expected, strict=True), strict=True):
        assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.small
@pytest.mark.parametrize("name", SGD)
def test_sgd_formula(backend, name):
    settings = SGD[name]
    vectors = start(9, np.float64)[:3]
    expected = [naive_sgd(*(float(a[i]) for a in vectors), settings, i < settings.n_decay) for i in range(9)]
    actual = update(backend.sgd_update, 9, np.float64, settings, 1)
    for a, b in zip(actual, zip(*expected, strict=True), strict=True):
        assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def muon(kernels, matrices, dtype, settings):
    """What the kernel makes of `start`: params and mean gradient."""
    n = max((m.start + m.rows * m.columns for m in matrices), default=0) + 3
    params, grads, mean, _ = start(n, dtype)
    with Outputs() as out:
        changed = [out((n,), dtype) for _ in range(2)]
        for array, value in zip(changed, (params, mean), strict=True):
            array[...] = value
        before = grads.copy()
        scratch = out((kernels.muon_scratch(matrices),), dtype)
        kernels.muon_update(changed[0], grads, changed[1], matrices, settings, scratch)
        assert_array_equal(grads, before)
    return tuple(changed)


def muon_by_singular_values(p, grad, m, s):
    """The iteration is odd in x: it keeps singular vectors, and maps each singular value by its polynomial."""
    g = s.grad_scale * grad
    m = s.momentum * m + (1 - s.momentum) * g
    u, values, v = np.linalg.svd(s.momentum * m + (1 - s.momentum) * g if s.nesterov else m, full_matrices=False)
    values /= np.sqrt((values**2).sum()) + 1e-7
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return p - s.learning_rate * (0.2 * np.sqrt(max(p.shape)) * u * values @ v + s.decay * p), m


@pytest.mark.small
@pytest.mark.parametrize("name", MUON)
def test_muon_formula(backend, name):
    actual = muon(backend, MATRICES, np.float64, MUON[name])
    params, grads, mean, _ = start(actual[0].size, np.float64)
    for begin, rows, columns in MATRICES:
        part = slice(begin, begin + rows * columns)
        matrices = [a[part].reshape(rows, columns) for a in (params, grads, mean)]
        params[part], mean[part] = (a.ravel() for a in muon_by_singular_values(*matrices, MUON[name]))
    for a, b in zip(actual, (params, mean), strict=True):
        assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("matrices", [[], MATRICES, BIG], ids=["none", "small", "big"])
def test_muon(backend, matrices, dtype):
    actual = same_bits_on_threads(lambda: muon(backend, matrices, dtype, MUON["nesterov"]))
    expected = muon(reference, matrices, np.float64, MUON["nesterov"])
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, np.abs(b) + 1, tolerance=64)


@pytest.mark.small
def test_muon_of_a_gradient_of_lower_rank_and_of_none(backend, dtype):
    """Singular values of zero stay zero, and what there is gets the length of the others."""
    grads = np.zeros((6, 4), dtype)
    grads[:, 0] = 1e-3
    for gradient in (grads, np.zeros_like(grads)):
        params, mean, matrix = np.zeros(24, dtype), np.zeros(24, dtype), [Matrix(0, 6, 4)]
        scratch = np.empty(backend.muon_scratch(matrix), dtype)
        backend.muon_update(params, gradient.ravel(), mean, matrix, MUON["plain"], scratch)
        length = np.linalg.norm(params) / (0.1 * 0.2 * np.sqrt(6))
        assert 0.65 < length < 1.25 if gradient.any() else length == 0
        assert_array_equal(params.reshape(6, 4)[:, 1:], 0)


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("n", SIZES)
def test_updates(backend, n, share, dtype):
    for kernel, table, n_state in (("adam_update", ADAM, 2), ("sgd_update", SGD, 1)):
        settings = table["decoupled decay" if kernel == "adam_update" else "nesterov"]
        settings = settings._replace(n_decay=int(share * n), l2=0.02)
        actual = same_bits_on_threads(lambda: update(getattr(backend, kernel), n, dtype, settings, n_state))  # noqa: B023
        expected = update(getattr(reference, kernel), n, np.float64, settings, n_state)
        for a, b in zip(actual, expected, strict=True):
            assert_close(a, b, np.abs(b) + 1, tolerance=16)


@pytest.mark.small
def test_nan_in_a_gradient_is_seen(backend, dtype):
    params, grads, m, v = start(6, dtype)
    grads[3] = np.nan
    expected = np.arange(6) == 3
    for kernel, state, settings in (
        ("adam_update", (m, v), ADAM["plain"]),
        ("sgd_update", (m,), SGD["plain"]),
    ):
        changed = params.copy()
        getattr(backend, kernel)(changed, grads, *(a.copy() for a in state), settings)
        assert_array_equal(np.isnan(changed), expected)
    matrix = [Matrix(0, 2, 2)]
    scratch = np.empty(backend.muon_scratch(matrix), dtype)
    backend.muon_update(params, grads, m, matrix, MUON["plain"], scratch)
    assert_array_equal(np.isnan(params), np.arange(6) < 4)


@pytest.mark.parametrize("n", SIZES)
def test_sum_of_squares(backend, n, dtype):
    x = np.random.default_rng(0).standard_normal(n).astype(dtype)

    def total():
        with Outputs() as out:
            squares = out((1,), np.float64)
            backend.sum_squares(x, squares)
        return squares

    assert_allclose(same_bits_on_threads(total), np.square(x.astype(np.float64)).sum(), rtol=1e-12)


@pytest.mark.small
def test_sum_of_squares_of_extremes(backend):
    out = np.zeros(1)
    backend.sum_squares(np.full(10, 1e30, np.float32), out)
    assert_allclose(out, 1e61, rtol=1e-6)
    backend.sum_squares(np.array([1.0, np.nan], np.float32), out)
    assert np.isnan(out[0])
    read_only = np.arange(10.0)[::2]
    read_only.flags.writeable = False
    backend.sum_squares(read_only, out)
    assert out[0] == 120
