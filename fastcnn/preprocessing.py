"""Transformers of images for a `Pipeline`: scikit-learn's own take tables only, and refuse (n, H, W, C)."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import OneToOneFeatureMixin, TransformerMixin, _fit_context
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from fastcnn.image_estimator import ImageEstimator, nameless
from fastcnn.images import chunks, fit_scaling, row_contiguous

__all__ = ["ImageFlattener", "ImageReshaper", "ImageScaler"]


class ImageScaler(OneToOneFeatureMixin, TransformerMixin, ImageEstimator):
    """Scale pixels, channel by channel.

    `CNNClassifier` scales by itself, batch by batch, without a copy of all images as floats; this is for other
    estimators, and for pipelines that change scaled images.

    Parameters
    ----------
    scale : {"standardize", "unit"}, default="standardize"
        "standardize": each channel to mean 0 and standard deviation 1 over the images of `fit`. "unit": uint8
        divided by 255; floats so that the smallest value in `fit` becomes 0 and the largest 1.

    image_shape : (H, W), (H, W, C) or None, default=None
        What the rows of a flat X are, as for `CNNClassifier`.

    dtype : {"float32", "float64"} or None, default=None
        Of the result. None: float64 for float64, else float32.

    Attributes
    ----------
    channel_offset_, channel_scale_ : ndarray of shape (C,)
        `transform` gives ``(pixel - channel_offset_) / channel_scale_``.

    image_shape_ : (H, W, C)
        Shape of the images.

    n_features_in_ : int
        Values in an image, ``H * W * C``.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, if X was a DataFrame with string names.

    Examples
    --------
    >>> import numpy as np
    >>> from fastcnn.preprocessing import ImageScaler
    >>> X = np.array([[[0, 51], [102, 255]]], dtype=np.uint8)
    >>> ImageScaler(scale="unit").fit_transform(X)[0]
    array([[0. , 0.2],
           [0.4, 1. ]], dtype=float32)
    """

    channel_offset_: np.ndarray
    channel_scale_: np.ndarray

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "scale": [StrOptions({"standardize", "unit"})],
        "image_shape": [list, tuple, None],
        "dtype": [StrOptions({"float32", "float64"}), None],
    }

    def __init__(self, scale="standardize", *, image_shape=None, dtype=None):
        self.scale = scale
        self.image_shape = image_shape
        self.dtype = dtype

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn the scaling of images.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Images.
        y : None
            Not used.

        Returns
        -------
        ImageScaler
            This transformer, fitted.
        """
        fitted = copy(self)  # which `self` becomes if nothing fails
        rows = row_contiguous(fitted._check_images(X, reset=True))
        fitted.channel_offset_, fitted.channel_scale_ = fit_scaling(
            self.scale, rows, fitted.image_shape_, np.arange(len(rows))
        )
        # scikit-learn's set_output makes frames of tables; there are none of images.
        fitted.__dict__.pop("_sklearn_auto_wrap_output_keys", None)
        if (X if hasattr(X, "ndim") else np.asarray(X)).ndim > 2:
            fitted._sklearn_auto_wrap_output_keys = set()
        self.__dict__ = fitted.__dict__
        return self

    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose what `transform` gives for tables; images stay arrays.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"} or None, default=None
            None: as it was.

        Returns
        -------
        ImageScaler
            This transformer.
        """
        of_images = self.__dict__.pop("_sklearn_auto_wrap_output_keys", None)
        try:
            super().set_output(transform=transform)
        finally:
            if of_images is not None:
                self._sklearn_auto_wrap_output_keys = of_images
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Scale images.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Images.

        Returns
        -------
        ndarray
            Scaled images, of the shape that `X` has.

        Raises
        ------
        ValueError
            If the images are not of the shape of those in `fit`.
        """
        return self._apply(X, lambda pixels: (pixels - self.channel_offset_) / self.channel_scale_)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Undo `transform`.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Scaled images.

        Returns
        -------
        ndarray of float
            The images as they were, of the shape that `X` has.
        """
        fitted, values = _unless_named(self, X)
        return fitted._apply(values, lambda pixels: pixels * self.channel_scale_ + self.channel_offset_)

    def _apply(self, X: Any, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        check_is_fitted(self)
        X = X if hasattr(X, "shape") else np.asarray(X)
        rows = self._check_images(X)
        given = getattr(X, "dtype", None) or np.asarray(X[:1]).dtype  # rows of integers are float64
        dtype = self.dtype or ("float64" if given == np.float64 else "float32")
        result = np.empty(rows.shape, dtype)
        pixels = result.reshape(len(rows), -1, self.image_shape_[2])
        for part in chunks(len(rows)):  # in float64, a few images at a time
            result_part = pixels[part]
            result_part[:] = function(rows[part].reshape(result_part.shape).astype(np.float64))
        return result.reshape(X.shape)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"] if self.dtype is None else []
        return tags


class ImageFlattener(OneToOneFeatureMixin, TransformerMixin, ImageEstimator):
    """Images (n, H, W, C) or (n, H, W) to rows (n, H*W*C), for estimators that take tables.

    A view of X where its memory allows one; rows come out as they are.

    Attributes
    ----------
    image_shape_ : (H, W, C)
        Shape of the images.

    n_features_in_ : int
        Values in an image, ``H * W * C``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastcnn.preprocessing import ImageFlattener
    >>> ImageFlattener().fit_transform(np.zeros((5, 8, 8, 3))).shape
    (5, 192)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn the shape of images.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Images.
        y : None
            Not used.

        Returns
        -------
        ImageFlattener
            This transformer, fitted.
        """
        fitted = copy(self)  # which `self` becomes if nothing fails
        fitted._check_images(X, reset=True)
        self.__dict__ = fitted.__dict__
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Images as rows.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, H*W*C)
            Images.

        Returns
        -------
        ndarray of shape (n, H*W*C)
            The same values.

        Raises
        ------
        ValueError
            If the images are not of the shape of those in `fit`.
        """
        check_is_fitted(self)
        return self._check_images(X)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows as images.

        Parameters
        ----------
        X : array-like of shape (n, H*W*C)
            Rows.

        Returns
        -------
        ndarray of shape (n, H, W, C)
            The same values.
        """
        check_is_fitted(self)
        fitted, rows = _unless_named(self, X)
        return fitted._check_images(rows).reshape(-1, *self.image_shape_)


class ImageReshaper(TransformerMixin, ImageEstimator):
    """Rows (n, H*W*C) to images (n, H, W, C).

    A view of X where its memory allows one; images (n, H, W) get their channel axis.

    Parameters
    ----------
    image_shape : (H, W), (H, W, C) or None, default=None
        None: square images of one channel if the number of features is a square, else images of one row.

    Attributes
    ----------
    image_shape_ : (H, W, C)
        Shape of the images.

    n_features_in_ : int
        Values in an image, ``H * W * C``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastcnn.preprocessing import ImageReshaper
    >>> ImageReshaper((8, 8, 3)).fit_transform(np.zeros((5, 192))).shape
    (5, 8, 8, 3)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"image_shape": [list, tuple, None]}

    def __init__(self, image_shape=None):
        self.image_shape = image_shape

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Check that rows are images of `image_shape`.

        Parameters
        ----------
        X : array-like of shape (n, H*W*C)
            Rows.
        y : None
            Not used.

        Returns
        -------
        ImageReshaper
            This transformer, fitted.
        """
        fitted = copy(self)  # which `self` becomes if nothing fails
        fitted._check_images(X, reset=True)
        self.__dict__ = fitted.__dict__
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Rows as images.

        Parameters
        ----------
        X : array-like of shape (n, H*W*C)
            Rows.

        Returns
        -------
        ndarray of shape (n, H, W, C)
            The same values.

        Raises
        ------
        ValueError
            If they have not as many values as those in `fit`.
        """
        check_is_fitted(self)
        return self._check_images(X).reshape(-1, *self.image_shape_)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Images as rows.

        Parameters
        ----------
        X : array-like of shape (n, H, W, C)
            Images.

        Returns
        -------
        ndarray of shape (n, H*W*C)
            The same values.
        """
        check_is_fitted(self)
        fitted, images = _unless_named(self, X)
        return fitted._check_images(images)


def _unless_named(estimator: ImageEstimator, X: Any) -> tuple[Any, Any]:
    """Both, without the names of columns that only one of them has: what `transform` gave may have none."""
    if hasattr(estimator, "feature_names_in_") and hasattr(X, "columns"):
        return estimator, X
    return nameless(estimator), np.asarray(X)
