"""Which chains of ops one kernel runs: a rewrite table over the op list, longest first.

A rewrite is tried at each op, and taken where its kinds match and the backend has its kernel. Whatever no
rewrite takes stays an op of its own, which every backend can run, so an unfused chain is always correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastcnn.engine.ops import Group, Op

SMALL_WINDOW = 32  # numbers under a convolution's window, so few that the moments of all patches are cheap


class Rewrite(NamedTuple):
    kinds: tuple[str, ...]
    kernel: str
    fits: Callable[[Sequence[Op], Op | None], bool] = lambda ops, after: True  # after: the op behind the chain
    first: bool = False  # of the network alone, whose input needs no gradient


def _side_by_side(ops: Sequence[Op], after: Op | None) -> bool:
    """Batch normalisation, an activation or none, and a pooling: whether their common kernel can do it."""
    g: Any = next(op.geometry for op in ops if op.kind == "maxpool2d")
    return (
        (g.r, g.s) == (g.stride_h, g.stride_w)
        and not (g.pad_top or g.pad_left or g.pad_bottom or g.pad_right)
        and g.r * g.s <= 256
        and all(op.activation.code <= 1 for op in ops)
    )


def _small_window(ops: Sequence[Op], after: Op | None) -> bool:
    """A convolution and its batch normalisation: whether their common kernel can do it."""
    g: Any = ops[0].geometry
    steps = g.stride_h, g.stride_w, g.dilation_h, g.dilation_w, g.groups
    return steps == (1,) * 5 and g.r * g.s * g.c <= SMALL_WINDOW


def _up_to_relu(ops: Sequence[Op], after: Op | None) -> bool:
    """A convolution, batch normalisation, an activation and perhaps the end of a branch: whether their common kernel
    can do it, and no other one does more of it.
    """
    if after is not None:
        ends = ops[-1].kind, after.kind
        pooled = ends == ("activation", "maxpool2d") and _side_by_side((*ops, after), None)
        if pooled or ends == ("join", "activation"):
            return False
    return ops[2].activation.code == 1  # ReLU, whose gradient follows from its input


def _chains(head: str, tails: tuple[tuple[str, ...], ...], kernel: str) -> list[Rewrite]:
    return [Rewrite((head, *bias, *tail), kernel) for tail in tails for bias in (("bias",), ()) if bias or tail]


# Activations here are monotonic, so pooling before or after one is the same; both orders come as one kernel.
REWRITES = sorted(
    _chains(
        "conv2d",
        (("activation", "maxpool2d"), ("maxpool2d", "activation"), ("maxpool2d",), ("activation",), ()),
        "conv2d_block_forward",
    )
    + _chains("dense", (("activation",), ()), "dense_forward")
    + [Rewrite(("batchnorm", "activation"), "batchnorm_forward"), Rewrite(("join", "activation"), "add_forward")]
    + [
        Rewrite(("batchnorm", *rest), "batchnorm_pool_forward", _side_by_side)
        for rest in (("activation", "maxpool2d"), ("maxpool2d", "activation"), ("maxpool2d",))
    ]
    + [
        Rewrite(("conv2d", "batchnorm", *rest), "conv2d_norm_forward", _small_window, first=True)
        for rest in (("activation", "maxpool2d"), ("maxpool2d", "activation"), ("maxpool2d",), ("activation",), ())
    ]
    + [
        Rewrite(("conv2d", "batchnorm", "activation", *join), "conv2d_batchnorm_forward", _up_to_relu)
        for join in (("join",), ())
    ],
    key=lambda rewrite: -len(rewrite.kinds),
)
# In inference batch normalisation is a scale and a shift, which go into the weights before it.
_FOLDED = [
    Rewrite((head, *bias, "batchnorm", *rewrite.kinds[1:]), "batchnorm_fold")
    for rewrite in REWRITES
    if (head := rewrite.kinds[0]) in ("conv2d", "dense") and not {"bias", "batchnorm"} & set(rewrite.kinds)
    for bias in (("bias",), ())
]
_FOLDED += [
    Rewrite((head, *bias, "batchnorm"), "batchnorm_fold") for head in ("conv2d", "dense") for bias in (("bias",), ())
]
INFERENCE_REWRITES = sorted(
    [rewrite for rewrite in REWRITES if "batchnorm" not in rewrite.kinds[:2] or rewrite.kernel == "batchnorm_forward"]
    + _FOLDED,
    key=lambda rewrite: -len(rewrite.kinds),
)


def fuse_ops(ops: Sequence[Op], has_kernel: Callable[[str], bool], mode: str = "training") -> tuple[Group, ...]:
    """`ops` as groups for a plan of that mode, each run by one kernel; `has_kernel` says what the backend offers."""
    rewrites = INFERENCE_REWRITES if mode == "inference" else REWRITES
    kinds = tuple(op.kind for op in ops)
    groups: list[Group] = []
    i = 0
    while i < len(ops):
        matches = (
            r
            for r in rewrites
            if kinds[i : i + len(r.kinds)] == r.kinds
            and has_kernel(r.kernel)
            and r.fits(ops[i : i + len(r.kinds)], next(iter(ops[i + len(r.kinds) :]), None))
            and (not r.first or (i == 0 and mode == "training"))
        )
        rewrite = next(matches, Rewrite(kinds[i : i + 1], ""))
        length = len(rewrite.kinds)
        groups.append(Group(tuple(ops[i : i + length]), rewrite.kernel))
        i += length
    return tuple(groups)


def single_ops(ops: Sequence[Op]) -> tuple[Group, ...]:
    """Every op a group of its own."""
    return tuple(Group((op,)) for op in ops)
