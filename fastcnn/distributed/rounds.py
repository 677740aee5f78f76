"""A round of data-parallel training, as functions of their arguments alone: Dask may run any of them again.

A round begins with one state. Every partition takes some steps from it on its own images; the states that come out are
averaged, each weighing as much as the images it saw. With plain or momentum SGD and one step a round this is the step
that all these images together would have made: the update is linear in the gradient. This holds without block momentum.

An average of states has moved less far than each of them would have gone on alone. Block momentum (Chen and Huo 2016)
makes up for it: parameters go on by a share of what they moved by from the round before the last to the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np

from fastcnn.engine.network import Network, TrainingState
from fastcnn.engine.parameters import RUNNING_STATISTICS
from fastcnn.layers import Layer
from fastcnn.training.augment import Augmentation
from fastcnn.training.averaging import ParameterAverage
from fastcnn.training.batches import BatchLoader
from fastcnn.training.builders import BatchBuilder
from fastcnn.training.loop import Step, train_batches
from fastcnn.training.optimizers import Optimizer

__all__ = [
    "Images",
    "Job",
    "Part",
    "State",
    "average_parts",
    "load_state",
    "losses_of",
    "params_of",
    "read_state",
    "train_part",
]

_KEPT_NETWORKS = 4  # idle ones, of a process
_GOLDEN = 0x9E3779B97F4A7C15  # an odd number: its multiples are all different modulo 2^64


class Images(NamedTuple):
    """Checked images of one chunk."""

    rows: np.ndarray  # (n, H*W*C)
    labels: np.ndarray  # (n,), from 0
    weight: np.ndarray | None  # (n,)


class State(NamedTuple):
    """Everything that training goes on from."""

    arrays: dict[str, np.ndarray]  # parameters, moments, the moving average
    step: int
    average_steps: int
    dropout: list[list[int]]  # of each such layer: seed, masks drawn

    def of(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin so, by the rest of their names."""
        return {name.removeprefix(prefix): a for name, a in self.arrays.items() if name.startswith(prefix)}


class Part(NamedTuple):
    """What came out of a round, of one partition or averaged."""

    state: State
    losses: np.ndarray  # (steps, 3): sums of the losses times their weights, of the weights, and of those of hits
    samples: np.ndarray  # (steps,): images


@dataclass(frozen=True)
class Job:
    """What is the same in all rounds of a fit, and small."""

    name: str
    layers: tuple[Layer, ...]
    image_shape: tuple[int, int, int]
    dtype: str
    device: str
    precision: str
    n_jobs: int | None
    optimizer: Optimizer  # not bound to a network
    offset: np.ndarray
    scale: np.ndarray
    augment: tuple[Augmentation, ...]
    batch_size: int
    shuffle: bool
    seed: int
    label_smoothing: float
    micro_batch_size: int | None
    ema_decay: float | None
    block_momentum: float

    def loader(self, images: Images, chunk: int) -> BatchLoader:
        """The batches of a chunk; each chunk draws its own random numbers, the first one those of one machine."""
        builder = BatchBuilder(
            images.rows, self.image_shape, self.offset, 1 / self.scale, self.augment, np.dtype(self.dtype)
        )
        seed = self.seed + (chunk << 32)
        return BatchLoader(builder, images.labels, images.weight, self.batch_size, self.shuffle, seed)


def train_part(
    before: Sequence[Part],
    images: Images,
    job: Job,
    chunk: int,
    epoch: int,
    first: int,
    rates: Sequence[float],
    earlier: Sequence[Part] = (),
) -> Part:
    """From the state that all have in common, the steps of one round on one chunk.

    Parameters
    ----------
    before : sequence of Part
        What came out of the round before; of few partitions each one's, and they are averaged here.
    images : Images
    job : Job
    chunk : int
        Its number, for its random numbers.
    epoch : int
        From 0.
    first : int
        The number, in this epoch of the chunk, of the round's first batch.
    rates : sequence of float
        The learning rate of each step; fewer steps are done where the chunk ends.
    earlier : sequence of Part, default=()
        As `before`, of the round before that, for block momentum; empty: there was none, or it is not wanted.
    """
    losses, samples = np.zeros((len(rates), 3)), np.zeros(len(rates), np.int64)
    with _network_of(job) as network:
        average = None if job.ema_decay is None else ParameterAverage(network, job.ema_decay)
        common = average_parts(*before).state
        load_state(network, average, common, chunk)
        step = Step(network, rates.__getitem__, job.label_smoothing, job.micro_batch_size, average)
        batches = job.loader(images, chunk).epoch(epoch, first, first + len(rates))
        for number, trained in enumerate(train_batches(step, batches, 0)):
            losses[number], samples[number] = trained[:3], trained.samples
            if not isfinite(trained.loss):
                break
        state = read_state(network, average, chunk)
        if earlier:
            momentum = network.dtype.type(job.block_momentum)
            moved = [f"params.{name}" for name in network.params if not name.endswith(RUNNING_STATISTICS)]
            for name, past in _means(earlier, moved).items():
                state.arrays[name] += momentum * (common.arrays[name] - past)  # in each part, so in their average
        return Part(state, losses, samples)


def average_parts(*parts: Part) -> Part:
    """One of several: states weigh as much as the images they have seen; of one, that one itself.

    Parts whose images weigh nothing count only where all are like that.
    """
    if len(parts) == 1:
        return parts[0]
    states = [part.state for part in parts]
    state = State(
        _means(parts, states[0].arrays),
        max(state.step for state in states),
        max(state.average_steps for state in states),
        max(state.dropout for state in states),
    )
    return Part(state, sum(part.losses for part in parts), sum(part.samples for part in parts))  # type: ignore[arg-type]


def params_of(*parts: Part) -> dict[str, np.ndarray]:
    """The mean parameters alone."""
    return average_parts(*parts).state.of("params.")


def _means(parts: Sequence[Part], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Of these arrays of the parts' states."""
    if len(parts) == 1:
        return {name: parts[0].state.arrays[name] for name in names}
    weights = np.array([part.losses[:, 1].sum() for part in parts])
    if not weights.any():
        weights = np.array([part.samples.sum() for part in parts])
    shares = weights / weights.sum()
    arrays = {}
    for name in names:
        first, *others = (part.state.arrays[name] for part in parts)
        arrays[name] = first * first.dtype.type(shares[0])
        for other, share in zip(others, shares[1:], strict=True):
            arrays[name] += other * first.dtype.type(share)
    return arrays


def losses_of(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """What the client wants to know of a round: small."""
    return part.losses, part.samples


# ------------------------------------------------------------------------------------------------------------- states


def read_state(network: Network, average: ParameterAverage | None, chunk: int = 0) -> State:
    """A copy of the state of `network` and of its moving average; `chunk` as `load_state` was told."""
    training = network.training_state()
    arrays = {f"params.{name}": value.copy() for name, value in network.params.items()}
    for vector, views in training.moments.items():
        arrays |= {f"moments.{vector}.{name}": value for name, value in views.items()}
    if average is not None:
        arrays |= {f"average.{name}": value.copy() for name, value in average.values.items()}
    dropout = _shifted(training.dropout, -chunk)
    return State(arrays, training.step, 0 if average is None else average.steps, dropout)


def load_state(network: Network, average: ParameterAverage | None, state: State, chunk: int = 0) -> None:
    """Make `state` that of `network`; dropout draws masks of its own for each chunk."""
    moments: dict[str, dict[str, np.ndarray]] = {}
    for name, value in state.of("moments.").items():
        vector, _, param = name.partition(".")
        moments.setdefault(vector, {})[param] = value
    network.load_params(state.of("params."))
    network.load_training_state(TrainingState(state.step, moments, _shifted(state.dropout, chunk)))
    if average is not None:
        average.resume(state.of("average."), state.average_steps)


def _shifted(dropout: Sequence[Sequence[int]], chunk: int) -> list[list[int]]:
    return [[(seed + chunk * _GOLDEN) % 2**64, drawn] for seed, drawn in dropout]


_idle: list[tuple[str, Network]] = []
_idle_lock = threading.Lock()


@contextmanager
def _network_of(job: Job) -> Iterator[Network]:
    """A network for one task, which sets its state; kept for the next one, since plans take a while to make."""
    with _idle_lock:
        found = next((item for item in _idle if item[0] == job.name), None)
        if found is not None:
            _idle.remove(found)
    network = _new_network(job) if found is None else found[1]
    yield network
    with _idle_lock:
        _idle.append((job.name, network))
        del _idle[:-_KEPT_NETWORKS]


def _new_network(job: Job) -> Network:
    return Network(
        job.layers,
        job.image_shape,
        dtype=job.dtype,
        device=job.device,
        random_state=0,
        n_jobs=job.n_jobs,
        optimizer=deepcopy(job.optimizer),
        precision=job.precision,
    )
