"""What is predicted: images with probabilities, and the confusion matrix."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.utils.validation import check_is_fitted

from fastcnn.image_estimator import nameless
from fastcnn.inspection.displays.drawing import SEQUENTIAL, as_images, axes_grid, pyplot, show_image, tile_shape
from fastcnn.labels import places

__all__ = ["ConfusionDisplay", "PredictionsDisplay", "worst_mistakes"]


def worst_mistakes(proba: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Places of what is predicted wrongly, the most confident first.

    Parameters
    ----------
    proba : array (n, n_classes)
    y : int array (n,)
        Right class of each.
    """
    wrong = np.flatnonzero(proba.argmax(axis=1) != y)
    return wrong[np.argsort(-proba[wrong].max(axis=1), kind="stable")]


class PredictionsDisplay:
    """Images with their most probable classes.

    Parameters
    ----------
    images : array (n, H, W), (n, H, W, C)
    proba : array (n, n_classes)
    y : array (n,) of labels or None, default=None
        The right ones. Mistakes are marked by a thick frame and the right class.
    classes : array (n_classes,) or None, default=None
        Sorted labels. None: 0, 1, ...
    top : int, default=3
        Classes that are shown for each image.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : array of matplotlib Axes
        For each image two, one below the other: the image, and the probabilities.
    """

    def __init__(self, images: Any, proba: Any, y: Any = None, classes: Any = None, top: int = 3) -> None:
        images = np.asarray(images)
        self.images = images[..., np.newaxis] if images.ndim == 3 else images
        self.proba = np.asarray(proba)
        self.y = None if y is None else np.asarray(y)
        self.classes = np.arange(self.proba.shape[1]) if classes is None else np.asarray(classes)
        self.top = min(top, len(self.classes))

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        mistakes: bool = False,
        max_images: int = 12,
        top: int = 3,
        ax: Any = None,
    ) -> Self:
        """Draw what a fitted classifier predicts.

        Parameters
        ----------
        estimator : fitted CNNClassifier
        X : array of images, as `predict` takes them
        y : array (n,) of labels or None, default=None
        mistakes : bool, default=False
            Show the most confident mistakes, not the first images; needs `y`.
        max_images, top : int
        ax : Axes, array of Axes or None, default=None
            As for `plot`.

        Returns
        -------
        PredictionsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If `mistakes` are wanted without `y`, or there are none.
        """
        check_is_fitted(estimator)
        X = np.asarray(X) if mistakes else np.asarray(X)[:max_images]
        proba, images = nameless(estimator).predict_proba(X), as_images(X, estimator.image_shape_)
        y = None if y is None else np.asarray(y)[: len(X)]
        return cls.from_predictions(
            images, proba, y, classes=estimator.classes_, mistakes=mistakes, max_images=max_images, top=top, ax=ax
        )

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        proba: Any,
        y: Any = None,
        *,
        classes: Any = None,
        mistakes: bool = False,
        max_images: int = 12,
        top: int = 3,
        ax: Any = None,
    ) -> Self:
        """Draw what was predicted.

        Parameters
        ----------
        images, proba, y, classes : array
            As for the class.
        mistakes, max_images, top, ax : bool, int, int, Axes
            As for `from_estimator`.

        Returns
        -------
        PredictionsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            As `from_estimator`, or if `mistakes` are asked for and `y` has labels that are none of the classes.
        """
        images, proba = np.asarray(images), np.asarray(proba)
        if mistakes:
            if y is None:
                raise ValueError("mistakes=True needs y")
            labels = np.arange(proba.shape[1]) if classes is None else np.asarray(classes)
            chosen = worst_mistakes(proba, places(np.asarray(y), labels))
            if not len(chosen):
                raise ValueError("there are no mistakes to show")
        else:
            chosen = np.arange(len(images))
        chosen = chosen[:max_images]
        y = None if y is None else np.asarray(y)[chosen]
        return cls(images[chosen], proba[chosen], y, classes, top).plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw them.

        Parameters
        ----------
        ax : Axes, array of Axes or None, default=None
            None: a new figure. One Axes of a grid is divided; an array has two for each place of the grid that
            `tile_shape` makes.

        Returns
        -------
        PredictionsDisplay
            The display, drawn.
        """
        rows, columns = tile_shape(len(self.images))
        size = (1.7 * columns, rows * (1.5 + 0.22 * self.top) + 0.2)
        self.figure_, self.axes_ = axes_grid(ax, 2 * rows, columns, size)
        for panel in self.axes_.flat:
            panel.set_axis_off()
        for n, image in enumerate(self.images):
            row, column = divmod(n, columns)
            self._draw(self.axes_[2 * row, column], self.axes_[2 * row + 1, column], n, image)
        return self

    def _draw(self, above: Any, below: Any, n: int, image: np.ndarray) -> None:
        best = np.argsort(-self.proba[n], kind="stable")[: self.top]
        above.set_axis_on()
        show_image(above, image)
        if self.y is not None:
            right = self.classes[best[0]] == self.y[n]
            above.set_title(f"{self.y[n]}" if right else f"is {self.y[n]}", fontsize="small")
            for spine in above.spines.values():
                spine.set(linewidth=0.8 if right else 2.5, color="0.5" if right else "C1")
        below.set_axis_on()
        bars = below.barh(range(self.top), self.proba[n, best], color="C0", alpha=0.35)
        for bar, k in zip(bars, best, strict=True):
            text = f"{self.classes[k]} {self.proba[n, k]:.2f}"
            below.text(0.02, bar.get_y() + bar.get_height() / 2, text, va="center", fontsize="x-small")
        below.set(xlim=(0, 1), ylim=(self.top - 0.5, -0.5), xticks=[], yticks=[])
        for spine in below.spines.values():
            spine.set_visible(False)


class ConfusionDisplay(ConfusionMatrixDisplay):
    """scikit-learn's `ConfusionMatrixDisplay`, in colours for every eye and with room for the classes' names.

    Parameters
    ----------
    confusion_matrix : array (n_classes, n_classes)
        Images of class i that were taken for class j.
    display_labels : array (n_classes,), default=None
        Names of the classes. None: 0, 1, ...
    """

    def plot(self, *, cmap: Any = SEQUENTIAL, xticks_rotation: Any = "auto", ax: Any = None, **kwargs: Any) -> Self:
        """Draw it.

        Parameters
        ----------
        cmap : str or matplotlib Colormap, default="cividis"
        xticks_rotation : "auto", "vertical", "horizontal" or float, default="auto"
            "auto": vertical if the names are long.
        ax : Axes or None, default=None
        **kwargs
            As for `ConfusionMatrixDisplay.plot`.

        Returns
        -------
        ConfusionDisplay
            The display, drawn.
        """
        plt = pyplot()
        n = len(self.confusion_matrix)
        names = range(n) if self.display_labels is None else self.display_labels
        if xticks_rotation == "auto":
            xticks_rotation = "vertical" if max(len(str(name)) for name in names) > 2 else "horizontal"
        if ax is None:
            side = max(4.0, 0.55 * n + 1.5)
            _, ax = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
        return super().plot(cmap=cmap, xticks_rotation=xticks_rotation, ax=ax, **kwargs)

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: Any, **kwargs: Any) -> Self:
        """Draw the matrix of what a fitted classifier predicts.

        Parameters
        ----------
        estimator, X, y : fitted CNNClassifier, images, labels
            What is compared.
        **kwargs
            As for scikit-learn's `ConfusionMatrixDisplay.from_estimator`.

        Returns
        -------
        ConfusionDisplay
            The display, drawn.
        """
        return super().from_estimator(estimator, X, y, **_defaults(kwargs))

    @classmethod
    def from_predictions(cls, y_true: Any, y_pred: Any, **kwargs: Any) -> Self:
        """Draw the matrix of predictions.

        Parameters
        ----------
        y_true, y_pred : array of shape (n,)
            Labels.
        **kwargs
            As for scikit-learn's `ConfusionMatrixDisplay.from_predictions`.

        Returns
        -------
        ConfusionDisplay
            The display, drawn.
        """
        return super().from_predictions(y_true, y_pred, **_defaults(kwargs))


def _defaults(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"cmap": SEQUENTIAL, "xticks_rotation": "auto"} | kwargs
