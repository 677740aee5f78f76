"""Where Winograd's algorithm is faster than the direct convolution, and how its passes cut images into tiles."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from fastcnn.kernels.cpu.microkernel import MAX_ROWS, panel_width
from fastcnn.kernels.cpu.packing import fill_zero
from fastcnn.kernels.cpu.runtime import U, jit

MIN_CHANNELS = 32  # with fewer, the transforms cost more than they save
MIN_TILES = {2: 32, 3: 16, 4: 8, 5: 8, 7: 4}
SIDES = {3: (2, 4, 5), 5: (2, 3)}  # of output tiles, by the window's; of equal ones the first, it loses less
TRAINING_SIDES = SIDES | {3: (*SIDES[3], 7)}  # whose rounding is far below what mini-batches differ by
COST = {7: 1.2, 9: 1.25}  # of a point, by the side of a tile of points: more than 36 vectors often leave the registers
MOSAIC_TILES = 64  # at most: a lane has a whole mosaic in its cache
HALF_PANELS = MAX_ROWS >= 12  # whether the micro-kernel has tall tiles of one vector, for half a panel
MAX_WEIGHTS = 1 << 17  # channels in times out: transforming more costs small batches more than it saves


def winograd_tile(geometry: Any, n: int, itemsize: int, training: bool) -> int:
    """The side m of the output tile to compute `geometry` with for n images, or 0 for the direct convolution.

    For a window of 3x3, m is 7 (in training), 5, 4 or 2, for 5x5 it is 3 or 2: whichever leaves fewest multiplications,
    weighted by COST, for the image's size (a tile that hangs over the edge is computed whole). 0 where that is less
    than 1.7 times fewer, where channels do not fill panels (or half of the last), for fewer than MIN_CHANNELS, for more
    than MAX_WEIGHTS, or where so few tiles (MIN_TILES) do not repay the transform of the weights.
    """
    g, width = geometry, panel_width(itemsize)
    if g.r != g.s or g.r not in (3, 5) or (g.stride_h, g.stride_w, g.dilation_h, g.dilation_w, g.groups) != (1,) * 5:
        return 0
    unit = width // 2 if HALF_PANELS else width
    if g.c % unit or g.k % unit or min(g.c, g.k) < MIN_CHANNELS or g.c * g.k > MAX_WEIGHTS:
        return 0
    tiles = {m: _tiles(g, m, n) for m in (TRAINING_SIDES if training else SIDES)[g.r]}
    points = {m: t.mosaics * t.rows * t.columns * (m + g.r - 1) ** 2 for m, t in tiles.items()}
    best = min(points, key=lambda m: points[m] * COST.get(m + g.r - 1, 1))
    enough = tiles[best].mosaics * tiles[best].rows * tiles[best].columns >= MIN_TILES[best]
    return best if enough and 1.7 * points[best] <= n * g.r * g.s * g.p * g.q else 0


class Tiles(NamedTuple):
    """How n images are cut: `grid` times `grid` of them, side by side, are a mosaic."""

    grid: int
    mosaics: int
    rows: int  # of tiles in a mosaic
    columns: int
    step_h: int  # from an image to the next: no window sees both
    step_w: int


def _tiles(g: Any, m: int, n: int) -> Tiles:
    """With a grid of 2 where this needs fewer tiles: 7x7 outputs are 4 tiles of 5x5, but two by two only 9."""
    step_h = max(g.p, g.p + g.r - 1 - min(g.pad_top, g.pad_bottom))
    step_w = max(g.q, g.q + g.s - 1 - min(g.pad_left, g.pad_right))
    one = Tiles(1, n, -(-g.p // m), -(-g.q // m), step_h, step_w)
    four = Tiles(2, -(-n // 4), -(-(step_h + g.p) // m), -(-(step_w + g.q) // m), step_h, step_w)
    fewer = four.mosaics * four.rows * four.columns < one.mosaics * one.rows * one.columns
    return four if fewer and four.rows * four.columns <= MOSAIC_TILES else one


class Layout(NamedTuple):
    """Sizes, in elements, that both passes share. A stride of an odd number of cache lines (`odd`) keeps the
    points of one tile from falling into the same few sets of the cache.
    """

    m: int
    r: int  # of the window
    side: int  # of a tile of points
    grid: int  # of images in a mosaic, as `Tiles` has it
    mosaics: int
    rows: int
    columns: int
    step_h: int
    step_w: int
    pitch: int  # pixels in a row of the padded mosaic
    strip: int  # the rows of the padded mosaic under one row of tiles
    c_width: int  # of a panel of channels
    k_width: int  # of filters


@lru_cache(maxsize=256)
def layout(g: Any, n: int, itemsize: int) -> Layout:
    """Of n images."""
    m, side = g.winograd, g.winograd + g.r - 1
    tiles = _tiles(g, m, n)
    pitch = tiles.columns * m + g.r - 1
    return Layout(
        m, g.r, side, *tiles, pitch, round_up(side * pitch * g.c), _width(g.c, itemsize), _width(g.k, itemsize)
    )


def _width(channels: int, itemsize: int) -> int:
    """Of the panels for so many channels: three vectors for 48 (of AVX-512's 16 floats), where two would leave half a
    panel, which multiplies at two thirds of the speed.
    """
    width = panel_width(itemsize)
    wide = width // 2 * 3
    return wide if HALF_PANELS and channels % width and channels % wide == 0 else width


def round_up(size: int) -> int:
    """`size` rounded up to a number of 16 elements."""
    return -(-size // 16) * 16


def odd(size: int) -> int:
    """`size` rounded up to an odd number of 16 elements."""
    return (-(-size // 16) | 1) * 16


@jit
def pad_rows(x, mosaic, first, n_images, g, t, out, out0):
    """The rows of a mosaic under one row of tiles, from row `first` (which may lie outside), into a strip with zeros
    around images.
    """
    for i in range(t.side):
        down, h = (first + i) // t.step_h, (first + i) % t.step_h
        for right in range(t.grid):
            n = (mosaic * t.grid + down) * t.grid + right
            target = out0 + (i * t.pitch + g.pad_left + right * t.step_w) * g.c
            if down < 0 or down >= t.grid or h >= g.h or n >= n_images:
                fill_zero(out, target, target + g.w * g.c)
            else:
                source = (n * g.h + h) * g.w * g.c
                for j in range(g.w * g.c):
                    out[U(target + j)] = x[U(source + j)]


def operations(g: Any, n: int) -> int:
    """About how many a pass over n images takes, for `launch`."""
    return int(n * g.p * g.q * g.k * g.c // 2)
