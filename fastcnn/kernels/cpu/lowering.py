"""From a convolution's geometry to the offset tables that the micro-kernel reads: im2col without the matrix.

One image at a time: x padded to (HP, WP, C), and its output gradient dz padded to (PP, QP, K), both in
scratch. A row of a product is an output pixel (forward), an input pixel (input gradient) or a weight (r, s,
c) (weight gradient). The input gradient of a strided convolution falls apart into stride_h * stride_w
*phases*, each the pixels that see the same taps of the window.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np


class Pool(NamedTuple):
    """The fields of a pool geometry, as this backend compiles them."""

    h: int
    w: int
    c: int
    r: int
    s: int
    p: int
    q: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    pad_bottom: int
    pad_right: int
    count_include_pad: bool


def has_pool(pool: Any) -> bool:
    """False for the identity: a 1x1 window with stride 1."""
    return not (pool.r == 1 and pool.s == 1 and pool.stride_h == 1 and pool.stride_w == 1)


def no_pool(g: Any) -> Pool:
    """The identity, over the output of a convolution."""
    return Pool(g.p, g.q, g.k, 1, 1, g.p, g.q, 1, 1, 0, 0, 0, 0, False)


class ForwardTables(NamedTuple):
    """Rows: output pixels p * Q + q. Segments: (r, s) taps, merged over s where they touch."""

    hp: int
    wp: int
    padded: bool
    rows: np.ndarray  # in the padded image
    out_rows: np.ndarray  # in the output image
    segments: np.ndarray
    seg_len: int
    per_pass: int  # segments in one pass over the rows


class WeightTables(NamedTuple):
    """Rows: (r, s, c) of one group, in the padded image with channels first. Segments: output rows p, each Q
    pixels long, of one image after the other.
    """

    rows: np.ndarray
    out_rows: np.ndarray
    segments: np.ndarray
    per_pass: int  # segments in one pass over the rows
    packed: bool  # dz is copied into panels before; else it is read where it lies
    images: int  # in one product, where dz is packed
    image: int  # elements of a padded image with channels first
    plane: int  # and of each channel
    pitch: int  # and of each row
    top: int  # rows and columns before the first pixel
    left: int
    height: int  # pixels of the image that count, and steps between them
    width: int
    step_h: int
    step_w: int
    step: int  # between neighbours in the padded image


class InputTables(NamedTuple):
    """Rows: input pixels, phase after phase. Segments: taps (r, s) of the phase in reading order, merged
    where they touch.
    """

    pp: int
    qp: int
    top: int
    left: int
    starts: np.ndarray  # phase -> first row; one more at the end
    rows: np.ndarray  # in the padded output gradient
    out_rows: np.ndarray  # in the input image
    seg_starts: np.ndarray  # phase -> first segment
    segments: np.ndarray
    seg_lens: np.ndarray  # by phase
    per_pass: np.ndarray  # by phase: segments in one pass over the rows
    tap_starts: np.ndarray  # phase -> first tap
    taps: np.ndarray  # r * S + s, in the order the packed weights have


class ColumnTables(NamedTuple):
    """Rows: pixels of dz, down the image's columns, so that neighbours add to places apart. Columns: (s, c), for
    each r.
    """

    chosen: bool  # over the input tables
    hp: int
    wp: int
    padded: bool
    rows: np.ndarray  # in the padded output gradient
    out_rows: np.ndarray  # in the padded input gradient, for r = 0
    segment: np.ndarray


DEPTH = (
    384  # terms of a sum in one pass over the rows, so that the pass's panel of weights stays in the first-level cache
)
PIXELS = 128  # the same where each term comes from a cache line of its own
PACKED_PIXELS = 256  # the same for the weight gradient of a convolution with its gradient dz packed in panels
PACKED_ROWS, PACKED_CHANNELS = 64, 32  # dz is packed where it has more channels and the product more rows than these


def _table(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.int64).reshape(-1)


@lru_cache(maxsize=256)
def offsets(count: int, pitch: int) -> np.ndarray:
    """Places of `count` rows that lie `pitch` apart."""
    return np.arange(count, dtype=np.int64) * pitch


@lru_cache(maxsize=256)
def panel_offsets(count: int, width: int, panel: int) -> np.ndarray:
    """Places of `count` columns that lie in panels of `width`, the panels `panel` apart."""
    return np.arange(count, dtype=np.int64) // width * panel + np.arange(count) % width


def _passes(segments: np.ndarray, seg_len: int) -> tuple[np.ndarray, int, int]:
    """Segments cut into equal pieces where they are too long for one pass, their length, and how many a pass
    takes.
    """
    pieces = next((d for d in range(-(-seg_len // DEPTH), seg_len) if seg_len % d == 0), 1) if seg_len > DEPTH else 1
    seg_len //= pieces
    segments = _table(segments[:, None] + np.arange(pieces) * seg_len)
    return segments, seg_len, max(1, DEPTH // seg_len)


@lru_cache(maxsize=256)
def forward_tables(g: Any) -> ForwardTables:
    """Tables of y = conv(x)."""
    hp, wp = g.h + g.pad_top + g.pad_bottom, g.w + g.pad_left + g.pad_right
    p, q = np.ogrid[: g.p, : g.q]
    rows = (p * g.stride_h * wp + q * g.stride_w) * g.c
    r, s = np.ogrid[: g.r, : g.s]
    taps = (r * g.dilation_h * wp + s * g.dilation_w) * g.c
    depth = g.c // g.groups
    if g.groups == 1 and (g.dilation_w == 1 or g.s == 1):
        taps, depth = taps[:, :1], g.s * g.c
    segments, seg_len, per_pass = _passes(_table(taps), depth)
    padded = (hp, wp) != (g.h, g.w)
    out_rows = _table(np.arange(g.p * g.q) * g.k)
    return ForwardTables(hp, wp, padded, _table(rows), out_rows, segments, seg_len, per_pass)


@lru_cache(maxsize=256)
def weight_tables(g: Any) -> WeightTables:
    """Tables of the weight gradient, for one group."""
    height, width, top, left, steps = g.h, g.w, g.pad_top, g.pad_left, (1, 1)
    hp, wp, step_h, step = g.h + g.pad_top + g.pad_bottom, g.w + g.pad_left + g.pad_right, g.stride_h, g.stride_w
    if (g.r, g.s) == (1, 1) and (hp, wp) == (g.h, g.w):  # pixels between the steps are in no sum
        height, width, hp, wp, steps, step_h, step = g.p, g.q, g.p, g.q, (g.stride_h, g.stride_w), 1, 1
    plane = _plane(hp * wp)
    r, s, c = np.ogrid[: g.r, : g.s, : g.c // g.groups]
    rows = c * plane + r * g.dilation_h * wp + s * g.dilation_w
    packed = rows.size > PACKED_ROWS and g.k > PACKED_CHANNELS
    images = max(1, PACKED_PIXELS // (g.p * g.q)) if packed else 1
    segments = np.arange(images)[:, None] * g.c * plane + np.arange(g.p) * step_h * wp
    per_pass = max(1, (PACKED_PIXELS if packed else PIXELS) // g.q)
    return WeightTables(
        _table(rows), _table(np.arange(rows.size) * g.k), _table(segments), per_pass, packed, images, g.c * plane,
        plane, wp, top, left, height, width, *steps, step,
    )  # fmt: skip


def _plane(size: int) -> int:
    """`size` and room for a vector that begins in it, as an odd number of cache lines: channels are read side by side,
    and should not fall into the same few sets of the cache.
    """
    return int((-(-(size + 15) // 16) | 1) * 16)


@lru_cache(maxsize=256)
def input_tables(g: Any) -> InputTables:
    """Tables of the input gradient: dx[h, w] = sum of dz[(h + pad - r * dilation) / stride, ...] over the
    taps that divide.
    """
    top = max(0, -(-((g.r - 1) * g.dilation_h - g.pad_top) // g.stride_h))
    left = max(0, -(-((g.s - 1) * g.dilation_w - g.pad_left) // g.stride_w))
    pp = top + max(g.p, (g.h - 1 + g.pad_top) // g.stride_h + 1)
    qp = left + max(g.q, (g.w - 1 + g.pad_left) // g.stride_w + 1)
    kg = g.k // g.groups

    starts, rows, out_rows, seg_starts, segments, seg_lens, per_pass, tap_starts, taps = (
        [0], [], [], [0], [], [], [], [0], []
    )  # fmt: skip
    for phase_h in range(min(g.stride_h, g.h)):
        for phase_w in range(min(g.stride_w, g.w)):
            h, w = np.ogrid[phase_h : g.h : g.stride_h, phase_w : g.w : g.stride_w]
            # Descending taps: their pixels of dz ascend.
            along_h = [r for r in reversed(range(g.r)) if (phase_h + g.pad_top - r * g.dilation_h) % g.stride_h == 0]
            along_w = [s for s in reversed(range(g.s)) if (phase_w + g.pad_left - s * g.dilation_w) % g.stride_w == 0]
            at_h = [(phase_h + g.pad_top - r * g.dilation_h) // g.stride_h + top for r in along_h]
            at_w = [(phase_w + g.pad_left - s * g.dilation_w) // g.stride_w + left for s in along_w]
            rows.append(_table(((h // g.stride_h) * qp + w // g.stride_w) * g.k))
            out_rows.append(_table((h * g.w + w) * g.c))
            touching = g.groups == 1 and all(b - a == 1 for a, b in pairwise(at_w))
            seg_len = kg * (len(at_w) if touching else 1)
            first_only = at_w[:1] if touching else at_w
            cut, seg_len, passes = _passes(
                _table([(i * qp + j) * g.k for i in at_h for j in first_only]), max(seg_len, 1)
            )
            segments.append(cut)
            per_pass.append(passes)
            taps.append(_table([r * g.s + s for r in along_h for s in along_w]))
            starts.append(starts[-1] + rows[-1].size)
            seg_starts.append(seg_starts[-1] + segments[-1].size)
            seg_lens.append(seg_len)
            tap_starts.append(tap_starts[-1] + taps[-1].size)
    return InputTables(
        pp, qp, top, left, _table(starts), np.concatenate(rows), np.concatenate(out_rows), _table(seg_starts),
        np.concatenate(segments), _table(seg_lens), _table(per_pass), _table(tap_starts), np.concatenate(taps),
    )  # fmt: skip


COLUMN_COST = 8  # of adding a tile to memory, as terms of its sums


@lru_cache(maxsize=256)
def column_tables(g: Any, width: int) -> ColumnTables:
    """Tables of the input gradient the other way round: each pixel of dz, times the weights of a row of the window,
    is added to the S * C neighbours in dx that it came from. For few channels, which leave a panel of
    `width` columns mostly empty.
    """
    hp, wp = g.h + g.pad_top + g.pad_bottom, g.w + g.pad_left + g.pad_right
    t = input_tables(g)
    q, p = np.ogrid[: g.q, : g.p]
    rows, out_rows = (p * t.qp + q) * g.k, (p * g.stride_h * wp + q * g.stride_w) * g.c
    panel = width // 2 if g.c <= width // 2 else width
    pixels = g.h * g.w / (g.stride_h * g.stride_w)
    gathered = pixels * g.s * -(-g.c // panel) * panel * g.k
    scattered = g.p * g.q * -(-g.s * g.c // width) * width * (g.k + COLUMN_COST)
    chosen = g.groups == 1 and (g.dilation_w == 1 or g.s == 1) and scattered < gathered
    return ColumnTables(chosen, hp, wp, (hp, wp) != (g.h, g.w), _table(rows), _table(out_rows), _table([0]))
