"""Geometry: paddings and window arithmetic."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fastcnn.engine.ops import conv_geometry, identity_pool, pair, pool_geometry, resolve_padding

pytestmark = pytest.mark.small


def test_padding_forms():
    size, window, stride = (5, 6), (3, 2), (1, 1)
    assert resolve_padding("valid", size, window, stride) == ((0, 0), (0, 0))
    assert resolve_padding("same", size, window, stride) == ((1, 1), (0, 1))  # the odd pixel last, as Keras has it
    assert resolve_padding(2, size, window, stride) == ((2, 2), (2, 2))
    assert resolve_padding((1, 3), size, window, stride) == ((1, 1), (3, 3))
    assert resolve_padding(((0, 1), (2, 3)), size, window, stride) == ((0, 1), (2, 3))
    for wrong in ("full", -1, (1, 2, 3), 1.5, ((1,), (2, 3))):
        with pytest.raises(ValueError, match="padding"):
            resolve_padding(wrong, size, window, stride)


def test_pairs():
    assert pair(3, "stride") == (3, 3) and pair([1, 2], "stride") == (1, 2)
    for wrong in (0, True, "3", (1, 2, 3), (1, 0)):
        with pytest.raises(ValueError, match="stride must be an int >= 1"):
            pair(wrong, "stride")


@given(
    size=st.integers(1, 30), kernel=st.integers(1, 7), stride=st.integers(1, 4), dilation=st.integers(1, 3),
    before=st.integers(0, 4), after=st.integers(0, 4),
)  # fmt: skip
def test_output_counts_the_windows(size, kernel, stride, dilation, before, after):
    span = (kernel - 1) * dilation + 1
    assume(size + before + after >= span)
    g = conv_geometry((size, size, 1), 1, kernel, stride, ((before, after), (before, after)), dilation)
    starts = [at for at in range(0, size + before + after, stride) if at + span <= size + before + after]
    assert g.p == g.q == len(starts)


def test_pool_geometry():
    g = pool_geometry((55, 55, 96), 3, 2)
    assert (g.p, g.q, g.c, g.stride_h) == (27, 27, 96, 2)
    assert pool_geometry((5, 5, 1), 2).stride_w == 2
    assert identity_pool(3, 4, 5)[:7] == (3, 4, 5, 1, 1, 3, 4)
