"""Dense layers: convolutions of images of one pixel."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

from fastcnn.kernels.cuda import conv


class _Geometry(NamedTuple):
    """As `ConvGeometry`."""

    h: int
    w: int
    c: int
    k: int
    r: int = 1
    s: int = 1
    p: int = 1
    q: int = 1
    stride_h: int = 1
    stride_w: int = 1
    pad_top: int = 0
    pad_left: int = 0
    pad_bottom: int = 0
    pad_right: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1


class _NoPool(NamedTuple):
    r: int = 1
    s: int = 1
    p: int = 1
    q: int = 1
    stride_h: int = 1
    stride_w: int = 1
    pad_top: int = 0
    pad_left: int = 0
    pad_bottom: int = 0
    pad_right: int = 0


def dense_forward_scratch(n, n_in, n_out, dtype, lanes):
    """Partial sums where few rows would leave the GPU idle."""
    return conv.conv2d_forward_scratch(_Geometry(1, 1, n_in, n_out), _NoPool(), n, dtype, lanes)


def dense_backward_scratch(n, n_in, n_out, dtype, lanes):
    """The gradient before the activation, and partial sums."""
    return conv.conv2d_backward_scratch(_Geometry(1, 1, n_in, n_out), _NoPool(), n, dtype, lanes)


def dense_forward(x, weight, bias, activation, y, scratch):
    """y (N,n_out) = activation(x (N,n_in) @ weight (n_in,n_out) + bias)."""
    conv.product(x, weight, bias, _Geometry(1, 1, *weight.shape), activation, None, y, None, scratch)


def dense_backward(x, weight, y, dy, activation, dx, dw, db, scratch):
    """dx, dw, db from the gradient dy of the dense block's output y. dy is not changed."""
    g = _Geometry(1, 1, *weight.shape)
    conv.conv2d_block_backward(x, weight, y, None, dy, g, activation, _NoPool(), dx, dw, db, scratch)


def geometry_of(weight_shape: tuple[int, int]) -> _Geometry:
    """Of the dense layer whose weight has this shape."""
    return _Geometry(1, 1, *weight_shape)
