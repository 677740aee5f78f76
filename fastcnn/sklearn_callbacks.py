"""scikit-learn's own callbacks, which it has from version 1.9 on: a fit is a task, each epoch one within it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastcnn.training.callbacks import Callback, EpochInfo

try:
    from sklearn.callback import CallbackSupportMixin as CallbackSupport
except ImportError:  # an older scikit-learn

    class CallbackSupport:  # type: ignore[no-redef]
        """Nothing to support."""


__all__ = ["CallbackSupport", "FitTask"]


class FitTask:
    """The task that the callbacks of `estimator` are told about while it is fitted."""

    def __init__(self, estimator: Any, X: Any, y: Any, sample_weight: Any) -> None:
        self._context: Any = None
        self._told: dict[str, Any] = {"estimator": estimator, "X": X, "y": y}
        if hasattr(estimator, "_init_callback_context"):
            self._told["metadata"] = None if sample_weight is None else {"sample_weight": sample_weight}
            self._context = estimator._init_callback_context(max_subtasks=estimator.max_iter)
            self._context.call_on_fit_task_begin(**self._told)

    def callbacks(self, as_fitted: Callable[[], dict[str, Any]]) -> list[Callback]:
        """What tells them of epochs; `as_fitted` gives the attributes of the estimator as it is then."""
        return [] if self._context is None else [_Epochs(self._context, self._told, as_fitted)]

    def end(self) -> None:
        """The estimator is fitted."""
        if self._context is not None:
            self._context.call_on_fit_task_end(**self._told, reconstruction_attributes={})


class _Epochs(Callback):
    def __init__(self, context: Any, told: dict[str, Any], as_fitted: Callable[[], dict[str, Any]]) -> None:
        self._context, self._told, self._as_fitted = context, told, as_fitted
        self._epoch: Any = None

    def on_epoch_begin(self, epoch: int) -> None:
        self._epoch = self._context.subcontext(task_name="epoch")
        self._epoch.call_on_fit_task_begin(**self._told)

    def on_epoch_end(self, info: EpochInfo) -> bool:
        return bool(self._epoch.call_on_fit_task_end(**self._told, reconstruction_attributes=self._as_fitted))
