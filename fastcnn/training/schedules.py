"""Learning-rate schedules: pure functions of the step, from 0; beyond the last step they keep their value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, isfinite, pi

SCHEDULES = ("constant", "cosine", "onecycle", "step")

Schedule = Callable[[int], float]


def make_schedule(
    name: str, learning_rate_init: float, total_steps: int, steps_per_epoch: int = 1, warmup: float | None = None
) -> Schedule:
    """The schedule called `name`, over `total_steps` steps.

    Parameters
    ----------
    name : "constant", "cosine", "onecycle" or "step"
    learning_rate_init : float > 0
        The first learning rate; the highest for "onecycle".
    total_steps : int >= 1
        Mini-batches in the whole training.
    steps_per_epoch : int >= 1
        "step" drops at the start of an epoch.
    warmup : float in [0, 1) or None
        Share of the steps in which the learning rate rises: "onecycle" on half a cosine, the others on a line from
        0. None: 0.3 for "onecycle", else none.

    Returns
    -------
    callable
        ``schedule(step)`` is the learning rate.

    Raises
    ------
    ValueError
        If there is no such schedule or a value is outside its range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown learning-rate schedule {name!r}: expected one of {SCHEDULES}")
    if not (isfinite(learning_rate_init) and learning_rate_init > 0):
        raise ValueError(f"learning_rate_init must be a finite number > 0, got {learning_rate_init!r}")
    for label, value in (("total_steps", total_steps), ("steps_per_epoch", steps_per_epoch)):
        if value < 1:
            raise ValueError(f"{label} must be at least 1, got {value!r}")
    if warmup is not None and not 0 <= warmup < 1:
        raise ValueError(f"warmup must be in [0, 1), got {warmup!r}")
    if name == "onecycle":
        return OneCycle(learning_rate_init, total_steps, **({} if warmup is None else {"warmup": warmup}))
    rising = _rising(warmup or 0.0, total_steps)
    schedule: Schedule = Constant(learning_rate_init)
    if name == "cosine":
        schedule = Cosine(learning_rate_init, total_steps - rising)
    elif name == "step":
        schedule = StepDecay(learning_rate_init, total_steps, steps_per_epoch)
    return Warmup(schedule, rising, shift=name == "cosine") if rising else schedule


@dataclass(frozen=True)
class Constant:
    """One learning rate throughout.

    Parameters
    ----------
    learning_rate : float
    """

    learning_rate: float

    def __call__(self, step: int) -> float:
        return self.learning_rate


@dataclass(frozen=True)
class Warmup:
    """Up to what another schedule begins with, on a line [1]_. The first step is not 0.

    Parameters
    ----------
    schedule : callable
        The other one.
    steps : int
        In which the learning rate rises.
    shift : bool, default=False
        Whether the other one begins after that, and not with it.

    References
    ----------
    .. [1] Goyal et al. 2017, "Accurate, large minibatch SGD: training ImageNet in 1 hour", section 2.2.
    """

    schedule: Schedule
    steps: int
    shift: bool = False

    def __call__(self, step: int) -> float:
        if step < self.steps:
            return self.schedule(0) * (step + 1) / self.steps
        return self.schedule(step - self.steps if self.shift else step)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine downwards [1]_, without restarts.

    Parameters
    ----------
    learning_rate : float
        At the start.
    total_steps : int
        In which it falls.
    final : float, default=0.0
        At the end.

    References
    ----------
    .. [1] Loshchilov and Hutter 2017, "SGDR: stochastic gradient descent with warm restarts", eq. 5.
    """

    learning_rate: float
    total_steps: int
    final: float = 0.0

    def __call__(self, step: int) -> float:
        return _anneal(self.learning_rate, self.final, min(step / self.total_steps, 1.0))


@dataclass(frozen=True)
class OneCycle:
    """Up and then down, both on half a cosine [1]_. The defaults are PyTorch's.

    Parameters
    ----------
    highest : float
        The learning rate between the two.
    total_steps : int
        Of both.
    warmup : float in [0, 1), default=0.3
        Share of the steps that goes up.
    start_div : float, default=25.0
        It starts with the highest divided by this.
    final_div : float, default=1e4
        It ends with the start divided by this.

    References
    ----------
    .. [1] Smith and Topin 2018, "Super-convergence: very fast training of neural networks using large
       learning rates".
    """

    highest: float
    total_steps: int
    warmup: float = 0.3
    start_div: float = 25.0
    final_div: float = 1e4

    def __call__(self, step: int) -> float:
        start, peak = self.highest / self.start_div, _rising(self.warmup, self.total_steps)
        if step < peak:
            return _anneal(start, self.highest, step / peak)
        progress = min((step - peak) / (self.total_steps - peak), 1.0)
        return _anneal(self.highest, start / self.final_div, progress)


@dataclass(frozen=True)
class StepDecay:
    """Down by a factor at some points, when an epoch starts.

    A tenth after half and after three quarters is how residual networks were trained on CIFAR-10 [1]_.

    Parameters
    ----------
    learning_rate : float
        At the start.
    total_steps : int
        Of the whole training.
    steps_per_epoch : int, default=1
        Mini-batches in an epoch.
    milestones : tuple of float, default=(0.5, 0.75)
        The points, as shares of the steps.
    factor : float, default=0.1
        What the learning rate is multiplied with at each.

    References
    ----------
    .. [1] He, Zhang, Ren and Sun 2016, "Deep residual learning for image recognition", section 4.2.
    """

    learning_rate: float
    total_steps: int
    steps_per_epoch: int = 1
    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __call__(self, step: int) -> float:
        step = min(step, self.total_steps - 1)
        epoch_start = step - step % self.steps_per_epoch
        drops = sum(epoch_start >= share * self.total_steps for share in self.milestones)
        return self.learning_rate * self.factor**drops


def _rising(warmup: float, total_steps: int) -> int:
    """The steps that go up; the last step of all is not one of them."""
    return min(round(warmup * total_steps), total_steps - 1)


def _anneal(start: float, end: float, progress: float) -> float:
    """From `start` (progress 0) to `end` (progress 1) on half a cosine."""
    return end + (start - end) * (1.0 + cos(pi * progress)) / 2.0
