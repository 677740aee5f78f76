"""Stacks of partial sums: whoever adds them up, a thread for each sum or a block."""

import numpy as np
import pytest

from tests.gpu import unavailable

pytestmark = [pytest.mark.cuda, pytest.mark.small]

if unavailable():
    pytest.skip(f"no GPU and no simulator: {unavailable()}", allow_module_level=True)

from fastcnn.kernels.cuda import sums
from fastcnn.kernels.cuda.arrays import place
from fastcnn.kernels.cuda.driver import recording


@pytest.mark.parametrize(
    ("n_parts", "many_sums", "name"),
    [(3, 2**16, "add_parts"), (40, 2**16, "add_many_parts"), (40, 12, "add_parts")],
)
def test_parts_are_added_up(monkeypatch, n_parts, many_sums, name):
    monkeypatch.setattr(sums, "_MANY_SUMS", many_sums)
    parts = np.random.default_rng(0).standard_normal((n_parts, 4, 3)).astype(np.float32)
    bias = np.array([1, -2, 3], np.float32)
    y, args = place(np.full((4, 3), np.nan, np.float32)), (place(bias), (1, 0.0))
    with recording() as calls:
        sums.add_parts(place(parts.ravel()), n_parts, y, *args)
    assert [call.name for call in calls] == [name]
    sums.add_parts(place(parts.ravel()), n_parts, y, *args)
    np.testing.assert_allclose(y, np.maximum(parts.astype(float).sum(axis=0) + bias, 0), rtol=1e-5, atol=1e-5)
