"""The vocabulary of primitive operations and the geometry of windows.

A layer spec lowers to a tuple of `Op`; fusion rewrites that list; the plan binds each op to a kernel. Nothing
here holds an array. One alphabet everywhere: N batch, H W input, C channels in, K channels out, R S window, P
Q output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

Shape = tuple[int, ...]
Pair = tuple[int, int]

ACTIVATIONS = ("identity", "relu", "elu", "tanh", "leaky_relu", "silu")
# Not monotonic, so that the gradient is taken from the input, and no pooling changes places with them.
SMOOTH = (5,)
_ALPHA = {"elu": 1.0, "leaky_relu": 0.01}


class ConvGeometry(NamedTuple):
    """Sizes of one 2-D convolution: (N, H, W, C) * (R, S, C/groups, K) -> (N, P, Q, K).

    `winograd` says how it is computed: 0 directly, m by Winograd's algorithm in tiles of m x m outputs. A plan
    asks the backend.
    """

    h: int
    w: int
    c: int
    k: int
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
    dilation_h: int
    dilation_w: int
    groups: int
    winograd: int = 0


class PoolGeometry(NamedTuple):
    """Sizes of one 2-D pooling: (N, H, W, C) -> (N, P, Q, C). A 1x1 window with stride 1 is the identity."""

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


class Activation(NamedTuple):
    """An activation as kernels take it: its place in `ACTIVATIONS`, and the alpha of ELU and leaky ReLU."""

    code: int
    alpha: float


IDENTITY = Activation(0, 0.0)


def activation(name: str | None, alpha: float | None = None) -> Activation:
    """The `Activation` called `name` (None: identity); `alpha` None: its usual one."""
    if name is None:
        return IDENTITY
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: expected one of {ACTIVATIONS}")
    return Activation(ACTIVATIONS.index(name), _ALPHA.get(name, 0.0) if alpha is None else float(alpha))


_LARGEST = 2**31  # no window is so large, and products of two such sizes still fit into 64 bits


def pair(value: object, name: str, minimum: int = 1) -> Pair:
    """`value` as two ints (an int stands for both), each at least `minimum`."""
    values = (value, value) if _is_int(value) else value
    if (
        not isinstance(values, (tuple, list))
        or len(values) != 2
        or not all(_is_int(v) and minimum <= v < _LARGEST for v in values)
    ):
        raise ValueError(f"{name} must be an int >= {minimum} or a pair of such ints, got {value!r}")
    return int(values[0]), int(values[1])


def _is_int(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def resolve_padding(
    padding: object, size: Pair, window: Pair, stride: Pair, dilation: Pair = (1, 1)
) -> tuple[Pair, Pair]:
    """Padding as ((top, bottom), (left, right)).

    "same" is Keras's: output ``ceil(n / stride)``, the odd pixel at the bottom and right.
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        sides = []
        for n, k, s, d in zip(size, window, stride, dilation, strict=True):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            sides.append((total // 2, total - total // 2))
        return sides[0], sides[1]
    if isinstance(padding, str):
        raise ValueError(
            f'padding must be "same", "valid", an int, (ph, pw) or ((top, bottom), (left, right)), got {padding!r}'
        )
    if isinstance(padding, (tuple, list)) and len(padding) == 2 and all(isinstance(v, (tuple, list)) for v in padding):
        return pair(padding[0], "padding (top, bottom)", 0), pair(padding[1], "padding (left, right)", 0)
    ph, pw = pair(padding, "padding", 0)
    return (ph, ph), (pw, pw)


def _output_sizes(size: Pair, window: Pair, stride: Pair, pads: tuple[Pair, Pair], dilation: Pair, what: str) -> Pair:
    sizes = []
    for n, k, s, (before, after), d in zip(size, window, stride, pads, dilation, strict=True):
        span = (k - 1) * d + 1
        if n + before + after < span:
            raise ValueError(
                f"{what}: a window of {window[0]}x{window[1]} (dilation {dilation[0]}x{dilation[1]}) does not fit into "
                f"an image of {size[0]}x{size[1]} with padding {pads}"
            )
        sizes.append((n + before + after - span) // s + 1)
    return sizes[0], sizes[1]


def conv_geometry(
    in_shape: Shape,
    filters: int,
    kernel_size: object,
    stride: object = 1,
    padding: object = "same",
    dilation: object = 1,
    groups: int = 1,
) -> ConvGeometry:
    """Geometry of a convolution over images of `in_shape` (H, W, C); ValueError says what does not fit."""
    h, w, c = _image_shape(in_shape, "Conv2D")
    window, steps = pair(kernel_size, "kernel_size"), pair(stride, "stride")
    spread = pair(dilation, "dilation")
    if c % groups or filters % groups:
        raise ValueError(f"groups={groups} must divide the channels in ({c}) and out ({filters})")
    pads = resolve_padding(padding, (h, w), window, steps, spread)
    p, q = _output_sizes((h, w), window, steps, pads, spread, "Conv2D")
    (top, bottom), (left, right) = pads
    return ConvGeometry(h, w, c, filters, *window, p, q, *steps, top, left, bottom, right, *spread, groups)


def pool_geometry(
    in_shape: Shape,
    pool_size: object,
    stride: object = None,
    padding: object = "valid",
    count_include_pad: bool = False,
) -> PoolGeometry:
    """Geometry of a pooling over images of `in_shape` (H, W, C); a window wholly in the padding is refused."""
    h, w, c = _image_shape(in_shape, "pooling")
    window = pair(pool_size, "pool_size")
    steps = window if stride is None else pair(stride, "stride")
    pads = resolve_padding(padding, (h, w), window, steps)
    p, q = _output_sizes((h, w), window, steps, pads, (1, 1), "pooling")
    (top, bottom), (left, right) = pads
    for n, k, s, before, out in ((h, window[0], steps[0], top, p), (w, window[1], steps[1], left, q)):
        if before >= k or (out - 1) * s - before >= n:
            raise ValueError(
                f"pooling: padding {pads} leaves a window of {window[0]}x{window[1]} with nothing but padding"
            )
    return PoolGeometry(h, w, c, *window, p, q, *steps, top, left, bottom, right, bool(count_include_pad))


def identity_pool(p: int, q: int, k: int) -> PoolGeometry:
    """The pooling that changes nothing, for fused kernels without one."""
    return PoolGeometry(p, q, k, 1, 1, p, q, 1, 1, 0, 0, 0, 0, False)


def _image_shape(in_shape: Shape, what: str) -> tuple[int, int, int]:
    if len(in_shape) != 3:
        raise ValueError(f"{what} takes images (H, W, C), got an input of shape {in_shape}")
    h, w, c = in_shape
    return h, w, c


@dataclass(frozen=True)
class Op:
    """One primitive operation on one sample's shape.

    Attributes
    ----------
    kind : str
        "conv2d", "dense", "bias", "activation", "smooth_activation", "maxpool2d", "avgpool2d", "batchnorm",
        "dropout",
        "spatial_dropout" or "flatten"; "fork", "swap" and "join", which begin a branch beside the chain, change from
        one to the other, and add the two.
    in_shape, out_shape : tuple of int
        Shapes without the batch axis.
    geometry : ConvGeometry, PoolGeometry or None
    params : tuple of str
        Names of the layer's parameters it reads ("weight", "bias", ...).
    activation : Activation
        For the kinds "activation" and "smooth_activation".
    rate : float
        Of dropout.
    momentum, epsilon : float
        Of batch normalisation.
    layer : str
        Place of its layer in the list, and within a layer made of layers the place there: "3", "3.0". Set when a
        network lowers its layers.
    """

    kind: str
    in_shape: Shape
    out_shape: Shape
    geometry: ConvGeometry | PoolGeometry | None = None
    params: tuple[str, ...] = ()
    activation: Activation = IDENTITY
    rate: float = 0.0
    momentum: float = 0.0
    epsilon: float = 0.0
    layer: str = ""

    def at(self, place: object) -> Op:
        """The same op as part of the layer at `place`."""
        return replace(self, layer=f"{place}.{self.layer}" if self.layer else str(place))

    @property
    def groups(self) -> int:
        """Of a convolution; of anything else 1."""
        return self.geometry.groups if isinstance(self.geometry, ConvGeometry) else 1

    @property
    def label(self) -> str:
        """What `describe()` prints: the kind, or the activation's own name."""
        return ACTIVATIONS[self.activation.code] if self.kind.endswith("activation") else self.kind


@dataclass(frozen=True)
class Group:
    """Consecutive ops that one kernel runs: a single op, or a fused chain headed by a convolution or dense
    op; and which of the kernels of a fused chain.
    """

    ops: tuple[Op, ...]
    kernel: str = ""

    @property
    def head(self) -> Op:
        return self.ops[0]

    @property
    def in_shape(self) -> Shape:
        return self.ops[0].in_shape

    @property
    def out_shape(self) -> Shape:
        return self.ops[-1].out_shape

    @property
    def label(self) -> str:
        return "+".join(op.label for op in self.ops)

    def find(self, kind: str) -> Op | None:
        """The op of `kind` in this group, if there is one."""
        return next((op for op in self.ops if op.kind == kind), None)
