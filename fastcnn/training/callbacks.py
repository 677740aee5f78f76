"""Callbacks: what looks on while a network trains, and the progress display that `verbose` turns on."""

from __future__ import annotations

import os
import sys
from multiprocessing import current_process
from threading import current_thread, main_thread
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fastcnn.training.loop import History

__all__ = ["BatchInfo", "Callback", "EpochInfo", "FitInfo", "progress"]

_SECONDS_BETWEEN_LINES = 1.0


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
    training_score : float
        Weighted accuracy on them as they came: before the update that each was for, with augmentation and dropout.
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
    training_score: float
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
    """What shows on standard output how training gets on.

    A line for each epoch; with `verbose` 2 or more, lines within it too. Below them a terminal has a live bar, and a
    notebook a line that changes. Logs have the lines alone, and so have workers (processes and threads that are not
    the main ones), where each begins with the worker's name and is written in one piece. 0: nothing.
    """
    if not verbose:
        return Callback()
    worker = _worker_name()
    if worker or not (sys.stdout.isatty() or _in_notebook()):
        return PlainProgress(within=verbose > 1, prefix=f"[{worker}] " if worker else "")
    return LiveProgress() if sys.stdout.isatty() else NotebookProgress()


def _worker_name() -> str:
    """Of the process or thread, if it is not the main one."""
    if current_process().name != "MainProcess":
        return f"{current_process().name} {os.getpid()}"
    return "" if current_thread() is main_thread() else current_thread().name


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


class _Clock:
    """How long the epochs that are still to come will take, if they are like those before."""

    def __init__(self, info: FitInfo) -> None:
        self._info, self._start = info, perf_counter()

    def share(self, epoch: int, batch: int) -> float:
        """What is done of the whole training after `batch` batches of `epoch`."""
        epochs = self._info.max_iter - self._info.start_epoch
        return (epoch - 1 - self._info.start_epoch + batch / self._info.n_batches) / epochs

    def left(self, epoch: int, batch: int) -> str:
        """As in "1:05 left"; empty at the end."""
        share = self.share(epoch, batch)
        if not 0 < share < 1:
            return ""
        minutes, seconds = divmod(round((perf_counter() - self._start) * (1 - share) / share), 60)
        hours, minutes = divmod(minutes, 60)
        return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{seconds:02} left"


class PlainProgress(Callback):
    """One line per epoch and, with `within`, one a second in between."""

    _clock: _Clock | None = None
    _info: FitInfo

    def __init__(self, within: bool = False, prefix: str = "") -> None:
        self._within, self._prefix, self._next = within, prefix, 0.0

    def on_fit_begin(self, info: FitInfo) -> None:
        self._clock, self._info = _Clock(info), info

    def on_batch_end(self, info: BatchInfo) -> None:
        if self._within and self._clock is not None and perf_counter() >= self._next:
            self._next = perf_counter() + _SECONDS_BETWEEN_LINES
            self._write(_batch_line(info, self._info, self._clock))

    def on_epoch_end(self, info: EpochInfo) -> None:
        left = "" if self._clock is None else self._clock.left(info.epoch, self._info.n_batches)
        self._write(_epoch_line(info, left))

    def _write(self, line: str) -> None:
        # In one piece: lines of several workers stay whole.
        sys.stdout.write(f"{self._prefix}{line}\n")
        sys.stdout.flush()


class NotebookProgress(PlainProgress):
    """One line per epoch, and one below that changes: a carriage return is all that a notebook needs for it."""

    _width = 0

    def on_batch_end(self, info: BatchInfo) -> None:
        if self._clock is not None:
            line = _batch_line(info, self._info, self._clock)
            sys.stdout.write("\r" + line.ljust(self._width))
            sys.stdout.flush()
            self._width = len(line)

    def on_fit_end(self, history: History) -> None:
        if self._width:  # training ended within an epoch
            sys.stdout.write("\r" + " " * self._width + "\r")
            sys.stdout.flush()

    def _write(self, line: str) -> None:
        sys.stdout.write("\r" * bool(self._width) + line.ljust(self._width) + "\n")
        sys.stdout.flush()
        self._width = 0


class LiveProgress(Callback):
    """One line per epoch, and below them a bar over the whole training with the running loss and speed."""

    _bar: Progress | None = None
    _task: TaskID
    _info: FitInfo
    _clock: _Clock

    def on_fit_begin(self, info: FitInfo) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._info, self._clock = info, _Clock(info)
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
            f"{_batch_label(info, self._info)}  loss {info.loss:.4f}  {_rate(info.images_per_second)}",
        )

    def on_epoch_end(self, info: EpochInfo) -> None:
        if self._bar is not None:
            left = self._clock.left(info.epoch, self._info.n_batches)
            self._bar.console.print(_epoch_line(info, left), soft_wrap=True)
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


def _epoch_line(info: EpochInfo, left: str) -> str:
    parts = [_epoch_label(info.epoch, info.max_iter), f"loss {info.loss:.4f}", f"acc {info.training_score:.4f}"]
    if info.validation_loss is not None:
        parts.append(f"val loss {info.validation_loss:.4f}")
    if info.validation_score is not None:
        parts.append(f"val {info.validation_score:.4f}")
    parts += [f"lr {info.learning_rate:.3g}", f"{info.seconds:.1f} s", _rate(info.images_per_second)]
    return "  ".join([*parts, left] if left else parts)


def _batch_line(info: BatchInfo, fit: FitInfo, clock: _Clock) -> str:
    left = clock.left(info.epoch, info.batch)
    parts = [_epoch_label(info.epoch, fit.max_iter), _batch_label(info, fit), f"loss {info.loss:.4f}"]
    return "  ".join([*parts, _rate(info.images_per_second), *([left] if left else [])])


def _epoch_label(epoch: int, max_iter: int) -> str:
    return f"epoch {epoch:>{len(str(max_iter))}}/{max_iter}"


def _batch_label(info: BatchInfo, fit: FitInfo) -> str:
    return f"batch {info.batch:>{len(str(fit.n_batches))}}/{fit.n_batches}"


def _rate(images_per_second: float) -> str:
    return f"{float(f'{images_per_second:.3g}'):,.0f} images/s"  # three digits: more is noise
