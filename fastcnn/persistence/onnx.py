"""A fitted network as an ONNX graph: from pixels, channels last, to labels and probabilities.

Scaling, mirrored and moved images and the softmax are part of the graph. ONNX has channels first: images are transposed
on their way in, and back where they are flattened, so that dense weights stay as they are. Numbers are float32.

The package `onnx` is needed: ``pip install onnx``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fastcnn import __version__
from fastcnn.engine.ops import ACTIVATIONS, Op
from fastcnn.persistence.files import replacing
from fastcnn.training.views import View

__all__ = ["OPSETS", "PRODUCER", "import_onnx", "write_onnx"]

PRODUCER = "fastcnn"
OPSETS = (13, 23)  # the oldest and the newest operator set that graphs are made for
_DEFAULT_OPSET = 17
_IR_VERSION = 8  # that of the default operator set; readers refuse a newer one than they know


def import_onnx() -> Any:
    """The package `onnx`; ImportError says how to get it."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError("ONNX files need the package onnx: pip install onnx") from error
    return onnx


@dataclass
class Chain:
    """What becomes a graph: a network's ops and parameters, and what is around them."""

    ops: Sequence[Op]
    params: Mapping[str, np.ndarray]
    image_shape: tuple[int, int, int]
    offset: np.ndarray
    scale: np.ndarray
    classes: np.ndarray
    views: Sequence[View]  # the mean of whose probabilities is taken


class _Graph:
    """Nodes and constants, with names that do not repeat."""

    def __init__(self) -> None:
        self.onnx = import_onnx()
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def add(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Append a node; the name of its output."""
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [output], name=f"{output}_node", **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """A constant array; one of a name is the same whoever asks for it."""
        if name not in self.constants:
            self.constants[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name


def write_onnx(
    path: str | os.PathLike[str],
    chain: Chain,
    opset: int | None = None,
    fold_batch_norm: bool = True,
    input_dtype: str = "float32",
) -> None:
    """Write `chain` to `path`: whole, or not at all.

    Raises
    ------
    ImportError
        Without the package `onnx`.
    ValueError
        If `opset` is not among those that graphs are made for.
    TypeError
        If the classes are neither numbers nor strings.
    OSError
        If the file cannot be written; an old file stays as it was.
    """
    onnx = import_onnx()
    opset = _DEFAULT_OPSET if opset is None else opset
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"opset must be from {OPSETS[0]} to {OPSETS[1]}, got {opset!r}")
    types = {"float32": onnx.TensorProto.FLOAT, "uint8": onnx.TensorProto.UINT8}
    if input_dtype not in types:
        raise ValueError(f'input_dtype must be "float32" or "uint8", got {input_dtype!r}')
    labels, label_type = _labels(chain.classes)

    g, make = _Graph(), onnx.helper.make_tensor_value_info
    images = "images" if input_dtype == "float32" else g.add("Cast", ["images"], to=onnx.TensorProto.FLOAT)
    offset = g.constant("input.offset", chain.offset.astype(np.float32))
    factor = g.constant("input.factor", (1 / chain.scale).astype(np.float32))
    name, one = "probabilities", len(chain.views) == 1
    total = ""
    for view in chain.views:
        seen = _seen(g, images, view)
        scaled = g.add("Transpose", [g.add("Mul", [g.add("Sub", [seen, offset]), factor])], perm=[0, 3, 1, 2])
        proba = _run(g, chain, scaled, fold_batch_norm, name if one else None)
        total = g.add("Add", [total, proba]) if total else proba
    if not one:
        g.add("Mul", [total, g.constant("share", np.array(1 / len(chain.views), np.float32))], name)
    best = g.add("ArgMax", [name], axis=1, keepdims=0)
    g.add("Gather", [g.constant("classes", labels), best], "label")

    graph = onnx.helper.make_graph(
        g.nodes,
        "fastcnn",
        [make("images", types[input_dtype], ["n", *chain.image_shape])],
        [make("label", label_type, ["n"]), make(name, onnx.TensorProto.FLOAT, ["n", len(labels)])],
        list(g.constants.values()),
    )
    model = onnx.helper.make_model(
        graph,
        producer_name=PRODUCER,
        producer_version=__version__,
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=max(_IR_VERSION, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])),
    )
    about = {"classes": chain.classes.tolist(), "image_shape": list(chain.image_shape)}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as file:
        file.write(model.SerializeToString())


def _labels(classes: np.ndarray) -> tuple[np.ndarray, Any]:
    """The classes as an ONNX tensor can hold them, and that tensor's type."""
    types = import_onnx().TensorProto
    if classes.dtype.kind in "biu" and (not classes.size or classes.max() <= np.iinfo(np.int64).max):
        return classes.astype(np.int64), types.INT64
    if classes.dtype.kind == "f":
        return classes.astype(np.float64), types.DOUBLE
    if all(isinstance(label, str) for label in classes.tolist()):
        return classes.astype(object), types.STRING
    raise TypeError(f"classes {classes!r} cannot be written: expected numbers or strings, whole numbers below 2**63")


def _seen(g: _Graph, images: str, view: View) -> str:
    """Images, with channels last, as in the view."""
    if view.mirrored:
        slices = {"starts": -1, "ends": np.iinfo(np.int64).min + 1, "axes": 2, "steps": -1}
        constants = [g.constant(f"mirror.{key}", np.array([value], np.int64)) for key, value in slices.items()]
        images = g.add("Slice", [images, *constants])
    if view.down or view.right:  # what is added on one side is cut off on the other
        before, after = [0, view.down, view.right, 0], [0, -view.down, -view.right, 0]
        pads = g.constant(f"move.{view.down}.{view.right}", np.array([*before, *after], np.int64))
        images = g.add("Pad", [images, pads])
    return images


def _run(g: _Graph, chain: Chain, x: str, fold: bool, output: str | None = None) -> str:
    """Nodes for all ops, applied to `x`; the name of the probabilities."""
    beside: list[str] = []  # what the branches of residual layers started from, or gave
    i = 0
    while i < len(chain.ops):
        op = chain.ops[i]
        match op.kind:
            case "conv2d" | "dense":
                affine = _Affine(chain, i, fold)
                x = affine.add(g, x)
                i += affine.n_ops
                continue
            case "bias":
                x = g.add("Add", [x, _channels(g, chain, op, "bias")])
            case "batchnorm":
                names = [_parameter(g, chain, op, name) for name in op.params]
                x = g.add("BatchNormalization", [x, *names], epsilon=op.epsilon)
            case "activation" | "smooth_activation":
                x = _activation(g, op, x)
            case "maxpool2d" | "avgpool2d":
                x = _pool(g, op, x)
            case "flatten":
                if len(op.in_shape) == 3 and min(prod(op.in_shape[:2]), op.in_shape[2]) > 1:
                    x = g.add("Transpose", [x], perm=[0, 2, 3, 1])
                x = g.add("Flatten", [x], axis=1)
            case "fork":
                beside.append(x)
            case "swap":
                beside[-1], x = x, beside[-1]
            case "join":
                x = g.add("Add", [x, beside.pop()])
            case "dropout" | "spatial_dropout":
                pass
            case _:
                raise ValueError(f"no ONNX operators for {op.kind}")
        i += 1
    return g.add("Softmax", [x], output, axis=1)


class _Affine:
    """A convolution or dense layer with the bias after it and, to be folded, the batch normalisation after that."""

    def __init__(self, chain: Chain, first: int, fold: bool) -> None:
        self.op = chain.ops[first]
        self.weight = chain.params[f"{self.op.layer}.weight"].astype(np.float64)
        self.bias = None
        self.n_ops = 1
        rest = [op.kind for op in chain.ops[first + 1 : first + 3]]
        if rest[:1] == ["bias"]:
            self.bias = chain.params[f"{chain.ops[first + 1].layer}.bias"].astype(np.float64)
            self.n_ops += 1
            rest.pop(0)
        if fold and rest[:1] == ["batchnorm"]:
            norm = chain.ops[first + self.n_ops]
            gamma, beta, mean, var = (chain.params[f"{norm.layer}.{n}"].astype(np.float64) for n in norm.params)
            scale = gamma / np.sqrt(var + norm.epsilon)
            self.weight = self.weight * scale
            self.bias = ((0 if self.bias is None else self.bias) - mean) * scale + beta
            self.n_ops += 1

    def add(self, g: _Graph, x: str) -> str:
        name = self.op.layer
        bias = [] if self.bias is None else [g.constant(f"{name}.bias", self.bias.astype(np.float32))]
        weight = self.weight.astype(np.float32)
        if self.op.kind == "dense":
            if not bias:
                return g.add("MatMul", [x, g.constant(f"{name}.weight", weight)])
            return g.add("Gemm", [x, g.constant(f"{name}.weight", weight), *bias])
        geometry: Any = self.op.geometry
        return g.add(
            "Conv",
            [x, g.constant(f"{name}.weight", weight.transpose(3, 2, 0, 1)), *bias],
            kernel_shape=[geometry.r, geometry.s],
            strides=[geometry.stride_h, geometry.stride_w],
            pads=[geometry.pad_top, geometry.pad_left, geometry.pad_bottom, geometry.pad_right],
            dilations=[geometry.dilation_h, geometry.dilation_w],
            group=geometry.groups,
        )


def _parameter(g: _Graph, chain: Chain, op: Op, name: str) -> str:
    return g.constant(f"{op.layer}.{name}", chain.params[f"{op.layer}.{name}"].astype(np.float32))


def _channels(g: _Graph, chain: Chain, op: Op, name: str) -> str:
    """A parameter of one value for each channel, to be added to images or to vectors."""
    value = chain.params[f"{op.layer}.{name}"].astype(np.float32)
    return g.constant(f"{op.layer}.{name}", value.reshape(-1, *[1] * (len(op.in_shape) - 1)))


def _activation(g: _Graph, op: Op, x: str) -> str:
    name, alpha = ACTIVATIONS[op.activation.code], op.activation.alpha
    match name:
        case "relu":
            return g.add("Relu", [x])
        case "tanh":
            return g.add("Tanh", [x])
        case "elu":
            return g.add("Elu", [x], alpha=alpha)
        case "leaky_relu":
            return g.add("LeakyRelu", [x], alpha=alpha)
        case "silu":
            return g.add("Mul", [x, g.add("Sigmoid", [x])])
        case _:
            raise ValueError(f"no ONNX operators for {name}")


def _pool(g: _Graph, op: Op, x: str) -> str:
    p: Any = op.geometry
    where: dict[str, Any] = {
        "kernel_shape": [p.r, p.s],
        "strides": [p.stride_h, p.stride_w],
        "pads": [p.pad_top, p.pad_left, p.pad_bottom, p.pad_right],
    }
    if op.kind == "maxpool2d":
        return g.add("MaxPool", [x], **where)
    return g.add("AveragePool", [x], **where, count_include_pad=int(p.count_include_pad))
