"""The client's side: tasks go to the scheduler, futures stay here, no parameters pass in between.

What is fetched is the state at the end of each epoch. Now and then an epoch starts afresh from it, so that what Dask
would have to run again, were everything lost, never reaches further back, and the scheduler forgets what lies before.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from fastcnn.distributed.rounds import (
    Job,
    Part,
    State,
    average_parts,
    load_state,
    losses_of,
    params_of,
    read_state,
    train_part,
)
from fastcnn.training.builders import random_stream
from fastcnn.training.loop import Pause, Step, TrainedBatch

__all__ = ["Rounds", "find_client", "results", "submit_value"]

FAN_IN = 4  # states averaged by one task; so many partitions need no tasks for it
AFRESH = 100  # rounds before an epoch starts from a state that is sent
AHEAD = 2  # rounds submitted before the losses of the first are there
POLL = 2.0  # seconds between two looks at whether anybody still works
FETCHING = 600.0  # seconds that a value may take to come here
PATIENCE = 60.0  # seconds without any worker before it is an error

_SHUFFLE_CHUNKS = 2  # what a random stream is for; see training.builders


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
        raise ImportError("training on a cluster needs Dask: pip install 'dask[array,distributed]'") from error
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
    from distributed import CancelledError, wait

    idle_since: float | None = None
    found = []
    for future in futures:
        while True:
            try:
                with client.as_current():  # which `wait` asks for
                    wait(future, timeout=POLL)
                found.append(future.result(timeout=FETCHING))
                break
            except (CancelledError, OSError) as error:  # a TimeoutError is an OSError too
                if future.status == "error":  # the task's own
                    raise
                workers = _n_workers(client)
                cancelled = isinstance(error, CancelledError)
                if workers is None and (cancelled or not isinstance(error, TimeoutError)):
                    raise ConnectionError(
                        f"the scheduler at {_address(client)} is lost; a checkpoint, if there is one, stays"
                    ) from error
                if cancelled:  # by somebody, or data that were scattered are lost
                    raise
                idle_since = None if workers else idle_since or monotonic()
                if idle_since is not None and monotonic() - idle_since > PATIENCE:
                    raise ConnectionError(f"no worker for {PATIENCE:.0f} s at {_address(client)}") from error
    return found


def _address(client: Any) -> str:
    return client.scheduler.address if client.scheduler is not None else "an address unknown"


def _n_workers(client: Any) -> int | None:
    """None: the scheduler does not answer."""
    try:
        return len(client.nthreads()) if client.status == "running" else None
    except (OSError, TimeoutError):
        return None


def submit_value(client: Any, make: Callable[[Any], Any], value: Any, name: str) -> Any:
    """``make(value)`` on a worker. Not scattered: the scheduler keeps `value`, and replays this as any other task."""
    import dask

    # A state may be larger than what Dask warns of.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
        return client.submit(make, value, key=f"{name}-{uuid.uuid4().hex}")


def _begun(state: State) -> Part:
    """As if a round without steps had led to `state`."""
    return Part(state, np.zeros((0, 3)), np.zeros(0, np.int64))


class Round(NamedTuple):
    """Some steps on one chunk of each partition, of those that have so many."""

    chunks: list[int]
    soon: list[int]  # those that will be wanted after these
    epoch: int
    first: int  # step of the chunks
    rates: list[float]  # learning rates of the steps


class _Ends(NamedTuple):
    """Futures of what two rounds led to: the average of each list is a state."""

    last: list[Any]  # of the last round that was submitted
    before: list[Any]  # of the one before it; empty without block momentum, and where there was none


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
    pause_every : int or None
        Rounds between two pauses within an epoch; None: there are none.
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
        pause_every: int | None = None,
    ) -> None:
        self._pause_every = pause_every
        self._client, self._job, self._chunks, self._sync_every = client, job, chunks, sync_every
        self._steps = [-(-size // job.batch_size) for size in sizes]
        numbers = np.arange(len(chunks))
        self._partitions = np.array_split(numbers, min(n_partitions, len(chunks)))
        self._end = end
        self._turns = max(len(part) for part in self._partitions)
        self._held: dict[int, Any] = {}
        self._ends = _Ends([], [])
        # Rounds submitted: their states are held with their losses, so that replays reach no further back.
        self._under_way: deque[tuple[_Ends, list[Any]]] = deque()
        self._rounds_replayable = 0
        self.rounds = 0

    def __len__(self) -> int:
        """Steps in an epoch, as learning rates count them: as if each turn had the largest chunk."""
        return self._turns * max(self._steps)

    def _turns_of(self, epoch: int) -> list[list[int]]:
        """Which chunks are trained side by side in an epoch, one turn after another."""
        orders = []
        for number, part in enumerate(self._partitions):
            if self._job.shuffle and len(part) > 1:
                part = random_stream((self._job.seed, epoch, number), _SHUFFLE_CHUNKS).permutation(part)
            orders.append(part.tolist())
        return [[order[turn] for order in orders if turn < len(order)] for turn in range(self._turns)]

    def plan(self, epoch: int, schedule: Callable[[int], float]) -> list[Round]:
        """The rounds of an epoch."""
        turns = self._turns_of(epoch)
        following = [*turns[1:], self._turns_of(epoch + 1)[0] if epoch + 1 < self._end else []]
        rounds = []
        for place, (chunks, soon) in enumerate(zip(turns, following, strict=True)):
            before = epoch * len(self) + place * max(self._steps)
            last = max(self._steps[chunk] for chunk in chunks)
            every = self._sync_every or last
            for first in range(0, last, every):
                rates = [schedule(before + number) for number in range(first, min(first + every, last))]
                rounds.append(Round(chunks, soon, epoch, first, rates))
        return rounds

    def run_epoch(self, step: Step, epoch: int, done: int) -> Generator[TrainedBatch | Pause, None, None]:
        """Train an epoch, but for its first `done` rounds, from the state of ``step.network``, which has the new one at
        the end, and at pauses what the rounds before have led to.

        The first rounds of the next epoch are then under way: whatever is done between epochs keeps no worker waiting.

        Raises
        ------
        ConnectionError
            See `results`.
        """
        if not self._ends.last or (self._rounds_replayable >= AFRESH and not self._under_way):
            last, before = [self._sent(read_state(step.network, step.average))], []
            if step.before is not None:
                before = [self._sent(State({f"params.{name}": a for name, a in step.before.items()}, 0, 0, []))]
            self._ends, self._rounds_replayable = _Ends(last, before), 0
        rounds = self.plan(epoch, step.schedule)
        for one in rounds[done + len(self._under_way) :]:
            self._begin(one)
            if len(self._under_way) > AHEAD:
                done += 1
                yield from self._finish(step, done)
        end = self._ends
        more = len(self._under_way)
        if epoch + 1 < self._end and self._rounds_replayable < AFRESH:
            for one in self.plan(epoch + 1, step.schedule)[:AHEAD]:
                self._begin(one)
        for _ in range(more):
            done += 1
            yield from self._finish(step, done, last=done == len(rounds))
        self._fetch(end, step)
        step.network.optimizer.learning_rate = rounds[-1].rates[-1]

    def _sent(self, state: State) -> Any:
        return submit_value(self._client, _begun, state, "fastcnn-state")

    def _fetch(self, ends: _Ends, step: Step) -> None:
        futures = [self._average(ends.last)]
        if ends.before:
            futures.append(self._client.submit(params_of, *ends.before, key=self._key("fastcnn-average")))
        part, *before = results(self._client, futures)
        load_state(step.network, step.average, part.state)
        step.before = before[0] if before else None

    def _begin(self, one: Round) -> None:
        self._hold(one)
        parts = self._submit_round(one)
        self._ends = _Ends(parts, self._ends.last if self._job.block_momentum else [])
        losses = [self._client.submit(losses_of, part, key=self._key("fastcnn-loss")) for part in parts]
        self._under_way.append((self._ends, losses))

    def _finish(self, step: Step, done: int, last: bool = False) -> Iterator[TrainedBatch | Pause]:
        """What the oldest round under way has done, and a pause after it if it is its turn; it is number `done`."""
        ends, sums = self._under_way[0]
        found = results(self._client, sums)
        losses, samples = (np.sum(values, axis=0) for values in zip(*found, strict=True))
        self._under_way.popleft()
        self.rounds += 1
        self._rounds_replayable += 1
        for (loss, weight, right), m in zip(losses.tolist(), samples.tolist(), strict=True):
            yield TrainedBatch(loss, weight, right, m)
        if self._pause_every and done % self._pause_every == 0 and not last:
            self._fetch(ends, step)
            yield Pause(done)

    def _submit_round(self, one: Round) -> list[Any]:
        """The futures of few partitions as they are: who trains next averages them. Of many, that of their average."""
        parts = [
            self._client.submit(
                train_part, self._ends.last, self._held[chunk], self._job, chunk, one.epoch, one.first, one.rates,
                self._ends.before, key=self._key(f"fastcnn-train-{chunk}"),
            )
            for chunk in one.chunks
            if self._steps[chunk] > one.first
        ]  # fmt: skip
        if len(parts) <= FAN_IN:
            return parts
        while len(parts) > 1:
            parts = [self._average(parts[start : start + FAN_IN]) for start in range(0, len(parts), FAN_IN)]
        return parts

    def _average(self, parts: Sequence[Any]) -> Any:
        if len(parts) == 1:
            return parts[0]
        return self._client.submit(average_parts, *parts, key=self._key("fastcnn-average"))

    def _hold(self, one: Round) -> None:
        """Have the chunks of this turn and of the next one in the cluster's memory; those of rounds under way stay."""
        wanted = dict.fromkeys([*one.chunks, *one.soon])
        self._held = {chunk: future for chunk, future in self._held.items() if chunk in wanted}
        missing = [chunk for chunk in wanted if chunk not in self._held]
        if missing:
            futures = self._client.compute([self._chunks[chunk] for chunk in missing])
            self._held |= dict(zip(missing, futures, strict=True))

    def _key(self, name: str) -> str:
        return f"{name}-{self._job.name}-{uuid.uuid4().hex}"
