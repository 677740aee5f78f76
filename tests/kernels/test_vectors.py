"""Vectors in kernels."""

import numpy as np
import pytest

from fastcnn.kernels.cpu.launch import Kernel, launch, unpack
from fastcnn.kernels.cpu.runtime import U
from fastcnn.kernels.cpu.vectors import element, load, spread, store, vector_size


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
