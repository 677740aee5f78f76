"""Every kernel over the layers of real networks: time, GFLOP/s, share of the multiply-add peak, and GB/s.

Recorded as a plan does it, so that no Python is timed. One thread, timed by its own CPU time, in turn with the peak
loop of `bench.peak`: a share is the median over such pairs. GFLOP/s count the multiplications and additions of the
mathematical operation, whatever the algorithm does; GB/s count each array that goes in or out once. Each result is
compared with the NumPy reference before it is timed.
`python -m bench.kernels [--match TEXT] [--save]`, or `python -m pytest bench/kernels.py --benchmark-only`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from bench.machine import save, versions
from bench.peak import FlopPeak, bandwidth
from fastcnn.engine.ops import IDENTITY, PoolGeometry, activation, identity_pool
from fastcnn.kernels import get_backend, reference
from tests.cases import DENSE_LAYERS, LAYERS, ConvCase, DenseCase

CPU, RELU, FLOAT = get_backend("cpu"), activation("relu"), np.dtype(np.float32)
CHECKED_FLOPS = 3e8  # of the reference: so many images are compared, at least two
TOLERANCE = 2e-4  # of the largest value
ROUNDS, QUICK_ROUNDS, TURN = 15, 3, 0.01  # a turn takes about so many seconds

Arrays = dict[str, np.ndarray]


class Prepared(NamedTuple):
    """The arrays of a problem are made."""

    run: Callable[[], None]  # calls the kernel
    check: Callable[[], None]  # calls it and compares what it wrote with the reference
    bytes: int  # of all arrays that go in or out


class Problem(NamedTuple):
    """One kernel on one layer."""

    layer: str
    what: str
    flops: int
    prepare: Callable[[], Prepared]
    algorithm: str | None = None  # where several could compute it

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.layer, self.what, self.algorithm)))


def problems(match: str = "") -> Iterator[Problem]:
    """All kernels on all layers whose name, or what it computes, contains `match`."""
    found = (p for case in LAYERS for p in (*_convolutions(case), *_pool_problems(case)))
    for problem in (*found, *(p for case in DENSE_LAYERS for p in _dense_problems(case))):
        if match.lower() in problem.name.lower():
            yield problem


# ---------------------------------------------------------------------------------------------------- the kernels


def _convolutions(case: ConvCase) -> Iterator[Problem]:
    """By the algorithm that a network takes; directly too, if that is another one."""
    chosen = CPU.conv2d_algorithm(case.geometry, case.n, FLOAT, True)
    for winograd in sorted({0, chosen}):
        yield from _conv_problems(case, winograd)


def _conv_problems(case: ConvCase, winograd: int) -> Iterator[Problem]:
    g, pool, n = case.geometry._replace(winograd=winograd), case.pool, case.n
    algorithm = f"Winograd {winograd}x{winograd}" if winograd else "direct"
    flat = identity_pool(g.p, g.q, g.k)
    flops = 2 * case.multiplications
    image, filters, unpooled = (n, g.h, g.w, g.c), (g.r, g.s, g.c // g.groups, g.k), (n, g.p, g.q, g.k)
    pooled = (n, pool.p, pool.q, g.k)

    def scratch(way: str, pool: PoolGeometry) -> np.ndarray:
        return np.empty(getattr(CPU, f"conv2d_{way}_scratch")(g, pool, n, FLOAT, 1), FLOAT)

    def forward() -> Prepared:
        a = _arrays(x=image, weight=filters, bias=(g.k,))
        a["y"] = np.empty(unpooled, FLOAT)

        def call(k: Any, a: Arrays, s: Any) -> None:
            k.conv2d_forward(a["x"], a["weight"], a["bias"], g, a["y"], s)

        return _prepared(call, a, ("y",), scratch("forward", flat), flops)

    def backward_input() -> Prepared:
        a = _arrays(dy=unpooled, weight=filters)
        a["dx"] = np.empty(image, FLOAT)

        def call(k: Any, a: Arrays, s: Any) -> None:
            k.conv2d_backward_input(a["dy"], a["weight"], g, a["dx"], s)

        return _prepared(call, a, ("dx",), scratch("backward", flat), flops)

    def backward_weight() -> Prepared:
        a = _arrays(x=image, dy=unpooled)
        a |= {"dw": np.empty(filters, FLOAT), "db": np.empty(g.k, FLOAT)}

        def call(k: Any, a: Arrays, s: Any) -> None:
            k.conv2d_backward_weight(a["x"], a["dy"], g, a["dw"], a["db"], s)

        return _prepared(call, a, ("dw", "db"), scratch("backward", flat), flops)

    def block(backward: bool) -> Prepared:
        a = _arrays(x=image, weight=filters, bias=(g.k,), dy=pooled)
        places = pooled if case.pool_size else (0, 0, 0, 0)
        a |= {"y": np.empty(pooled, FLOAT), "argmax": np.empty(places, np.uint8)}
        s = scratch("forward", pool)

        def call_forward(k: Any, a: Arrays, s: Any) -> None:
            k.conv2d_block_forward(a["x"], a["weight"], a["bias"], g, RELU, pool, a["y"], a["argmax"], s)

        if not backward:
            del a["dy"]
            return _prepared(call_forward, a, ("y",), s, flops)
        call_forward(CPU, a, s)
        del a["bias"]
        # Training wants no gradient of the images themselves.
        a["dx"] = np.empty(image if g.c > 3 else (0, 0, 0, 0), FLOAT)
        a |= {"dw": np.empty(filters, FLOAT), "db": np.empty(g.k, FLOAT)}

        def call(k: Any, a: Arrays, s: Any) -> None:
            gradients = (a["dx"], a["dw"], a["db"])
            k.conv2d_block_backward(a["x"], a["weight"], a["y"], a["argmax"], a["dy"], g, RELU, pool, *gradients, s)

        return _prepared(call, a, ("dx", "dw", "db"), scratch("backward", pool), 2 * flops)

    after = "+pool" if case.pool_size else ""
    for what, flops_, prepare in (
        ("conv forward", flops, forward),
        ("conv input gradient", flops, backward_input),
        ("conv weight gradient", flops, backward_weight),
        (f"conv+bias+relu{after} forward", flops, lambda: block(False)),
        (f"conv+bias+relu{after} backward", (1 + (g.c > 3)) * flops, lambda: block(True)),
    ):
        yield Problem(case.name, what, flops_, prepare, algorithm)


def _pool_problems(case: ConvCase) -> Iterator[Problem]:
    if not case.pool_size:
        return
    g, n = case.pool, case.n
    image, pooled = (n, g.h, g.w, g.c), (n, g.p, g.q, g.c)

    def pooling(kind: str, backward: bool) -> Prepared:
        a = _arrays(x=image)
        a["y"] = np.empty(pooled, FLOAT)
        places = {"argmax": np.empty(pooled, np.uint8)} if kind == "max" else {}

        def call_forward(k: Any, a: Arrays, s: Any) -> None:
            getattr(k, f"{kind}pool2d_forward")(a["x"], g, a["y"], *(a[name] for name in places))

        if not backward:
            return _prepared(call_forward, a | places, ("y", *places), None, 0)
        call_forward(CPU, a | places, None)
        a = _arrays(dy=pooled) | places | {"dx": np.empty(image, FLOAT)}

        def call(k: Any, a: Arrays, s: Any) -> None:
            getattr(k, f"{kind}pool2d_backward")(a["dy"], *(a[name] for name in places), g, a["dx"])

        return _prepared(call, a, ("dx",), None, 0)

    for kind in ("max", "avg"):
        for backward, way in enumerate(("forward", "backward")):
            yield Problem(case.name, f"{kind}pool {way}", 0, lambda k=kind, b=bool(backward): pooling(k, b))


def _dense_problems(case: DenseCase) -> Iterator[Problem]:
    n, n_in, n_out = case.n, case.n_in, case.n_out
    flops = 2 * n * n_in * n_out

    def forward() -> Prepared:
        a = _arrays(x=(n, n_in), weight=(n_in, n_out), bias=(n_out,))
        a["y"] = np.empty((n, n_out), FLOAT)

        def call(k: Any, a: Arrays, s: Any) -> None:
            k.dense_forward(a["x"], a["weight"], a["bias"], RELU, a["y"], s)

        return _prepared(call, a, ("y",), np.empty(CPU.dense_forward_scratch(n, n_in, n_out, FLOAT, 1), FLOAT), flops)

    def backward() -> Prepared:
        a = _arrays(x=(n, n_in), weight=(n_in, n_out), y=(n, n_out), dy=(n, n_out))
        a |= {"dx": np.empty((n, n_in), FLOAT), "dw": np.empty((n_in, n_out), FLOAT), "db": np.empty(n_out, FLOAT)}

        def call(k: Any, a: Arrays, s: Any) -> None:
            k.dense_backward(a["x"], a["weight"], a["y"], a["dy"], IDENTITY, a["dx"], a["dw"], a["db"], s)

        s = np.empty(CPU.dense_backward_scratch(n, n_in, n_out, FLOAT, 1), FLOAT)
        return _prepared(call, a, ("dx", "dw", "db"), s, 2 * flops)

    yield Problem(case.name, "dense+bias+relu forward", flops, forward)
    yield Problem(case.name, "dense backward", 2 * flops, backward)


# ------------------------------------------------------------------------------------------------ arrays and checks

PER_IMAGE = ("x", "y", "argmax", "dx", "dy")  # the rest belongs to the whole batch


def _arrays(**shapes: tuple[int, ...]) -> Arrays:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, FLOAT) for name, shape in shapes.items()}


def _prepared(call: Callable[..., None], a: Arrays, outputs: tuple[str, ...], scratch: Any, flops: int) -> Prepared:
    """`call(kernels, arrays, scratch)` makes the one call. It runs as in a network: recorded, without Python."""

    def check() -> None:
        n = len(a["x"] if "x" in a else a["dy"])
        per_image = max(flops, sum(array.size for array in a.values())) / n
        chosen = np.unique(np.linspace(0, n - 1, int(np.clip(CHECKED_FLOPS / per_image, 2, n))).astype(int))
        # Sums over the batch are compared by giving the other images no gradient.
        given = dict(a)
        if "dy" in a:
            given["dy"] = np.zeros_like(a["dy"])
            given["dy"][chosen] = a["dy"][chosen]
        for name in outputs:
            a[name][...] = 85  # nothing that was there before may pass for a result
        CPU.record([(call, (CPU, given, scratch))])()
        expected = {
            name: array[chosen] if name in PER_IMAGE and array.size else array.copy() for name, array in a.items()
        }
        actual = {name: expected[name].copy() for name in outputs}
        call(reference, expected, None)
        for name in outputs:
            difference = np.abs(actual[name] - expected[name])
            ok = difference.size == 0 or difference.max() <= TOLERANCE * np.abs(expected[name]).max()
            assert ok, f"{name} differs from the reference by {difference.max()}"

    return Prepared(CPU.record([(call, (CPU, a, scratch))]), check, sum(array.nbytes for array in a.values()))


# ------------------------------------------------------------------------------------------------------------ timing


class Timing(NamedTuple):
    seconds: list[float]  # of a call, in each round
    peaks: list[float]  # GFLOP/s of the multiply-add loop just before


def measure(run: Callable[[], Any], peak: FlopPeak, rounds: int) -> Timing:
    """Turns of the peak loop and of the kernel, alternating."""
    run()
    start = time.thread_time()
    run()
    calls = max(1, round(TURN / max(time.thread_time() - start, 1e-6)))
    seconds, peaks = [], []
    for _ in range(rounds):
        peaks.append(peak())
        start = time.thread_time()
        for _ in range(calls):
            run()
        seconds.append((time.thread_time() - start) / calls)
    return Timing(seconds, peaks)


def row(problem: Problem, size: int, timing: Timing) -> dict[str, Any]:
    """A line of the result."""
    seconds = statistics.median(timing.seconds)
    result = {"layer": problem.layer, "what": problem.what, "ms": seconds * 1e3, "gbs": size / seconds / 1e9}
    if problem.flops:
        shares = [problem.flops / s / 1e9 / p for s, p in zip(timing.seconds, timing.peaks, strict=True)]
        low, middle, high = statistics.quantiles(shares, n=4, method="inclusive")
        result |= {"gflops": problem.flops / seconds / 1e9, "share": middle, "share_quartiles": [low, high]}
    else:
        result |= {"gflops": None, "share": None, "share_quartiles": None}
    return result | {"algorithm": problem.algorithm}


@pytest.mark.parametrize("problem", list(problems()), ids=lambda problem: problem.name)
def test_kernel(benchmark: Any, problem: Problem) -> None:
    """The result is the reference's; then it is timed."""
    prepared = problem.prepare()
    prepared.check()
    benchmark.extra_info |= {"flops": problem.flops, "bytes": prepared.bytes}
    benchmark(prepared.run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--match", default="", metavar="TEXT", help="layers and kernels whose name contains TEXT")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--save", action="store_true", help="write bench/results/kernels.json")
    args = parser.parse_args()
    if args.save and (args.match or args.quick):
        parser.error("--save takes all kernels, in full")
    rates = {name: rate["median"] for name, rate in bandwidth(3 if args.quick else 7).items()}
    print("GB/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()), flush=True)
    peak, peaks, rows = FlopPeak(FLOAT), [], []
    print(f"{'':78s} {'ms':>9s} {'GFLOP/s':>9s} {'of peak':>8s} {'quartiles':>14s} {'GB/s':>7s}")
    for problem in problems(args.match):
        prepared = problem.prepare()
        prepared.check()
        timing = measure(prepared.run, peak, QUICK_ROUNDS if args.quick else ROUNDS)
        peaks += timing.peaks
        r = row(problem, prepared.bytes, timing)
        rows.append(r)
        flops = f"{'':33s}"
        if problem.flops:
            low, high = r["share_quartiles"]
            flops = f"{r['gflops']:9.1f} {r['share']:8.1%} {low:6.1%}-{high:6.1%} "
        print(f"{problem.name:78s} {r['ms']:9.3f} {flops} {r['gbs']:7.1f}", flush=True)
    if not rows:
        raise SystemExit(f"no kernel or layer has {args.match!r} in its name")
    median = statistics.median(peaks)
    print(f"peak: {median:.1f} GFLOP/s (median; best {max(peaks):.1f})")
    if args.save:
        found = versions("fastcnn", "numpy", "numba", "llvmlite")
        result = {"versions": found, "peak_gflops": median, "bandwidth_gbs": rates, "rows": rows}
        print(f"written: {save('kernels', result)}")


if __name__ == "__main__":
    main()
