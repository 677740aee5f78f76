"""Max and average pooling and their gradients, any window, stride and padding. A lane owns a range of images."""

from __future__ import annotations

import numpy as np

from fastcnn.kernels.cpu.epilogue import activate_address, pool_address, side_by_side
from fastcnn.kernels.cpu.launch import ExactKernel, Kernel, call, launch, unpack
from fastcnn.kernels.cpu.lowering import Pool
from fastcnn.kernels.cpu.runtime import U, as_input
from fastcnn.kernels.cpu.vectors import load, spread, store, vector_size

SMALL_WINDOW = 16  # taps up to which looking at each is faster than going to the winner's place


@Kernel
def _max_forward(start, stop, lane, args):
    x, no_bias, pool, y, argmax, pool_rows, activate = unpack(args)
    image = pool.h * pool.w * pool.c
    for n in range(start, stop):
        call(pool_rows, 0, pool.h, lane, (x, n * image, pool.w, n, activate, no_bias, (0, 0.0), pool, y, argmax))


def maxpool2d_forward(x, geometry, y, argmax):
    """y (N,P,Q,C), argmax of y's shape."""
    x = as_input(x)
    no_bias = np.empty(0, x.dtype)
    launch(
        _max_forward,
        x.shape[0],
        x.size,
        x.reshape(-1),
        no_bias,
        Pool(*geometry),
        y.reshape(-1),
        argmax.reshape(-1),
        pool_address(y.dtype, argmax, geometry),
        activate_address(y.dtype, (0, 0.0)),
    )


@Kernel
def _max_backward(start, stop, lane, args):
    dy, argmax, g, dx = unpack(args)
    image = g.h * g.w * g.c
    zero = dx.dtype.type(0)
    small = g.r * g.s <= SMALL_WINDOW
    for n in range(start, stop):
        for i in range(n * image, (n + 1) * image):
            dx[U(i)] = zero
        for p in range(g.p):
            for q in range(g.q):
                at = ((n * g.p + p) * g.q + q) * g.c
                top, left = p * g.stride_h - g.pad_top, q * g.stride_w - g.pad_left
                first = n * image + (top * g.w + left) * g.c
                if small:
                    # A select for each tap runs as vectors; a scatter does not.
                    for r in range(max(0, -top), min(g.r, g.h - top)):
                        for s in range(max(0, -left), min(g.s, g.w - left)):
                            place, to = argmax.dtype.type(r * g.s + s), first + (r * g.w + s) * g.c
                            for c in range(g.c):
                                v = dy[U(at + c)]
                                dx[U(to + c)] += v if argmax[U(at + c)] == place else zero
                    continue
                for c in range(g.c):
                    place = np.int64(argmax[U(at + c)])
                    dx[U(first + (place // g.s * g.w + place % g.s) * g.c + c)] += dy[U(at + c)]


def maxpool2d_backward(dy, argmax, geometry, dx):
    """dx (N,H,W,C): each dy goes to its winner; overlapping windows add up."""
    dy, argmax = as_input(dy), as_input(argmax)
    launch(
        _max_backward,
        dy.shape[0],
        dx.size,
        dy.reshape(-1),
        argmax.reshape(-1),
        Pool(*geometry),
        dx.reshape(-1),
    )


@ExactKernel  # which way a value is added up depends on where a lane ends, and must not be seen
def _average_forward(start, stop, lane, args):
    x, g, y = unpack(args)
    one, zero, size = y.dtype.type(1), spread(y, y.dtype.type(0)), vector_size(y)
    whole = (g.c + size - 1) // size * size
    end, line = stop * g.p * g.q * g.c, g.w * g.c
    for n in range(start, stop):
        for p in range(g.p):
            top = p * g.stride_h - g.pad_top
            r0, r1 = max(0, top), min(top + g.r, g.h)
            for q in range(g.q):
                left = q * g.stride_w - g.pad_left
                s0, s1 = max(0, left), min(left + g.s, g.w)
                share = one / y.dtype.type(g.r * g.s if g.count_include_pad else (r1 - r0) * (s1 - s0))
                out, corner = ((n * g.p + p) * g.q + q) * g.c, ((n * g.h + r0) * g.w + s0) * g.c
                if out + whole <= end and corner + (r1 - r0) * line + whole <= x.shape[0]:
                    for c in range(0, g.c, size):
                        total = zero
                        for r in range(r1 - r0):
                            for s in range(s1 - s0):
                                total = total + load(x, U(corner + r * line + s * g.c + c))
                        store(y, U(out + c), total * spread(y, share))
                    continue
                for c in range(g.c):
                    total = y.dtype.type(0)
                    for r in range(r1 - r0):
                        for s in range(s1 - s0):
                            total += x[U(corner + r * line + s * g.c + c)]
                    y[U(out + c)] = total * share


def avgpool2d_forward(x, geometry, y):
    """y: mean over each window, of its pixels inside the image (or of all R*S with count_include_pad)."""
    x = as_input(x)
    launch(_average_forward, x.shape[0], x.size, x.reshape(-1), Pool(*geometry), y.reshape(-1))


@Kernel
def _average_backward(start, stop, lane, args):
    """Where windows overlap or are padded: each adds its share."""
    dy, g, dx = unpack(args)
    image = g.h * g.w * g.c
    one = dx.dtype.type(1)
    for i in range(start * image, stop * image):
        dx[U(i)] = 0
    for n in range(start, stop):
        for p in range(g.p):
            top = p * g.stride_h - g.pad_top
            for q in range(g.q):
                left = q * g.stride_w - g.pad_left
                r0, r1 = max(0, top), min(top + g.r, g.h)
                s0, s1 = max(0, left), min(left + g.s, g.w)
                count = g.r * g.s if g.count_include_pad else (r1 - r0) * (s1 - s0)
                share = one / dx.dtype.type(count)
                at = ((n * g.p + p) * g.q + q) * g.c
                for r in range(r0, r1):
                    for s in range(s0, s1):
                        out = ((n * g.h + r) * g.w + s) * g.c
                        for c in range(g.c):
                            dx[U(out + c)] += dy[U(at + c)] * share


@Kernel
def _average_spread(start, stop, lane, args):
    """Where windows lie side by side: dx is written from its first to its last pixel."""
    dy, g, dx = unpack(args)
    image, size = g.h * g.w * g.c, vector_size(dx)
    share, whole = dx.dtype.type(1) / dx.dtype.type(g.r * g.s), (g.c + size - 1) // size * size
    for n in range(start, stop):
        for h in range(g.p * g.r):
            row, source = n * image + h * g.w * g.c, (n * g.p + h // g.r) * g.q * g.c
            for q in range(g.q):
                at = source + q * g.c
                out = row + q * g.s * g.c
                if out + (g.s - 1) * g.c + whole <= stop * image and at + whole <= dy.shape[0]:
                    for s in range(g.s):
                        for c in range(0, g.c, size):
                            store(dx, U(out + s * g.c + c), load(dy, U(at + c)) * spread(dx, share))
                    continue
                for s in range(g.s):
                    for c in range(g.c):
                        dx[U(out + s * g.c + c)] = dy[U(at + c)] * share
            for i in range(row + g.q * g.s * g.c, row + g.w * g.c):
                dx[U(i)] = 0
        for i in range(n * image + g.p * g.r * g.w * g.c, (n + 1) * image):
            dx[U(i)] = 0


def avgpool2d_backward(dy, geometry, dx):
    """dx: each dy spread evenly over what its window averaged."""
    dy = as_input(dy)
    kernel = _average_spread if side_by_side(geometry) else _average_backward
    launch(kernel, dy.shape[0], dx.size, dy.reshape(-1), Pool(*geometry), dx.reshape(-1))
