"""Which machine and which versions a figure was measured with."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

VECTORS = {"avx2": "AVX2", "avx512": "AVX-512", "neon": "NEON"}  # processors of one name may differ in them
RESULTS = Path(__file__).parent / "results"
MADE = ("results", "plots", "RESULTS.md")  # by benchmarks


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
    """Versions of Python and of those packages that are installed; of fastcnn the commit too."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if "fastcnn" in found and (commit := _commit()):
        found["fastcnn"] += f"+{commit}"
    return found


def _commit() -> str:
    """Of these sources; nothing where they are no checkout, or there is no git."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    changed = [*git, "diff", "--quiet", "HEAD", "--", ".", *(f":!bench/{made}" for made in MADE)]
    try:
        commit = subprocess.run(
            [*git, "describe", "--always"], capture_output=True, text=True, check=True
        ).stdout.strip()
        return commit + "-dirty" * bool(subprocess.run(changed, check=False).returncode)
    except (OSError, subprocess.CalledProcessError):
        return ""


def saved(name: str) -> dict[str, Any]:
    """What this processor gave for bench/results/<name>.json before."""
    path, cpu = RESULTS / f"{name}.json", cpu_name()
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found if found.get("cpu") == cpu else found.get("elsewhere", {}).get(cpu, {})


def save(name: str, result: dict[str, Any], of_all: bool = False) -> Path:
    """Write `result`, with the machine and the command, to bench/results/<name>.json.

    What another processor gave stays as it is, and `result` stands beside it under "elsewhere"; but not where `of_all`:
    its runs name their processors themselves.
    """
    RESULTS.mkdir(exist_ok=True)
    # Paths of one machine tell nothing on another.
    words = ["PATH" if os.sep in word else word for word in sys.argv[1:]]
    command = f"python -m {sys.modules['__main__'].__spec__.name} {shlex.join(words)}".rstrip()
    path = RESULTS / f"{name}.json"
    old: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    elsewhere = {} if of_all else old.pop("elsewhere", {})
    made = {**result, "command": command, "cpu": cpu_name()}
    if old and not of_all and old["cpu"] != made["cpu"]:
        made, elsewhere = old, elsewhere | {made["cpu"]: made}
    first = {key: made.pop(key) for key in ("command", "cpu")}
    made = first | made | ({"elsewhere": elsewhere} if elsewhere else {})
    path.write_text(json.dumps(made, indent=1) + "\n")
    return path
