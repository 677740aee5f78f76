"""`fastcnn bench`: how fast a network trains and predicts on this machine.

A step is what `fit` does with a mini-batch, augmentation included. Images are random: no kernel's time depends on them.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from math import inf, prod
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from fastcnn.console import count, say

if TYPE_CHECKING:
    from fastcnn.classifier import CNNClassifier

__all__ = ["bench"]

_BATCHES, _BYTES = 32, 1 << 26  # of images to train on, at most; a few for images that are large
_PREDICTED = 4  # batches
_FEWEST = 5  # times that each figure comes from
_RATE = 1e-9  # the learning rate: parameters stay what they are, whatever is learnt from noise


def bench(args: argparse.Namespace) -> int:
    """Print the times of training steps, of predictions, and of the prediction for one image."""
    from fastcnn.inspection.summary import shape_text

    if args.model and args.recipe:
        args.fail("--recipe is for a new network, MODEL has its own")
    clf, shape, classes = _classifier(args)
    batches = min(_BATCHES, max(_PREDICTED, _BYTES // (clf.batch_size * prod(shape))))
    n = max(batches * clf.batch_size, len(classes))
    X = np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
    y = classes[np.arange(n) % len(classes)]
    step = _training_step(clf, X, y)
    start = perf_counter()
    step()
    ready = perf_counter() - start
    n = max(_PREDICTED * clf.batch_size, len(classes))
    if not args.model:
        clf.fit(X[:n], y[:n])
    name = Path(args.model).name if args.model else args.recipe or "default"
    say(
        "network",
        f"{name}: {clf.network_.n_params:,} parameters, {len(classes)} classes, images of {shape_text(shape)}",
    )
    say("machine", _machine(clf.network_.device, args.threads))
    say("first step", f"after {ready:.2f} s, with kernels that were compiled, or found compiled")
    seconds = _times(step, args.seconds)
    say("training", f"{_speed(clf.batch_size, seconds)}, {_ms(seconds)} for a mini-batch of {clf.batch_size}")
    seconds = _times(lambda: clf.predict_proba(X[:n]), args.seconds)
    say("prediction", f"{_speed(n, seconds)}, {n:,} of them in {_ms(seconds)}")
    say("one image", _ms(_times(lambda: clf.predict_proba(X[:1]), args.seconds)))
    return 0


def _classifier(args: argparse.Namespace) -> tuple[CNNClassifier, tuple[int, int, int], np.ndarray]:
    """What is timed, and for what images and classes."""
    import fastcnn

    if args.model:
        clf = fastcnn.CNNClassifier.load(args.model, args.max_parameters)
        shape, classes = clf.image_shape_, clf.classes_
        clf.set_params(device=clf.network_.device)  # the CPU, where the model's is not to be had
    else:
        from fastcnn.recipes import RECIPES

        clf = RECIPES[args.recipe]() if args.recipe else fastcnn.CNNClassifier()
        shape, classes = (28, 28, 1), np.arange(10)
    clf.set_params(
        batch_size=args.batch_size or clf.batch_size,
        n_jobs=args.threads,
        max_iter=1,
        n_iter_no_change=inf,
        early_stopping=False,
        class_weight=None,
        random_state=0,
    )
    return clf, shape, classes


def _machine(device: str, threads: int | None) -> str:
    if device == "cuda":
        from fastcnn.kernels.cuda.driver import device_names

        return device_names()[0]
    from fastcnn.doctor import cpu_model
    from fastcnn.kernels.cpu.runtime import max_threads

    return f"{cpu_model()}, {count(min(threads or max_threads(), max_threads()), 'thread')}"


def _training_step(clf: CNNClassifier, X: np.ndarray, y: np.ndarray) -> Callable[[], None]:
    """One step of `fit` after the other, each with the next mini-batch."""
    from fastcnn.training.averaging import ParameterAverage
    from fastcnn.training.loop import Step

    network, loader, settings = clf.begin_fit(X, y)
    average = None if clf.ema_decay is None else ParameterAverage(network, clf.ema_decay)
    step = Step(network, lambda number: _RATE, average=average, **settings)

    def batches() -> Iterator[Any]:
        for epoch in itertools.count():
            with closing(loader.epoch(epoch)) as found:
                yield from found

    endless = batches()

    def one() -> None:
        step(next(endless), 0)

    return one


def _times(call: Callable[[], Any], seconds: float) -> list[float]:
    """Of so many calls that they fill `seconds`, and of _FEWEST at least; a first one does not count."""
    call()
    found: list[float] = []
    left = seconds
    while len(found) < _FEWEST or left > 0:
        start = perf_counter()
        call()
        found.append(perf_counter() - start)
        left -= found[-1]
    return found


def _speed(images: int, seconds: list[float]) -> str:
    return f"{float(f'{images / median(seconds):.3g}'):,.0f} images/s"  # more digits would be noise


def _ms(seconds: list[float]) -> str:
    """The median, and the quartiles."""
    low, _, high = quantiles(seconds, n=4)
    return "{} ms ({} to {})".format(*(f"{float(f'{1e3 * value:.3g}'):,g}" for value in (median(seconds), low, high)))
