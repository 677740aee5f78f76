"""Plans: everything a batch of one size needs, decided before the first one comes.

`compile_plan` walks the groups that fusion made, emits one step per kernel call (and, for training, the
backward steps in reverse), gives every buffer an offset in one arena from its lifetime, and binds kernels to
views. Running a plan is a loop over bound steps, without decisions and without allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastcnn.engine.emit import ADDING, EMIT, Backward, Buffer, Emitter, Step, flat
from fastcnn.engine.memory import Lifetime, plan_arena
from fastcnn.engine.ops import IDENTITY, Group, Shape

MODES = ("inference", "training", "training_dx")


class _Training(NamedTuple):
    """The program of `Plan.train`, and what it reads and writes; `figures` on a GPU only."""

    smoothing: float
    program: Callable[[], None]
    labels: Any
    losses: Any
    figures: Any


class Plan:
    """Bound steps over one arena, for batches of exactly `batch` samples.

    Attributes
    ----------
    input, output : arrays (batch, ...); write the one, run, read the other
    output_grad, input_grad : arrays or None; of training plans
    memory : array (bytes,), where the arena lies: other plans may use it before and after this one runs
    lanes : int, the most threads that it has scratch for

    The arrays are the backend's: NumPy's, or where the backend runs on a GPU, arrays there, that take ``a[...] =
    values`` and give ``np.asarray(a)``.
    """

    def __init__(
        self, mode: str, batch: int, steps: tuple[Step, ...], n_forward: int, buffers: Mapping[Buffer, np.ndarray],
        ends: Mapping[str, Any], memory: np.ndarray, arena_bytes: int, lanes: int, kernels: ModuleType,
    ) -> None:  # fmt: skip
        self.memory, self.lanes = memory, lanes
        self.mode, self.batch, self.buffers, self.arena_bytes = mode, batch, buffers, arena_bytes
        self.forward_steps, self.backward_steps = steps[:n_forward], steps[n_forward:]
        self.input, self.output = ends["input"], ends["output"]
        self.output_grad, self.input_grad = ends["output_grad"], ends["input_grad"]
        self._kernels = kernels
        self._forward = self._record(self.forward_steps, self.backward_steps)
        self._backward = self._record(self.backward_steps)
        self._training: _Training | None = None

    def _record(self, *steps: Sequence[Step]) -> Callable[[], None]:
        return self._kernels.record(*[[(step.kernel, step.args) for step in some] for some in steps])

    def forward(self) -> None:
        """`input` -> `output`."""
        self._forward()

    def backward(self) -> None:
        """`output_grad` -> the parameters' gradients (and `input_grad` where the mode has it)."""
        self._backward()

    def train(self, labels: np.ndarray, smoothing: float) -> None:
        """`input` -> the parameters' gradients of the mean cross-entropy against `labels`; `figures` tells the loss.

        All of it is one program: launched alone, the loss would cost a small network as much as a layer does.
        """
        if self._training is None or self._training.smoothing != smoothing:
            dtype, place = self.output.dtype, self._kernels.place
            kept, losses = place(np.zeros(self.batch, np.int64)), place(np.empty(self.batch, dtype))
            args = self.output, kept, place(np.ones(self.batch, dtype)), smoothing, losses, self.output_grad
            steps = [Step("loss", "softmax_cross_entropy", self._kernels.softmax_cross_entropy, args)]
            figures = None
            if hasattr(self._kernels, "tally"):  # a device that has the outputs gives back two numbers
                figures = place(np.zeros(2))
                steps.append(Step("loss", "tally", self._kernels.tally, (self.output, kept, losses, figures)))
            program = self._record((*self.forward_steps, *steps, *self.backward_steps))
            self._training = _Training(smoothing, program, kept, losses, figures)
        self._training.labels[...] = labels
        self._training.program()

    def figures(self) -> tuple[float, int]:
        """Of the last `train`: the sum of the samples' losses, and how many had their largest output at the label."""
        assert self._training is not None
        _, _, labels, losses, figures = self._training
        if figures is not None:
            loss, hits = np.asarray(figures)
            return float(loss), int(hits)
        output = np.asarray(self.output)
        return float(losses.sum(dtype=np.float64)), int(np.count_nonzero(output.argmax(axis=1) == labels))

    def describe(self) -> str:
        """What was fused, which kernel runs each step, and the bytes of every buffer.

        Returns
        -------
        str
            A line for each step and for each buffer.
        """
        lines = [f"plan: {self.mode}, batch {self.batch}", ""]
        for title, steps in (("forward", self.forward_steps), ("backward", self.backward_steps)):
            if steps:
                lines += [title, *(f"  {step.label:<36} {step.name:<24} {step.how}".rstrip() for step in steps)]
        lines += ["", f"{'buffer':<38} {'kind':<10} {'shape':<22} {'dtype':<8} {'bytes':>12}"]
        for buffer in self.buffers:
            shape = "x".join(map(str, buffer.shape))
            lines.append(f"  {buffer.name:<36} {buffer.kind:<10} {shape:<22} {buffer.dtype!s:<8} {buffer.size:>12,}")
        total = sum(buffer.size for buffer in self.buffers)
        lines.append(f"  {'arena (buffers share memory)':<36} {'':<10} {'':<22} {'':<8} {self.arena_bytes:>12,}")
        lines.append(f"  {'sum of the buffers':<36} {'':<10} {'':<22} {'':<8} {total:>12,}")
        return "\n".join(lines)


def compile_plan(
    groups: Sequence[Group],
    in_shape: Shape,
    batch: int,
    dtype: np.dtype[Any],
    kernels: ModuleType,
    mode: str,
    *,
    lanes: int,
    params: Mapping[str, np.ndarray],
    grads: Mapping[str, np.ndarray],
    dropout_states: Mapping[str, np.ndarray],
    winograd: bool = True,
    fuse: bool = True,
    memory: np.ndarray | None = None,
) -> Plan:
    """Bind `groups` to kernels and memory for batches of `batch` samples of `in_shape`.

    `mode`: "inference"; "training" (no gradient of the input is computed); "training_dx" (it is). `winograd`:
    let the backend choose Winograd's algorithm where its rule says that it is faster. `fuse`: use kernels that do
    several things at once. `memory`: another plan's, taken for this one's arena if it is large enough.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    training = mode != "inference"
    e = Emitter(kernels, batch, dtype, lanes, params, grads, dropout_states, training, winograd, fuse)

    x = first = e.batched("input", tuple(in_shape), "activation")
    emitted: list[tuple[Group, str, Buffer, Buffer, Backward | None]] = []
    beside: list[Buffer] = []  # the other branch of each fork that is open
    for group in groups:
        kind, name = group.head.kind, f"{group.head.layer}: {group.label}"
        backward: Backward | None = None
        if kind == "fork":
            beside.append(x)
            y = x
        elif kind == "swap":
            y, beside[-1] = beside[-1], x
        elif kind == "flatten":
            y = x.reshape((batch, *group.out_shape))
        elif kind.endswith("dropout") and not training:
            y = x
        else:
            y = e.batched(name, group.out_shape, "activation")
            other = [beside.pop()] if group.find("join") else []
            backward = EMIT[kind](e, group, name, x, y, *other)
        emitted.append((group, name, x, y, backward))
        x = y
    n_forward = len(e.steps)

    output_grad = input_grad = None
    if training:
        dy = output_grad = e.batched("output gradient", x.shape[1:], "gradient")
        needed = _first_needing_gradient(groups, mode)

        def adds(i: int) -> bool:
            """Whether the group's kernel adds the other branch's gradient to its own, for the fork before it."""
            return groups[i - 1].head.kind == "fork" and groups[i].kernel in ADDING

        for i in reversed(range(needed, len(emitted))):
            group, name, before, _, backward = emitted[i]
            dx: Any = e.none(len(before.shape))
            if i > needed or mode == "training_dx":
                dx = e.batched(f"{name} gradient", before.shape[1:], "gradient")
            if group.head.kind == "swap":
                dy, beside[-1] = beside[-1], dy
                continue
            if group.find("join") and group.head.kind != "join":
                beside.append(dy)  # the same gradient for both branches
            if group.head.kind == "fork" and adds(i + 1):
                dx = dy
            elif group.head.kind == "fork":
                e.step(name, "add_forward", flat(dy), flat(beside.pop()), IDENTITY, flat(dx))
            elif backward is None:
                dx = dy.reshape(before.shape)
            elif i > needed and adds(i):
                dx = backward(dy, dx, beside.pop()) or dx
            else:
                dx = backward(dy, dx) or dx
            if group.head.kind == "join":
                beside.append(dx)  # before the activation, the same again
            dy = dx
        input_grad = dy if mode == "training_dx" else None

    ends = {"input": first, "output": x, "output_grad": output_grad, "input_grad": input_grad}
    return _bind(e, mode, n_forward, ends, memory)


def _first_needing_gradient(groups: Sequence[Group], mode: str) -> int:
    if mode == "training_dx":
        return 0
    return next((i for i, group in enumerate(groups) if any(op.params for op in group.ops)), len(groups))


def _bind(e: Emitter, mode: str, n_forward: int, ends: Mapping[str, Buffer | None], memory: np.ndarray | None) -> Plan:
    """Lifetimes -> offsets -> views, and the steps with views in place of buffers."""
    n_steps = len(e.steps)
    # What the caller writes or reads between the steps: the input before them, the output and its gradient
    # after the forward ones.
    outside = {"input": (-1, -1), "output": (n_forward, n_steps), "output_grad": (n_forward - 1, n_forward)}
    lives: dict[Buffer, tuple[int, int]] = {}

    def use(buffer: Buffer, first: int, last: int) -> None:
        base = buffer.base or buffer
        was = lives.get(base, (first, last))
        lives[base] = min(was[0], first), max(was[1], last)

    for name, end in ends.items():
        if end is not None:
            use(end, *outside.get(name, (n_steps, n_steps)))
    for i, step in enumerate(e.steps):
        for arg in step.args:
            if isinstance(arg, Buffer):
                use(arg, i, i)

    offsets, total = plan_arena([Lifetime(b.size, first, last) for b, (first, last) in lives.items()])
    arena = memory if memory is not None and memory.size >= total else e.kernels.empty(total)
    views = {
        b: arena[offset : offset + b.size].view(b.dtype).reshape(b.shape)
        for b, offset in zip(lives, offsets, strict=True)
    }

    def bound(value: Any) -> Any:
        if not isinstance(value, Buffer):
            return value
        return views[value.base or value].reshape(value.shape)

    steps = tuple(step._replace(args=tuple(bound(arg) for arg in step.args)) for step in e.steps)
    arrays = {name: bound(end) for name, end in ends.items()}
    return Plan(mode, e.batch, steps, n_forward, views, arrays, arena, total, e.lanes, e.kernels)
