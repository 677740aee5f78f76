"""Which labels can be told apart and sorted, and what classes weigh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

__all__ = ["NOTHING_WEIGHS", "check_labels", "check_weight", "kind_of", "places", "weight_of_classes"]

NOTHING_WEIGHS = "class_weight times sample_weight is zero for every image to train on"


_KINDS = dict.fromkeys("USOT", "text") | dict.fromkeys("mM", "dates")  # by what their dtypes are; else numbers


def kind_of(labels: np.ndarray) -> str:
    """What is never equal to a label of another kind."""
    return _KINDS.get(labels.dtype.kind, "numbers")


def places(y: np.ndarray, classes: np.ndarray, name: str = "y") -> np.ndarray:
    """The place of each label among the sorted `classes`.

    Raises
    ------
    ValueError
        If a label is none of them.
    """
    # NumPy would compare numbers with text as text, and find "9" in its place among classes that are not sorted so.
    unseen = np.setdiff1d(y, classes) if kind_of(y) == kind_of(classes) else np.unique(y)
    if unseen.size:
        raise ValueError(f"{name} has labels that are not among the classes {classes}: {unseen}")
    return np.searchsorted(classes, y).astype(np.int64)


def check_labels(y: np.ndarray) -> None:
    """Whether the vector `y` holds labels: numbers, booleans, strings or dates, none of them missing.

    Raises
    ------
    ValueError
        Missing labels, labels of different types, or continuous numbers.
    """
    if y.dtype == object:
        if any(label is None or label != label for label in y):
            raise ValueError("y has missing labels (None or NaN)")
        if not all(isinstance(label, str) for label in y):
            kinds = {type(label).__name__ for label in y}
            raise ValueError(
                f"Unknown label type: y has dtype object and labels of type {' and '.join(sorted(kinds))}: expected "
                "strings, or an array with a dtype of its own"
            )
    elif y.dtype.kind in "mM" and np.isnat(y).any():
        raise ValueError("y has missing labels (NaT)")
    elif y.dtype.kind not in "biufUSmMT":
        raise ValueError(f"y has dtype {y.dtype}, expected numbers or strings")
    check_classification_targets(y)


def check_weight(name: str, most: float, n: int, dtype: str) -> None:
    """Whether `dtype` can hold the weights of `n` images, the largest of which is `most`.

    Raises
    ------
    ValueError
        Weights that are too large or too small; the message begins with `name`.
    """
    # Losses times weights are added up in the network's dtype; a loss seldom passes 1e6.
    info = np.finfo(dtype)
    if most > float(info.max) / 1e6 / n:
        raise ValueError(f"{name} has values up to {most:.3g}, too large for {dtype}")
    if 0 < most < float(info.tiny) * 1e6:
        raise ValueError(f"{name} has values up to {most:.3g}, too small for {dtype}")


def weight_of_classes(class_weight: Mapping[Any, float] | str, classes: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The weight of each class, for the parameter `class_weight` and labels `y`; 1 for a class that it leaves out.

    Raises
    ------
    ValueError
        Weights that cannot be used, or of none of the classes.
    """
    if isinstance(class_weight, str):
        by_class = compute_class_weight(class_weight, classes=classes, y=y)
    else:  # scikit-learn 1.9 looks for the labels "0", "1", ... as integers
        by_class = np.array([class_weight.get(label, 1.0) for label in classes], np.float64)
        known = set(classes)
        unknown = [label for label in class_weight if label not in known]
        if unknown and known - class_weight.keys():
            raise ValueError(f"class_weight has {unknown[0]!r}, which is none of the classes {classes}")
    if not (np.isfinite(by_class).all() and (by_class >= 0).all() and by_class.any()):
        raise ValueError(f"class_weight must be finite and not negative, and not 0 for all classes, got {class_weight}")
    return by_class
