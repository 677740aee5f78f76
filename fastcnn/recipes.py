"""Three classifiers that are ready to train: `fast`, `balanced` and `best`.

They were made for Fashion-MNIST's 28x28 images, by what its training images said of them, and are meant as a start for
other images of about that size, grey or in colour. `bench/RESULTS.md` has what was measured.

Each is a function that takes any parameters of `CNNClassifier` and puts them in place of its own:

>>> from fastcnn.recipes import fast
>>> clf = fast(max_iter=5, random_state=0)

All are trained with Muon, a learning rate that rises and falls once, and smoothed labels. Training mirrors images left
to right, and prediction takes the mean over both (``tta="flip"``). That suits clothes, animals and most of what a
camera sees, but not digits and letters: ``fast(augment=[RandomShift(1)])``. With an `augment` that has no
`RandomHorizontalFlip`, prediction does without mirror images too. The two larger ones, which train for longer, erase
parts of images as well, and `best`, which trains for the longest, blends images with others.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from fastcnn.classifier import CNNClassifier
from fastcnn.layers import AdaptiveMaxPool2D, BatchNorm, Conv2D, Layer, MaxPool2D, ReLU, Residual
from fastcnn.training.augment import MixUp, RandomErasing, RandomHorizontalFlip, check_augment

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
    return _classifier(layers, {"max_iter": 10}, parameters)


def balanced(**parameters: Any) -> CNNClassifier:
    """Seven convolutions, four of them with skips: 467,434 parameters for grey images of 10 classes.

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
    return _classifier(_residual_layers(32, 64, 128), {"max_iter": 16, "augment": _erasing()}, parameters)


def best(**parameters: Any) -> CNNClassifier:
    """As `balanced`, with half as many channels again: 1,046,746 parameters for grey images of 10 classes.

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
    recipe = {"max_iter": 50, "augment": [*_erasing(), MixUp(0.2)]}
    return _classifier(_residual_layers(48, 96, 192), recipe, parameters)


RECIPES: dict[str, Callable[..., CNNClassifier]] = {"fast": fast, "balanced": balanced, "best": best}


def _convolutions(*channels: int) -> list[Layer]:
    # A batch's statistics are forgotten sooner than by default: the last steps are what prediction should go by.
    return [
        layer for k in channels for layer in (Conv2D(k, use_bias=False), BatchNorm(momentum=0.9), ReLU())
    ]  # fmt: skip


def _residual_layers(first: int, second: int, third: int) -> list[Layer]:
    layers = [*_convolutions(first), MaxPool2D()]
    layers += [*_convolutions(second), Residual(_convolutions(second, second)), MaxPool2D()]
    return [*layers, *_convolutions(third), Residual(_convolutions(third, third))]


def _erasing() -> list[Any]:
    return [RandomHorizontalFlip(), RandomErasing(0.4)]


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
    flips = any(isinstance(item, RandomHorizontalFlip) for item in check_augment(parameters["augment"]))
    return CNNClassifier(**{"tta": "flip" if flips else None, **parameters})
