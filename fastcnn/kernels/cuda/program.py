"""Programs: launches that are made once and run again and again; as one CUDA graph where the driver has them."""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from fastcnn.kernels.cuda.arrays import DeviceArray, empty
from fastcnn.kernels.cuda.driver import SIMULATED, Call, Graph, capture, recording, run

__all__ = ["Program", "record", "replay"]

_MOST_KEPT = 256  # graphs of `replay`
_TRIES = 2  # to capture a graph: what another thread does may spoil one


class Program:
    """Launches over arrays that stay where they are.

    The first run launches one kernel after the other (it also loads them); the second one captures the launches as a
    graph, which later runs hand to the driver in one call. Where that fails twice, or with FASTCNN_CUDA_GRAPHS=0, each
    run launches.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = tuple(calls)
        self.graph: Callable[[], None] | None = None
        self._ran = False
        self._tries = _TRIES if graphs_wanted() else 0

    def __call__(self) -> None:
        if self.graph is not None:
            self.graph()
            return
        if self._ran and self._tries:
            self._capture()
            if self.graph is not None:
                self.graph()
                return
        run(self.calls)
        self._ran = True

    def _capture(self) -> None:
        self._tries -= 1
        graph = captured(self.calls)
        if graph is not None:
            weakref.finalize(self, graph.close).atexit = False
            self.graph = graph.launch


def graphs_wanted() -> bool:
    """Whether launches become graphs."""
    return not SIMULATED and os.environ.get("FASTCNN_CUDA_GRAPHS") != "0"


def captured(calls: Sequence[Call]) -> Graph | None:
    """`calls` as a graph; None from a driver or a numba-cuda that cannot: launches do the same."""
    try:
        return capture(calls)
    except Exception:
        return None


Calls = Sequence[tuple[Callable[..., None], tuple[Any, ...]]]


def record(calls: Calls, later: Calls = ()) -> Program:
    """A function that does all `calls`, (kernel, arguments), in order."""
    with recording() as kept:
        for kernel, args in calls:
            kernel(*args)
    return Program(kept)


class _Replayed:
    """What `replay` keeps. It owns what the launches write to beside the caller's arrays."""

    def __init__(self, numbers: DeviceArray) -> None:
        self.numbers = numbers
        self.graph: Graph | None = None
        self.runs = 0
        self.owned: list[Any] = []

    def __del__(self) -> None:
        if self.graph is not None:
            with suppress(Exception):  # when Python ends the driver may be gone
                self.graph.close()


_replayed: OrderedDict[Any, _Replayed] = OrderedDict()


def replay(
    launches: Callable[..., None],
    arrays: Sequence[DeviceArray],
    fixed: tuple[Any, ...] = (),
    numbers: Sequence[float] = (),
) -> None:
    """Run what ``launches(*arrays, vector, *fixed)`` launches; `vector` has `numbers`, which change. Without numbers
    there is none.

    It is done as a graph from the second call with the same arrays on, or the third where a capture failed. The arrays
    belong to the caller, who may free them: another array that begins at the same place is then served by the same
    graph.
    """
    real = arrays[0].dtype
    key = launches, fixed, *((array.address if array.size else 0, array.size, array.dtype.char) for array in arrays)
    kept = _replayed.pop(key, None)
    if kept is None:
        kept = _Replayed(empty(len(numbers) * real.itemsize).view(real))
        while len(_replayed) >= _MOST_KEPT:
            _replayed.popitem(last=False)
    _replayed[key] = kept
    if numbers:
        kept.numbers[...] = np.asarray(numbers, real)
    given = (*arrays, kept.numbers, *fixed) if numbers else (*arrays, *fixed)
    if kept.graph is None and 1 <= kept.runs <= _TRIES and graphs_wanted():
        with recording() as calls:
            launches(*given)
        theirs = {id(array._memory) for array in arrays}
        kept.owned = [
            a for call in calls for a in call.kept if isinstance(a, DeviceArray) and id(a._memory) not in theirs
        ]
        kept.graph = captured(calls)
    kept.runs += 1
    if kept.graph is not None:
        kept.graph.launch()
    else:
        launches(*given)
