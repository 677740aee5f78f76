"""Layer specs: frozen dataclasses without arrays, stacked like legos in a list.

A layer says what shape it gives (`output_shape`), which parameters it has (`param_shapes`) and which
primitive ops it stands for (`lower`). Shapes leave out the batch axis; images are (H, W, C). Specs compare,
hash, clone, pickle and grid-search like plain values. To add a layer see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any

import numpy as np

from fastcnn.engine.ops import ACTIVATIONS, SMOOTH, Op, Shape, activation, conv_geometry, pair, pool_geometry

__all__ = [
    "ELU",
    "AdaptiveMaxPool2D",
    "AvgPool2D",
    "BatchNorm",
    "Conv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2D",
    "Layer",
    "LeakyReLU",
    "MaxPool2D",
    "ReLU",
    "Residual",
    "SiLU",
    "SpatialDropout",
    "Tanh",
    "from_dict",
    "to_dict",
]


class Layer:
    """What every layer spec answers. Subclasses are frozen dataclasses."""

    def output_shape(self, in_shape: Shape) -> Shape:
        """Shape of one sample's output.

        Parameters
        ----------
        in_shape : tuple of int
            Of one sample's input: (H, W, C), or (n_in,).

        Returns
        -------
        tuple of int
            (P, Q, K), or (n_out,).

        Raises
        ------
        ValueError
            If the layer cannot take `in_shape`.
        """
        return self.lower(in_shape)[-1].out_shape

    def param_shapes(self, in_shape: Shape) -> dict[str, Shape]:
        """Names and shapes of the parameters.

        Parameters
        ----------
        in_shape : tuple of int
            Of one sample's input.

        Returns
        -------
        dict of str to tuple of int
            In the order in which they are stored.
        """
        return {}

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        """The primitive ops that this layer stands for.

        Parameters
        ----------
        in_shape : tuple of int
            Of one sample's input.

        Returns
        -------
        tuple of Op
            At least one.

        Raises
        ------
        ValueError
            If the layer cannot take `in_shape`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define lower()")


def _count(value: Any, name: str) -> int:
    """`value` as Python's integer, which kernels are compiled for; ValueError if it is not one from 1 on."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return int(value)


def _check_activation(name: str | None) -> None:
    if name is not None and name not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {ACTIVATIONS}, got {name!r}")


def _activation_ops(name: str | None, shape: Shape, alpha: float | None = None) -> tuple[Op, ...]:
    if name is None or name == "identity":
        return ()
    function = activation(name, alpha)
    kind = "smooth_activation" if function.code in SMOOTH else "activation"
    return (Op(kind, shape, shape, activation=function),)


@dataclass(frozen=True)
class Conv2D(Layer):
    """2-D convolution (cross-correlation, as everywhere in deep learning): (H, W, C) -> (P, Q, filters).

    Parameters
    ----------
    filters : int
        Channels out, K.
    kernel_size : int or (int, int), default=3
        Height and width of the window.
    stride : int or (int, int), default=1
        The window's step.
    padding : "same", "valid", int, (ph, pw) or ((top, bottom), (left, right)), default="same"
        "same" is Keras's: output ``ceil(n / stride)``, the odd pixel at the bottom and right.
    dilation : int or (int, int), default=1
        Distance between the window's taps.
    groups : int, default=1
        Divides channels in and out; ``groups == C`` is a depthwise convolution.
    use_bias : bool, default=True
        Whether a number is added to each channel out.
    activation : None, "relu", "elu", "tanh", "leaky_relu" or "silu", default=None
        What follows; the same as a layer of its own.

    Raises
    ------
    ValueError
        If a value is not as described; of `padding`, in use.

    Notes
    -----
    ``weight`` is (R, S, C / groups, K), ``bias`` (K,).
    """

    filters: int
    kernel_size: Any = 3
    stride: Any = 1
    padding: Any = "same"
    dilation: Any = 1
    groups: int = 1
    use_bias: bool = True
    activation: str | None = None

    def __post_init__(self) -> None:
        for name in ("filters", "groups"):
            object.__setattr__(self, name, _count(getattr(self, name), name))
        _python(self, bool, "use_bias")
        for name in ("kernel_size", "stride", "dilation"):
            pair(getattr(self, name), name)
        _check_activation(self.activation)
        # A layer read from JSON has lists; a spec that hashes needs tuples.
        for name in ("kernel_size", "stride", "padding", "dilation"):
            object.__setattr__(self, name, _as_tuple(getattr(self, name)))

    def _geometry(self, in_shape: Shape) -> Any:
        return conv_geometry(
            in_shape, self.filters, self.kernel_size, self.stride, self.padding, self.dilation, self.groups
        )

    def param_shapes(self, in_shape: Shape) -> dict[str, Shape]:
        g = self._geometry(in_shape)
        shapes: dict[str, Shape] = {"weight": (g.r, g.s, g.c // g.groups, g.k)}
        return shapes | {"bias": (g.k,)} if self.use_bias else shapes

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        g = self._geometry(in_shape)
        out = (g.p, g.q, g.k)
        bias = (Op("bias", out, out, params=("bias",)),) if self.use_bias else ()
        conv = Op("conv2d", in_shape, out, g, params=("weight",))
        return (conv, *bias, *_activation_ops(self.activation, out))


def _as_tuple(value: Any) -> Any:
    """Lists as tuples, whole numbers as Python's."""
    if isinstance(value, list | tuple):
        return tuple(_as_tuple(v) for v in value)
    return int(value) if hasattr(value, "__index__") and not isinstance(value, bool | np.bool_) else value


def _python(layer: Layer, kind: type, *names: str) -> None:
    """Have Python's number where NumPy's was given."""
    for name in names:
        try:
            object.__setattr__(layer, name, kind(getattr(layer, name)))
        except OverflowError as error:
            raise ValueError(f"{name} must be finite: {error}") from error


@dataclass(frozen=True)
class MaxPool2D(Layer):
    """Largest value in each window: (H, W, C) -> (P, Q, C).

    Parameters
    ----------
    pool_size : int or (int, int), default=2
        Height and width of the window.
    stride : int, (int, int) or None, default=None
        The window's step. None: its size.
    padding : as for `Conv2D`, default="valid"
        With minus infinity.

    Raises
    ------
    ValueError
        If a value is not as described; of `padding`, in use.
    """

    pool_size: Any = 2
    stride: Any = None
    padding: Any = "valid"

    def __post_init__(self) -> None:
        _check_pool(self)

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        g = pool_geometry(in_shape, self.pool_size, self.stride, self.padding)
        return (Op("maxpool2d", in_shape, (g.p, g.q, g.c), g),)


@dataclass(frozen=True)
class AvgPool2D(Layer):
    """Mean of each window: (H, W, C) -> (P, Q, C).

    Parameters
    ----------
    pool_size : int or (int, int), default=2
        Height and width of the window.
    stride : int, (int, int) or None, default=None
        The window's step. None: its size.
    padding : as for `Conv2D`, default="valid"
        With zeros.
    count_include_pad : bool, default=False
        Whether the mean is of all of the window's pixels, and not of those inside the image alone.

    Raises
    ------
    ValueError
        If a value is not as described; of `padding`, in use.
    """

    pool_size: Any = 2
    stride: Any = None
    padding: Any = "valid"
    count_include_pad: bool = False

    def __post_init__(self) -> None:
        _check_pool(self)
        _python(self, bool, "count_include_pad")

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        g = pool_geometry(in_shape, self.pool_size, self.stride, self.padding, self.count_include_pad)
        return (Op("avgpool2d", in_shape, (g.p, g.q, g.c), g),)


def _check_pool(layer: MaxPool2D | AvgPool2D) -> None:
    pair(layer.pool_size, "pool_size")
    if layer.stride is not None:
        pair(layer.stride, "stride")
    for name in ("pool_size", "stride", "padding"):
        object.__setattr__(layer, name, _as_tuple(getattr(layer, name)))


@dataclass(frozen=True)
class GlobalAvgPool2D(Layer):
    """Mean over the whole image: (H, W, C) -> (C,)."""

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        g = pool_geometry(in_shape, in_shape[:2])
        return (Op("avgpool2d", in_shape, (1, 1, g.c), g), Op("flatten", (1, 1, g.c), (g.c,)))


@dataclass(frozen=True)
class AdaptiveMaxPool2D(Layer):
    """Largest value of each of `output_size` windows of one size that cover the image: (H, W, C) -> (P, Q, C).

    The step is ``H // P`` and the window ``H - (P - 1) * step``, so that images of any size give as many features;
    windows overlap where `P` does not divide `H`. An image with fewer pixels than that keeps them.

    Parameters
    ----------
    output_size : int or (int, int), default=2
        Height and width of the output.

    Raises
    ------
    ValueError
        If it is not positive.
    """

    output_size: Any = 2

    def __post_init__(self) -> None:
        pair(self.output_size, "output_size")
        object.__setattr__(self, "output_size", _as_tuple(self.output_size))

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        if len(in_shape) != 3:
            raise ValueError(f"AdaptiveMaxPool2D takes images (H, W, C), got an input of shape {in_shape}")
        parts = [min(n, p) for n, p in zip(in_shape, pair(self.output_size, "output_size"), strict=False)]
        steps = tuple(n // p for n, p in zip(in_shape, parts, strict=False))
        window = tuple(n - (p - 1) * step for n, p, step in zip(in_shape, parts, steps, strict=False))
        return MaxPool2D(window, steps).lower(in_shape)


@dataclass(frozen=True)
class Flatten(Layer):
    """(H, W, C) -> (H * W * C,). Copies nothing."""

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        size = 1
        for n in in_shape:
            size *= n
        return (Op("flatten", in_shape, (size,)),)


@dataclass(frozen=True)
class Dense(Layer):
    """Fully connected: (n_in,) -> (units,); an image is flattened first.

    Parameters
    ----------
    units : int
        Values out.
    use_bias : bool, default=True
        Whether a number is added to each value out.
    activation : None, "relu", "elu", "tanh", "leaky_relu" or "silu", default=None
        What follows; the same as a layer of its own.

    Raises
    ------
    ValueError
        If a value is not as described.

    Notes
    -----
    ``weight`` is (n_in, units), ``bias`` (units,).
    """

    units: int
    use_bias: bool = True
    activation: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", _count(self.units, "units"))
        _python(self, bool, "use_bias")
        _check_activation(self.activation)

    def param_shapes(self, in_shape: Shape) -> dict[str, Shape]:
        (n_in,) = Flatten().output_shape(in_shape)
        shapes: dict[str, Shape] = {"weight": (n_in, self.units)}
        return shapes | {"bias": (self.units,)} if self.use_bias else shapes

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        flat = Flatten().lower(in_shape) if len(in_shape) > 1 else ()
        n_in = flat[-1].out_shape if flat else in_shape
        out = (self.units,)
        bias = (Op("bias", out, out, params=("bias",)),) if self.use_bias else ()
        dense = Op("dense", n_in, out, params=("weight",))
        return (*flat, dense, *bias, *_activation_ops(self.activation, out))


@dataclass(frozen=True)
class Dropout(Layer):
    """Zero for some of the values in training, others scaled by 1 / (1 - rate) (Srivastava et al. 2014).

    Parameters
    ----------
    rate : float in [0, 1), default=0.5
        Share of the values that becomes zero.

    Raises
    ------
    ValueError
        If `rate` is outside its range.
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {self.rate!r}")
        _python(self, float, "rate")

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        return (Op("dropout", in_shape, in_shape, rate=float(self.rate)),)


@dataclass(frozen=True)
class SpatialDropout(Layer):
    """Zero for some of an image's channels in training, others scaled by 1 / (1 - rate).

    Tompson et al. 2015, "Efficient object localization using convolutional networks".

    Parameters
    ----------
    rate : float in [0, 1), default=0.5
        Share of the channels that becomes zero.

    Raises
    ------
    ValueError
        If `rate` is outside its range.
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {self.rate!r}")
        _python(self, float, "rate")

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        if len(in_shape) != 3:
            raise ValueError(f"SpatialDropout takes images (H, W, C), got an input of shape {in_shape}")
        return (Op("spatial_dropout", in_shape, in_shape, rate=float(self.rate)),)


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Batch normalisation over all but the channels (Ioffe and Szegedy 2015).

    ``weight`` (gamma), ``bias`` (beta), ``running_mean`` and ``running_var`` are (C,). In training the
    batch's statistics are used and ``running = momentum * running + (1 - momentum) * batch``, with the unbiased
    variance, except by a batch of one value for each channel, which has none; in inference the running ones.

    Parameters
    ----------
    momentum : float in [0, 1], default=0.99
        See above. PyTorch's is 1 minus this.
    epsilon : float > 0, default=1e-3
        Added to the variance.

    Raises
    ------
    ValueError
        If a value is outside its range.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {self.momentum!r}")
        if not 0 < self.epsilon < inf:
            raise ValueError(f"epsilon must be positive and finite, got {self.epsilon!r}")
        _python(self, float, "momentum", "epsilon")

    def param_shapes(self, in_shape: Shape) -> dict[str, Shape]:
        c = (in_shape[-1],)
        return {"weight": c, "bias": c, "running_mean": c, "running_var": c}

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        names = ("weight", "bias", "running_mean", "running_var")
        return (
            Op(
                "batchnorm",
                in_shape,
                in_shape,
                params=names,
                momentum=float(self.momentum),
                epsilon=float(self.epsilon),
            ),
        )


@dataclass(frozen=True)
class ReLU(Layer):
    """max(x, 0)."""

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        return _activation_ops("relu", in_shape)


@dataclass(frozen=True)
class ELU(Layer):
    """x where x > 0, else alpha * (exp(x) - 1) (Clevert et al. 2016).

    Parameters
    ----------
    alpha : float > 0, default=1.0

    Raises
    ------
    ValueError
        If `alpha` is not positive.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < inf:
            raise ValueError(f"alpha must be positive and finite, got {self.alpha!r}")
        _python(self, float, "alpha")

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        return _activation_ops("elu", in_shape, self.alpha)


@dataclass(frozen=True)
class LeakyReLU(Layer):
    """x where x > 0, else alpha * x (Maas, Hannun and Ng 2013).

    Parameters
    ----------
    alpha : float > 0, default=0.01

    Raises
    ------
    ValueError
        If `alpha` is not positive.
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.alpha < inf:
            raise ValueError(f"alpha must be positive and finite, got {self.alpha!r}")
        _python(self, float, "alpha")

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        return _activation_ops("leaky_relu", in_shape, self.alpha)


@dataclass(frozen=True)
class SiLU(Layer):
    """x / (1 + exp(-x)), also called swish (Elfwing, Uchibe and Doya 2018)."""

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        return _activation_ops("silu", in_shape)


@dataclass(frozen=True)
class Residual(Layer):
    """x + layers(x): a chain with a skip (He et al. 2016, "Deep residual learning for image recognition").

    Parameters
    ----------
    layers : sequence of layers
    skip : sequence of layers, default=()
        What x goes through on its way past `layers`, such as a `Conv2D` of 1x1 where the shape changes. Empty: x
        is added as it is.

    Raises
    ------
    ValueError
        If one of them is no list of layers; in use, if they do not give the same shape.

    Notes
    -----
    Parameters are those of `layers`, named "layers.0.weight" and so on, then those of `skip`, "skip.0.weight".
    """

    layers: Any
    skip: Any = ()

    def __post_init__(self) -> None:
        for name in ("layers", "skip"):
            chain = getattr(self, name)
            if not isinstance(chain, (tuple, list)) or not all(isinstance(layer, Layer) for layer in chain):
                raise ValueError(f"{name} must be a list of layers, got {chain!r}")
            object.__setattr__(self, name, tuple(chain))

    def _chains(self) -> tuple[tuple[str, tuple[Layer, ...]], ...]:
        return ("layers", self.layers), ("skip", self.skip)

    def param_shapes(self, in_shape: Shape) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for part, chain in self._chains():
            shape = in_shape
            for i, layer in enumerate(chain):
                shapes |= {f"{part}.{i}.{name}": size for name, size in layer.param_shapes(shape).items()}
                shape = layer.output_shape(shape)
        return shapes

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        parts: dict[str, tuple[Op, ...]] = {}
        ends: dict[str, Shape] = {}
        for part, chain in self._chains():
            shape, ops = in_shape, []
            for i, layer in enumerate(chain):
                lowered = layer.lower(shape)  # once: twice at each depth would be 2^depth times
                ops += [op.at(f"{part}.{i}") for op in lowered]
                shape = lowered[-1].out_shape
            parts[part], ends[part] = tuple(ops), shape
        out = ends["layers"]
        if ends["skip"] != out:
            raise ValueError(f"the layers give {out}, which cannot be added to {ends['skip']}: skip must give the same")
        swap = (Op("swap", out, in_shape),) if self.skip else ()
        return (Op("fork", in_shape, in_shape), *parts["layers"], *swap, *parts["skip"], Op("join", out, out))


@dataclass(frozen=True)
class Tanh(Layer):
    """Hyperbolic tangent."""

    def lower(self, in_shape: Shape) -> tuple[Op, ...]:
        return _activation_ops("tanh", in_shape)


_LAYERS: dict[str, type[Layer]] = {
    cls.__name__: cls
    for cls in (
        Conv2D, MaxPool2D, AvgPool2D, GlobalAvgPool2D, AdaptiveMaxPool2D, Flatten, Dense, Dropout, SpatialDropout,
        BatchNorm, ReLU, ELU, LeakyReLU, SiLU, Tanh, Residual
    )
}  # fmt: skip
_CHAINS = {"layers", "skip"}  # fields that hold layers


def to_dict(layer: Layer) -> dict[str, Any]:
    """A layer as JSON-ready values.

    Parameters
    ----------
    layer : Layer
        Of this module.

    Returns
    -------
    dict
        Its class's name under "layer", then its fields.

    Raises
    ------
    ValueError
        If it is a layer of another module.
    """
    name = type(layer).__name__
    if _LAYERS.get(name) is not type(layer):
        raise ValueError(f"{layer!r} is not a layer of fastcnn.layers")
    values = {f.name: getattr(layer, f.name) for f in fields(layer)}  # type: ignore[arg-type]
    for part in _CHAINS & values.keys():
        values[part] = [to_dict(inner) for inner in values[part]]
    return {"layer": name} | values


def from_dict(values: Mapping[str, Any]) -> Layer:
    """The layer that `to_dict` described.

    Parameters
    ----------
    values : mapping
        What `to_dict` gave.

    Returns
    -------
    Layer
        Equal to that one.

    Raises
    ------
    ValueError
        If the layer, a field or a value is unknown; the message names it.
    """
    values = dict(values)
    name = values.pop("layer", None)
    if not isinstance(name, str) or name not in _LAYERS:
        raise ValueError(f"unknown layer {name!r}: expected one of {sorted(_LAYERS)}")
    cls = _LAYERS[name]
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{name} has no field {unknown[0]!r}: expected {sorted(known)}")
    for part in _CHAINS & values.keys():
        if not isinstance(values[part], (list, tuple)) or not all(isinstance(v, Mapping) for v in values[part]):
            raise ValueError(f"{name}: {part} must be a list of layers, got {values[part]!r}")
        values[part] = [from_dict(inner) for inner in values[part]]
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
