"""Mini-batches: an epoch of them, the next one built while this one trains."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastcnn.training.builders import BatchBuilder, Mix, random_stream

__all__ = ["Batch", "BatchLoader"]

# A batch of fewer values is built sooner than it is handed to a thread (some 100 microseconds).
_THREAD_PAYS = 2**16

_SHUFFLE = 0  # what a random stream is for


class Batch(NamedTuple):
    """One mini-batch. ``x`` is used again for a later one: be done with it before asking for the next."""

    rows: NDArray[np.int64]  # (m,): which images
    x: NDArray[Any]  # (m, H, W, C)
    y: NDArray[Any]  # (m, ...)
    sample_weight: NDArray[Any] | None  # (m,)
    mix: Mix | None = None  # partners as labels


class BatchLoader:
    """The mini-batches of an epoch, each built while the one before it trains.

    A background thread does it, one for each epoch; small batches are built in place instead, and all where the system
    gives no more threads.

    Parameters
    ----------
    builder : BatchBuilder
    y : array (n, ...)
    sample_weight : array (n,) or None
    batch_size : int
        The last batch of an epoch holds what is left.
    shuffle : bool
        Whether each epoch has its own order, drawn from (seed, epoch).
    seed : int
    rows : int array, optional
        The images that an epoch goes through, by their number; all of them without it.
    """

    def __init__(
        self,
        builder: BatchBuilder,
        y: NDArray[Any],
        sample_weight: NDArray[Any] | None = None,
        batch_size: int = 128,
        shuffle: bool = True,
        seed: int = 0,
        rows: NDArray[np.integer] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        for name, values in (("y", y), ("sample_weight", sample_weight)):
            if values is not None and len(values) != builder.n_images:
                raise ValueError(f"{name} has {len(values)} entries for {builder.n_images} images")
        self.builder = builder
        self.y = y
        self.sample_weight = sample_weight
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.seed = seed
        self.rows = np.arange(builder.n_images) if rows is None else np.asarray(rows, dtype=np.int64)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self.rows) // self.batch_size)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The images of an epoch in the order in which they come.

        Parameters
        ----------
        epoch : int
            Its number, from 0.

        Returns
        -------
        int64 array (n,)
            Their numbers.
        """
        if not self.shuffle:
            return self.rows
        return self.rows[random_stream((self.seed, epoch, 0), _SHUFFLE).permutation(len(self.rows))]

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """Go through an epoch once, or through some of its batches.

        An exception while a batch is built is raised where that batch is asked for. The thread is gone when
        the loop ends, is left early or raises.

        Parameters
        ----------
        epoch : int
            Its number, from 0.
        start, stop : int
            The first batch, and the one after the last; without `stop` all that follow.

        Yields
        ------
        Batch
            Its ``x`` is used again for a later one: be done with it before asking for the next.
        """
        numbers = range(len(self))[start:stop]
        if not numbers:
            return
        order = self.order(epoch)
        size = min(self.batch_size, len(order))
        buffers = [self.builder.empty(size) for _ in range(2)]

        def build(number: int) -> Batch:
            rows = order[number * size : (number + 1) * size]
            x = buffers[number % 2][: len(rows)]
            mix = self.builder.build(rows, x, (self.seed, epoch, number))
            y = self.y[rows]
            weight = None if self.sample_weight is None else self.sample_weight[rows]
            if mix is None:
                return Batch(rows, x, y, weight)
            share = mix.share
            if weight is not None:  # each label counts as much as its image does: share * weight
                own, others = share * weight, (1 - share) * weight[mix.partner]
                weight = own + others
                share = np.divide(own, weight, out=share.copy(), where=weight > 0)
            return Batch(rows, x, y, weight, Mix(y[mix.partner], share))

        if buffers[0].size < _THREAD_PAYS:
            yield from map(build, numbers)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="fastcnn-batches") as pool:
            try:
                upcoming = pool.submit(build, start)
            except RuntimeError:  # the system gives no more threads
                yield from map(build, numbers)
                return
            for number in numbers:
                batch = upcoming.result()
                if number + 1 in numbers:
                    upcoming = pool.submit(build, number + 1)
                yield batch
