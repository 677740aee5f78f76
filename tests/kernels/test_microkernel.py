"""The register tile against NumPy, in every height, width and stride it is used with."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numba import config

from fastcnn.kernels.cpu.launch import launch
from fastcnn.kernels.cpu.microkernel import (
    ADD,
    BIAS,
    MAX_ROWS,
    ZERO,
    _tiles_twin,
    host_isa,
    multiply_rows,
    panel_width,
)

DTYPES = [np.float32, np.float64]


def problem(dtype, rows, valid, seg_len, a_step, b_skip, start):
    """Arguments as `multiply_rows` unpacks them, and what C must be."""
    rng = np.random.default_rng(rows * 100 + valid)
    width, segments = panel_width(np.dtype(dtype).itemsize), np.array([3, 40, 17])
    a_rows, c_rows = rng.integers(0, 50, rows + 1), 2 + np.arange(rows + 1) * (width + 5)
    a = rng.standard_normal(200 + seg_len * a_step).astype(dtype)
    b0 = width + 7
    b = rng.standard_normal(3 * (seg_len * width + b_skip) + width + b0).astype(dtype)
    c = rng.standard_normal(c_rows[-1] + 2 * width).astype(dtype)
    expected = c.astype(np.float64)
    for i in range(rows):
        total = np.zeros(valid)
        for g, segment in enumerate(segments):
            for step in range(seg_len):
                at = b0 + g * (seg_len * width + b_skip) + step * width
                total += np.float64(a[5 + a_rows[i] + segment + step * a_step]) * b[at : at + valid]
        place = slice(c_rows[i], c_rows[i] + valid)
        expected[place] = total + {ZERO: 0, BIAS: b[7 : 7 + valid], ADD: expected[place]}[start]
    args = (a, 5, a_rows, c, 0, c_rows, segments, seg_len, a_step, b, b0, width, b_skip, valid, start)
    return args, expected


@pytest.mark.small
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", range(2 * MAX_ROWS + 2))
def test_every_number_of_rows(dtype, rows):
    width = panel_width(np.dtype(dtype).itemsize)
    args, expected = problem(dtype, rows, width, 6, 1, 0, ZERO)
    launch(multiply_rows, rows, 0, *args)
    np.testing.assert_allclose(args[3], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [ZERO, BIAS, ADD])
@pytest.mark.parametrize(("a_step", "b_skip"), [(1, 0), (3, 0), (1, 9)])
def test_every_number_of_columns(dtype, start, a_step, b_skip):
    for valid in range(1, panel_width(np.dtype(dtype).itemsize) + 1):
        args, expected = problem(dtype, 9, valid, 5, a_step, b_skip, start)
        launch(multiply_rows, 9, 0, *args)
        np.testing.assert_allclose(args[3], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.small
@pytest.mark.parametrize("start", [ZERO, BIAS, ADD])
def test_the_twin_without_a_compiler(start):
    args, expected = problem(np.float64, 4, 5, 6, 2, 3, start)
    a, a0, a_rows, c, c0, c_rows, segments, seg_len, a_step, b, b0, b_step, b_skip, valid, _ = args
    _tiles_twin(2, 2, 2, a, a0, a_rows, c, c0, c_rows, 0, segments, len(segments), seg_len, a_step, b, b0, b_step,
                b_skip, valid, start)  # fmt: skip
    np.testing.assert_allclose(c, expected, rtol=1e-10)


@pytest.mark.small
def test_a_product_of_nothing_is_zero():
    c = np.ones(40, np.float32)
    none, table = np.empty(0, np.int64), np.zeros(2, np.int64)
    x = np.ones(40, np.float32)
    launch(multiply_rows, 1, 0, x, 0, table, c, 0, table, none, 3, 1, x, 0, 16, 0, 4, ZERO)
    np.testing.assert_array_equal(c[:5], [0, 0, 0, 0, 1])


def test_numba_may_have_been_told_what_to_compile_for(monkeypatch):
    """NUMBA_CPU_NAME=generic: vectors that the host has do not exist in what is compiled."""
    monkeypatch.setattr(config, "CPU_FEATURES", "")
    assert host_isa().name == "portable"
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2,+fma,-avx512f")
    monkeypatch.delenv("FASTCNN_ISA", raising=False)
    assert host_isa().name == "avx2"


def test_the_portable_tile():
    """The same tests, and a convolution's, with what hosts of unknown features get."""
    tests = ["tests/kernels/test_microkernel.py", "tests/kernels/test_conv.py", "tests/kernels/test_winograd.py"]
    # Winograd's formulas do not depend on the host.
    tiles = "(tile-4-3 or tile-2-5) and float32"
    chosen = f"test_every or (test_forward or test_backward) and (cpu and (1x1 or groups) or {tiles})"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"({chosen}) and not portable", *tests],
        env=os.environ | {"FASTCNN_ISA": "portable"}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
