"""Programs: a plan's launches, made once and run again and again; as one CUDA graph where the driver has them."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from fastcnn.kernels.cuda.driver import SIMULATED, Call, capture, recording, run

__all__ = ["Program", "record"]


class Program:
    """Launches over arrays that stay where they are.

    The first run launches one kernel after the other (it also loads them); the second one captures the launches as a
    graph, which later runs hand to the driver in one call. Where that fails, or with FASTCNN_CUDA_GRAPHS=0, each run
    launches.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = tuple(calls)
        self.graph: Callable[[], None] | None = None
        self._ran = False
        self._graphs = not SIMULATED and os.environ.get("FASTCNN_CUDA_GRAPHS") != "0"

    def __call__(self) -> None:
        if self.graph is not None:
            self.graph()
            return
        if self._ran and self._graphs and len(self.calls) > 1:
            self._capture()
            if self.graph is not None:
                self.graph()
                return
        run(self.calls)
        self._ran = True

    def _capture(self) -> None:
        self._graphs = False  # tried once
        try:
            graph = capture(self.calls)
        except Exception:  # a driver or a numba-cuda that cannot capture: launches do the same
            return
        weakref.finalize(self, graph.close).atexit = False
        self.graph = graph.launch


def record(calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> Program:
    """A function that does all `calls`, (kernel, arguments), in order."""
    with recording() as kept:
        for kernel, args in calls:
            kernel(*args)
    return Program(kept)
