"""The learning-rate range test: one short training with a learning rate that grows step by step."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import count
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

__all__ = ["LearningRates", "find_learning_rate"]

_NEIGHBOURS = 4  # on either side, whose losses a slope is of: neighbouring mini-batches differ by chance


class LearningRates(NamedTuple):
    """What `find_learning_rate` saw.

    Parameters
    ----------
    suggestion : float
        The learning rate at which the loss fell fastest, beyond the first steps, whose average is of few losses. A
        schedule that warms up, such as "onecycle", takes some times as much as its highest.
    learning_rates, losses : ndarray of shape (n,)
        Of the `n` steps before the end of the test. The losses are smoothed.
    """

    suggestion: float
    learning_rates: np.ndarray
    losses: np.ndarray


def find_learning_rate(
    model: Any,
    X: Any,
    y: Any = None,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    smoothing: float = 0.9,
    too_much: float = 4.0,
) -> LearningRates:
    """Train with learning rates from `lowest` up to `highest`, and see how the loss falls [1]_.

    Parameters
    ----------
    model : CNNClassifier or Network
        It stays as it is. Of a classifier a network is made and trained as `fit` would, but for the rates.
    X : array-like or BatchLoader
        Images for the classifier. For a network what gives its mini-batches: epochs are gone through as often as
        `steps` asks for.
    y : array-like of shape (n,), default=None
        The images' labels.
    lowest, highest : float
        The learning rate grows between them by the same factor in each step.
    steps : int >= 10
        Mini-batches, at most; those whose images all have weight 0 do not count.
    smoothing : float in [0, 1)
        Of the moving average of the losses.
    too_much : float > 1
        The test ends where the average is so many times its lowest value, or no number.

    Returns
    -------
    LearningRates

    Raises
    ------
    ValueError
        If a value is out of its range, the data cannot be used, there are no batches, or the loss is no number from the
        start.
    TypeError
        If the model has no mini-batches of its own, as on a cluster.

    References
    ----------
    .. [1] Smith 2017, "Cyclical learning rates for training neural networks", section 3.3.
    """
    if not 0 < lowest < highest:
        raise ValueError(f"expected 0 < lowest < highest, got {lowest!r} and {highest!r}")
    if steps < 10 or not 0 <= smoothing < 1 or not too_much > 1:
        raise ValueError("expected steps >= 10, smoothing in [0, 1) and too_much > 1")
    if hasattr(model, "begin_fit"):
        trained, loader, settings = model.begin_fit(X, y)
    else:
        trained, loader, settings = deepcopy(model), X, {}
    if not hasattr(loader, "epoch"):
        raise TypeError(f"{type(model).__name__} has no mini-batches to go through here: take a CNNClassifier")
    if len(loader) == 0:
        raise ValueError("there are no batches to train on")
    rates = np.geomspace(lowest, highest, steps)
    losses: list[float] = []
    average = 0.0
    for i, (rate, batch) in enumerate(zip(rates, _weighty_batches(loader), strict=False)):
        trained.optimizer.learning_rate = float(rate)
        loss = trained.train_step(batch.x, batch.y, batch.sample_weight, mix=batch.mix, **settings)
        average = smoothing * average + (1 - smoothing) * loss
        level = average / (1 - smoothing ** (i + 1))
        if not isfinite(level) or (losses and level > too_much * min(losses)):
            break
        losses.append(level)
    if len(losses) < 3:
        raise ValueError("the loss is no finite number, or grows, from the start: is the input scaled?")
    seen, curve = rates[: len(losses)], np.array(losses)
    first = min(round(1 / (1 - smoothing)), len(curve) // 3)
    slopes = [_slope(np.log(seen), curve, i) for i in range(first, len(curve))]
    return LearningRates(float(seen[first + int(np.argmin(slopes))]), seen, curve)


def _weighty_batches(loader: Any) -> Iterator[Any]:
    """The mini-batches that have a loss, epoch after epoch."""
    for epoch in count():
        none = True
        for batch in loader.epoch(epoch):
            if batch.sample_weight is None or batch.sample_weight.any():
                none = False
                yield batch
        if none:
            raise ValueError("the weight of every image is 0")


def _slope(x: np.ndarray, y: np.ndarray, at: int) -> float:
    """Of the line that is nearest to the points around number `at`."""
    near = slice(max(0, at - _NEIGHBOURS), at + _NEIGHBOURS + 1)
    dx, dy = x[near] - x[near].mean(), y[near] - y[near].mean()
    return float(dx @ dy / (dx @ dx))
