"""The client's side: tasks go to the scheduler, futures stay here, no parameters pass in between.

What is fetched is the state at the end of each epoch. With it the next epoch starts afresh, so that what Dask would
have to run again after a failure never reaches further back, and the scheduler forgets what lies before.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from fastcnn.distributed.rounds import Job, Part, average_parts, load_state, losses_of, read_state, train_part
from fastcnn.training.batches import random_stream
from fastcnn.training.loop import Step, TrainedBatch

__all__ = ["Rounds", "find_client", "results", "submit_value"]

FAN_IN = 4  # states averaged by one task
AHEAD = 2  # rounds submitted before the losses of the first are there
POLL = 2.0  # seconds between two looks at whether anybody still works
PATIENCE = 60.0  # seconds without any worker before it is an error

_SHUFFLE_CHUNKS = 2  # what a random stream is for; see training.batches


def find_client(client: Any) -> Any:
    """`client`, or the one there is.

    Raises
    ------
    ImportError
        Without Dask.
    ValueError
        If there is none.
    """
    try:
        import dask.array  # noqa: F401
        from distributed import default_client
    except ImportError as error:
        raise ImportError("training on a cluster needs Dask: pip install fastcnn[dask]") from error
    if client is not None:
        return client
    try:
        return default_client()
    except ValueError as error:
        raise ValueError("there is no Dask client: make a distributed.Client, or give the parameter client") from error


def results(client: Any, futures: Sequence[Any]) -> list[Any]:
    """What the futures become, waited for as long as there is somebody to work.

    Raises
    ------
    ConnectionError
        If the scheduler is lost, or if there has been no worker for a minute.
    """
    from distributed import CancelledError

    alone_since = None
    found = []
    for future in futures:
        while True:
            try:
                found.append(future.result(timeout=POLL))
                break
            except TimeoutError:
                if future.done():  # the task's own
                    raise
                alone_since = None if _n_workers(client) else alone_since or monotonic()
                if alone_since is not None and monotonic() - alone_since > PATIENCE:
                    raise ConnectionError(f"no worker for {PATIENCE:.0f} s at {_address(client)}") from None
            except CancelledError as error:
                if _n_workers(client) is not None:  # somebody cancelled it, or data that were scattered are lost
                    raise
                raise ConnectionError(f"the scheduler at {_address(client)} is lost") from error
    return found


def _address(client: Any) -> str:
    return client.scheduler.address if client.scheduler is not None else "an address unknown"


def _n_workers(client: Any) -> int | None:
    """None: the scheduler does not answer."""
    try:
        return len(client.nthreads()) if client.status == "running" else None
    except (OSError, TimeoutError):
        return None


@contextmanager
def _large_values() -> Iterator[None]:
    """A state may be larger than what Dask warns of in a graph; it is sent once an epoch, and replayed if need be."""
    import dask

    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
        yield


def submit_value(client: Any, value: Any, name: str) -> Any:
    """A future for `value`. Not scattered: the scheduler keeps it, and what a dead worker held is there again."""
    with _large_values():
        return client.submit(_same, value, key=f"{name}-{uuid.uuid4().hex}")


def _same(value: Any) -> Any:
    return value


class Turn(NamedTuple):
    """A part of an epoch: one chunk of each partition, in rounds."""

    chunks: list[int]
    first: int  # the number of its first step in the epoch


class Rounds:
    """The training of a fit's epochs, round by round.

    Parameters
    ----------
    client : distributed.Client
    job : Job
    chunks : sequence of Delayed
        Of `Images`.
    sizes : sequence of int
        Images in each, at least one.
    n_partitions : int
        Neighbouring chunks are dealt out to so many, which train side by side, one chunk of each at a time.
    sync_every : int or None
        Steps in a round; None: as many as a chunk has.
    end : int
        The number of the epoch that is the first not to be trained.
    """

    def __init__(
        self,
        client: Any,
        job: Job,
        chunks: Sequence[Any],
        sizes: Sequence[int],
        n_partitions: int,
        sync_every: int | None,
        end: int,
    ) -> None:
        self._client, self._job, self._chunks, self._sync_every = client, job, chunks, sync_every
        self._steps = [-(-size // job.batch_size) for size in sizes]
        numbers = np.arange(len(chunks))
        self._partitions = np.array_split(numbers, min(n_partitions, len(chunks)))
        self._end = end
        self._turns = max(len(part) for part in self._partitions)
        self._held: dict[int, Any] = {}
        self.rounds = 0

    def __len__(self) -> int:
        """Steps in an epoch, as learning rates count them: as if each turn had the largest chunk."""
        return self._turns * max(self._steps)

    def epoch_turns(self, epoch: int) -> list[Turn]:
        """Which chunks are trained together in an epoch, one turn after another."""
        orders = []
        for number, part in enumerate(self._partitions):
            if self._job.shuffle and len(part) > 1:
                part = random_stream((self._job.seed, epoch, number), _SHUFFLE_CHUNKS).permutation(part)
            orders.append(part.tolist())
        return [
            Turn([order[turn] for order in orders if turn < len(order)], turn * max(self._steps))
            for turn in range(self._turns)
        ]

    def run_epoch(self, step: Step, epoch: int) -> Generator[TrainedBatch, None, None]:
        """Train an epoch from the state of ``step.network``, which has the new one at the end.

        Raises
        ------
        ConnectionError
            See `results`.
        """
        state = read_state(step.network, step.average)
        nothing = Part(state, np.zeros((0, 2)), np.zeros(0, np.int64))
        common = submit_value(self._client, nothing, "fastcnn-state")
        under_way: deque[tuple[Any, Any]] = deque()  # the state is held with its losses: replays reach no further back
        turns = self.epoch_turns(epoch)
        for place, turn in enumerate(turns):
            following = turns[place + 1 :] or (self.epoch_turns(epoch + 1) if epoch + 1 < self._end else [turn])
            self._hold(turn.chunks, following[0].chunks)
            last = max(self._steps[chunk] for chunk in turn.chunks)
            every = self._sync_every or last
            for first in range(0, last, every):
                before = epoch * len(self) + turn.first
                rates = [step.schedule(before + number) for number in range(first, min(first + every, last))]
                common = self._submit_round(common, turn.chunks, epoch, first, rates)
                losses = self._client.submit(losses_of, common, key=self._key("fastcnn-loss"))
                under_way.append((common, losses))
                step.network.optimizer.learning_rate = rates[-1]
                if len(under_way) > AHEAD:
                    yield from self._finish(under_way.popleft())
        while under_way:
            yield from self._finish(under_way.popleft())
        (part,) = results(self._client, [common])
        load_state(step.network, step.average, part.state)

    def _finish(self, done: tuple[Any, Any]) -> Iterator[TrainedBatch]:
        ((losses, samples),) = results(self._client, [done[1]])
        self.rounds += 1
        for (loss, weight), m in zip(losses.tolist(), samples.tolist(), strict=True):
            yield TrainedBatch(loss, weight, m)

    def _submit_round(self, common: Any, chunks: Sequence[int], epoch: int, first: int, rates: list[float]) -> Any:
        parts = [
            self._client.submit(
                train_part, common, self._held[chunk], self._job, chunk, epoch, first, rates,
                key=self._key(f"fastcnn-train-{chunk}"),
            )
            for chunk in chunks
            if self._steps[chunk] > first
        ]  # fmt: skip
        while len(parts) > 1:
            groups = [parts[start : start + FAN_IN] for start in range(0, len(parts), FAN_IN)]
            parts = [
                self._client.submit(average_parts, *group, key=self._key("fastcnn-average"))
                if len(group) > 1
                else group[0]
                for group in groups
            ]
        return parts[0]

    def _hold(self, now: Sequence[int], soon: Sequence[int]) -> None:
        """Have the chunks of this turn and of the next one in the cluster's memory, and no others."""
        wanted = dict.fromkeys([*now, *soon])
        self._held = {chunk: future for chunk, future in self._held.items() if chunk in wanted}
        missing = [chunk for chunk in wanted if chunk not in self._held]
        if missing:
            futures = self._client.compute([self._chunks[chunk] for chunk in missing])
            self._held |= dict(zip(missing, futures, strict=True))

    def _key(self, name: str) -> str:
        return f"{name}-{self._job.name}-{uuid.uuid4().hex}"
