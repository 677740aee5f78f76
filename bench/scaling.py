"""What more threads bring, and what more work costs.

Threads: training steps of two networks at batch 128 with 1, 2, 4, ... threads, in turns in one process, by the clock
on the wall; the losses must have the same bits. Work: the CPU time of a training step on one thread, as the batch, the
image, the channels or the depth grow, against the multiply-adds of the step. If time is proportional to work, the slope
on logarithmic axes is 1 and the time of a multiply-add is the same everywhere.
`python -m bench.scaling [--quick]`
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from bench.machine import save, usable_cores, versions
from bench.networks import CLASSES, NETWORKS, fastcnn_layers
from fastcnn import Network
from fastcnn.layers import Conv2D, Dense, GlobalAvgPool2D, Layer

BATCH, CHECKED_STEPS, CHECKED_IMAGES = 128, 3, 4
ROUNDS, QUICK_ROUNDS, TURN = 15, 3, 0.3  # a turn takes about so many seconds
WORK_ROUNDS, WORK_TURN = 7, 0.03
# One of the four grows, the others stay as in BASE. All convolutions are 3x3, from `channels` to `channels`.
BASE = {"batch": 64, "image": 16, "channels": 32, "depth": 2}
SWEEPS = {
    "batch": (8, 16, 32, 64, 128, 256, 512, 1024),
    "image": (8, 12, 16, 24, 32, 48, 64),
    "channels": (8, 16, 32, 64, 128, 256),
    "depth": (1, 2, 3, 4, 6, 8),
}
QUICK = {name: values[:3] for name, values in SWEEPS.items()}


class Steps:
    """Training steps of one network on one batch; the first losses are compared with the reference's."""

    def __init__(self, layers: list[Layer], shape: tuple[int, ...], batch: int, threads: int) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((batch, *shape), np.float32)
        self.labels = rng.integers(CLASSES, size=batch)
        few = [
            self._losses(Network(layers, shape, random_state=0, device=device, n_jobs=threads), CHECKED_IMAGES)
            for device in ("cpu", "reference")
        ]
        np.testing.assert_allclose(*few, rtol=2e-3)
        self.net = Network(layers, shape, random_state=0, n_jobs=threads)
        self.losses = self._losses(self.net, batch)
        self.count = 1

    def _losses(self, net: Network, images: int) -> list[float]:
        return [net.train_step(self.x[:images], self.labels[:images]) for _ in range(CHECKED_STEPS)]

    def calibrate(self, seconds: float, clock: Callable[[], float]) -> None:
        """Choose the steps of a turn."""
        self.count = max(1, round(seconds / max(self.turn(clock), 1e-6)))

    def turn(self, clock: Callable[[], float]) -> float:
        """Seconds of a step, over one turn."""
        start = clock()
        for _ in range(self.count):
            self.net.train_step(self.x, self.labels)
        return (clock() - start) / self.count


def thread_counts() -> list[int]:
    """1, 2, 4, ... and all cores."""
    cores = usable_cores()
    return sorted({min(2**i, cores) for i in range(cores.bit_length() + 1)})


def speed_ups(name: str, counts: list[int], rounds: int) -> dict[str, Any]:
    """Seconds of a step by the number of threads, and how many times faster than one thread."""
    net = NETWORKS[name]
    sides = {n: Steps(fastcnn_layers(net), net.input_shape, BATCH, n) for n in counts}
    for n, side in sides.items():
        assert side.losses == sides[1].losses, f"{name}: other losses with {n} threads: {side.losses}"
        side.calibrate(TURN, time.perf_counter)
    seconds: dict[int, list[float]] = {n: [] for n in counts}
    for _ in range(rounds):
        for n, side in sides.items():
            seconds[n].append(side.turn(time.perf_counter))
    result: dict[str, Any] = {"seconds": seconds, "speed_up": {}}
    for n in counts[1:]:
        ratios = [one / many for one, many in zip(seconds[1], seconds[n], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        result["speed_up"][n] = {"median": middle, "quartiles": [low, high]}
        step = statistics.median(seconds[n])
        print(f"{name:8s} {n} threads: {middle:.2f} times faster ({low:.2f} to {high:.2f}), {step * 1e3:.1f} ms a step")
    return result


def multiply_adds(net: Network, batch: int) -> int:
    """Of a training step: forward, the gradient of the weights, and of the input unless it is the image."""
    total = 0
    for i, op in enumerate(op for op in net.ops if op.kind in ("conv2d", "dense")):
        weights = prod(net.params[f"{op.layer}.weight"].shape)
        total += (2 if i == 0 else 3) * weights * prod(op.out_shape[:-1])
    return batch * total


def cost(name: str, values: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """CPU seconds of a step against its work, as `name` grows."""
    points = []
    for value in values:
        setting = BASE | {name: value}
        layers = [Conv2D(setting["channels"], 3, activation="relu") for _ in range(setting["depth"])]
        shape = (setting["image"], setting["image"], setting["channels"])
        steps = Steps([*layers, GlobalAvgPool2D(), Dense(CLASSES)], shape, setting["batch"], 1)
        steps.calibrate(WORK_TURN, time.thread_time)
        points.append(steps)
    seconds: list[list[float]] = [[] for _ in points]
    for _ in range(rounds):
        for steps, kept in zip(points, seconds, strict=True):
            kept.append(steps.turn(time.thread_time))
    work = [multiply_adds(steps.net, len(steps.x)) for steps in points]
    medians = [statistics.median(kept) for kept in seconds]
    slope = float(np.polyfit(np.log(work), np.log(medians), 1)[0])
    each = np.array(medians) / np.array(work)
    relative = each / np.median(each)
    deviation = float(max(relative.max(), 1 / relative.min()) - 1)
    print(f"{name}: slope {slope:.3f}; a multiply-add's time is within {deviation:.0%} of the median's")
    for value, amount, second, ratio in zip(values, work, medians, relative, strict=True):
        print(
            f"{value:8d} {amount / 1e6:10.1f} million multiply-adds {second * 1e3:10.3f} ms  {ratio:5.2f}", flush=True
        )
    return {
        "values": values, "multiply_adds": work, "seconds": medians, "slope": slope,
        "relative_time_per_multiply_add": relative.tolist(), "largest_deviation": deviation,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds and sizes; nothing is written")
    args = parser.parse_args()
    counts = thread_counts()
    result: dict[str, Any] = {"versions": versions("fastcnn", "numpy", "numba"), "batch": BATCH, "base": BASE}
    rounds = QUICK_ROUNDS if args.quick else ROUNDS
    if len(counts) == 1:
        print("one core: no speed-up to measure")
    result["threads"] = {name: speed_ups(name, counts, rounds) for name in ("seed", "vgg") if len(counts) > 1}
    sweeps, rounds = (QUICK, QUICK_ROUNDS) if args.quick else (SWEEPS, WORK_ROUNDS)
    result["work"] = {name: cost(name, values, rounds) for name, values in sweeps.items()}
    if not args.quick:
        print(f"written: {save('scaling', result)}")


if __name__ == "__main__":
    main()
