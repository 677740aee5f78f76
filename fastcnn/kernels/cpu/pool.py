"""Max and average pooling and their gradients, any window, stride and padding. A lane owns a range of images."""

from __future__ import annotations

import numpy as np

from fastcnn.kernels.cpu.epilogue import activate_address, pool_address
from fastcnn.kernels.cpu.launch import Kernel, call, launch, unpack
from fastcnn.kernels.cpu.lowering import Pool
from fastcnn.kernels.cpu.runtime import U, as_input

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


@Kernel
def _average_forward(start, stop, lane, args):
    x, g, y = unpack(args)
    one = y.dtype.type(1)
    for n in range(start, stop):
        for p in range(g.p):
            top = p * g.stride_h - g.pad_top
            for q in range(g.q):
                left = q * g.stride_w - g.pad_left
                r0, r1 = max(0, top), min(top + g.r, g.h)
                s0, s1 = max(0, left), min(left + g.s, g.w)
                out = ((n * g.p + p) * g.q + q) * g.c
                for c in range(g.c):
                    y[U(out + c)] = 0
                for r in range(r0, r1):
                    for s in range(s0, s1):
                        at = ((n * g.h + r) * g.w + s) * g.c
                        for c in range(g.c):
                            y[U(out + c)] += x[U(at + c)]
                count = g.r * g.s if g.count_include_pad else (r1 - r0) * (s1 - s0)
                share = one / y.dtype.type(count)
                for c in range(g.c):
                    y[U(out + c)] *= share


def avgpool2d_forward(x, geometry, y):
    """y: mean over each window, of its pixels inside the image (or of all R*S with count_include_pad)."""
    x = as_input(x)
    launch(_average_forward, x.shape[0], x.size, x.reshape(-1), Pool(*geometry), y.reshape(-1))


@Kernel
def _average_backward(start, stop, lane, args):
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


def avgpool2d_backward(dy, geometry, dx):
    """dx: each dy spread evenly over what its window averaged."""
    dy = as_input(dy)
    launch(_average_backward, dy.shape[0], dx.size, dy.reshape(-1), Pool(*geometry), dx.reshape(-1))
