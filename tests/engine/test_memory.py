"""Offsets from lifetimes, with integers only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcnn.engine.memory import ALIGNMENT, Lifetime, aligned, plan_arena

pytestmark = pytest.mark.small

lifetimes = st.builds(
    lambda size, first, length: Lifetime(size, first, first + length),
    st.integers(0, 5000), st.integers(0, 12), st.integers(0, 6),
)  # fmt: skip


@given(st.lists(lifetimes, max_size=25))
def test_buffers_alive_together_never_overlap(buffers):
    offsets, total = plan_arena(buffers)
    for i, (a, at) in enumerate(zip(buffers, offsets, strict=True)):
        assert at % ALIGNMENT == 0 and at + a.size <= total
        for b, other in zip(buffers[:i], offsets[:i], strict=True):
            if a.first <= b.last and b.first <= a.last:
                assert at + a.size <= other or other + b.size <= at or 0 in (a.size, b.size)
    live = [sum(aligned(b.size) for b in buffers if b.first <= t <= b.last) for t in range(20)]
    assert max(live) <= total <= sum(aligned(b.size) for b in buffers)


def test_memory_is_used_again():
    offsets, total = plan_arena([Lifetime(100, 0, 1), Lifetime(100, 1, 2), Lifetime(100, 2, 3)])
    assert offsets[0] == offsets[2] != offsets[1] and total == 256
    assert plan_arena([]) == ((), 0)
