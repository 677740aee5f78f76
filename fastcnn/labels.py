"""Which labels can be told apart and sorted."""

from __future__ import annotations

import numpy as np
from sklearn.utils.multiclass import check_classification_targets

__all__ = ["check_labels"]


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
        kinds = {type(label).__name__ for label in y}
        if kinds != {"str"}:
            raise ValueError(
                f"Unknown label type: y has dtype object and labels of type {' and '.join(sorted(kinds))}: expected "
                "strings, or an array with a dtype of its own"
            )
    elif y.dtype.kind in "mM" and np.isnat(y).any():
        raise ValueError("y has missing labels (NaT)")
    elif y.dtype.kind not in "biufUSmMT":
        raise ValueError(f"y has dtype {y.dtype}, expected numbers or strings")
    check_classification_targets(y)
