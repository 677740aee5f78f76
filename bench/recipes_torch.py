"""PyTorch's side of `bench.recipes`: a recipe's network, augmentation and training, in PyTorch's best mode.

The network starts from the same parameters, and learns by the same schedule from mini-batches of the same size, drawn
by PyTorch's generator. Images stay bytes until their batch is put together, and are mirrored, moved, erased and scaled
a batch at a time.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.machine import usable_cores
from bench.recipes import EpochEnd
from fastcnn import CNNClassifier, layers
from fastcnn.engine.network import Network
from fastcnn.kernels.contract import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS
from fastcnn.training.augment import RandomErasing, RandomHorizontalFlip, RandomShift, check_augment
from fastcnn.training.schedules import make_schedule
from fastcnn.training.views import View, views_of

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MODES = [f"{way}-{layout}" for layout in LAYOUTS for way in ("eager", "inplace", "compiled")]  # inplace: ReLU, eager
# The first losses must be fastcnn's before anything is timed. What is rounded differently grows with each step of
# Muon at its full rate: with six seeds of `best`, PyTorch's channels-last modes that are not compiled are up to
# 0.0004 %, 0.17 % and 0.7 % from fastcnn's losses in float64, its other modes 0.00004 %, 0.03 % and 0.5 %. Steps that
# are 1 % too long change the second loss by 0.2 to 0.8 %.
CHECKED = (1e-5, 3e-3, 3e-2)
TRIAL = 12  # steps of each mode before the best one trains, the first third of them to get going
PREDICTED = 256  # images together
# What this side has in place of the estimator's; any other parameter must be as it is by default.
TRANSLATED = {
    "layers", "augment", "tta", "solver", "learning_rate_init", "alpha", "label_smoothing", "ema_decay", "batch_size",
    "max_iter", "random_state", "callbacks", "verbose", "n_iter_no_change", "warmup", "learning_rate", "momentum",
    "nesterovs_momentum",
}  # fmt: skip


class Torch:
    """A recipe in PyTorch."""

    def __init__(self, clf: CNNClassifier) -> None:
        defaults = CNNClassifier().get_params()
        changed = [name for name, value in clf.get_params().items() if value != defaults[name]]
        if unknown := set(changed) - TRANSLATED:
            raise ValueError(f"not translated to PyTorch: {sorted(unknown)}")
        if clf.solver not in ("adamw", "muon"):
            raise ValueError(f"not translated to PyTorch: solver={clf.solver!r}")
        self.clf, self.augment = clf, check_augment(clf.augment)
        if unknown := [
            a for a in self.augment if not isinstance(a, RandomHorizontalFlip | RandomShift | RandomErasing)
        ]:
            raise ValueError(f"not translated to PyTorch: {unknown}")
        torch.set_flush_denormal(True)
        torch.set_num_threads(usable_cores())
        self.mode = ""
        self.tried: dict[str, Any] = {}  # modes: seconds of a step, or why they do not run
        self.rate = 0.0  # of the steps that are compared
        self.step: Any = None
        self.optimizers: list[Any] = []

    # ------------------------------------------------------------------------------------------- the network

    def prepare(self, X: np.ndarray, y: np.ndarray, rest: int) -> None:
        """Build the network, find the fastest mode on a batch, and compile it for batches and one of `rest` images."""
        shape = X.shape[1:] if X.ndim == 4 else (*X.shape[1:], 1)
        n_classes = len(np.unique(y))
        specs = [*self.clf.layers, layers.Dense(n_classes)]
        rng = np.random.default_rng(self.clf.random_state)
        mine = Network(specs, shape, random_state=rng, optimizer=self.clf._make_optimizer())
        self.net = nn.Sequential(*_modules(specs, shape))
        self._load(mine.params)
        self.start = deepcopy(self.net.state_dict())
        torch.manual_seed(self.clf.random_state)
        m = self.clf.batch_size
        self._scale_by(X)
        images, labels = self._images(X)[:m], torch.from_numpy(y[:m].astype(np.int64))
        expected = self._losses(mine, images, labels)
        seconds: dict[str, float] = {}
        for mode in MODES:
            try:
                step = self._step(mode)
                self._check(step, expected, images, labels)
                trial = [self._seconds(step, images, labels) for _ in range(TRIAL)]
                self.tried[mode] = seconds[mode] = statistics.median(trial[TRIAL // 3 :])
            except Exception as error:  # a mode that does not run, or computes something else, is left out
                self.tried[mode] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(self.tried, file=sys.stderr)
        if not seconds:
            raise RuntimeError(f"PyTorch runs in none of its modes: {self.tried}")
        self.mode = min(seconds, key=seconds.__getitem__)
        self.step = self._step(self.mode)
        for size in (m, rest) if rest else (m,):
            self.step(images[:size], labels[:size], 1e-3)
        self.net.load_state_dict(self.start)
        for optimizer in self.optimizers:
            optimizer.state.clear()

    @property
    def n_params(self) -> int:
        return sum(p.numel() for p in self.net.parameters())

    def _load(self, params: dict[str, np.ndarray]) -> None:
        """fastcnn's parameters, in PyTorch's order of axes."""
        modules = {name.replace(".layers.", "."): m for name, m in self.net.named_modules()}
        with torch.no_grad():
            for name, value in params.items():
                place, _, kind = name.replace(".layers.", ".").rpartition(".")
                target = getattr(modules[place], kind)
                array = {4: lambda v: v.transpose(3, 2, 0, 1), 2: lambda v: v.T}.get(value.ndim, lambda v: v)(value)
                target.copy_(torch.from_numpy(np.ascontiguousarray(array)))

    def _losses(self, mine: Network, images: Any, labels: Any) -> list[float]:
        """fastcnn's losses in the first steps, without augmentation."""
        augment, self.augment = self.augment, []
        self.rate = mine.optimizer.learning_rate
        x = self._augmented(images).permute(0, 2, 3, 1).contiguous().numpy()
        self.augment = augment
        return [mine.train_step(x, labels.numpy(), label_smoothing=self.clf.label_smoothing) for _ in CHECKED]

    def _check(self, step: Any, expected: list[float], images: Any, labels: Any) -> None:
        """The losses of its first steps are these."""
        augment, self.augment = self.augment, []
        try:
            for loss, close in zip(expected, CHECKED, strict=True):
                np.testing.assert_allclose(float(step(images, labels, self.rate)), loss, rtol=close)
        finally:
            self.augment = augment

    def _seconds(self, step: Any, images: Any, labels: Any) -> float:
        start = time.perf_counter()
        step(images, labels, 1e-3)
        return time.perf_counter() - start

    def _step(self, mode: str) -> Any:
        """A training step of that mode, from the initial parameters on."""
        way, layout = mode.split("-")
        self.memory_format = LAYOUTS[layout]
        torch.compiler.reset()
        self.net.load_state_dict(self.start)
        net = self.net.to(memory_format=self.memory_format).train()
        for module in net.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = way == "inplace"
        called = torch.compile(net, dynamic=False, fullgraph=True) if way == "compiled" else net
        clf = self.clf
        weights = [p for p in net.parameters() if p.ndim > 1]
        hidden = weights[:-1] if clf.solver == "muon" else []
        others = [p for p in net.parameters() if p.ndim <= 1]
        rest = {"params": weights[len(hidden) :], "weight_decay": clf.alpha}
        groups, betas = [rest, {"params": others, "weight_decay": 0.0}], (clf.beta_1, clf.beta_2)
        optimizers: list[Any] = [torch.optim.AdamW(groups, clf.learning_rate_init, betas, clf.epsilon, fused=True)]
        if hidden:
            optimizers.append(_Muon(hidden, clf, compiled=way == "compiled"))
        self.optimizers = optimizers
        smoothing = clf.label_smoothing

        def step(images: Any, labels: Any, rate: float) -> Any:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            net.zero_grad(set_to_none=True)
            y = called(self._augmented(images).to(memory_format=self.memory_format))
            loss = nn.functional.cross_entropy(y, labels, label_smoothing=smoothing)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            return loss.detach()

        return step

    # ------------------------------------------------------------------------------------------------ images

    def _scale_by(self, X: np.ndarray) -> None:
        self.mean, self.deviation = float(X.mean()), float(X.std())

    def _images(self, X: np.ndarray) -> Any:
        images = torch.from_numpy(X)
        return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()

    def _augmented(self, images: Any) -> Any:
        """Float images, changed and scaled."""
        n, _, height, width = images.shape
        x = images.float()
        for item in self.augment:
            match item:
                case RandomHorizontalFlip(p):
                    x = torch.where((torch.rand(n) < p)[:, None, None, None], x.flip(3), x)
                case RandomShift(most):
                    padded = nn.functional.pad(x, (most,) * 4)
                    down, right = torch.randint(0, 2 * most + 1, (2, n))
                    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
                    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
                    x = padded[
                        torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows, columns
                    ]
                case RandomErasing(p, scale, ratio):
                    area = (scale[0] + (scale[1] - scale[0]) * torch.rand(n)) * height * width
                    low, high = (math.log(r) for r in ratio)
                    root = torch.exp(0.5 * (low + (high - low) * torch.rand(n)))
                    rows = (area.sqrt() * root).round().clamp(1, height)
                    columns = (area.sqrt() / root).round().clamp(1, width)
                    top = (torch.rand(n) * (height - rows + 1)).floor()[:, None]
                    left = (torch.rand(n) * (width - columns + 1)).floor()[:, None]
                    y_in = (torch.arange(height) >= top) & (torch.arange(height) < top + rows[:, None])
                    x_in = (torch.arange(width) >= left) & (torch.arange(width) < left + columns[:, None])
                    erased = y_in[:, None, :, None] & x_in[:, None, None, :]
                    x = x.masked_fill(erased & (torch.rand(n) < p)[:, None, None, None], 0.0)
        return (x - self.mean) / self.deviation

    # ---------------------------------------------------------------------------------------------- training

    def fit(self, X: np.ndarray, y: np.ndarray, epochs: int, at_end_of: EpochEnd, kept: Path | None = None) -> None:
        """Train in the best mode, or go on from what `kept` has, and tell when an epoch has ended."""
        clf, m = self.clf, self.clf.batch_size
        self._scale_by(X)
        images, labels = self._images(X), torch.from_numpy(y.astype(np.int64))
        step_count = -(-len(X) // m)
        schedule = make_schedule(clf.learning_rate, clf.learning_rate_init, epochs * step_count, step_count, clf.warmup)
        average, done = None, 0
        if kept is not None and kept.exists():
            average, done = self._resume(torch.load(kept))
        number = done * step_count
        for epoch in range(done, epochs):
            begin = time.perf_counter()
            for chosen in torch.randperm(len(X)).split(m):
                loss = float(self.step(images[chosen], labels[chosen], schedule(number)))
                if not math.isfinite(loss):
                    raise FloatingPointError(f"epoch {epoch + 1}: the loss is {loss}")
                number += 1
                if clf.ema_decay is not None:
                    average = self._averaged(average, number)
            seconds = time.perf_counter() - begin
            if kept is not None:
                torch.save(self._state(average, epoch + 1), part := kept.with_suffix(".part"))
                part.replace(kept)
            at_end_of(epoch + 1, seconds)
        if average is not None:
            self.net.load_state_dict(average)

    def _state(self, average: Any, done: int) -> dict[str, Any]:
        """All that training goes on from."""
        return {
            "net": self.net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": torch.get_rng_state(),
            "average": average,
            "done": done,
        }

    def _resume(self, state: dict[str, Any]) -> tuple[Any, int]:
        """Be as in that state; the average, and how many epochs are done."""
        self.net.load_state_dict(state["net"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        torch.set_rng_state(state["random"])
        return state["average"], state["done"]

    @torch.no_grad()
    def _averaged(self, average: Any, number: int) -> Any:
        state = self.net.state_dict()
        if average is None:
            return {name: value.clone() for name, value in self.start.items()}
        share = 1 - min(self.clf.ema_decay, (1 + number) / (10 + number))
        for name, value in state.items():
            if value.is_floating_point():
                average[name].lerp_(value, share)
        return average

    @torch.inference_mode()
    def predict(self, X: np.ndarray) -> np.ndarray:
        self.net.eval()
        found = []
        for images in self._images(X).split(PREDICTED):
            proba = sum(self.net(self._seen(images.float(), view)).softmax(1) for view in views_of(self.clf.tta))
            found.append(proba.argmax(1))
        return torch.cat(found).numpy()

    def _seen(self, x: Any, view: View) -> Any:
        """Scaled images as in the view."""
        height, width = x.shape[2:]
        padded = nn.functional.pad(x.flip(3) if view.mirrored else x, (1, 1, 1, 1))
        moved = padded[:, :, 1 - view.down : 1 - view.down + height, 1 - view.right : 1 - view.right + width]
        return ((moved - self.mean) / self.deviation).to(memory_format=self.memory_format)


class _Muon(torch.optim.Optimizer):
    """`fastcnn.training.optimizers.Muon` for convolutions and dense layers; `torch.optim.Muon` takes matrices alone."""

    def __init__(self, params: Any, clf: CNNClassifier, compiled: bool) -> None:
        super().__init__(params, {"lr": clf.learning_rate_init})
        self.momentum, self.nesterov, self.decay = clf.momentum, clf.nesterovs_momentum, clf.alpha
        self.orthogonalized = torch.compile(_orthogonalized, dynamic=False) if compiled else _orthogonalized

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("m", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - self.momentum)
                ahead = p.grad.lerp(mean, self.momentum) if self.nesterov else mean
                matrix = ahead.flatten(1)
                update = self.orthogonalized(matrix).view(p.shape)
                p.mul_(1 - group["lr"] * self.decay)
                p.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def _orthogonalized(u: Any) -> Any:
    """The Newton-Schulz iteration in its cheapest form, as fastcnn has it, too."""
    wide = u.shape[0] <= u.shape[1]
    a, b, c = NEWTON_SCHULZ
    gram = u @ u.T if wide else u.T @ u
    norm = gram.trace().sqrt() + 1e-7
    gram = gram / norm**2
    one = torch.eye(len(gram))
    total = one
    for _ in range(NEWTON_SCHULZ_STEPS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c) + a * one
        total = factor @ total
        gram = factor @ gram @ factor
    return (total @ u if wide else u @ total) / norm


class _Residual(nn.Sequential):
    def forward(self, x: Any) -> Any:
        return x + super().forward(x)


def _modules(specs: Any, shape: tuple[int, ...]) -> list[nn.Module]:
    """Modules for layer specs, one for each; a dense layer takes the features in fastcnn's order."""

    def build(layer: Any, shape: tuple[int, ...]) -> nn.Module:
        match layer:
            case layers.Conv2D(padding="same", stride=1, groups=1, dilation=1, activation=None):
                return nn.Conv2d(shape[2], layer.filters, layer.kernel_size, padding="same", bias=layer.use_bias)
            case layers.BatchNorm(momentum, epsilon):
                return nn.BatchNorm2d(shape[2], eps=epsilon, momentum=1 - momentum)
            case layers.ReLU():
                return nn.ReLU()
            case layers.MaxPool2D(padding="valid"):
                return nn.MaxPool2d(layer.pool_size, layer.stride)
            case layers.AdaptiveMaxPool2D(output_size):
                return nn.AdaptiveMaxPool2d(output_size)
            case layers.GlobalAvgPool2D():
                return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            case layers.Dropout(rate):
                return nn.Dropout(rate)
            case layers.Residual(inner) if layer.output_shape(shape) == shape:
                return _Residual(*_modules(inner, shape))
            case layers.Dense(units, activation=None):
                return _Dense(math.prod(shape), units)
            case _:
                raise ValueError(f"not translated to PyTorch: {layer}")

    built = []
    for layer in specs:
        built.append(build(layer, shape))
        shape = layer.output_shape(shape)
    return built


class _Dense(nn.Linear):
    """Flattens channels last, as fastcnn does, so that the same weights mean the same."""

    def forward(self, x: Any) -> Any:
        return super().forward(x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x)
