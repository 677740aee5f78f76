"""The training loop: epochs over mini-batches, validation, stopping, history."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import inf, isfinite, nan
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np

from fastcnn.training.averaging import ParameterAverage
from fastcnn.training.callbacks import BatchInfo, EpochInfo, FitInfo

__all__ = ["EpochPart", "History", "Pause", "Progress", "Step", "TrainedBatch", "train", "train_batches"]

_TICK = 0.1  # seconds between two calls of on_batch_end

Reason = Literal["max_iter", "tol", "callback", "interrupted", "diverged", "error"]
Params = dict[str, np.ndarray]


@dataclass
class History:
    """What happened in training, epoch by epoch; calls of `train` that go on with it append to it.

    Attributes
    ----------
    loss_curve : list of float
        Weighted mean training loss of each epoch (of its mini-batches as they came).
    training_scores : list of float
        Weighted accuracy on each epoch's mini-batches as they came: before the update that each was for, with
        augmentation and dropout.
    validation_scores, validation_loss_curve : list of float
        At the end of each epoch, from the first that was validated on; NaN for a later one that was not.
    epoch_seconds : list of float
        Training alone, without validation.
    learning_rates : list of float
        Of each epoch's last step.
    best_iter : int
        Number (from 1) of the epoch with the best validation score under early stopping, else with the lowest
        training loss; 0 before the first.
    best_loss : float
        Lowest of `loss_curve`.
    best_score : float or None
        Highest validation score of the last call of `train`.
    t : int
        Samples that updates were made with.
    reason : str
        Why the last call ended: "max_iter"; "tol" (no improvement); "callback"; "interrupted"
        (KeyboardInterrupt); "diverged" (a loss or parameter that is not finite); "error" (any other exception).
    """

    loss_curve: list[float] = field(default_factory=list)
    training_scores: list[float] = field(default_factory=list)
    validation_scores: list[float] = field(default_factory=list)
    validation_loss_curve: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    best_iter: int = 0
    best_loss: float = inf
    best_score: float | None = None
    t: int = 0
    reason: Reason = "max_iter"

    @property
    def n_iter(self) -> int:
        """Epochs done."""
        return len(self.loss_curve)


@dataclass
class EpochPart:
    """What of an epoch is done, and its sums.

    Attributes
    ----------
    done : int
        What `run_epoch` goes on from.
    batches, samples : int
    loss, weight, right : float
        Sums as `TrainedBatch` has them.
    seconds : float
        Of training.
    """

    done: int = 0
    batches: int = 0
    samples: int = 0
    loss: float = 0.0
    weight: float = 0.0
    right: float = 0.0
    seconds: float = 0.0

    def add(self, batch: TrainedBatch) -> None:
        self.batches += 1
        self.samples += batch.samples
        self.loss += batch.loss
        self.weight += batch.weight
        self.right += batch.right

    def mean(self, total: float) -> float:
        """Of one of the sums."""
        return total / self.weight if self.weight else 0.0


@dataclass
class Progress:
    """Where a call of `train` stands, as a rule after an epoch: with the network's own state, what it takes to go on.

    Arrays are views, good until the next step.

    Attributes
    ----------
    epoch : int
        Number (from 0) of the next epoch.
    history : History
    finished : bool
        There is no next epoch.
    params : dict of str to array
        The network's, not averaged.
    average : dict of str to array or None
        With `ema_decay`.
    average_steps : int
        That went into the average.
    best : dict of str to array or None
        Of the best validation score, with `early_stopping`.
    to_beat, waited : float, int
        The best value so far that `tol` counts from, and the epochs since then.
    within : EpochPart or None
        What is done of that epoch already.
    before : dict of str to array or None
        With block momentum on a cluster: `params` one round earlier.
    """

    epoch: int
    history: History
    finished: bool
    params: Params
    average: Params | None
    average_steps: int
    best: Params | None
    to_beat: float
    waited: int
    within: EpochPart | None = None
    before: Params | None = None

    @property
    def result(self) -> Params:
        """What training would end with, were it to end now."""
        return self.best or self.average or self.params


def train(
    network: Any,
    loader: Any,
    *,
    schedule: Callable[[int], float],
    max_iter: int,
    tol: float = 1e-4,
    n_iter_no_change: float = 10,
    early_stopping: bool = False,
    validate: Callable[[], tuple[float, float]] | None = None,
    label_smoothing: float = 0.0,
    ema_decay: float | None = None,
    micro_batch_size: int | None = None,
    callbacks: Iterable[Any] = (),
    start_epoch: int = 0,
    history: History | None = None,
    keep: Callable[[Progress], None] | None = None,
    progress: Progress | None = None,
    run_epoch: Callable[[Step, int, int], Generator[TrainedBatch | Pause, None, None]] | None = None,
) -> History:
    """Train `network` for up to `max_iter` epochs.

    Stops early when `n_iter_no_change` epochs in a row did not improve by `tol`: the training loss or, with
    `early_stopping`, the validation score. With `early_stopping` the parameters of the best score are then
    restored, however training ended. If a loss or parameter stops being finite, the parameters go back to the
    last good ones and the optimiser starts afresh; the epoch is not recorded. Those are the parameters at the start of
    that epoch or, where the first loss with them is not finite, at the start of the one before. A KeyboardInterrupt
    ends training and keeps what was learnt.

    Parameters
    ----------
    network : Network
    loader : BatchLoader
        ``loader.epoch(e)`` gives the batches of epoch e, ``len(loader)`` is their number.
    schedule : callable
        ``schedule(step)`` is the learning rate; step = epoch * len(loader) + batch, from `start_epoch` on.
    max_iter : int
        Epochs of this call, at most.
    tol : float
        Least change that counts as an improvement.
    n_iter_no_change : int or inf
    early_stopping : bool
    validate : callable or None
        ``validate() -> (score, loss)`` at the end of each epoch; a higher score is better.
    label_smoothing : float in [0, 1)
    ema_decay : float in (0, 1) or None
        The parameters are averaged over the steps, each weighing so much less than the next; validation sees the
        averaged ones, and they are what training ends with. None: not averaged.
    micro_batch_size : int or None
        See `Network.train_step`.
    callbacks : iterable of Callback
    start_epoch : int
        Number (from 0) of the first epoch: what the shuffling, the augmentation and `schedule` go on from.
    history : History or None
        What to append to; None: a new one.
    keep : callable or None
        ``keep(progress)`` after each epoch, whatever is said of its end, and at each pause. What it raises ends
        training.
    progress : Progress or None
        Where an earlier call with the same arguments stood, whose optimiser and dropout `network` has: this one ends
        with the same bits as that one would have, unless training diverges before this one's first epoch is done: it
        goes back no further than to `progress`. Its history takes the place of `history`.
    run_epoch : callable or None
        ``run_epoch(step, epoch, done)`` trains an epoch's batches, or what is left where `done` counts what was done
        before; it yields a `Pause` where training may go on from. None: the batches of `loader` with `train_batches`.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If there is nothing to train on, `early_stopping` has no `validate`, or `progress` stands within an epoch and
        there is no `run_epoch`.
    """
    if early_stopping and validate is None:
        raise ValueError("early_stopping=True needs validate")
    if len(loader) == 0:
        raise ValueError("there are no batches to train on")
    within = None if progress is None else progress.within
    if within is not None and run_epoch is None:
        raise ValueError("progress stands within an epoch, which run_epoch alone can go on with")
    callbacks = tuple(callbacks)
    patience = _Patience(tol, n_iter_no_change)
    average = None if ema_decay is None else ParameterAverage(network, ema_decay)
    step = Step(network, schedule, label_smoothing, micro_batch_size, average)
    epochs = range(start_epoch, start_epoch + int(max_iter))
    end = epochs.stop
    if progress is None:
        history = History() if history is None else history
        history.reason, history.best_score = "max_iter", None
        good, best = _copies(network.params), None
    else:
        history, best = progress.history, progress.best
        network.load_params(progress.params)
        step.before = progress.before
        if average is not None and progress.average is not None:
            average.resume(progress.average, progress.average_steps)
        patience.best, patience.waited = progress.to_beat, progress.waited
        good = _copies(progress.average or progress.params)
        epochs = range(progress.epoch, progress.epoch if progress.finished else end)
    proven = good  # a finite loss was computed with these

    def report(epoch: int, finished: bool, part: EpochPart | None = None) -> None:
        if keep is not None:
            keep(
                Progress(
                    epoch=epoch,
                    history=history,
                    finished=finished,
                    params=network.params,
                    average=None if average is None else average.values,
                    average_steps=0 if average is None else average.steps,
                    best=best,
                    to_beat=patience.best,
                    waited=patience.waited,
                    within=part,
                    before=step.before,
                )
            )

    try:
        _call(callbacks, "on_fit_begin", FitInfo(network, epochs.start, end, len(loader)))
        for epoch in epochs:
            _call(callbacks, "on_epoch_begin", epoch + 1)
            seen = history.t
            trained: Generator[TrainedBatch | Pause, None, None]
            if run_epoch is None:
                trained = train_batches(step, loader.epoch(epoch), epoch * len(loader))
            else:
                trained = run_epoch(step, epoch, 0 if within is None else within.done)
            pause = partial(report, epoch, False)
            info = _train_epoch(step, trained, epoch, end, callbacks, history, within or EpochPart(), pause)
            within = None
            if info is None:
                history.reason = "diverged"
                good = good if history.t > seen else proven
                break
            proven, value = good, -info.loss
            with nullcontext() if average is None else average.in_place():
                if validate is not None:
                    score, loss = map(float, validate())
                    if not isfinite(loss):
                        history.reason = "diverged"
                        break
                    info = info._replace(validation_score=score, validation_loss=loss)
                    value = score if early_stopping else value
                good = _copies(network.params)
                if _record(history, info, early_stopping) and early_stopping:
                    best = good
                patience.see(value)
                stop = _call(callbacks, "on_epoch_end", info)
            if patience.exhausted or stop:
                history.reason = "tol" if patience.exhausted else "callback"
            finished = patience.exhausted or stop or epoch + 1 == end
            report(epoch + 1, finished)
            if finished:
                break
    except KeyboardInterrupt:
        history.reason = "interrupted"
    except BaseException:
        history.reason = "error"
        raise
    finally:
        if history.reason == "diverged" or not _is_finite(network):
            network.load_params(good)
            network.optimizer.reset()
        elif average is not None:
            network.load_params(average.values)
        if best is not None:
            network.load_params(best)
        with ExitStack() as all_of_them:  # whatever one of them raises
            for callback in reversed(callbacks):
                all_of_them.callback(_call, (callback,), "on_fit_end", history)
    return history


@dataclass
class Step:
    """One mini-batch's training; the schedule is asked for the learning rate of step `number`."""

    network: Any
    schedule: Callable[[int], float]
    label_smoothing: float
    micro_batch_size: int | None
    average: ParameterAverage | None
    before: Params | None = None  # see `Progress`

    def __call__(self, batch: Any, number: int) -> float:
        self.network.optimizer.learning_rate = self.schedule(number)
        loss = self.network.train_step(
            batch.x,
            batch.y,
            batch.sample_weight,
            label_smoothing=self.label_smoothing,
            mix=batch.mix,
            micro_batch_size=self.micro_batch_size,
        )
        if self.average is not None and isfinite(loss):
            self.average.update()
        return loss


class TrainedBatch(NamedTuple):
    """What is known of a mini-batch once it is trained."""

    loss: float  # the sum over its images, each times its weight
    weight: float  # the sum of the images' weights
    right: float  # the sum of the weights of those that the network was right about
    samples: int


class Pause(NamedTuple):
    """Between two batches: the network is as those before have left it, and training can go on from here."""

    done: int  # what `run_epoch` goes on from


def train_batches(step: Step, batches: Generator[Any, None, None], first: int) -> Generator[TrainedBatch, None, None]:
    """Train on one batch after another; `first` is the number of the first step."""
    with closing(batches):
        for number, batch in enumerate(batches, first):
            loss, m = step(batch, number), len(batch.x)
            weight = m if batch.sample_weight is None else float(batch.sample_weight.sum())
            yield TrainedBatch(loss * weight, weight, step.network.accuracy * weight, m)


def _train_epoch(
    step: Step,
    trained: Generator[TrainedBatch | Pause, None, None],
    epoch: int,
    end: int,
    callbacks: tuple[Any, ...],
    history: History,
    part: EpochPart,
    pause: Callable[[EpochPart], None],
) -> EpochInfo | None:
    """See the batches trained, beyond `part`; None if the loss or a parameter is not finite any more."""
    now = perf_counter()
    start, next_tick = now - part.seconds, now + _TICK
    with closing(trained):
        for batch in trained:
            if isinstance(batch, Pause):
                part.done, part.seconds = batch.done, perf_counter() - start
                pause(part)
                continue
            if not isfinite(batch.loss):
                return None
            part.add(batch)
            history.t += batch.samples
            now = perf_counter()
            if now >= next_tick:
                next_tick = now + _TICK
                speed = part.samples / (now - start)
                _call(callbacks, "on_batch_end", BatchInfo(epoch + 1, part.batches, part.mean(part.loss), speed))
    seconds = perf_counter() - start
    if not _is_finite(step.network):  # the last update's loss is never computed
        return None
    return EpochInfo(
        epoch=epoch + 1,
        max_iter=end,
        n_samples=part.samples,
        loss=part.mean(part.loss),
        training_score=part.mean(part.right),
        validation_score=None,
        validation_loss=None,
        learning_rate=step.network.optimizer.learning_rate,
        seconds=seconds,
        images_per_second=part.samples / seconds,
    )


class _Patience:
    """Counts the epochs in a row that did not improve by `tol` on the best value before them."""

    def __init__(self, tol: float, limit: float) -> None:
        self._tol, self._limit = tol, limit
        self.best, self.waited = -inf, 0

    def see(self, value: float) -> None:
        self.waited = 0 if value >= self.best + self._tol else self.waited + 1
        self.best = max(self.best, value)

    @property
    def exhausted(self) -> bool:
        return self.waited >= self._limit


def _record(history: History, info: EpochInfo, by_score: bool) -> bool:
    """Append `info`; True if its epoch is the best so far (by validation score or by training loss)."""
    history.loss_curve.append(info.loss)
    history.training_scores.append(info.training_score)
    history.epoch_seconds.append(info.seconds)
    history.learning_rates.append(info.learning_rate)
    lower = info.loss < history.best_loss
    history.best_loss = min(history.best_loss, info.loss)
    higher = False
    if info.validation_score is not None and info.validation_loss is not None:
        history.validation_scores.append(info.validation_score)
        history.validation_loss_curve.append(info.validation_loss)
        higher = info.validation_score > (-inf if history.best_score is None else history.best_score)
        history.best_score = info.validation_score if higher else history.best_score
    elif history.validation_scores:  # epochs stay in their places
        history.validation_scores.append(nan)
        history.validation_loss_curve.append(nan)
    is_best = higher if by_score else lower
    if is_best:
        history.best_iter = history.n_iter
    return is_best


def _call(callbacks: tuple[Any, ...], hook: str, info: Any) -> bool:
    """Call `hook` of every callback that has it; whether one answered True."""
    return any([bool(getattr(callback, hook)(info)) for callback in callbacks if hasattr(callback, hook)])


def _copies(params: Params) -> Params:
    return {name: value.copy() for name, value in params.items()}


def _is_finite(network: Any) -> bool:
    return all(np.isfinite(value).all() for value in network.params.values())
