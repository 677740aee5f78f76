"""The course of training."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, Self

from sklearn.utils.validation import check_is_fitted

from fastcnn.inspection.displays.drawing import axes_grid

__all__ = ["LearningCurvesDisplay", "training_scores"]


def training_scores(clf: Any) -> list[float]:
    """The training scores of a fitted classifier if they can be set beside its validation scores, else none."""
    return clf.training_scores_ if clf.scoring in (None, "accuracy") else []


def best_epoch(clf: Any) -> int | None:
    """The epoch of the best validation score, if a fitted classifier chose by it."""
    scores = clf.validation_scores_
    if not (clf.early_stopping and scores):
        return None
    first = clf.n_iter_ - len(scores) + 1  # epoch that was validated
    # `partial_fit` validates nothing, and may have the lowest loss.
    return clf.best_iter_ if clf.best_iter_ >= first and isfinite(scores[clf.best_iter_ - first]) else None


class LearningCurvesDisplay:
    """Loss and score in training and validation, and the learning rate, epoch by epoch.

    Parameters
    ----------
    loss_curve : sequence of float
        Training loss.
    validation_loss_curve, training_scores, validation_scores, learning_rates : sequence of float, default=()
        Shown where they are not empty. Where they are shorter than `loss_curve`, they are of the last epochs.
    best_iter : int or None, default=None
        An epoch to mark, from 1.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : array of matplotlib Axes
        For loss, score and learning rate, as far as there are such.
    lines_ : dict of str to matplotlib Line2D
        "training loss", "validation loss", "training score", "validation score", "learning rate".

    Examples
    --------
    >>> from fastcnn.inspection import LearningCurvesDisplay
    >>> display = LearningCurvesDisplay.from_estimator(clf)  # doctest: +SKIP
    """

    def __init__(
        self,
        loss_curve: Sequence[float],
        validation_loss_curve: Sequence[float] = (),
        training_scores: Sequence[float] = (),
        validation_scores: Sequence[float] = (),
        learning_rates: Sequence[float] = (),
        best_iter: int | None = None,
    ) -> None:
        self.loss_curve = list(loss_curve)
        self.validation_loss_curve = list(validation_loss_curve)
        self.training_scores = list(training_scores)
        self.validation_scores = list(validation_scores)
        self.learning_rates = list(learning_rates)
        self.best_iter = best_iter

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> Self:
        """Draw the curves of a fitted classifier.

        The training score is the accuracy on mini-batches as they came, and is left out where `scoring` is another one.

        Parameters
        ----------
        estimator : fitted CNNClassifier
        ax : Axes, array of Axes or None, default=None
            As for `plot`.

        Returns
        -------
        LearningCurvesDisplay
            The display, drawn.
        """
        check_is_fitted(estimator, "loss_curve_")
        display = cls(
            estimator.loss_curve_,
            estimator.validation_loss_curve_,
            training_scores(estimator),
            estimator.validation_scores_,
            estimator.learning_rates_,
            best_epoch(estimator),
        )
        return display.plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw them side by side.

        Parameters
        ----------
        ax : Axes, array of Axes or None, default=None
            None: a new figure. One Axes of a grid is divided; an array has one for each of loss, score and rate that
            there is.

        Returns
        -------
        LearningCurvesDisplay
            The display, drawn.
        """
        panels: list[tuple[str, dict[str, list[float]]]] = [
            ("loss", {"training loss": self.loss_curve, "validation loss": self.validation_loss_curve}),
            ("score", {"training score": self.training_scores, "validation score": self.validation_scores}),
            ("learning rate", {"learning rate": self.learning_rates}),
        ]
        panels = [(title, lines) for title, lines in panels if any(lines.values())] or panels[:1]
        self.figure_, axes = axes_grid(ax, 1, len(panels), (4.2 * len(panels), 3.2))
        self.axes_, self.lines_ = axes[0], {}
        for panel, (title, lines) in zip(self.axes_, panels, strict=True):
            for name, values in lines.items():
                if values:
                    self.lines_[name] = self._draw(panel, name, values)
            if self.best_iter and title != "learning rate":
                panel.axvline(self.best_iter, color="0.5", linewidth=1, linestyle=":", label="best epoch")
            panel.set(xlabel="epoch", title=title)
            panel.locator_params(axis="x", integer=True)
            panel.grid(alpha=0.25)
            if title != "learning rate":
                panel.legend(frameon=False)
        return self

    def _draw(self, panel: Any, name: str, values: list[float]) -> Any:
        last = len(self.loss_curve) or len(values)
        epochs = range(last - len(values) + 1, last + 1)
        validation = name.startswith("validation")
        style = {"color": "C1", "linestyle": "--", "marker": "s"} if validation else {"color": "C0", "marker": "o"}
        (line,) = panel.plot(epochs, values, label=name, markersize=3.5, **style)
        return line
