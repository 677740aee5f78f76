"""Networks and classifiers that the tests of inspection look into."""

from __future__ import annotations

from functools import cache

import numpy as np

from fastcnn import CNNClassifier, Network
from fastcnn.layers import (
    ELU,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    GlobalAvgPool2D,
    MaxPool2D,
    ReLU,
    Residual,
    SiLU,
    SpatialDropout,
)  # fmt: skip

CHAINS = {
    "plain": [Conv2D(3), ReLU(), MaxPool2D(2), Dropout(0.5), Conv2D(4, activation="elu"), Dense(5), ReLU(), Dense(3)],
    "normalised": [Conv2D(4, use_bias=False), BatchNorm(), SiLU(), AvgPool2D(2), SpatialDropout(0.5), Dense(3)],
    "residual": [
        Conv2D(3),
        Residual([BatchNorm(), ReLU(), Conv2D(4, stride=2)], skip=[Conv2D(4, 1, stride=2)]),
        Residual([Conv2D(4), ELU(), Residual([Conv2D(4)])]),
        GlobalAvgPool2D(),
        Dense(3),
    ],
}


def network(name, channels, dtype="float64", seed=0):
    """A network with parameters that are all of some size, the running statistics too."""
    net = Network(CHAINS[name], (6, 6, channels), dtype=dtype, random_state=seed)
    rng = np.random.default_rng(seed)
    for key, value in net.params.items():
        value += rng.uniform(0.1, 0.6, value.shape) if key.endswith("running_var") else rng.normal(0, 0.2, value.shape)
    return net


def images(n, channels, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 6, 6, channels))


@cache
def fitted(channels):
    """A classifier of grey (1) or colour (3) images with names for classes, and its data, uint8 with few mistakes."""
    rng = np.random.default_rng(channels)
    y = np.array(["left", "right", "top"])[np.arange(120) % 3]
    X = rng.integers(0, 120, (120, 8, 8, channels)).astype(np.uint8)
    X[y == "left", :, :3] += 120
    X[y == "right", :, 5:] += 120
    X[y == "top", :3] += 120
    clf = CNNClassifier(
        conv_channels=(6, 4),
        dense_units=8,
        kernel_size=3,
        max_iter=3,
        batch_size=4,
        dropout=0.1,
        random_state=0,
        early_stopping=True,
    )
    return clf.fit(X, y), X, y
