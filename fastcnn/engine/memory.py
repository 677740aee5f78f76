"""Lifetimes to offsets: where each buffer lies in one arena. Integers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


class Lifetime(NamedTuple):
    """A buffer of `size` bytes, written at step `first` and last read at step `last` (both inclusive)."""

    size: int
    first: int
    last: int


def aligned(size: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def plan_arena(buffers: Sequence[Lifetime]) -> tuple[tuple[int, ...], int]:
    """Byte offset of every buffer, and the arena's size; buffers alive at one step never overlap.

    Largest first, each at the lowest offset free during its whole life (greedy by size, Pisarchyk and Lee
    2020, "Efficient memory management for deep neural net inference").
    """
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for i in sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, i)):
        this = buffers[i]
        taken = sorted(
            (offsets[j], offsets[j] + aligned(buffers[j].size))
            for j in placed
            if buffers[j].first <= this.last and this.first <= buffers[j].last
        )
        offset = 0
        for start, end in taken:
            if offset + aligned(this.size) <= start:
                break
            offset = max(offset, end)
        offsets[i] = offset
        placed.append(i)
    total = max((offsets[i] + aligned(b.size) for i, b in enumerate(buffers)), default=0)
    return tuple(offsets), total
