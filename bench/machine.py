"""Which machine and which versions a figure was measured with."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

VECTORS = {"avx2": "AVX2", "avx512": "AVX-512", "neon": "NEON"}  # processors of one name may differ in them
RESULTS = Path(__file__).parent / "results"


def cpu_name() -> str:
    """The processor's name, the vectors that kernels use on it, and the number of cores this process may use."""
    from fastcnn.kernels.cpu.microkernel import ISA  # a peer's process has no Numba

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    return f"{name} with {VECTORS.get(ISA.name, ISA.name)}, {usable_cores()} cores"


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def save(name: str, result: dict[str, Any]) -> Path:
    """Write `result`, with the machine and the command, to bench/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    # Paths of one machine tell nothing on another.
    words = ["PATH" if os.sep in word else word for word in sys.argv[1:]]
    command = " ".join(["python -m", sys.modules["__main__"].__spec__.name, *words])
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"command": command, "cpu": cpu_name(), **result}, indent=1) + "\n")
    return path
