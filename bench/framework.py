"""What a side of `bench.peers` does in its process: one framework, one network, all its modes and batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from bench.networks import DROPOUT, Dropout, Net, fastcnn_layers

LEARNING_RATE, BETA_1, BETA_2, EPSILON = 1e-3, 0.9, 0.999, 1e-8  # of Adam
CHECKED_STEPS = 3

Call = Callable[[], Any]  # one step
Run = Callable[[int], Any]  # (steps)


class Framework:
    """Builds runs of a network; `data` has the images x, the labels and fastcnn's parameters by name."""

    packages: tuple[str, ...]  # whose versions count

    def __init__(self, net: Net, data: dict[str, np.ndarray], threads: int) -> None:
        self.net, self.data, self.threads = net, data, threads

    def modes(self, what: str) -> list[str]:
        """Ways to run, of which the best counts."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what was compiled for earlier cells."""

    def trainer(self, mode: str, batch: int, dropout: float) -> Call:
        """A function that does one training step on the first `batch` images and gives the loss."""
        raise NotImplementedError

    def predictor(self, mode: str, batch: int) -> Call:
        """A function that gives the logits of the first `batch` images."""
        raise NotImplementedError

    def without_gradients(self) -> AbstractContextManager[Any]:
        """Predictions run in it."""
        return nullcontext()

    def repeat(self, call: Call, steps: int) -> np.ndarray:
        """Call it `steps` times; its last value, when it is there."""
        for _ in range(steps):
            value = call()
        return np.asarray(value)

    def open(self, what: str, mode: str, batch: int) -> tuple[list[Any], Run]:
        """What is to be compared, and a function that runs steps."""
        if what == "predict":
            call = self.predictor(mode, batch)

            def predict(steps: int) -> np.ndarray:
                with self.without_gradients():
                    return self.repeat(call, steps)

            return predict(1).tolist(), predict
        step = self.trainer(mode, batch, 0.0)
        losses = [float(self.repeat(step, 1)) for _ in range(CHECKED_STEPS)]
        if any(isinstance(layer, Dropout) for layer in self.net.layers):
            step = self.trainer(mode, batch, DROPOUT)
            self.repeat(step, 1)
        return losses, lambda steps: self.repeat(step, steps)


class FastCNN(Framework):
    packages = ("fastcnn", "numba", "numpy")

    def modes(self, what: str) -> list[str]:
        return ["network"]

    def _network(self, dropout: float) -> Any:
        from fastcnn import Network

        layers = fastcnn_layers(self.net, dropout)
        net = Network(layers, self.net.input_shape, n_jobs=self.threads, random_state=0)
        net.load_params({name: self.data[name] for name in net.params})
        return net

    def trainer(self, mode: str, batch: int, dropout: float) -> Call:
        net, x, labels = self._network(dropout), self.data["x"][:batch], self.data["labels"][:batch]
        return lambda: net.train_step(x, labels)

    def predictor(self, mode: str, batch: int) -> Call:
        net, x = self._network(DROPOUT), self.data["x"][:batch]
        return lambda: net.forward(x)
