"""BLAS into the caller's buffer against NumPy's product."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fastcnn.kernels.cpu import _blas

pytestmark = pytest.mark.small

size = st.integers(0, 20)


@given(size, size, size, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=150)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gemm_is_the_product(dtype, m, n, k, trans_a, trans_b):
    rng = np.random.default_rng(m * 441 + n * 21 + k)
    a = rng.standard_normal((k, m) if trans_a else (m, k)).astype(dtype)
    b = rng.standard_normal((n, k) if trans_b else (k, n)).astype(dtype)
    a.setflags(write=False)
    out = rng.standard_normal((m, n)).astype(dtype)
    expected = (a.T if trans_a else a) @ (b.T if trans_b else b)
    _blas.gemm(a, b, out, trans_a=trans_a, trans_b=trans_b)
    assert_allclose(out, expected, rtol=1e-4 if dtype == np.float32 else 1e-12, atol=1e-4)


@pytest.mark.parametrize("k", [0, 3])
def test_out_is_not_read(k):
    out = np.full((2, 4), np.nan)
    _blas.gemm(np.ones((2, k)), np.ones((k, 4)), out)
    assert_array_equal(out, k)


def test_shapes_that_do_not_fit_are_named():
    for a, b, out in [((2, 3), (4, 5), (2, 5)), ((2, 3), (3, 5), (2, 4)), ((2, 3), (3, 5), (3, 5))]:
        with pytest.raises(ValueError, match=rf"{a[0]}, {a[1]}.*{b[0]}, {b[1]}.*{out[0]}, {out[1]}".replace("(", "")):
            _blas.gemm(np.ones(a), np.ones(b), np.ones(out))


def test_mixed_dtypes_and_strided_arrays_are_refused():
    square = np.ones((4, 4))
    with pytest.raises((TypeError, ValueError)):
        _blas.gemm(square, square.astype(np.float32), square.copy())
    with pytest.raises(ValueError, match="contiguous"):
        _blas.gemm(square, square, np.ones((4, 8))[:, ::2])


def test_out_may_not_be_an_operand():
    memory = np.ones((6, 4))
    for a, b, out in [
        (memory[:4], np.ones((4, 4)), memory[2:]),
        (np.ones((4, 4)), memory[:4], memory[:4]),
    ]:
        with pytest.raises(ValueError, match="shares memory"):
            _blas.gemm(a, b, out)
    _blas.gemm(memory[:2, :], np.ones((4, 4)), memory[2:4])
    assert_array_equal(memory[2:4], 4)
