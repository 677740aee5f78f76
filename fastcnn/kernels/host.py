"""The memory of backends that run on the CPU: NumPy's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def empty(n_bytes: int) -> np.ndarray:
    """`n_bytes` (uint8) from the beginning of a cache line on."""
    raw = np.empty(n_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + n_bytes]


def place(values: Any) -> np.ndarray:
    """`values` as an array that kernels can read: itself, if it is one."""
    return np.asarray(values)
