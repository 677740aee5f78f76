"""The moving average of a network's parameters over the steps of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

__all__ = ["ParameterAverage"]


class ParameterAverage:
    """average = decay * average + (1 - decay) * parameters, after each step [1]_.

    In the first steps the decay is smaller, (1 + t) / (10 + t), so that the initial parameters are soon forgotten.
    Running statistics are averaged too.

    References
    ----------
    .. [1] Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging".
    """

    def __init__(self, network: Any, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of an average must be in (0, 1), got {decay!r}")
        self._network, self._decay, self.steps = network, decay, 0
        self.values: dict[str, np.ndarray] = {name: value.copy() for name, value in network.params.items()}
        self._change = {name: np.empty_like(value) for name, value in self.values.items()}

    def resume(self, values: dict[str, np.ndarray], steps: int) -> None:
        """Go on from `values`, an average over `steps` steps."""
        self.steps = steps
        for name, value in values.items():
            self.values[name][...] = value

    def update(self) -> None:
        """After a step."""
        self.steps += 1
        share = 1 - min(self._decay, (1 + self.steps) / (10 + self.steps))
        for name, value in self._network.params.items():
            change, average = self._change[name], self.values[name]
            np.subtract(value, average, out=change)
            change *= share
            average += change

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the network has the averaged parameters."""
        current = {name: value.copy() for name, value in self._network.params.items()}
        self._network.load_params(self.values)
        try:
            yield
        finally:
            self._network.load_params(current)
