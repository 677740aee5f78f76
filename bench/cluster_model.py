"""How many workers pay, and with which `sync_every`: a model of `DaskCNNClassifier`'s rounds, on paper.

W workers train a partition each. A round of k steps takes, in seconds,

    k * step                                               every worker computes
    + levels * (latency + (fan_in - 1) * S / B + fan_in * S * a)    states are averaged by a tree of tasks
    + waves * (latency + min(W - 1, 10) * S / B)           the mean goes to all: each holder serves ten at a time
    + tasks * t                                            the scheduler sees each task's end before the next can begin

Up to four workers get each other's states and average them before they train: one level, and nothing is spread.

with S the bytes of a state (parameters and moments), B a network's bytes a second, t the scheduler's seconds a task and
a the seconds a byte takes to be averaged. Efficiency is k * step over that. The constants come from
bench/results/cluster.json (`python -m bench.cluster`): B as measured between two processes, and 10 and 1 Gbit/s for
networks. The model's rounds are set against the measured ones for two workers. What it leaves out: workers of different
speed, other users of the network, and that averaging less often costs accuracy. `python -m bench.cluster_model`
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil, log
from typing import Any

from bench.machine import RESULTS

FAN_IN = 4  # of fastcnn.distributed.cluster
SERVED = 10  # Dask: fetches that a worker answers at a time (distributed.worker.connections.incoming)
WORKERS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
STEPS = (1, 4, 16, 64, 256, 1024)
NETWORKS = {"10 Gbit/s": 1.25e9, "1 Gbit/s": 1.25e8}
GOOD = 0.9  # efficiency that the advice is for


@dataclass(frozen=True)
class Constants:
    step: float  # seconds
    state: float  # bytes
    bandwidth: float  # bytes a second
    latency: float  # seconds, of a task that waits for another worker's value
    task: float  # seconds of the scheduler
    averaging: float  # seconds a byte

    def overhead(self, workers: int) -> float:
        """Seconds of a round in which nobody trains."""
        if workers == 1:
            return self.task
        levels = ceil(log(workers, FAN_IN) - 1e-9)
        fan_in = min(FAN_IN, workers)
        sending = self.state / self.bandwidth
        tree = levels * (self.latency + (fan_in - 1) * sending + fan_in * self.state * self.averaging)
        if workers <= FAN_IN:
            return tree + 2 * workers * self.task  # training, and what the client wants to know of it
        waves = ceil(log(workers, SERVED + 1) - 1e-9)
        spread = waves * (self.latency + min(workers - 1, SERVED) * sending)
        tasks, left = workers + 1, workers
        while left > 1:
            left = ceil(left / FAN_IN)
            tasks += left
        return tree + spread + tasks * self.task

    def round_seconds(self, workers: int, steps: int) -> float:
        return steps * self.step + self.overhead(workers)

    def efficiency(self, workers: int, steps: int) -> float:
        return steps * self.step / self.round_seconds(workers, steps)

    def steps_for(self, workers: int, efficiency: float) -> int:
        """The least `sync_every` with at least this efficiency."""
        return ceil(efficiency / (1 - efficiency) * self.overhead(workers) / self.step)


def calibrated(r: dict[str, Any], bandwidth: float | None = None) -> Constants:
    """The constants that `bench.cluster` has measured; on another network with another bandwidth."""
    rounds, found = r["rounds"], r["constants"]
    longest = max(rounds["steps_per_round"])
    return Constants(
        step=rounds["seconds_per_round"]["2"][str(longest)] / longest,
        state=rounds["state_bytes"],
        bandwidth=bandwidth or found["bytes_per_second"],
        latency=found["latency"],
        task=found["seconds_per_task"],
        averaging=found["average_seconds_per_byte"],
    )


def checked(r: dict[str, Any]) -> list[tuple[int, float, float]]:
    """(sync_every, measured, modelled) seconds a round of two workers."""
    constants, measured = calibrated(r), r["rounds"]["seconds_per_round"]["2"]
    return [(int(k), seconds, constants.round_seconds(2, int(k))) for k, seconds in measured.items()]


def main() -> None:
    r = json.loads((RESULTS / "cluster.json").read_text())
    print(calibrated(r))
    for steps, measured, modelled in checked(r):
        print(f"2 workers, sync_every={steps}: measured {measured * 1e3:.0f} ms a round, modelled {modelled * 1e3:.0f}")
    for name, bandwidth in NETWORKS.items():
        constants = calibrated(r, bandwidth)
        print(f"\n{name}: efficiency by sync_every, and the least for {GOOD:.0%}")
        for workers in WORKERS:
            row = "  ".join(f"{k}: {constants.efficiency(workers, k):.0%}" for k in STEPS)
            print(f"{workers:>5} workers  {row}  -> {constants.steps_for(workers, GOOD)}")


if __name__ == "__main__":
    main()
