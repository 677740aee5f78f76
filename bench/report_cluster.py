"""What `bench.report` says of training on a cluster."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.cluster_model import GOOD, NETWORKS, STEPS, WORKERS, calibrated, checked
from bench.markdown import table

TIMES, POINTS, SEEDS = 1.7, 0.3, 3
ONE, TWO = "one process", "two workers"


Pair = tuple[dict[str, Any], dict[str, Any]]


class Told(NamedTuple):
    """The parameters of the two workers."""

    sync_every: int
    block_momentum: float
    learning_rate: float

    def __str__(self) -> str:
        momentum = f", block_momentum={self.block_momentum}" if self.block_momentum else ""
        return f"sync_every={self.sync_every}{momentum}"


def pairs(r: dict[str, Any]) -> dict[Told, list[Pair]]:
    """The runs of one process and of two workers, seed by seed; by what these were told, the most steps first."""
    alone = {_setting(run): run for run in r.get("fits", []) if run["side"] == ONE}
    found: dict[Told, list[Pair]] = {}
    for run in r.get("fits", []):
        if run["side"] == TWO and _setting(run) in alone:
            found.setdefault(_told(run), []).append((alone[_setting(run)], run))
    return dict(sorted(found.items(), reverse=True))


def _setting(run: dict[str, Any]) -> tuple[Any, ...]:
    return _told(run), run["epochs"], run["images"], run["seed"]


def _told(run: dict[str, Any]) -> Told:
    """What the two workers were told; one process ran beside them."""
    return Told(run["sync_every"], run.get("block_momentum", 0.0), run["learning_rate"])


def ratio(both: list[Pair]) -> float:
    return statistics.median(two["images_per_second"] / one["images_per_second"] for one, two in both)


def points(both: list[Pair]) -> float:
    """How much more accurate two workers are, in the mean, percentage points."""
    return 100 * statistics.mean(two["accuracy"] - one["accuracy"] for one, two in both)


def goals(r: dict[str, Any] | None) -> Iterator[tuple[str, str, str, bool | None, bool]]:
    """What, asked, measured, whether it is reached (None: not measured), whether that is all."""
    speed = "2 workers of Dask, times as many images/s as one process; the default network"
    accuracy = "2 workers of Dask, test accuracy after as many epochs; points below one process"
    found = pairs(r) if r else {}
    if not found:
        yield speed, f"{TIMES}", "-", None, False
        yield accuracy, f"at most {POINTS}", "-", None, False
        return
    complete = all(len(both) >= SEEDS for both in found.values())
    ratios, less = ({k: of(both) for k, both in found.items()} for of in (ratio, lambda both: -points(both)))
    said = [", ".join(f"{v:.2f} (`{k}`)" for k, v in values.items()) for values in (ratios, less)]
    yield speed, f"{TIMES}", said[0], max(ratios.values()) >= TIMES, complete
    # Of the settings that are fast enough, or else of the fastest: with more averages it is another trade.
    fast = [k for k in found if ratios[k] >= TIMES] or [max(ratios, key=lambda k: ratios[k])]
    yield accuracy, f"at most {POINTS}", said[1], min(less[k] for k in fast) <= POINTS, complete


def lines(r: dict[str, Any], about: list[str]) -> list[str]:
    found = ["## On a cluster", "", *about]
    if tried := r.get("rates"):
        found += [
            "Learning rates of two workers, by the accuracy on 5,000 training images set aside (seed 0):",
            "",
            *table(
                ["of two workers", "learning rate", "accuracy"],
                [[f"`{_told(one)}`", str(one["learning_rate"]), f"{one['accuracy']:.4f}"] for one in tried],
            ),
            "",
        ]
    for told, both in pairs(r).items():
        run = both[0][1]
        found += [
            f"`CNNClassifier(n_jobs=1)` in one process, and `DaskCNNClassifier({told}, "
            f"learning_rate_init={told.learning_rate})` on two processes with one thread each: {run['epochs']} epochs "
            f"of {run['images']:,} images, mini-batches of 128 (of each worker), {run['rounds']} rounds. Starting "
            "processes and loading kernels is not timed. Dask looks at itself less often than it does by default "
            "(`QUIET` in `bench/cluster.py`).",
            "",
            *table(
                ["seed", "one process, images/s", "two workers, images/s", "times", "accuracy of one", "of two"],
                [
                    [
                        str(one["seed"]),
                        f"{one['images_per_second']:,.0f}",
                        f"{two['images_per_second']:,.0f}",
                        f"{two['images_per_second'] / one['images_per_second']:.2f}",
                        f"{one['accuracy']:.4f}",
                        f"{two['accuracy']:.4f}",
                    ]
                    for one, two in both
                ],
            ),
            "",
            f"Median ratio **{ratio(both):.2f}**; mean accuracy {points(both):+.2f} points.",
            "",
        ]
    if "rounds" in r and "constants" in r:
        found += [*_rounds(r), "", *_model(r)]
    return found


def _rounds(r: dict[str, Any]) -> list[str]:
    alone = r["rounds"]["seconds_per_round"]["1"]
    c = calibrated(r)
    return [
        "### Rounds",
        "",
        f"Milliseconds a round of one and of two workers, and what the model of `bench/cluster_model.py` makes of the "
        f"constants: {c.step * 1e3:.1f} ms a step, {c.state / 1e6:.1f} MB a state, {c.bandwidth / 1e6:,.0f} MB/s "
        f"between processes, {c.latency * 1e3:.1f} ms for a value from another worker, {c.task * 1e3:.2f} ms a task.",
        "",
        *table(
            ["`sync_every`", "one worker", "two workers", "two workers, modelled"],
            [
                [str(k), f"{alone[str(k)] * 1e3:.0f}", f"{measured * 1e3:.0f}", f"{modelled * 1e3:.0f}"]
                for k, measured, modelled in checked(r)
            ],
        ),
    ]


def _model(r: dict[str, Any]) -> list[str]:
    found = ["### More workers, on paper", "", "Modelled, not measured: the share of the time in which workers train."]
    for name, bandwidth in NETWORKS.items():
        c = calibrated(r, bandwidth)
        found += [
            "",
            *table(
                [f"workers, {name}", *(f"`sync_every={k}`" for k in STEPS), f"least for {GOOD:.0%}"],
                [[str(w), *(f"{c.efficiency(w, k):.0%}" for k in STEPS), f"{c.steps_for(w, GOOD):,}"] for w in WORKERS],
            ),
        ]
    return found
