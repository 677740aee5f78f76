"""Callbacks: what looks on while a network trains, and the progress display that `verbose` turns on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fastcnn.training.loop import History

__all__ = ["BatchInfo", "Callback", "EpochInfo", "FitInfo", "progress"]


class FitInfo(NamedTuple):
    """What is known before the first epoch.

    Parameters
    ----------
    network : Network
        What is trained.
    start_epoch : int
        Epochs done before.
    max_iter : int
        Number of the last epoch that may come.
    n_batches : int
        Mini-batches in an epoch.
    """

    network: Any
    start_epoch: int
    max_iter: int
    n_batches: int


class BatchInfo(NamedTuple):
    """The epoch so far.

    Parameters
    ----------
    epoch : int
        From 1.
    batch : int
        From 1.
    loss : float
        Weighted mean.
    images_per_second : float
        Trained in this epoch.
    """

    epoch: int
    batch: int
    loss: float
    images_per_second: float


class EpochInfo(NamedTuple):
    """A finished epoch.

    Parameters
    ----------
    epoch : int
        From 1.
    max_iter : int
        Number of the last epoch that may come.
    n_samples : int
        Images that were trained on.
    loss : float
        Weighted mean over the epoch's mini-batches.
    validation_score, validation_loss : float or None
        None without validation data.
    learning_rate : float
        Of the last step.
    seconds : float
        Of training, without validation.
    images_per_second : float
        Trained in that time.
    """

    epoch: int
    max_iter: int
    n_samples: int
    loss: float
    validation_score: float | None
    validation_loss: float | None
    learning_rate: float
    seconds: float
    images_per_second: float


class Callback:
    """The hooks there are. Any object that has one of them is a callback, derived from this class or not."""

    def on_fit_begin(self, info: FitInfo) -> None:
        """Before the first epoch.

        Parameters
        ----------
        info : FitInfo
            What is known then.
        """

    def on_epoch_begin(self, epoch: int) -> None:
        """Before each epoch.

        Parameters
        ----------
        epoch : int
            From 1.
        """

    def on_batch_end(self, info: BatchInfo) -> None:
        """Now and then between two batches, ten times a second at most.

        Parameters
        ----------
        info : BatchInfo
            The epoch so far.
        """

    def on_epoch_end(self, info: EpochInfo) -> bool | None:
        """After each epoch and its validation.

        Parameters
        ----------
        info : EpochInfo
            The epoch.

        Returns
        -------
        bool or None
            True stops the training.
        """

    def on_fit_end(self, history: History) -> None:
        """After the last epoch, also when training ends with an exception.

        Parameters
        ----------
        history : History
            Curves of all epochs, and in `reason` why training ended.
        """


def progress(verbose: int | bool) -> Callback:
    """What prints a line per epoch to standard output, and a live bar if that is a terminal; 0: nothing."""
    if not verbose:
        return Callback()
    return LiveProgress() if sys.stdout.isatty() else PlainProgress()


class PlainProgress(Callback):
    """One line per epoch."""

    def on_epoch_end(self, info: EpochInfo) -> None:
        print(_epoch_line(info), flush=True)


class LiveProgress(Callback):
    """One line per epoch, and below them a bar over the whole training with the running loss and speed."""

    _bar: Progress | None = None
    _task: TaskID
    _info: FitInfo

    def on_fit_begin(self, info: FitInfo) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._info = info
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            console=Console(file=sys.stdout, highlight=False, markup=False),
            auto_refresh=False,  # no thread beside the kernels' own: on_batch_end comes often enough
            transient=True,
        )
        steps = (info.max_iter - info.start_epoch) * info.n_batches
        self._task = self._bar.add_task(_epoch_label(info.start_epoch + 1, info.max_iter), total=steps, status="")
        self._bar.start()

    def on_batch_end(self, info: BatchInfo) -> None:
        self._show(
            info.epoch,
            (info.epoch - 1 - self._info.start_epoch) * self._info.n_batches + info.batch,
            f"loss {info.loss:.4f}  {_rate(info.images_per_second)}",
        )

    def on_epoch_end(self, info: EpochInfo) -> None:
        if self._bar is not None:
            self._bar.console.print(_epoch_line(info), soft_wrap=True)
        done = (info.epoch - self._info.start_epoch) * self._info.n_batches
        self._show(min(info.epoch + 1, info.max_iter), done, "")

    def on_fit_end(self, history: History) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, epoch: int, completed: int, status: str) -> None:
        if self._bar is not None:
            label = _epoch_label(epoch, self._info.max_iter)
            self._bar.update(self._task, completed=completed, description=label, status=status, refresh=True)


def _epoch_line(info: EpochInfo) -> str:
    parts = [_epoch_label(info.epoch, info.max_iter), f"loss {info.loss:.4f}"]
    if info.validation_score is not None:
        parts.append(f"val {info.validation_score:.4f}")
    parts += [f"lr {info.learning_rate:.3g}", f"{info.seconds:.1f} s", _rate(info.images_per_second)]
    return "  ".join(parts)


def _epoch_label(epoch: int, max_iter: int) -> str:
    return f"epoch {epoch:>{len(str(max_iter))}}/{max_iter}"


def _rate(images_per_second: float) -> str:
    return f"{float(f'{images_per_second:.3g}'):,.0f} images/s"  # three digits: more is noise
