"""skorch's side of `bench.estimators`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from skorch import NeuralNetClassifier
from torch import nn

from bench.framework_torch import _torch_layers
from bench.networks import NETWORKS

# The layout of images, and whether batches are put together by skorch's data set, image by image, or by `Batches`.
MODES = {
    "contiguous": (torch.contiguous_format, False),
    "channels_last": (torch.channels_last, False),
    "contiguous, whole batches": (torch.contiguous_format, True),
    "channels_last, whole batches": (torch.channels_last, True),
}


class Net(nn.Module):
    """One of `bench.networks`; images come channels last and weights start as in fastcnn."""

    def __init__(self, network: str, dropout: float, mode: str) -> None:
        super().__init__()
        self.layout = MODES[mode][0]
        layers = _torch_layers(NETWORKS[network], dropout)
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight) if layer is layers[-1] else nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(*layers).to(memory_format=self.layout)

    def forward(self, x: Any) -> Any:
        return self.layers(x.permute(0, 3, 1, 2).contiguous(memory_format=self.layout))


class Batches(torch.utils.data.Dataset):
    """Gives whole batches to PyTorch's loader, which then collates nothing."""

    def __init__(self, X: Any, y: Any = None) -> None:
        self.X = torch.as_tensor(X)
        self.y = torch.zeros(len(X)) if y is None else torch.as_tensor(np.asarray(y))

    def __len__(self) -> int:
        return len(self.X)

    def __getitems__(self, chosen: list[int]) -> Any:
        return self.X[chosen], self.y[chosen]


def as_it_is(batch: Any) -> Any:
    return batch


def estimator(network: str, mode: str, dropout: float, **settings: Any) -> NeuralNetClassifier:
    """A classifier that does what fastcnn's does, and nothing besides."""
    if MODES[mode][1]:
        settings |= {
            "dataset": Batches, "iterator_train__collate_fn": as_it_is, "iterator_valid__collate_fn": as_it_is,
        }  # fmt: skip
    return NeuralNetClassifier(
        Net,
        module__network=network,
        module__dropout=dropout,
        module__mode=mode,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        optimizer__fused=True,
        train_split=None,
        iterator_train__shuffle=True,
        callbacks="disable",
        verbose=0,
        **settings,
    )
