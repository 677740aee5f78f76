"""An ONNX graph as a list of layers with parameters, where layers can say what the graph does.

Nodes are followed from the input on. What is known of a tensor is the chain of layers that gives it (`_Value`), so that
an addition of two tensors is a `Residual` of what their chains do not have in common. Graphs have channels first;
layers have them last, and so have the weights that are taken over.

Files are not trusted: nothing outside of the file is read, and every size is checked by the layers themselves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from fastcnn.layers import (
    ELU,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Flatten,
    Layer,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Residual,
    SiLU,
    Tanh,
)
from fastcnn.persistence.models import MAX_LAYERS, SavedModel
from fastcnn.persistence.onnx import PRODUCER, import_onnx
from fastcnn.training.views import PLAIN, TTA, View

__all__ = ["read_onnx"]

_Found = Sequence[Any]  # a node's inputs: values, arrays, or None where one is left out
_Attributes = Mapping[str, Any]

_MAX_VALUES = 1 << 26  # for each image, anywhere in the network
_CHANNELS_FIRST = {
    "Conv", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "BatchNormalization", "ReduceMean"
}  # fmt: skip
_MAX_CLASSES = 4096  # of a network without a last dense layer, which gets one


@dataclass(frozen=True)
class _Step:
    """A layer and its parameters, by their names in the layer; `n_layers`: with those in it."""

    layer: Layer
    params: Mapping[str, np.ndarray] = field(default_factory=dict)
    n_layers: int = 1

    def same(self, other: _Step) -> bool:
        return self.layer == other.layer and all(np.array_equal(v, other.params[k]) for k, v in self.params.items())


@dataclass(frozen=True)
class _Value:
    """A tensor: the layers that give it from the scaled input.

    `shape` is (H, W, C) or (n,), without the batch. `channels_last`: how the graph has it. `order`: where a vector's
    values are in the layers' order, for vectors that were flattened with channels first. `factor`, `shift`: what
    happened to the input so far, for each channel. `sigmoid`: it is the sigmoid of that.
    """

    shape: tuple[int, ...]
    channels_last: bool
    factor: np.ndarray
    shift: np.ndarray
    steps: tuple[_Step, ...] = ()
    order: np.ndarray | None = None
    view: View = PLAIN
    sigmoid: bool = False
    softmax: bool = False
    views: tuple[View, ...] = ()  # whose probabilities were added, and then multiplied by `share`
    share: float = 1.0

    def then(self, layer: Layer, **params: np.ndarray) -> _Value:
        shape = layer.output_shape(self.shape)
        if prod(shape) > _MAX_VALUES:
            raise ValueError(f"{shape} is more than {_MAX_VALUES} values for each image")
        expected = layer.param_shapes(self.shape)
        for name, value in params.items():
            if value.shape != expected[name]:
                raise ValueError(f"{type(layer).__name__}: {name} is {value.shape}, expected {expected[name]}")
        return replace(self, shape=shape, steps=(*self.steps, _Step(layer, params)))


def read_onnx(path: str | os.PathLike[str]) -> SavedModel:
    """The network in the ONNX file `path`, as float32: its outputs before the softmax, or of a last dense layer.

    Raises
    ------
    ImportError
        Without the package `onnx`.
    OSError
        If the file cannot be read.
    ValueError
        If it is no ONNX file, or its graph is not a chain that layers can express; the message says what is in the way.
    """
    onnx = import_onnx()
    with open(path, "rb") as file:
        content = file.read()
    try:
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model)
        return _Reader(onnx, model).read()
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: not a network that can be read: {error}") from error
    except Exception as error:  # protobuf's and the checker's own, of which there are several
        if type(error).__module__.partition(".")[0] not in ("google", "onnx"):
            raise
        raise ValueError(f"{os.fspath(path)}: not an ONNX file that can be read: {error}") from error


class _Reader:
    def __init__(self, onnx: Any, model: Any) -> None:
        self.onnx, self.model, self.graph = onnx, model, model.graph
        self.constants = {tensor.name: self._array(tensor) for tensor in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = self._constant_of(node)
        self.values: dict[str, _Value] = {}
        self.results: list[_Value] = []

    def _array(self, tensor: Any) -> np.ndarray:
        if tensor.data_location == self.onnx.TensorProto.EXTERNAL:
            raise ValueError(f"{tensor.name} is in another file; put all tensors into one")
        return np.asarray(self.onnx.numpy_helper.to_array(tensor))

    def _constant_of(self, node: Any) -> np.ndarray:
        (attribute,) = node.attribute
        value = self.onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return self._array(value)
        kind = {"value_int": np.int64, "value_float": np.float32}.get(attribute.name.removesuffix("s"))
        if kind is None:
            raise ValueError(f"the operator Constant ({node.name or node.output[0]}) with {attribute.name}")
        return np.asarray(value, kind)

    def read(self) -> SavedModel:
        self._input()
        for node in self.graph.node:
            self._node(node)
        if not self.results:
            raise ValueError("no output of the graph is made of its input")
        if not all(_same_chain(result, self.results[-1]) for result in self.results[:-1]):
            raise ValueError("the graph gives several outputs that are not one network's logits and their softmax")
        return self._model(self.results[-1])

    def _input(self) -> None:
        inputs = [i for i in self.graph.input if i.name not in self.constants]
        if len(inputs) != 1:
            raise ValueError(f"the graph has {len(inputs)} inputs: {[i.name for i in inputs]}; expected images alone")
        sizes = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim][1:]
        if len(sizes) != 3 or min(sizes) < 1 or prod(sizes) > _MAX_VALUES:
            raise ValueError(f"the input {inputs[0].name} must have 4 axes and sizes known but for the first's")
        h, w, c = sizes if (last := self._channels_are_last(sizes)) else (*sizes[1:], sizes[0])
        self.image_shape = (h, w, c)
        self.values[inputs[0].name] = _Value((h, w, c), last, np.ones(c), np.zeros(c))

    def _channels_are_last(self, sizes: Sequence[int]) -> bool:
        """Of the input: the first thing that happens to the images' axes tells."""
        fixed = set(self.constants)
        for node in self.graph.node:
            if fixed.issuperset(node.input):
                fixed.update(node.output)
            elif node.op_type == "Transpose":  # channels come first
                return True
            elif node.op_type in _CHANNELS_FIRST:
                return False
            elif node.op_type in ("Flatten", "Reshape"):
                to = self.constants.get(node.input[1]) if node.op_type == "Reshape" else None
                if to is not None and to.size == 4:  # a Transpose in another form, where there is one channel
                    return to[1:].tolist() == [sizes[2], *sizes[:2]] != list(sizes)
                usual = 1, 3, 4  # as many channels as images have
                return sizes[2] in usual and (sizes[0] not in usual or sizes[2] < sizes[0])
        return False

    def _node(self, node: Any) -> None:
        if node.op_type == "Constant":
            return
        attributes = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
        found = [self.values.get(name, self.constants.get(name)) for name in node.input]
        if not any(isinstance(value, _Value) for value in found):
            self._of_constants(node, found, attributes)
            return
        handler = _HANDLERS.get(node.op_type)
        if handler is None:
            if any(isinstance(v, _Value) and v.softmax for v in found):
                return  # labels, made of the probabilities
            raise ValueError(f"no layer does what the operator {node.op_type} does ({node.name or node.output[0]})")
        for value in found:
            if isinstance(value, _Value) and value.sigmoid and node.op_type != "Mul":
                raise ValueError("the sigmoid function, but for x * sigmoid(x), is not an activation of any layer")
            if isinstance(value, _Value) and value.softmax and node.op_type not in _AFTER_SOFTMAX:
                raise ValueError(f"the operator {node.op_type} after a softmax")
        try:
            value = handler(found, attributes)
        except ValueError as error:
            raise ValueError(f"{node.op_type} ({node.name or node.output[0]}): {error}") from error
        self.values[node.output[0]] = value
        if node.output[0] in {output.name for output in self.graph.output}:
            self.results.append(value)

    def _of_constants(self, node: Any, found: _Found, attributes: _Attributes) -> None:
        """What programs do to weights in a graph. Anything else is of what came after the probabilities."""
        if not found or found[0] is None:
            return
        if node.op_type == "Identity":
            self.constants[node.output[0]] = found[0]
        elif node.op_type == "Transpose":
            self.constants[node.output[0]] = found[0].transpose(attributes.get("perm"))

    def _model(self, value: _Value) -> SavedModel:
        tta = next((name for name, views in TTA.items() if sorted(views) == sorted(value.views)), None)
        of_one = value.view == PLAIN and not value.views
        if value.sigmoid or not (tta or of_one) or not np.isclose(value.share * max(len(value.views), 1), 1):
            raise ValueError("its output is neither logits, their softmax, nor the mean of that over views of an image")
        if len(value.shape) != 1:
            if value.shape[:2] != (1, 1):
                raise ValueError(f"its output is {value.shape[:2]} places of an image, not one vector of logits")
            value = _flattened(value)
        if value.order is not None or not (value.steps and isinstance(value.steps[-1].layer, Dense)):
            n = value.shape[0]
            if n > _MAX_CLASSES:
                raise ValueError(f"{n} outputs that are not those of a dense layer")
            value = _dense(value, np.eye(n, dtype=np.float32), None)
        # A classifier's last layer is dense, with a bias.
        last = value.steps[-1]
        if isinstance(last.layer, Dense) and not last.layer.use_bias:
            last = _Step(replace(last.layer, use_bias=True), {**last.params, "bias": np.zeros(value.shape[0])})
            value = replace(value, steps=(*value.steps[:-1], last))
        layers = [step.layer for step in value.steps]
        return SavedModel(
            parameters={"layers": layers[:-1], "tta": tta},
            layers=layers,
            image_shape=self.image_shape,
            dtype="float32",
            classes=self._classes(value.shape[0]),
            offset=-value.shift / value.factor,
            scale=1 / value.factor,
            params={
                f"{i}.{name}": np.asarray(array, np.float32)
                for i, step in enumerate(value.steps)
                for name, array in step.params.items()
            },
        )

    def _classes(self, n: int) -> np.ndarray:
        for entry in self.model.metadata_props:
            if entry.key == "classes" and self.model.producer_name == PRODUCER:
                classes = np.array(json.loads(entry.value))
                if classes.shape != (n,) or not np.array_equal(np.unique(classes), classes):
                    raise ValueError(f"{entry.value[:80]} are not {n} sorted, different classes")
                return classes
        return np.arange(n)


# ---------------------------------------------------------------------------------------------- operators


def _constant(found: _Found, place: int, what: str) -> np.ndarray:
    if len(found) <= place or not isinstance(found[place], np.ndarray):
        raise ValueError(f"{what} is not a constant")
    return found[place]


def _image(value: _Value) -> _Value:
    if len(value.shape) != 3 or value.channels_last:
        raise ValueError("takes images with channels first")
    return value


def _window(value: _Value, attributes: _Attributes, size: Sequence[int]) -> dict[str, Any]:
    """Strides and padding, as layers have them."""
    if len(size) != 2:
        raise ValueError(f"a window of {len(size)} axes, not 2")
    stride = tuple(attributes.get("strides", (1, 1)))
    dilation = tuple(attributes.get("dilations", (1, 1)))
    automatic = attributes.get("auto_pad", b"NOTSET").decode()
    padding: Any = "same" if automatic == "SAME_UPPER" else "valid"
    if automatic == "NOTSET":
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        padding = ((top, bottom), (left, right))
    elif automatic not in ("SAME_UPPER", "VALID"):
        raise ValueError(f"auto_pad={automatic}")
    if attributes.get("ceil_mode", 0):
        sides = padding if automatic == "NOTSET" else ((0, 0), (0, 0))
        for n, k, s, d, (before, after) in zip(value.shape, size, stride, dilation, sides, strict=False):
            if (n + before + after - (k - 1) * d - 1) % s:
                raise ValueError("ceil_mode=1, and windows reach beyond the image")
    return {"stride": stride, "padding": padding, "dilation": dilation}


def _conv(found: _Found, attributes: _Attributes) -> _Value:
    x, weight = _image(found[0]), _constant(found, 1, "the weight")
    if weight.ndim != 4:
        raise ValueError(f"a weight of {weight.ndim} axes, not 4")
    groups = int(attributes.get("group", 1))
    where = _window(x, attributes, weight.shape[2:])
    params = {"weight": weight.transpose(2, 3, 1, 0)}
    if len(found) > 2:
        params["bias"] = _constant(found, 2, "the bias")
    size = tuple(int(n) for n in weight.shape[2:])
    return x.then(Conv2D(len(weight), size, groups=groups, use_bias=len(found) > 2, **where), **params)


def _pool(kind: type[MaxPool2D] | type[AvgPool2D]) -> Callable[[_Found, _Attributes], _Value]:
    def handler(found: _Found, attributes: _Attributes) -> _Value:
        x, size = _image(found[0]), tuple(attributes["kernel_shape"])
        where = _window(x, attributes, size)
        if where.pop("dilation") != (1, 1):
            raise ValueError("windows with gaps")
        if kind is AvgPool2D:
            where["count_include_pad"] = bool(attributes.get("count_include_pad", 0))
        return x.then(kind(size, **where))

    return handler


def _global(kind: type[MaxPool2D] | type[AvgPool2D]) -> Callable[[_Found, _Attributes], _Value]:
    return lambda found, attributes: (x := _image(found[0])).then(kind(x.shape[:2]))


def _flattened(x: _Value) -> _Value:
    h, w, c = x.shape
    order = None if x.channels_last else np.arange(h * w * c).reshape(h, w, c).transpose(2, 0, 1).ravel()
    if order is not None and np.array_equal(order, np.arange(order.size)):
        order = None
    return replace(x.then(Flatten()), order=order)


def _flatten(found: _Found, attributes: _Attributes) -> _Value:
    if attributes.get("axis", 1) != 1:
        raise ValueError(f"axis={attributes['axis']}")
    return _flattened(found[0]) if len(found[0].shape) == 3 else found[0]


def _reshape(found: _Found, attributes: _Attributes) -> _Value:
    x, shape = found[0], _constant(found, 1, "the shape").tolist()
    size = prod(x.shape)
    if len(shape) == 4 and len(x.shape) == 3 and shape[0] <= 1:
        h, w, c = x.shape
        orders = {True: [h, w, c], False: [c, h, w]}  # by whether channels are last
        if shape[1:] == orders[x.channels_last]:
            return x
        if shape[1:] == orders[not x.channels_last] and 1 in (c, h * w):  # no value moves
            return replace(x, channels_last=not x.channels_last)
    if len(shape) != 2 or shape[1] not in (-1, size) or (shape[0] > 1):
        raise ValueError(f"to {shape}, which is not one vector for each image")
    return _flattened(x) if len(x.shape) == 3 else x


def _squeeze(found: _Found, attributes: _Attributes) -> _Value:
    axes = attributes.get("axes") or _constant(found, 1, "axes").tolist()
    x = _image(found[0])
    if sorted(axis % 4 for axis in axes) != [2, 3] or x.shape[:2] != (1, 1):
        raise ValueError("of other axes than height and width")
    return _flattened(x)


def _mean(found: _Found, attributes: _Attributes) -> _Value:
    axes = attributes.get("axes") or _constant(found, 1, "axes").tolist()
    x = _image(found[0])
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        raise ValueError("over other axes than height and width")
    pooled = x.then(AvgPool2D(x.shape[:2]))
    return pooled if attributes.get("keepdims", 1) else _flattened(pooled)


def _transpose(found: _Found, attributes: _Attributes) -> _Value:
    x, axes = found[0], list(attributes["perm"])
    expected = [0, 3, 1, 2] if x.channels_last else [0, 2, 3, 1]
    if len(x.shape) != 3 or axes != expected:
        raise ValueError(f"perm={axes}")
    return replace(x, channels_last=not x.channels_last)


def _dense(x: _Value, weight: np.ndarray, bias: np.ndarray | None) -> _Value:
    if len(x.shape) != 1 or weight.ndim != 2:
        raise ValueError("takes vectors and a matrix")
    if len(weight) != x.shape[0]:
        raise ValueError(f"a matrix of {len(weight)} rows for vectors of {x.shape[0]}")
    if x.order is not None:
        ours = np.empty_like(weight)
        ours[x.order] = weight
        weight = ours
    params = {"weight": weight} | ({} if bias is None else {"bias": np.broadcast_to(bias, weight.shape[1:])})
    return replace(x.then(Dense(weight.shape[1], use_bias=bias is not None), **params), order=None)


def _gemm(found: _Found, attributes: _Attributes) -> _Value:
    if attributes.get("transA", 0):
        raise ValueError("transA=1")
    weight = _constant(found, 1, "the matrix") * np.float64(attributes.get("alpha", 1.0))
    bias = _constant(found, 2, "the bias") * np.float64(attributes.get("beta", 1.0)) if len(found) > 2 else None
    if bias is not None and bias.size not in (1, bias.shape[-1]):
        raise ValueError("a bias for each image")
    return _dense(found[0], weight.T if attributes.get("transB", 0) else weight, None if bias is None else bias.ravel())


def _matmul(found: _Found, attributes: _Attributes) -> _Value:
    return _dense(found[0], _constant(found, 1, "the matrix"), None)


def _batch_norm(found: _Found, attributes: _Attributes) -> _Value:
    if attributes.get("training_mode", 0):
        raise ValueError("training_mode=1")
    x: _Value = found[0]
    names = ("weight", "bias", "running_mean", "running_var")
    params = {name: _constant(found, i + 1, name) for i, name in enumerate(names)}
    if len(x.shape) == 3:
        _image(x)
    elif x.order is not None:
        params = {name: value[np.argsort(x.order)] for name, value in params.items()}
    return x.then(BatchNorm(epsilon=float(attributes.get("epsilon", 1e-5))), **params)


def _layer(make: Callable[[_Attributes], Layer]) -> Callable[[_Found, _Attributes], _Value]:
    return lambda found, attributes: found[0].then(make(attributes))


def _same(found: _Found, attributes: _Attributes) -> _Value:
    return found[0]


def _softmax(found: _Found, attributes: _Attributes) -> _Value:
    if len(found[0].shape) != 1 or attributes.get("axis", -1) not in (1, -1):
        raise ValueError("of other axes than the classes'")
    return replace(found[0], softmax=True)


def _sigmoid(found: _Found, attributes: _Attributes) -> _Value:
    return replace(found[0], sigmoid=True)


def _mirror(found: _Found, attributes: _Attributes) -> _Value:
    x: _Value = found[0]
    starts, ends, axes, steps = (_constant(found, i, "a slice").tolist() for i in (1, 2, 3, 4))
    width = 2 if x.channels_last else 3
    if x.steps or len(x.shape) != 3 or (axes, steps) != ([width], [-1]):
        raise ValueError("that is not a mirror image of the input")
    if starts[0] not in (-1, x.shape[1] - 1) or ends[0] > -x.shape[1] - 1:
        raise ValueError("of a part of the image")
    if x.view.down or x.view.right:
        raise ValueError("of an image that was moved")
    return replace(x, view=x.view._replace(mirrored=not x.view.mirrored))


def _pad(found: _Found, attributes: _Attributes) -> _Value:
    """What is added on one side and cut off on the other moves an image."""
    x: _Value = found[0]
    pads = np.array(attributes["pads"] if "pads" in attributes else _constant(found, 1, "the padding")).tolist()
    value = _constant(found, 2, "the value").item() if len(found) > 2 and found[2] is not None else 0
    places = (1, 2) if x.channels_last else (2, 3)
    constant = attributes.get("mode", b"constant") == b"constant" and not attributes.get("value")
    if x.steps or len(x.shape) != 3 or len(pads) != 8 or not constant or any(given is not None for given in found[3:]):
        raise ValueError("that does not move the input")
    (down, up), (right, left) = ((pads[place], pads[place + 4]) for place in places)
    if any(pads[place + side] for side in (0, 4) for place in range(4) if place not in places) or value:
        raise ValueError("that does not move the input")
    if (up, left) != (-down, -right) or x.shift.any() or x.view.down or x.view.right:
        raise ValueError("that does not move the input")
    return replace(x, view=x.view._replace(down=down, right=right))


def _two(found: _Found) -> tuple[_Value, Any]:
    """The value, and the constant or other value beside it."""
    a, b = found
    if b is None or a is None:
        raise ValueError("of what came before is not known")
    return (a, b) if isinstance(a, _Value) else (b, a)


def _of_channels(value: _Value, constant: np.ndarray) -> np.ndarray:
    """A constant as one number for each channel."""
    place = len(value.shape) if value.channels_last or len(value.shape) == 1 else 1
    n = value.shape[-1]
    whole = constant.reshape([1] * (len(value.shape) + 1 - constant.ndim) + list(constant.shape))
    if whole.size != whole.shape[place] or whole.size not in (1, n):
        raise ValueError(f"with an array of shape {constant.shape}, not a number for each channel")
    return np.broadcast_to(whole.ravel(), (n,)).astype(np.float64)


def _add(found: _Found, attributes: _Attributes, sign: float = 1.0) -> _Value:
    x, other = _two(found)
    if isinstance(other, _Value):
        if sign < 0:
            raise ValueError("of two tensors")
        return _sum_of_views(x, other) if x.softmax or other.softmax else _residual(x, other)
    value = sign * _of_channels(x, other)
    if not x.steps and len(x.shape) == 3:
        return replace(x, shift=x.shift + value)
    step = x.steps[-1]
    if isinstance(step.layer, Dense | Conv2D) and not step.layer.use_bias and not x.softmax:
        with_bias = _Step(replace(step.layer, use_bias=True), {**step.params, "bias": value})
        return replace(x, steps=(*x.steps[:-1], with_bias))
    raise ValueError("of a constant that is not a layer's bias")


def _sub(found: _Found, attributes: _Attributes) -> _Value:
    if not isinstance(found[0], _Value):
        raise ValueError("from a constant")
    return _add(found, attributes, -1.0)


def _mul(found: _Found, attributes: _Attributes) -> _Value:
    x, other = _two(found)
    if isinstance(other, _Value):
        if x.sigmoid != other.sigmoid and x.view == other.view and _same_chain(x, other):
            return (other if x.sigmoid else x).then(SiLU())
        raise ValueError("of two tensors")
    if x.softmax and other.size == 1:
        return replace(x, share=x.share * float(other.ravel()[0]))
    if x.steps or len(x.shape) != 3:
        raise ValueError("with a constant, after the first layer")
    value = _of_channels(x, other)
    if not (value.all() and np.isfinite(value).all()):
        raise ValueError(f"with {value}")
    return replace(x, factor=x.factor * value, shift=x.shift * value)


def _div(found: _Found, attributes: _Attributes) -> _Value:
    if not isinstance(found[0], _Value):
        raise ValueError("of a constant")
    divisor = _constant(found, 1, "the divisor").astype(np.float64)
    if not divisor.all():
        raise ValueError("by 0")
    return _mul([found[0], 1 / divisor], attributes)


def _same_input(x: _Value, other: _Value) -> bool:
    return np.array_equal(x.factor, other.factor) and np.array_equal(x.shift, other.shift)


def _same_chain(x: _Value, other: _Value) -> bool:
    same = len(x.steps) == len(other.steps) and all(a.same(b) for a, b in zip(x.steps, other.steps, strict=True))
    return same and _same_input(x, other)


def _sum_of_views(x: _Value, other: _Value) -> _Value:
    if not (x.softmax and other.softmax and x.share == other.share == 1 and _same_chain(x, other)):
        raise ValueError("of probabilities that are not those of views of one image")
    views = (x.views or (x.view,)) + (other.views or (other.view,))
    return replace(x, views=views)


def _residual(x: _Value, other: _Value) -> _Value:
    """What both chains start with, and then one beside the other."""
    if x.shape != other.shape or x.sigmoid or other.sigmoid:
        raise ValueError(f"of tensors of shapes {x.shape} and {other.shape}")
    if x.view != other.view or not _same_input(x, other):
        raise ValueError("of tensors that come from differently scaled, mirrored or moved images")
    if not np.array_equal(x.order, other.order):  # type: ignore[arg-type]
        raise ValueError("of vectors in different orders")
    common = 0
    while common < min(len(x.steps), len(other.steps)) and x.steps[common].same(other.steps[common]):
        common += 1
    long, short = sorted((x.steps[common:], other.steps[common:]), key=len, reverse=True)
    n_layers = 1 + sum(step.n_layers for step in (*long, *short))
    if n_layers > MAX_LAYERS:  # sums of sums double them
        raise ValueError(f"more than {MAX_LAYERS:,} layers within one another")
    params = {
        f"{part}.{i}.{name}": value
        for part, steps in (("layers", long), ("skip", short))
        for i, step in enumerate(steps)
        for name, value in step.params.items()
    }
    layer = Residual([step.layer for step in long], [step.layer for step in short])
    return replace(x, steps=(*x.steps[:common], _Step(layer, params, n_layers)))


_AFTER_SOFTMAX = {"Add", "Mul", "Identity", "Cast"}
_HANDLERS: dict[str, Callable[[_Found, _Attributes], _Value]] = {
    "Add": _add, "AveragePool": _pool(AvgPool2D), "BatchNormalization": _batch_norm, "Cast": _same, "Conv": _conv,
    "Div": _div, "Dropout": _same, "Elu": _layer(lambda a: ELU(float(a.get("alpha", 1.0)))), "Flatten": _flatten,
    "Gemm": _gemm, "GlobalAveragePool": _global(AvgPool2D), "GlobalMaxPool": _global(MaxPool2D), "Identity": _same,
    "LeakyRelu": _layer(lambda a: LeakyReLU(float(a.get("alpha", 0.01)))), "MatMul": _matmul,
    "MaxPool": _pool(MaxPool2D), "Mul": _mul, "Pad": _pad, "ReduceMean": _mean, "Relu": _layer(lambda a: ReLU()),
    "Reshape": _reshape, "Sigmoid": _sigmoid, "Slice": _mirror, "Softmax": _softmax, "Squeeze": _squeeze, "Sub": _sub,
    "Tanh": _layer(lambda a: Tanh()), "Transpose": _transpose,
}  # fmt: skip
