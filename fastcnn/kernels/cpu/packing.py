"""Copies into the layouts that the micro-kernel reads, weights in panels, images padded or with channels first;
and the sum of what was computed in parts.
"""

from __future__ import annotations

from fastcnn.kernels.cpu.launch import Kernel, unpack
from fastcnn.kernels.cpu.runtime import U, jit
from fastcnn.kernels.cpu.transposition import transpose
from fastcnn.kernels.cpu.vectors import load, store, store_past, vector_size


@jit
def write_row(source, at, count, other, past, out, to):
    """out[to:] = source[at:] + other[to:], if there is any, for `count` elements; where `goes_past` said so, past the
    caches. A `fence` is the caller's.
    """
    if past:
        for j in range(0, count, vector_size(out)):
            v = load(source, U(at + j))
            if other.shape[0]:
                v = v + load(other, U(to + j))
            store_past(out, U(to + j), v)
    elif other.shape[0]:
        for j in range(count):
            out[U(to + j)] = source[U(at + j)] + other[U(to + j)]
    else:
        for j in range(count):
            out[U(to + j)] = source[U(at + j)]


@jit
def pack_forward(weight, bias, g, width, packed, start, stop):
    """(R,S,C/G,K) -> [group][panel][bias; r, s, c][column], columns past the last channel zero; the panels
    start..stop.
    """
    cg, kg = g.c // g.groups, g.k // g.groups
    depth, panels = g.r * g.s * cg, (kg + width - 1) // width
    for panel in range(start, stop):
        at, first = panel * (1 + depth) * width, panel % panels * width
        valid, channel = min(width, kg - first), panel // panels * kg + first
        for j in range(width):
            packed[U(at + j)] = bias[U(channel + j)] if j < valid and bias.shape[0] else 0
        at += width
        for row in range(depth):
            source = row * g.k + channel
            for j in range(valid):
                packed[U(at + j)] = weight[U(source + j)]
            for j in range(valid, width):
                packed[U(at + j)] = 0
            at += width


@jit
def pack_backward(weight, g, t, width, packed):
    """(R,S,C/G,K) -> [phase][group][panel][tap, k][column c], columns past the last channel zero."""
    cg, kg = g.c // g.groups, g.k // g.groups
    at = 0
    for phase in range(t.seg_lens.shape[0]):
        for group in range(g.groups):
            for first in range(0, cg, width):
                valid = min(width, cg - first)
                for place in range(t.tap_starts[phase], t.tap_starts[phase + 1]):
                    start = (t.taps[place] * cg + first) * g.k + group * kg
                    transpose(weight, start, valid, kg, g.k, packed, at, width)
                    for k in range(kg):
                        for j in range(valid, width):
                            packed[U(at + k * width + j)] = 0
                    at += kg * width


@jit
def pack_columns(weight, g, width, packed, start, stop):
    """(R,S,C,K) -> [r][panel][k][column s, c], columns past the last zero; for the rows start..stop of the window."""
    columns = g.s * g.c
    at = start * ((columns + width - 1) // width) * g.k * width
    for r in range(start, stop):
        for first in range(0, columns, width):
            valid = min(width, columns - first)
            source = (r * columns + first) * g.k
            transpose(weight, source, valid, g.k, g.k, packed, at, width)
            for _ in range(g.k):
                for j in range(valid, width):
                    packed[U(at + j)] = 0
                at += width


@jit
def pad_image(x, x0, h, w, c, out, out0, top, left, wp):
    """Copy one image into the middle of a zeroed padded one."""
    for i in range(h):
        source, target = x0 + i * w * c, out0 + ((top + i) * wp + left) * c
        for j in range(w * c):
            out[U(target + j)] = x[U(source + j)]


@jit
def transpose_image(x, x0, w, c, t, out, out0):
    """One image (H,W,C), or what `WeightTables` want of it, into the middle of a zeroed one with channels first: the
    weight gradient sums along pixels, so these must touch.
    """
    for i in range(t.height):
        source, target = x0 + i * t.step_h * w * c, out0 + (t.top + i) * t.pitch + t.left
        if c == 1 and t.step_w == 1:
            for j in range(t.width):
                out[U(target + j)] = x[U(source + j)]
        else:  # the zeros that it writes past the row lie where the next one goes, or where there is padding
            transpose(x, source, t.width, c, t.step_w * c, out, target, t.plane)


@jit
def pack_panel(dz, start, p, q, k, pitch, width, panel0):
    """One panel of columns of the padded gradient -> [pixel][column], in the same scratch."""
    size = vector_size(dz)
    for row in range(p):
        for column in range(q):
            source, target = start + (row * pitch + column) * k, panel0 + (row * q + column) * width
            for j in range(0, width, size):
                store(dz, U(target + j), load(dz, U(source + j)))


@jit
def fill_zero(out, start, stop):
    for i in range(start, stop):
        out[U(i)] = 0


@Kernel
def sum_parts(start, stop, lane, args):
    """out[start:stop] = the sum of `parts` vectors, in their order: they lie `size` apart from scratch[first]."""
    parts, first, size, scratch, out = unpack(args)
    for i in range(start, stop):
        out[U(i)] = scratch[U(first + i)]
    for part in range(1, parts):
        at = first + part * size
        for i in range(start, stop):
            out[U(i)] += scratch[U(at + i)]
