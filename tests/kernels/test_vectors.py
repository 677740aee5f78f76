"""Vectors in kernels."""

import numpy as np
import pytest

from fastcnn.kernels.cpu.launch import Kernel, launch, unpack
from fastcnn.kernels.cpu.runtime import U
from fastcnn.kernels.cpu.vectors import add_to, element, load, spread, store, vector_size, where_positive


@Kernel
def combine(start, stop, lane, args):
    """y = (x + the vector beside it) * 3, whole vectors; then the element 1 of the last."""
    x, y = unpack(args)
    size = vector_size(x)
    value = spread(x, x.dtype.type(0))
    for i in range(start, stop):
        value = (load(x, U(1 + i * size)) + load(x, U(2 + i * size))) * spread(x, x.dtype.type(3))
        store(y, U(1 + i * size), value)
    y[0] = element(value, 1)


@pytest.mark.small
def test_vectors_are_slices(dtype):
    size = vector_size(np.empty(0, dtype))
    x = np.random.default_rng(0).standard_normal(3 * size + 2).astype(dtype)
    y = np.full(3 * size + 2, -1, dtype)
    launch(combine, 3, 0, x, y)
    np.testing.assert_array_equal(y[1:-1], (x[1:-1] + x[2:]) * dtype.type(3))
    assert y[0] == y[2 * size + 2]
    assert y[-1] == -1


@Kernel
def gate(start, stop, lane, args):
    """y = x where x - 1 is above 0 or NaN; and x - 1 added to the sums."""
    x, y, sums = unpack(args)
    one = spread(x, x.dtype.type(1))
    for i in range(start, stop):
        less = load(x, U(i * vector_size(x))) - one
        store(y, U(i * vector_size(x)), where_positive(less, load(x, U(i * vector_size(x)))))
        add_to(sums, U(1), less)


@pytest.mark.small
def test_gates_and_wide_sums(dtype):
    size = vector_size(np.empty(0, dtype))
    x = np.random.default_rng(0).standard_normal(3 * size).astype(dtype)
    x[:4] = np.nan, 1, 2, np.inf
    y, sums = np.empty_like(x), np.arange(size + 2, dtype=np.float64)
    launch(gate, 3, 0, x, y, sums)
    np.testing.assert_array_equal(y, np.where(x - 1 <= 0, 0, x))
    expected = np.arange(size + 2, dtype=np.float64)
    for part in (x - dtype.type(1)).reshape(3, size):
        expected[1:-1] += part
    np.testing.assert_array_equal(sums, expected)
