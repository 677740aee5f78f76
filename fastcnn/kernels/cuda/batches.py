"""Mini-batches out of a set of images that lies on the GPU: gathered, augmented and scaled there.

What the CPU's batch builder computes (`kernels/cpu/_batches.pyx`), in the batch's own dtype instead of in double. The
random numbers are drawn on the host, some ten numbers for each image.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import numpy as np

from fastcnn.kernels.contract import COUNTED
from fastcnn.kernels.cuda.driver import THREADS, Kernel, cuda, device_function, kernel, launch, linear, types
from fastcnn.kernels.cuda.intrinsics import quotient
from fastcnn.kernels.cuda.program import replay

__all__ = ["blend_images", "gather_images", "relight_images"]

_MOVES = 8  # numbers of one image: its row, flip, shift down and right, the rectangle's top, left, height, width


@device_function
def pixel_of(i, moves, height, width, channels):
    """Image, row, column and channel of number i of a batch, and whether it is erased."""
    values = height * width * channels
    n = quotient(i, values)
    pixel = quotient(i - n * values, channels)
    y = quotient(pixel, width)
    x, c = pixel - y * width, i - n * values - pixel * channels
    at = n * _MOVES
    down, right = y - moves[at + 4], x - moves[at + 5]
    return n, y, x, c, 0 <= down < moves[at + 6] and 0 <= right < moves[at + 7]


@cache
def batch_kernels(real: Any) -> tuple[Kernel, Kernel, Kernel, Kernel]:
    """Gather with whole pixels, gather with an affine map, relight, blend."""
    number, zero = getattr(types, np.dtype(real).name), np.dtype(real).type(0)
    one = np.dtype(real).type(1)

    @kernel("A L R R i i i i")
    def gather(images, moves, scaling, out, size, height, width, channels):
        values = height * width * channels
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            n, y, x, c, erased = pixel_of(i, moves, height, width, channels)
            at = n * _MOVES
            y -= moves[at + 2]
            x -= moves[at + 3]
            value = zero
            if not erased and 0 <= y < height and 0 <= x < width:
                if moves[at + 1]:
                    x = width - 1 - x
                value = number(images[moves[at] * values + (y * width + x) * channels + c])
            out[i] = ((value - scaling[3 * c]) - scaling[3 * c + 1]) * scaling[3 * c + 2]

    @kernel("A L R R R i i i i")
    def warp(images, moves, matrix, scaling, out, size, height, width, channels):
        values = height * width * channels
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            n, y, x, c, erased = pixel_of(i, moves, height, width, channels)
            at, m = n * _MOVES, n * 6
            row = matrix[m] * number(y) + matrix[m + 1] * number(x) + matrix[m + 2]
            column = matrix[m + 3] * number(y) + matrix[m + 4] * number(x) + matrix[m + 5]
            value = zero
            if not erased and -one < row < number(height) and -one < column < number(width):
                top, left = int(row + one) - 1, int(column + one) - 1  # floor; float64 would be slow
                lower, far = row - number(top), column - number(left)
                start = moves[at] * values + c
                for dy in range(2):
                    for dx in range(2):
                        if 0 <= top + dy < height and 0 <= left + dx < width:
                            share = (lower if dy else one - lower) * (far if dx else one - far)
                            value += share * number(images[start + ((top + dy) * width + left + dx) * channels])
            out[i] = ((value - scaling[3 * c]) - scaling[3 * c + 1]) * scaling[3 * c + 2]

    @kernel("R R R i i")
    def relight(x, light, scaling, pixels, channels):
        # A block has one channel of one image: two stages of sums, then every pixel.
        cells = cuda.shared.array(THREADS, number)
        n = quotient(cuda.blockIdx.x, channels)
        c = cuda.blockIdx.x - n * channels
        first = n * pixels * channels + c
        total = zero
        for p in range(cuda.threadIdx.x, pixels, THREADS):
            total += x[first + p * channels]
        cells[cuda.threadIdx.x] = total
        cuda.syncthreads()
        level = zero
        for j in range(THREADS):
            level += cells[j]
        level /= number(pixels)
        add = level + light[2 * n + 1] * scaling[3 * c + 2]
        for p in range(cuda.threadIdx.x, pixels, THREADS):
            x[first + p * channels] = (x[first + p * channels] - level) * light[2 * n] + add

    @kernel("R R L R R i i")
    def blend(batch, x, partner, share, out, size, values):
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            n = quotient(i, values)
            other = batch[partner[n] * values + i - n * values]
            out[i] = x[i] + (other - x[i]) * (one - share[n])

    return gather, warp, relight, blend


def gather_images(images, moves, matrix, scaling, out):
    """out (N,H,W,C) = the images of rows `moves[:, 0]`, moved, partly erased, and scaled.

    `images` (n, H*W*C): uint8 or the dtype of `out`. `moves` (N,8) int64: row, flip, pixels down, pixels right, and the
    rectangle to erase (top, left, height, width). `matrix` (N,6): the map of `warp_batch`, in place of flip and shift;
    of size zero: none. `scaling` (C,3): the mean in two parts, that add up to more digits than one has, and what the
    rest is multiplied by.
    """
    for part in _parts(out):
        maps = matrix[part] if matrix.size else matrix
        replay(_gather, (out[part], images, moves[part], maps, scaling), out.shape[1:])


def _gather(out, images, moves, matrix, scaling, height, width, channels):
    plain, warp, _, _ = batch_kernels(out.dtype)
    sizes = out.size, height, width, channels
    if matrix.size:
        linear(warp, out.size, images, moves, matrix, scaling, out, *sizes)
    else:
        linear(plain, out.size, images, moves, scaling, out, *sizes)


def relight_images(x, light, scaling):
    """x (N,H,W,C), in place: the distance of its channels from their mean times `light[:, 0]`; and `light[:, 1]`, in
    values before scaling, is added. `light` (N,2).
    """
    replay(_relight, (x, light, scaling), x.shape)


def _relight(x, light, scaling, n, height, width, channels):
    launch(batch_kernels(x.dtype)[2], n * channels, THREADS, x, light, scaling, height * width, channels)


def blend_images(x, partner, share, out):
    """out (N,H,W,C) = share (N,) of x, the rest of the images `partner` (N,) int64 of x."""
    for part in _parts(out):
        replay(_blend, (out[part], x, x[part], partner[part], share[part]), out.shape[1:])


def _blend(out, batch, x, partner, share, height, width, channels):
    values = height * width * channels
    linear(batch_kernels(x.dtype)[3], x.size, batch, x, partner, share, out, x.size, values)


def _parts(out) -> list[slice]:
    """The images of a batch in parts that one launch counts the values of."""
    each = max(1, COUNTED // max(1, prod(out.shape[1:])))
    return [slice(start, start + each) for start in range(0, len(out), each)]
