"""How long a fresh process takes to its first result: `import fastcnn`, `import torch`, and a first `fit`.

Every measurement is a process of its own, in rounds in which all take turns. "import" is the time of the import
statement alone. "first fit" is the time of `CNNClassifier(max_iter=1).fit` on scikit-learn's digits (1,797 images, one
epoch) in a process that has imported all that it needs and compiled or run no kernel yet; kernels are read from a full
cache, or compiled into an empty one. "process" is from the start of the interpreter to its end, imports included.
CPU seconds are those of all threads. `python -m bench.coldstart --torch-python PATH [--rounds 9] [--quick]`
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.machine import save, saved, versions

# Nothing is imported before the clock runs but the clock.
IMPORT = """
import time
wall, cpu = time.perf_counter(), time.process_time()
{statement}
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
import json
print(json.dumps({{"wall": wall, "cpu": cpu}}))
"""
FIT = """
import json, os, time
import numba, sklearn
from fastcnn import CNNClassifier
from fastcnn.datasets import load_digits_images
from fastcnn.kernels import get_backend
get_backend("cpu")
X, y = load_digits_images()
clf = CNNClassifier(max_iter=1, random_state=0)
wall, cpu = time.perf_counter(), sum(os.times()[:4])
clf.fit(X, y)
wall, cpu = time.perf_counter() - wall, sum(os.times()[:4]) - cpu
print(json.dumps({"wall": wall, "cpu": cpu, "score": clf.score(X, y), "epochs": clf.n_iter_}))
"""
FASTCNN, CLASSIFIER, TORCH = "import fastcnn", "from fastcnn import CNNClassifier", "import torch"
FULL, EMPTY = "first fit, full cache", "first fit, empty cache"
EMPTY_ROUNDS = 5
SCORE = 0.5  # that one epoch must reach on its own images; guessing gives 0.1


def run(python: str, code: str, cache: str) -> tuple[dict[str, Any], dict[str, float]]:
    """What the code printed, and the seconds of its whole process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [python, "-c", code],
        stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1],
        env=os.environ | {"FASTCNN_CACHE_DIR": cache},
    )  # fmt: skip
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    answer = json.loads(done.stdout)
    if "score" in answer:
        assert answer["epochs"] == 1 and answer["score"] > SCORE, f"the fit did not learn: {answer}"
    return answer, {"wall": wall, "cpu": cpu}


def has_module(python: str, module: str) -> bool:
    """Whether that Python can find it; importing is what is measured."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
    return subprocess.run([python, "-c", code]).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH", help="a Python that has PyTorch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="two rounds, one with an empty cache; nothing is written")
    args = parser.parse_args()
    rounds, empty_rounds = (2, 1) if args.quick else (args.rounds, EMPTY_ROUNDS)
    measured = {name: (sys.executable, IMPORT.format(statement=name)) for name in (FASTCNN, CLASSIFIER)}
    if has_module(args.torch_python, "torch"):
        measured[TORCH] = (args.torch_python, IMPORT.format(statement=TORCH))
    else:
        print(f"{args.torch_python} has no PyTorch: left out")
    measured[FULL] = (sys.executable, FIT)

    rows: dict[str, dict[str, list[float]]] = {}

    def note(name: str, python: str, code: str, cache: str) -> None:
        answer, process = run(python, code, cache)
        for row, seconds in ((name, answer), (f"{name}: process", process)):
            kept = rows.setdefault(row, {"wall": [], "cpu": []})
            for clock in kept:
                kept[clock].append(seconds[clock])
        print(
            f"{name:36s} {answer['wall']:8.3f} s, CPU {answer['cpu']:8.3f}; process {process['wall']:8.3f}", flush=True
        )

    with tempfile.TemporaryDirectory() as folder:
        for i in range(empty_rounds):
            note(EMPTY, sys.executable, FIT, str(Path(folder) / f"cache{i}"))
        full = str(Path(folder) / "cache0")
        for python, code in measured.values():  # files come into memory, byte code is written
            run(python, code, full)
        for _ in range(rounds):
            for name, (python, code) in measured.items():
                note(name, python, code, full)

    result: dict[str, Any] = {"versions": versions("fastcnn", "numpy", "numba", "scikit-learn"), "rounds": rounds}
    if TORCH in measured:
        code = "import json; from bench.machine import versions; print(json.dumps(versions('torch')))"
        result["torch_versions"] = run(args.torch_python, code, full)[0]
        for name, fit, imported in (
            ("ratio_first_fit_to_import_torch", FULL, TORCH),
            ("ratio_first_fit_process_to_import_torch_process", f"{FULL}: process", f"{TORCH}: process"),
        ):
            pairs = zip(rows[fit]["wall"], rows[imported]["wall"], strict=True)
            result[name] = [a / b for a, b in pairs]
    print()
    for name, row in rows.items():
        wall, cpu = (statistics.median(row[clock]) for clock in ("wall", "cpu"))
        print(f"{name:45s} {wall:8.3f} s, CPU {cpu:8.3f} (median of {len(row['wall'])})")
    if TORCH in measured:
        fit, process = (statistics.median(value) for name, value in result.items() if name.startswith("ratio"))
        print(f"first fit / import torch: {fit:.2f}; their processes: {process:.2f}")
    if not args.quick and (TORCH in measured or TORCH not in saved("coldstart").get("rows", {})):
        print(f"written: {save('coldstart', result | {'rows': rows})}")
    else:
        print("not written")


if __name__ == "__main__":
    main()
