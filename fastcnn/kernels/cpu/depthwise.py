"""Depthwise convolution, a window for each channel, and its gradients: loops over channels, which lie side by side.

There is no matrix product in it: a multiply-add needs its own number from the image and from the weights. So
taps are taken three at a time, for the sum to be loaded and stored a third as often.
"""

from __future__ import annotations

from typing import Any

from fastcnn.kernels.cpu.launch import Kernel, call, unpack
from fastcnn.kernels.cpu.packing import fill_zero, pad_image
from fastcnn.kernels.cpu.runtime import U, jit


def is_depthwise(g: Any) -> bool:
    """As many groups as channels in and out."""
    return bool(g.groups == g.c == g.k and g.c > 1)


@jit
def _add_taps(x, at, step, weight, w, c, taps, out, out0):
    """out[j] += sum of x[at + tap * step + j] * weight[w + tap * c + j] over the taps of a row of the window."""
    for s in range(0, taps - 2, 3):
        a, b = at + s * step, w + s * c
        for j in range(c):
            first = x[U(a + j)] * weight[U(b + j)] + x[U(a + step + j)] * weight[U(b + c + j)]
            out[U(out0 + j)] += first + x[U(a + 2 * step + j)] * weight[U(b + 2 * c + j)]
    for s in range(taps // 3 * 3, taps):
        a, b = at + s * step, w + s * c
        for j in range(c):
            out[U(out0 + j)] += x[U(a + j)] * weight[U(b + j)]


@Kernel
def depthwise_forward(start, stop, lane, args):
    """The images start..stop; arguments and scratch as `conv._forward_bands`, the weights as they are."""
    x, weight, bias, y, argmax, scratch, layout, kernels, g, act, pool, t = unpack(args)
    activate, pool_rows = kernels
    packed_size, lane_size, image_size, band_rows = layout
    image0 = packed_size + lane * lane_size
    band0 = image0 + image_size
    if t.padded:
        fill_zero(scratch, image0, image0 + image_size)
    for n in range(start, stop):
        source, source0 = x, n * g.h * g.w * g.c
        if t.padded:
            pad_image(x, source0, g.h, g.w, g.c, scratch, image0, g.pad_top, g.pad_left, t.wp)
            source, source0 = scratch, image0
        for p0 in range(0, g.p, band_rows):
            p1 = min(p0 + band_rows, g.p)
            target, target0 = y, n * g.p * g.q * g.k
            if pool_rows != 0:
                target, target0 = scratch, band0 - p0 * g.q * g.k
            fill_zero(target, target0 + p0 * g.q * g.k, target0 + p1 * g.q * g.k)
            for p in range(p0, p1):
                for q in range(g.q):
                    out = target0 + (p * g.q + q) * g.c
                    for r in range(g.r):
                        row = p * g.stride_h + r * g.dilation_h
                        at = source0 + (row * t.wp + q * g.stride_w) * g.c
                        _add_taps(source, at, g.dilation_w * g.c, weight, r * g.s * g.c, g.c, g.s, target, out)
            if pool_rows != 0:
                call(pool_rows, p0, p1, lane, (scratch, band0, g.q, n, activate, bias, act, pool, y, argmax))
            else:
                call(activate, (n * g.p + p0) * g.q, (n * g.p + p1) * g.q, lane, (y, g.k, bias, act))


@jit
def _add_product(a, a0, b, b0, c, out, out0):
    for j in range(c):
        out[U(out0 + j)] += a[U(a0 + j)] * b[U(b0 + j)]


@Kernel
def depthwise_chunks(start, stop, lane, args):
    """The chunks start..stop of images: dx, and each chunk's sums of dw and db, which lie one after the other."""
    x, weight, y, argmax, dy, dx, scratch, layout, wants, scatter, g, alpha, pool, t = unpack(args)
    n_images, chunks, partials, partial_size, image_size, gradient_size = layout
    want_dx, want_dw = wants
    taps = g.r * g.s * g.c
    image0 = partials + chunks * partial_size + lane * (2 * image_size + gradient_size)
    dx0, dz0 = image0 + image_size, image0 + 2 * image_size
    fill_zero(scratch, image0, image0 + 2 * image_size + gradient_size)
    fill_zero(scratch, partials + start * partial_size, partials + stop * partial_size)
    for n in range(n_images * start // chunks, n_images * stop // chunks):
        dw0 = partials + ((n + 1) * chunks - 1) // n_images * partial_size
        call(scatter, n, n + 1, lane, (dy, y, argmax, alpha, pool, scratch, dz0, g.q, dw0 + taps))
        if want_dw:
            pad_image(x, n * g.h * g.w * g.c, g.h, g.w, g.c, scratch, image0, g.pad_top, g.pad_left, t.wp)
        if want_dx:
            fill_zero(scratch, dx0, dx0 + t.hp * t.wp * g.c)
        for p in range(g.p):
            for q in range(g.q):
                dz = dz0 + (p * g.q + q) * g.c
                for r in range(g.r):
                    for s in range(g.s):
                        row, column = p * g.stride_h + r * g.dilation_h, q * g.stride_w + s * g.dilation_w
                        pixel, w = (row * t.wp + column) * g.c, (r * g.s + s) * g.c
                        if want_dw:
                            _add_product(scratch, image0 + pixel, scratch, dz, g.c, scratch, dw0 + w)
                        if want_dx:
                            _add_product(weight, w, scratch, dz, g.c, scratch, dx0 + pixel)
        if want_dx:
            for h in range(g.h):
                at = dx0 + ((h + g.pad_top) * t.wp + g.pad_left) * g.c
                out = (n * g.h + h) * g.w * g.c
                for j in range(g.w * g.c):
                    dx[U(out + j)] = scratch[U(at + j)]
