"""What is written past the caches: arrays so large that nothing of them is left there when they are read again.

A plain store first reads the line that it writes into, and puts out another one. Where memory is the limit, that is a
third of what a copy moves; streams of stores that go past the caches do without.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

LINE = 64  # bytes of a cache line
SHARE = 4  # of the last cache: beside an array that is written, others are read
_DESCRIPTIONS = Path("/sys/devices/system/cpu/cpu0/cache")


@lru_cache(maxsize=1)
def last_cache() -> int:
    """Bytes of the last cache, 0 where that is not known (only Linux on x86 is asked)."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return 0
    try:
        sizes = [(folder / "size").read_text().strip() for folder in _DESCRIPTIONS.glob("index*")]
        return max((int(size.removesuffix("K")) << 10 for size in sizes), default=0)
    except (OSError, ValueError):
        return 0


def goes_past(out: Any, row: int) -> bool:
    """Whether a kernel that writes `out` in the order of memory, `row` elements at a time, is to do so past the caches:
    where it is large, and rows are whole lines.
    """
    size = last_cache()
    return 0 < size < SHARE * out.nbytes and out.ctypes.data % LINE == 0 and row * out.itemsize % LINE == 0
