"""The long versions of the tests of faults: ``python -m tests.faults.soak [NAME ...] [--seed N] [--json FILE]``.

Without a name, all of them. Counts go into FILE (build/faults.json), where a later call replaces the faults that it
tried. The table in docs/reliability.md has them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.faults.children import run_in_child
from tests.faults.fuzz import fuzz_in_children
from tests.faults.mounts import small_file_system
from tests.faults.tally import Tally

LONG = 3600.0


def _child(module: str, *arguments: object, **environment: str) -> Callable[[int], Tally]:
    def run(seed: int) -> Tally:
        given = [seed if argument == "SEED" else argument for argument in arguments]
        return run_in_child(f"tests.faults.{module}", *given, seconds=LONG, **environment)

    return run


def _full(seed: int) -> Tally:
    with ExitStack() as stack:
        folder = stack.enter_context(small_file_system(1 << 20))
        if folder is None:
            return Tally("disk full while a file is written (a full file system): may not mount here")
        return run_in_child("tests.faults.limits", "full", folder, seconds=LONG)


SOAKS: dict[str, Callable[[int], Tally]] = {
    "fuzz-model": lambda seed: fuzz_in_children("model file", seed, 30_000),
    "fuzz-idx": lambda seed: fuzz_in_children("IDX file", seed, 30_000),
    "fuzz-idx-gzip": lambda seed: fuzz_in_children("IDX file, gzip", seed, 30_000),
    "fuzz-images": lambda seed: fuzz_in_children("image folder", seed, 20_000),
    "kill-fits": _child("kills", "fits", 200, "SEED"),
    "kill-saves": _child("kills", "saves", 200, "SEED"),
    "interrupts": _child("interrupts", "warm", 150, "SEED"),
    "interrupts-cold": _child("interrupts", "cold", 2, "SEED"),
    "threads": _child("threads", 200),
    "threads-omp": _child("threads", 200, NUMBA_THREADING_LAYER="omp"),
    "threads-workqueue": _child("threads", 200, NUMBA_THREADING_LAYER="workqueue"),
    "forks": _child("forks", 50),
    "pools": _child("forks", "pools"),
    "memory": _child("limits", "memory", 100, "SEED"),
    "disk": _child("limits", "disk", 300, "SEED"),
    "disk-full": _full,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SOAKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("build/faults.json"))
    given = parser.parse_args()
    if unknown := set(given.names) - set(SOAKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    found = json.loads(given.json.read_text()) if given.json.exists() else {}
    failures = 0
    for name in given.names or SOAKS:
        start = time.perf_counter()
        tally = SOAKS[name](given.seed).to_json() | {"seed": given.seed}
        tally["seconds"] = round(time.perf_counter() - start, 1)
        print(json.dumps(tally), flush=True)
        failures += tally["tried"] != tally["survived"]
        found[name] = tally
        given.json.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=given.json.parent, delete=False) as file:
            json.dump(found, file, indent=1)
        Path(file.name).replace(given.json)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
