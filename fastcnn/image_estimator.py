"""What the classifier and the transformers have in common: X as images, checked."""

from __future__ import annotations

from copy import copy
from typing import Any, TypeVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, check_X_y, validate_data

from fastcnn.images import as_rows, chunks, resolve_image_shape

__all__ = ["ImageEstimator", "nameless"]

Estimator = TypeVar("Estimator")

# The dtypes that images are used in as they are; anything else becomes the first.
_DTYPES = [np.float64, np.float32, np.uint8]


class ImageEstimator(BaseEstimator):
    """An estimator of images (n, H, W), (n, H, W, C) or (n, H*W*C)."""

    image_shape: Any = None
    image_shape_: tuple[int, int, int]
    n_features_in_: int

    def _check_images(self, X: Any, *y: Any, reset: bool = False) -> Any:
        """`X` as rows, and checked labels where `y` is given.

        `reset`: `n_features_in_`, `image_shape_` and, if X has them, `feature_names_in_` are set; else X must
        agree with them.
        """
        if not (reset or y) and self._is_plain(X):
            return X.reshape(len(X), self.n_features_in_)
        rows, shape = as_rows(X)
        if not reset and shape not in (None, self.image_shape_):
            raise ValueError(
                f"X has images of shape {shape}, but {type(self).__name__} is expecting images of shape "
                f"{self.image_shape_}"
            )
        if hasattr(rows, "ndim"):
            checked = validate_data(self, rows, *y, dtype=_DTYPES, reset=reset)
        else:  # a data frame, whose dtype scikit-learn does not ask for
            validate_data(self, rows, reset=reset, skip_check_array=True)
            known = {"dtype": _DTYPES, "estimator": self}
            rows = np.asarray(rows)
            checked = check_X_y(rows, *y, **known) if y else check_array(rows, input_name="X", **known)
        if reset:
            self.image_shape_ = resolve_image_shape(self.image_shape, shape, self.n_features_in_)
        return checked

    def _is_plain(self, X: Any) -> bool:
        """Whether `X` is an array with nothing to convert or to complain about; scikit-learn's own checks take
        longer than a small network takes for an image.
        """
        if type(X) is not np.ndarray or X.dtype not in _DTYPES or not X.flags.c_contiguous or not X.size:
            return False
        return (
            X.shape[1:] in self._forms()
            and not hasattr(self, "feature_names_in_")
            and (X.dtype == np.uint8 or all(np.isfinite(X[part]).all() for part in chunks(len(X))))
        )

    def _forms(self) -> set[tuple[int, ...]]:
        """The shapes that an image may come in."""
        forms: set[tuple[int, ...]] = {(self.n_features_in_,), self.image_shape_}
        return forms | {self.image_shape_[:2]} if self.image_shape_[2] == 1 else forms

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def nameless(estimator: Estimator) -> Estimator:
    """A fitted estimator as if it had been fitted without names of columns, which arrays of images do not have."""
    if hasattr(estimator, "feature_names_in_"):
        estimator = copy(estimator)
        del estimator.feature_names_in_
    return estimator
