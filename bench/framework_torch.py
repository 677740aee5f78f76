"""PyTorch's side of `bench.peers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from bench.framework import BETA_1, BETA_2, EPSILON, LEARNING_RATE, Call, Framework
from bench.networks import DROPOUT, Act, Conv, Dense, Dropout, Flatten, GlobalPool, Net, Norm, Pool


class Torch(Framework):
    """Eager and compiled, contiguous and channels_last; frozen: compiled with the weights as constants."""

    packages = ("torch",)

    def __init__(self, net: Net, data: dict[str, np.ndarray], threads: int) -> None:
        super().__init__(net, data, threads)
        # Before the first operation: the threads of the pool inherit it.
        torch.set_flush_denormal(True)
        torch.set_num_threads(threads)

    def modes(self, what: str) -> list[str]:
        modes = [f"{way}-{layout}" for layout in ("contiguous", "channels_last") for way in ("eager", "compiled")]
        # Freezing chooses the layout of convolutions itself.
        return modes if what == "train" else [*modes, "frozen-channels_last"]

    def reset(self) -> None:
        torch.compiler.reset()

    def _network(self, mode: str, batch: int, dropout: float, training: bool) -> tuple[Any, Any, Any]:
        """The module, the same as it is called, and its input."""
        way, layout = mode.split("-")
        memory_format = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
        torch.manual_seed(0)
        net = nn.Sequential(*_torch_layers(self.net, dropout))
        # Not strict: PyTorch counts the batches that a normalisation has seen.
        net.load_state_dict(_torch_params(self.net, self.data), strict=False)
        net = net.to(memory_format=memory_format).train(training)
        x = torch.from_numpy(self.data["x"][:batch]).permute(0, 3, 1, 2).clone(memory_format=memory_format)
        if way == "eager":
            return net, net, x
        options = {"freezing": True} if way == "frozen" else None
        return net, torch.compile(net, dynamic=False, fullgraph=True, options=options), x

    def trainer(self, mode: str, batch: int, dropout: float) -> Call:
        net, called, x = self._network(mode, batch, dropout, training=True)
        labels = torch.from_numpy(self.data["labels"][:batch])
        optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE, (BETA_1, BETA_2), EPSILON, fused=True)

        def step() -> Any:
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(called(x), labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    def predictor(self, mode: str, batch: int) -> Call:
        _, called, x = self._network(mode, batch, DROPOUT, training=False)
        return lambda: called(x)

    def without_gradients(self) -> Any:
        return torch.inference_mode()


def _torch_layers(net: Net, dropout: float) -> list[Any]:
    def build(layer: Any, shape: tuple[int, ...]) -> Any:
        match layer:
            case Conv(filters, size, stride, padding, bias):
                return nn.Conv2d(shape[2], filters, size, stride, padding, bias=bias)
            case Norm(momentum, epsilon):
                return nn.BatchNorm2d(shape[2], eps=epsilon, momentum=1 - momentum)
            case Act(kind):
                return {"relu": nn.ReLU, "tanh": nn.Tanh}[kind]()
            case Pool(kind, size, stride):
                return {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}[kind](size, stride)
            case GlobalPool():
                return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            case Flatten():
                return nn.Flatten()
            case Dense(units):
                return nn.Linear(shape[0], units)
            case Dropout():
                return nn.Dropout(dropout)

    return [build(layer, shape) for layer, shape in zip(net.layers, net.shapes, strict=False)]


def _torch_params(net: Net, data: dict[str, np.ndarray]) -> dict[str, Any]:
    """The parameters in PyTorch's order of axes."""
    params = {name: value for name, value in data.items() if name not in ("x", "labels")}
    for i, layer in enumerate(net.layers):
        name = f"{i}.weight"
        match layer:
            case Conv():
                params[name] = params[name].transpose(3, 2, 0, 1)
            case Dense(units):
                weight = params[name]
                if isinstance(net.layers[i - 1], Flatten):
                    weight = weight.reshape(*net.shapes[i - 1], units).transpose(2, 0, 1, 3).reshape(-1, units)
                params[name] = weight.T
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in params.items()}
