"""Three classifiers that are ready to train: `fast`, `balanced` and `best`.

They were made for Fashion-MNIST's 28x28 images, by what its training images said of them, and are meant as a start for
other images of about that size, grey or in colour. `bench/RESULTS.md` has what was measured.

Each is a function that takes any parameters of `CNNClassifier` and puts them in place of its own:

>>> from fastcnn.recipes import fast
>>> clf = fast(max_iter=5, random_state=0)

All are trained with Muon, a learning rate that rises and falls once, and smoothed labels. Training mirrors images left
to right; the two larger ones, which train for longer, erase parts of images as well, and `best`, which trains for the
longest, moves them. Prediction takes the mean over what training does: over mirror images with a
`RandomHorizontalFlip`, over moved ones with a `RandomShift` (``tta="flip+shift"``). Mirror images suit clothes, animals
and most of what a camera sees, but not digits and letters: ``fast(augment=[RandomShift(1)])``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from fastcnn.classifier import CNNClassifier
from fastcnn.layers import AdaptiveMaxPool2D, BatchNorm, Conv2D, Layer, MaxPool2D, ReLU, Residual
from fastcnn.training.augment import RandomErasing, RandomHorizontalFlip, RandomShift, check_augment

__all__ = ["RECIPES", "balanced", "best", "fast"]

_SHORT_FORM = (
    "conv_channels",
    "kernel_size",
    "pool",
    "pool_size",
    "dense_units",
    "activation",
    "batch_norm",
    "dropout",
)


def fast(**parameters: Any) -> CNNClassifier:
    """Five convolutions: 102,442 parameters for grey images of 10 classes.

    Parameters
    ----------
    **parameters
        Of `CNNClassifier`, in place of the recipe's.

    Returns
    -------
    CNNClassifier
        Not fitted.

    Raises
    ------
    TypeError
        If `CNNClassifier` has no such parameter, or it would do nothing beside the recipe's `layers`.
    """
    layers = [*_convolutions(32), MaxPool2D(), *_convolutions(48, 48), MaxPool2D(), *_convolutions(64, 64)]
    return _classifier(layers, {"max_iter": 8}, parameters)


def balanced(**parameters: Any) -> CNNClassifier:
    """Seven convolutions, four of them with skips: 174,442 parameters for grey images of 10 classes.

    Parameters
    ----------
    **parameters
        Of `CNNClassifier`, in place of the recipe's.

    Returns
    -------
    CNNClassifier
        Not fitted.

    Raises
    ------
    TypeError
        As `fast`.
    """
    recipe = {
        "max_iter": 16,
        "batch_size": 64,
        "learning_rate_init": 0.005,
        "augment": [RandomHorizontalFlip(), RandomErasing(0.4)],
    }
    layers = [*_convolutions(64), MaxPool2D(), *_convolutions(48), *_skips(48, 1)]
    return _classifier([*layers, MaxPool2D(), *_convolutions(64), *_skips(64, 1)], recipe, parameters)


def best(**parameters: Any) -> CNNClassifier:
    """Eleven convolutions, eight of them with skips: 354,410 parameters for grey images of 10 classes.

    Parameters
    ----------
    **parameters
        Of `CNNClassifier`, in place of the recipe's.

    Returns
    -------
    CNNClassifier
        Not fitted.

    Raises
    ------
    TypeError
        As `fast`.
    """
    recipe = {
        "max_iter": 32,
        "batch_size": 64,
        "learning_rate_init": 0.005,
        "augment": [RandomHorizontalFlip(), RandomErasing(0.5), RandomShift(2)],
    }
    # Pooled first: a quarter of the values is left to normalise.
    convolution, *normalisation = _convolutions(64)
    layers = [*_convolutions(32), convolution, MaxPool2D(), *normalisation, *_skips(64, 2)]
    return _classifier([*layers, MaxPool2D(), *_convolutions(64), *_skips(64, 2)], recipe, parameters)


RECIPES: dict[str, Callable[..., CNNClassifier]] = {"fast": fast, "balanced": balanced, "best": best}


def _convolutions(*channels: int) -> list[Layer]:
    # A batch's statistics are forgotten sooner than by default: the last steps are what prediction should go by.
    return [
        layer for k in channels for layer in (Conv2D(k, use_bias=False), BatchNorm(momentum=0.9), ReLU())
    ]  # fmt: skip


def _skips(channels: int, pairs: int) -> list[Layer]:
    """So many pairs of convolutions, each with a skip."""
    return [Residual(_convolutions(channels, channels)) for _ in range(pairs)]


def _classifier(layers: list[Layer], recipe: dict[str, Any], given: dict[str, Any]) -> CNNClassifier:
    useless = [name for name in _SHORT_FORM if name in given]
    if useless and given.get("layers", layers) is not None:
        raise TypeError(f"{useless[0]} would do nothing beside the recipe's layers: give layers, or layers=None too")
    parameters = {
        "layers": [*layers, AdaptiveMaxPool2D(2)],
        "augment": [RandomHorizontalFlip()],
        "solver": "muon",
        "learning_rate_init": 0.01,
        "momentum": 0.95,
        "alpha": 0.05,
        "label_smoothing": 0.1,
        "n_iter_no_change": inf,  # the epochs that were asked for are done
        **recipe,
        **given,
    }
    kinds = {type(item) for item in check_augment(parameters["augment"])}
    views = [name for name, kind in (("flip", RandomHorizontalFlip), ("shift", RandomShift)) if kind in kinds]
    return CNNClassifier(**{"tta": "+".join(views) or None, **parameters})
