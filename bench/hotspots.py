"""Where a convolution's time goes: which compiled function runs when the clock of the CPU ticks.

For layers with 3x3 windows and enough channels, by the direct algorithm and by the one that is chosen, on one thread:
the share of samples in each function. `multiply_rows` is the micro-kernel; what else there is copies, pads, packs,
transposes and adds up. Needs Linux's `perf`, with nothing but its software clock.
`python -m bench.hotspots [--match TEXT] [--seconds 3] [--save]`
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from bisect import bisect
from collections import Counter
from pathlib import Path
from typing import Any

from bench.goals import asked_layers
from bench.kernels import CPU, Problem, problems
from bench.machine import save, versions
from fastcnn.kernels.cpu import objects

KERNELS = ("conv forward", "conv input gradient", "conv weight gradient")
FREQUENCY = 3999  # samples a second
REACH = 1 << 17  # bytes of one function's code, at most
OTHERS = "Python and libraries"
LEAST = 0.6  # of the samples must be in compiled functions


def asked(match: str = "") -> list[Problem]:
    layers = asked_layers()
    return [p for p in problems(match) if p.layer in layers and p.what in KERNELS]


def work(name: str, seconds: float) -> None:
    """Run one kernel while somebody watches, then tell where the functions are."""
    (problem,) = (p for p in asked() if p.name == name)
    with CPU.threads(1):
        prepared = problem.prepare()
        prepared.check()
        prepared.run()
        print("ready", flush=True)
        sys.stdin.readline()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            prepared.run()
    print(json.dumps({str(address): name for address, name in objects._names.items()}), flush=True)
    sys.stdin.readline()


def samples(name: str, seconds: float) -> dict[str, float]:
    """The share of each function."""
    command = [sys.executable, "-m", "bench.hotspots", "--worker", name, "--seconds", str(seconds)]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "perf.data")
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdin is not None and worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            record = ["perf", "record", "-e", "cpu-clock", "-F", str(FREQUENCY), "-o", path, "-p", str(worker.pid)]
            with subprocess.Popen(record, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as perf:
                time.sleep(1)
                print(file=worker.stdin, flush=True)
                places = {int(address): function for address, function in json.loads(worker.stdout.readline()).items()}
                perf.terminate()
                perf.wait()
            print(file=worker.stdin, flush=True)
        told = subprocess.run(
            ["perf", "script", "-i", path, "-F", "ip"], check=True, capture_output=True, text=True
        ).stdout
    starts, found = sorted(places), Counter[str]()
    for line in told.split():
        at = int(line, 16)
        place = bisect(starts, at) - 1
        near = place >= 0 and at - starts[place] < REACH
        found[places[starts[place]] if near else OTHERS] += 1
    total = sum(found.values())
    assert total > seconds * FREQUENCY / 2, f"only {total} samples"
    assert found[OTHERS] < (1 - LEAST) * total, f"{found[OTHERS]} of {total} samples are in no kernel"
    return {function: count / total for function, count in found.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", metavar="TEXT", help="layers and kernels whose name contains TEXT")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--save", action="store_true", help="write bench/results/hotspots.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.save and args.match:
        parser.error("--save takes all layers")
    if args.worker:
        work(args.worker, args.seconds)
        return
    if not shutil.which("perf"):
        raise SystemExit("bench.hotspots needs Linux's perf")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    rows: list[dict[str, Any]] = []
    for problem in asked(args.match):
        shares = samples(problem.name, args.seconds)
        rows.append({"layer": problem.layer, "what": problem.what, "algorithm": problem.algorithm, "shares": shares})
        told = ", ".join(f"{function} {share:.1%}" for function, share in shares.items() if share >= 0.005)
        print(f"{problem.name}: {told}", flush=True)
    if args.save:
        print(f"written: {save('hotspots', {'versions': versions('fastcnn', 'numpy', 'numba'), 'rows': rows})}")


if __name__ == "__main__":
    main()
