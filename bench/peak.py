"""What this machine's cores can do at most: fused multiply-adds a second, and bytes a second from each cache.

The multiply-add loop keeps as many vectors in registers as the micro-kernel's tile has and touches no memory.
`FlopPeak` is measured in the same process as the kernels that are reported against it, in turn with them; then a
slower clock or a busy neighbour slows both. `python -m bench.peak [--quick]`
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bench.machine import cpu_name, usable_cores
from fastcnn.kernels.cpu.microkernel import ISA, MAX_ROWS, VECTOR_BYTES

ACCUMULATORS = 2 * MAX_ROWS  # the tile's: enough of them to hide the latency of a multiply-add
READERS = 8  # vectors that a pass over a cache adds to
CACHES = {"L1": 1 << 14, "L2": 1 << 18, "L3": 1 << 22, "memory": 1 << 28}  # bytes read again and again


def _fold(builder: Any, cells: list[Any], lanes: int) -> Any:
    """The sum of all accumulators' elements, so that none of them can be left out."""
    total = builder.load(cells[0])
    for cell in cells[1:]:
        total = builder.fadd(total, builder.load(cell))
    result = builder.extract_element(total, ir.Constant(ir.IntType(32), 0))
    for i in range(1, lanes):
        result = builder.fadd(result, builder.extract_element(total, ir.Constant(ir.IntType(32), i)))
    return result


@intrinsic
def _multiply_add(typingctx, steps, start, factor, addend):
    """`steps` times every accumulator = accumulator * factor + addend; the sum of all."""
    kind = start
    signature = kind(types.int64, kind, kind, kind)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        steps_, start_, factor_, addend_ = args
        element, lanes = context.get_data_type(kind), VECTOR_BYTES // (kind.bitwidth // 8)
        vector = ir.VectorType(element, lanes)

        def broadcast(value: Any) -> Any:
            whole = ir.Constant(vector, ir.Undefined)
            for i in range(lanes):
                whole = builder.insert_element(whole, value, ir.Constant(ir.IntType(32), i))
            return whole

        start_, factor_, addend_ = broadcast(start_), broadcast(factor_), broadcast(addend_)
        cells = []
        for i in range(ACCUMULATORS):  # each starts elsewhere: equal chains would become one
            shift = ir.Constant(vector, [ir.Constant(element, float(i))] * lanes)
            cells.append(cgutils.alloca_once_value(builder, builder.fadd(start_, shift)))
        with cgutils.for_range(builder, steps_):
            for cell in cells:
                product = builder.fmul(builder.load(cell), factor_, flags=["contract"])
                builder.store(builder.fadd(product, addend_, flags=["contract"]), cell)
        return _fold(builder, cells, lanes)

    return signature, codegen


@intrinsic
def _read(typingctx, array, blocks, times):
    """The sum of the first blocks * READERS vectors of a flat array, `times` times."""
    kind = array.dtype
    signature = kind(array, types.int64, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        element, lanes = context.get_data_type(kind), VECTOR_BYTES // (kind.bitwidth // 8)
        vector, word = ir.VectorType(element, lanes), ir.IntType(64)
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        zero = ir.Constant(vector, [ir.Constant(element, 0.0)] * lanes)
        cells = [cgutils.alloca_once_value(builder, zero) for _ in range(READERS)]
        with cgutils.for_range(builder, args[2]), cgutils.for_range(builder, args[1]) as loop:
            first = builder.mul(loop.index, ir.Constant(word, lanes * READERS))
            for i, cell in enumerate(cells):
                place = builder.gep(data, [builder.add(first, ir.Constant(word, i * lanes))])
                value = builder.load(builder.bitcast(place, vector.as_pointer()))
                value.align = kind.bitwidth // 8
                builder.store(builder.fadd(builder.load(cell), value), cell)
        return _fold(builder, cells, lanes)

    return signature, codegen


@numba.njit(nogil=True)
def multiply_add(steps, start, factor, addend):
    return _multiply_add(steps, start, factor, addend)


@numba.njit(nogil=True)
def read(array, blocks, times):
    return _read(array, blocks, times)


@numba.njit(nogil=True, fastmath={"contract"})
def triad(a, b, c, factor):
    for i in range(a.size):
        a[i] = b[i] + factor * c[i]


class FlopPeak:
    """The multiply-add loop, made to run for about `seconds`. A call gives the GFLOP/s of this thread's CPU time."""

    def __init__(self, dtype: Any = np.float32, seconds: float = 0.005) -> None:
        kind = np.dtype(dtype).type
        # Every chain goes to 0.5 / (1 - 0.5) = 1: no infinity, no denormal.
        self._arguments = kind(2), kind(0.5), kind(0.5)
        self._per_step = 2 * ACCUMULATORS * (VECTOR_BYTES // np.dtype(dtype).itemsize)
        self._check(kind)
        self.steps = 1 << 12
        while (elapsed := self._seconds(time.thread_time)) < seconds:
            self.steps = round(self.steps * max(1.1, min(16.0, seconds / max(elapsed, 1e-7))))

    def _check(self, kind: Any) -> None:
        """The loop computes what it says: before every chain has converged, and afterwards."""
        for steps in (0, 3, 1000):
            chains = np.arange(ACCUMULATORS, dtype=np.float64) + 2
            for _ in range(min(steps, 200)):
                chains = chains * 0.5 + 0.5
            expected = chains.sum() * self._per_step / 2 / ACCUMULATORS
            np.testing.assert_allclose(multiply_add(steps, *self._arguments), expected, rtol=1e-4)

    def _seconds(self, clock: Callable[[], float]) -> float:
        start = clock()
        multiply_add(self.steps, *self._arguments)
        return clock() - start

    def __call__(self) -> float:
        return self.steps * self._per_step / self._seconds(time.thread_time) / 1e9

    def together(self, pool: ThreadPoolExecutor, threads: int) -> float:
        """GFLOP/s of `threads` threads at once, by the clock on the wall."""
        start = time.perf_counter()
        list(pool.map(lambda _: self._seconds(time.thread_time), range(threads)))
        return threads * self.steps * self._per_step / (time.perf_counter() - start) / 1e9


def flop_peak(dtype: Any = np.float32, seconds: float = 0.5, threads: int = 1) -> dict[str, float]:
    """Best and median GFLOP/s of short repetitions that take about `seconds` together."""
    if threads == 1:
        peak = FlopPeak(dtype)
        return _summary([peak() for _ in range(max(3, round(seconds / 0.005)))])
    peak = FlopPeak(dtype, 0.05)  # long enough for all threads to run at the same time
    with ThreadPoolExecutor(threads) as pool:
        peak.together(pool, threads)
        return _summary([peak.together(pool, threads) for _ in range(max(3, round(seconds / 0.05)))])


def bandwidth(repetitions: int = 7) -> dict[str, dict[str, float]]:
    """Best and median GB/s of one thread: arrays far above the caches copied and added, and each cache read."""
    return _memory_rates(repetitions) | {f"read {name}": _read_rates(n, repetitions) for name, n in CACHES.items()}


def _memory_rates(repetitions: int) -> dict[str, dict[str, float]]:
    a, b, c = (np.full(CACHES["memory"] // 4, value, np.float32) for value in (0, 1, 2))
    triad(a, b, c, np.float32(3))
    assert (a == 7).all()
    return {
        "copy": _rates(lambda: np.copyto(a, b), 2 * a.nbytes, repetitions),
        "triad": _rates(lambda: triad(a, b, c, np.float32(3)), 3 * a.nbytes, repetitions),
    }


def _read_rates(size: int, repetitions: int) -> dict[str, float]:
    ones = np.ones(size // 4, np.float32)
    ones = ones[-ones.ctypes.data % 64 // 4 :]  # from a cache line on
    block = VECTOR_BYTES * READERS
    blocks, times = (size - 64) // block, max(1, 2 * CACHES["memory"] // size)
    assert read(ones, blocks, 1) == blocks * block // 4
    return _rates(lambda: read(ones, blocks, times), blocks * block * times, repetitions)


def _rates(run: Callable[[], Any], size: int, repetitions: int) -> dict[str, float]:
    run()
    rates = []
    for _ in range(repetitions):
        start = time.thread_time()
        run()
        rates.append(size / (time.thread_time() - start) / 1e9)
    return _summary(rates)


def _summary(values: list[float]) -> dict[str, float]:
    return {"best": max(values), "median": statistics.median(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    args = parser.parse_args()
    seconds, cores = (0.05 if args.quick else 1.0), usable_cores()
    print(f"{cpu_name()}; vectors of {VECTOR_BYTES} bytes ({ISA.name}), {ACCUMULATORS} accumulators")
    for dtype in ("float32", "float64"):
        for threads in sorted({1, cores}):
            p = flop_peak(dtype, seconds, threads)
            print(f"{dtype}, {threads} thread(s): best {p['best']:7.1f} GFLOP/s, median {p['median']:7.1f}")
    for name, p in bandwidth(3 if args.quick else 11).items():
        print(f"{name:12s} best {p['best']:7.1f} GB/s, median {p['median']:7.1f}")


if __name__ == "__main__":
    main()
