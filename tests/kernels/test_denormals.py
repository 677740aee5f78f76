"""Denormal numbers are zeros in kernels, on every lane, and what they are elsewhere."""

import numba
import numpy as np
import pytest

from fastcnn.kernels.cpu import backend, denormals, runtime
from fastcnn.kernels.cpu.dense import BLAS_WEIGHTS
from fastcnn.kernels.cpu.launch import Kernel, launch, record, unpack
from fastcnn.training.optimizers import Matrix, MuonSettings
from tests.kernels import harness

pytestmark = [
    pytest.mark.small,
    pytest.mark.skipif(
        bool(numba.config.DISABLE_JIT) or not (denormals._X86 or denormals._ARM), reason="about a processor's setting"
    ),
]


@Kernel
def _halve(start, stop, lane, args):
    x, y = unpack(args)
    for i in range(start, stop):
        y[i] = x[i] * x.dtype.type(0.5)


def denormal(n, dtype):
    """Numbers that are halved to half the smallest normal one, and to less, with signs."""
    tiny = np.finfo(dtype).tiny
    return np.resize(np.array([tiny, -tiny / 4, tiny / 1024, -tiny], dtype), n)


def here_they_are_numbers(dtype):
    x = denormal(64, dtype)
    return np.count_nonzero(x * dtype(0.5)) == 64


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_read_and_write_zeros(dtype, lanes, monkeypatch):
    monkeypatch.setattr(runtime, "max_threads", lambda asked: asked)
    x, y = denormal(100_000, dtype), np.ones(100_000, dtype)
    with runtime.threads(lanes):
        for _ in range(20):  # other lanes come when they can
            y[:] = 1
            launch(_halve, x.size, 1 << 20, x, y)
            assert not y.any()
        y[:] = 1
        record([(lambda: launch(_halve, x.size, 1 << 20, x, y), ())])()
        assert not y.any()
    assert here_they_are_numbers(dtype)


def test_normal_numbers_stay():
    x, y = np.float32([np.finfo(np.float32).tiny * 2, 1, np.inf, np.nan, 0]), np.ones(5, np.float32)
    launch(_halve, x.size, 1, x, y)
    np.testing.assert_array_equal(y, x / 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_of_blas(dtype):
    """Layers whose weight stays in no cache are multiplied by BLAS."""
    n_in, n_out = 1024, BLAS_WEIGHTS // 1024
    x, weight = np.ones((2, n_in), dtype), np.zeros((n_in, n_out), dtype)
    x[:, 0], weight[0] = np.finfo(dtype).tiny, 0.5
    assert np.all(x[:, :1] * weight[:1])
    assert not harness.dense_forward(backend, x, weight, np.zeros(n_out, dtype)).any()
    assert here_they_are_numbers(dtype)


def test_an_error_within_the_block():
    with pytest.raises(KeyError), denormals.flushed():
        assert not here_they_are_numbers(np.float32)
        raise KeyError
    assert here_they_are_numbers(np.float32)


def test_momentum_that_no_gradient_comes_to_ends_at_zero():
    """It would shrink to a denormal number, and no further: steps of the recipes took half as long again from there."""
    matrix = Matrix(0, 8, 8)
    params, grads, m = np.ones(64, np.float32), np.zeros(64, np.float32), np.ones(64, np.float32)
    scratch = np.empty(backend.muon_scratch((matrix,)), np.float32)
    settings = MuonSettings(learning_rate=0.01, momentum=0.9, nesterov=True, decay=0.01, grad_scale=1.0)
    for _ in range(1200):
        backend.muon_update(params, grads, m, (matrix,), settings, scratch)
    assert not m.any() and np.isfinite(params).all()
