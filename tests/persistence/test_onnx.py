"""ONNX files: onnxruntime's answers are the classifier's, and graphs come back as layers."""

from __future__ import annotations

import copy
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from onnx import TensorProto, helper, numpy_helper

from fastcnn import CNNClassifier, layers
from fastcnn.layers import (
    ELU,
    AdaptiveMaxPool2D,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Residual,
    SiLU,
    SpatialDropout,
    Tanh,
)
from fastcnn.training.views import TTA

CHAINS = {
    "nothing but the last layer": [],
    "convolution": [Conv2D(4, (3, 2), stride=(2, 1), padding="same"), ReLU()],
    "padding of four sides, dilation": [Conv2D(3, 3, padding=((2, 0), (1, 3)), dilation=2, activation="tanh")],
    "groups": [Conv2D(6), Conv2D(6, groups=6, use_bias=False), Conv2D(4, 1, groups=2, activation="elu")],
    "activations": [Conv2D(4), ELU(0.7), Dense(6), LeakyReLU(0.2), Dense(5), SiLU(), Dense(4), Tanh()],
    "pooling": [Conv2D(4), MaxPool2D(3, 2, padding=1), AvgPool2D(2, 1, padding="same"), MaxPool2D(2)],
    "mean with the padding": [AvgPool2D(3, 2, padding=1, count_include_pad=True)],
    "pooling to a size": [Conv2D(4), AdaptiveMaxPool2D((2, 3))],
    "global mean": [Conv2D(4, activation="silu"), GlobalAvgPool2D(), Dense(6, use_bias=False, activation="relu")],
    "normalisation": [Conv2D(4, use_bias=False), BatchNorm(), ReLU(), MaxPool2D(), Conv2D(5), BatchNorm(epsilon=1e-5)],
    "normalisation of the input and of vectors": [BatchNorm(), Flatten(), BatchNorm(), Dense(5), ReLU(), BatchNorm()],
    "dropout": [SpatialDropout(0.3), Conv2D(4), Dropout(0.5), Dense(4), Dropout(0.2)],
    "residual": [Conv2D(4), Residual([Conv2D(4, use_bias=False), BatchNorm(), ReLU(), Conv2D(4)]), ReLU()],
    "residual with a projection, in another": [
        Residual([Conv2D(4), Residual([Conv2D(4), ReLU()])], skip=[Conv2D(4, 1, use_bias=False)]),
    ],
}  # fmt: skip


def test_every_layer_is_in_one_of_the_chains():
    def kinds(chain):
        return {
            k
            for layer in chain
            for k in {type(layer)} | kinds([*getattr(layer, "layers", ()), *getattr(layer, "skip", ())])
        }

    found = {kind.__name__ for kind in set().union(*map(kinds, CHAINS.values()))}
    assert found == set(layers.__all__) - {"Layer", "from_dict", "to_dict"}


def fitted(layers, shape=(7, 6, 2), classes=(0, 1, 2), **parameters):
    """A classifier with those layers, one epoch old, and normalisation that is not near the identity."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (30, *shape), np.uint8)
    y = np.asarray(classes)[np.arange(30) % len(classes)]
    clf = CNNClassifier(layers=layers, max_iter=1, batch_size=10, random_state=0, **parameters).fit(X, y)
    params = {
        name: value + np.abs(rng.normal(size=value.shape)) if "running" in name or value.ndim == 1 else value
        for name, value in clf.network_.params.items()
    }
    clf.network_.load_params(params)
    return clf, X


def answers(path, X):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    label, proba = session.run(["label", "probabilities"], {"images": X})
    return label, proba


@pytest.mark.parametrize("opset", [13, None, 23])
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_onnxruntime_gives_the_same_probabilities(name, fold, opset, tmp_path):
    clf, X = fitted(CHAINS[name])
    clf.to_onnx(tmp_path / "model.onnx", opset=opset, fold_batch_norm=fold)
    label, proba = answers(tmp_path / "model.onnx", X.astype(np.float32))
    expected = clf.predict_proba(X)
    assert_allclose(proba, expected, atol=1e-5)
    assert_array_equal(label, proba.argmax(axis=1))
    assert len({tuple(row) for row in expected.round(3).tolist()}) > 5  # or any graph would do
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert not (fold and name in ("normalisation", "residual") and "BatchNormalization" in kinds)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("fold", [True, False])
def test_graphs_come_back(name, fold, tmp_path):
    clf, X = fitted(CHAINS[name], classes=(3, 5, 9))
    clf.to_onnx(tmp_path / "model.onnx", fold_batch_norm=fold)
    twin = CNNClassifier.from_onnx(tmp_path / "model.onnx")
    assert_allclose(twin.predict_proba(X), clf.predict_proba(X), atol=1e-5)
    assert_array_equal(twin.classes_, clf.classes_)
    assert twin.image_shape_ == clf.image_shape_
    twin.set_params(max_iter=1).fit(X, np.arange(30) % 2)  # its layers train


@pytest.mark.parametrize("tta", TTA)
def test_the_mean_over_views(tmp_path, tta):
    clf, X = fitted(CHAINS["convolution"], tta=tta)
    clf.to_onnx(tmp_path / "model.onnx")
    _, proba = answers(tmp_path / "model.onnx", X.astype(np.float32))
    assert_allclose(proba, clf.predict_proba(X, tta=tta), atol=1e-5)
    assert np.abs(proba - clf.predict_proba(X, tta=False)).max() > 1e-3
    twin = CNNClassifier.from_onnx(tmp_path / "model.onnx")
    assert twin.tta == tta
    assert_allclose(twin.predict_proba(X), proba, atol=1e-5)


def node_of(model, kind, place=0):
    return [node for node in model.graph.node if node.op_type == kind][place]


def set_constant(model, node, place, values):
    """Give `node` another constant in the place of an input."""
    name = f"{node.name}.{place}"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    node.input.extend([""] * (place + 1 - len(node.input)))
    node.input[place] = name


def moved_by(*pads):
    return lambda model: set_constant(model, node_of(model, "Pad"), 1, np.array(pads, np.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved_by(0, -1, 0, 0, 0, 0, 0, 0), "does not move"),  # it shrinks
        (moved_by(1, -1, 0, 0, -1, 1, 0, 0), "does not move"),  # along the batch
        (moved_by(0, -2, 0, 0, 0, 2, 0, 0), "views of an image"),  # by two pixels
        (lambda m: set_constant(m, node_of(m, "Pad"), 2, np.float32(3)), "does not move"),  # uncovered is not 0
        (lambda m: set_constant(m, node_of(m, "Pad"), 3, np.arange(4)), "does not move"),  # axes are named
        (lambda m: node_of(m, "Pad").attribute.append(helper.make_attribute("mode", "edge")), "does not move"),
        (lambda m: set_constant(m, node_of(m, "Sub", 1), 1, np.float32(9)), "views of one image"),  # scaled otherwise
        (lambda m: set_constant(m, node_of(m, "Mul", -1), 1, np.float32(0.3)), "views of an image"),  # not the mean
    ],
)
def test_views_that_are_not_ours_are_refused(tmp_path, change, message):
    clf, _ = fitted(CHAINS["convolution"], tta="shift")
    clf.to_onnx(tmp_path / "model.onnx", opset=18)
    CNNClassifier.from_onnx(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    change(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=message):
        CNNClassifier.from_onnx(tmp_path / "model.onnx")


def test_mirror_images_of_scaled_images_are_read_too(tmp_path):
    """As this package wrote them first: mirrored after scaling, channels first."""
    clf, X = fitted(CHAINS["convolution"], tta="flip")
    clf.to_onnx(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    mirror = node_of(model, "Slice")
    after = model.graph.node[list(model.graph.node).index(mirror) + 3]  # Sub, Mul
    assert after.op_type == "Transpose"
    node_of(model, "Sub", 1).input[0] = mirror.input[0]
    for node in model.graph.node:
        node.input[:] = [mirror.output[0] if name == after.output[0] else name for name in node.input]
    mirror.input[0] = after.output[0]
    set_constant(model, mirror, 3, np.array([3]))
    nodes = [node for node in model.graph.node if node is not mirror]
    nodes.insert(nodes.index(after) + 1, mirror)
    nodes = [copy.deepcopy(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "model.onnx")
    twin = CNNClassifier.from_onnx(tmp_path / "model.onnx")
    assert twin.tta == "flip"
    assert_allclose(twin.predict_proba(X), clf.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(("bag", "ü shoe"), object), ((True, False), np.int64), ((1.0, 2.0), np.float64), ((-3, 7), np.int64)],
)
def test_labels(classes, dtype, tmp_path):
    clf, X = fitted([Conv2D(3)], shape=(5, 5), classes=classes)
    clf.to_onnx(tmp_path / "model.onnx", input_dtype="uint8")
    label, _ = answers(tmp_path / "model.onnx", X[..., None])
    assert label.dtype == dtype
    assert_array_equal(label, clf.predict(X))
    assert_array_equal(CNNClassifier.from_onnx(tmp_path / "model.onnx").predict(X), clf.predict(X))


def test_float64_becomes_float32(tmp_path):
    clf, X = fitted(CHAINS["normalisation"], dtype="float64")
    clf.to_onnx(tmp_path / "model.onnx")
    _, proba = answers(tmp_path / "model.onnx", X.astype(np.float32))
    assert proba.dtype == np.float32
    assert_allclose(proba, clf.predict_proba(X), atol=1e-5)


def test_what_cannot_be_written(tmp_path, monkeypatch):
    clf, _ = fitted([])
    old = tmp_path / "old.onnx"
    old.write_bytes(b"old")
    for arguments, message in (
        ({"opset": 12}, "opset must be from 13 to 23, got 12"),
        ({"input_dtype": "int8"}, 'input_dtype must be "float32" or "uint8"'),
    ):
        with pytest.raises(ValueError, match=message):
            clf.to_onnx(old, **arguments)
    with pytest.raises(OSError):
        clf.to_onnx(tmp_path / "no" / "folder.onnx")
    dates, _ = fitted([], classes=np.array(["2020-01-01", "2021-01-01"], "datetime64[D]"))
    large, _ = fitted([], classes=np.array([1, 2**63], np.uint64))
    for clf_of_others in (dates, large):
        with pytest.raises(TypeError, match="cannot be written: expected numbers or strings"):
            clf_of_others.to_onnx(old)
    monkeypatch.setitem(sys.modules, "onnx", None)
    for call in (clf.to_onnx, CNNClassifier.from_onnx):
        with pytest.raises(ImportError, match="pip install onnx"):
            call(old)
    assert old.read_bytes() == b"old" and list(tmp_path.iterdir()) == [old]


# ------------------------------------------------------------------------------------- graphs of others


def graph(path, nodes, arrays, shape=(3, 8, 6), inputs=("x",), output="y", classes=4):
    """A model as PyTorch writes them: channels first, logits."""
    rng = np.random.default_rng(1)
    constants = [
        numpy_helper.from_array(rng.normal(size=a).astype(np.float32) if isinstance(a, tuple) else a, name)
        for name, a in arrays.items()
    ]
    info = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node(kind, names.split(), [out], **kw) for kind, names, out, kw in nodes],
        "g",
        [info(name, TensorProto.FLOAT, ["n", *shape]) for name in inputs],
        [info(output, TensorProto.FLOAT, ["n", classes])],
        constants,
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


CONV = ("Conv", "x w b", "c", {"pads": [1, 1, 1, 1], "strides": [2, 1], "kernel_shape": [3, 3]})
WEIGHTS = {"w": (5, 3, 3, 3), "b": (5,), "m": (4, 120), "d": (4,)}
OTHERS = {
    "flattened with channels first": [
        CONV, ("Relu", "c", "r", {}), ("Flatten", "r", "f", {}), ("Gemm", "f m d", "y", {"transB": 1}),
    ],
    "normalised vectors": [
        CONV, ("Reshape", "c shape", "f", {}), ("BatchNormalization", "f g s u v", "h", {}),
        ("MatMul", "h mt", "z", {}), ("Add", "z d", "y", {}),
    ],
    "scaled input, global mean": [
        ("Sub", "x mean", "x1", {}), ("Div", "x1 two", "x2", {}), ("Conv", "x2 w b", "c", {"auto_pad": "SAME_UPPER"}),
        ("Sigmoid", "c", "e", {}), ("Mul", "c e", "a", {}), ("GlobalAveragePool", "a", "p", {}),
        ("Flatten", "p", "f", {}), ("Gemm", "f m5 d", "y", {"alpha": 0.5, "beta": 2.0}),
    ],
    "constants at one remove": [
        ("Identity", "b", "b1", {}), ("Transpose", "m", "m1", {"perm": [1, 0]}), ("Conv", "x w b1", "c", CONV[3]),
        ("Flatten", "c", "f", {}), ("Gemm", "f m1 d", "y", {}),
    ],
    "ends in a pooling": [
        ("Conv", "x w4 d", "c", {}), ("MaxPool", "c", "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("ReduceMean", "p", "y", {"axes": [2, 3], "keepdims": 0}),
    ],
    "two branches": [
        CONV, ("Relu", "c", "r", {}), ("Conv", "r w5", "p", {"pads": [1, 1, 1, 1]}), ("Conv", "r w1 b", "q", {}),
        ("Add", "q p", "a", {}), ("Dropout", "a", "o", {}), ("Flatten", "o", "f", {}),
        ("Gemm", "f m d", "l", {"transB": 1}), ("Softmax", "l", "y", {}),
    ],
}  # fmt: skip
ARRAYS = WEIGHTS | {
    "shape": np.array([0, -1]), "g": (120,), "s": (120,), "u": (120,), "v": np.arange(1, 121, dtype=np.float32),
    "mt": (120, 4), "mean": np.array([0.5, -1, 2], np.float32).reshape(3, 1, 1), "two": np.array(2, np.float32),
    "m5": (5, 4), "mh": (144, 4), "k4": (144, 4), "w4": (4, 3, 3, 3), "w2": (2, 3, 3, 3),
    "w5": (5, 5, 3, 3), "w1": (5, 5, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_graphs_of_other_programs(name, tmp_path):
    used = {n for _, names, _, _ in OTHERS[name] for n in names.split()}
    path = graph(tmp_path / "model.onnx", OTHERS[name], {k: v for k, v in ARRAYS.items() if k in used})
    x = np.random.default_rng(2).normal(size=(6, 3, 8, 6)).astype(np.float32)
    (y,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})
    clf = CNNClassifier.from_onnx(path)
    proba = clf.predict_proba(x.transpose(0, 2, 3, 1).copy())
    assert_allclose(proba, y if name == "two branches" else softmax(y), atol=1e-5)
    assert_array_equal(clf.classes_, range(4))
    before = clf.n_iter_
    clf.set_params(warm_start=True, max_iter=1, n_iter_no_change=np.inf, callbacks=None)
    assert clf.fit(x.transpose(0, 2, 3, 1), [0, 1, 2, 3, 0, 1]).n_iter_ == before + 1


def constant(name, **value):
    return helper.make_node("Constant", [], [name], **value)


def test_maps_of_many_channels_are_channels_first(tmp_path):
    for nodes, arrays in (
        ([("Flatten", "x", "f", {}), ("MatMul", "f big", "y", {})], {"big": (96, 4)}),
        (
            [("GlobalAveragePool", "x", "p", {}), ("Flatten", "p", "f", {}), ("MatMul", "f small", "y", {})],
            {"small": (12, 4)},
        ),
    ):
        path = graph(tmp_path / "model.onnx", nodes, arrays, (12, 4, 2))
        x = np.random.default_rng(2).normal(size=(5, 12, 4, 2)).astype(np.float32)
        (y,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})
        clf = CNNClassifier.from_onnx(path)
        assert clf.image_shape_ == (4, 2, 12)
        assert_allclose(clf.predict_proba(x.transpose(0, 2, 3, 1).copy()), softmax(y), atol=1e-5)


KERAS = {  # name: shape of the input, nodes, and how the graph is to be asked
    "dense layers": ((8, 6, 1), [("Flatten", "x", "f", {}), ("MatMul", "f k48", "y", {})]),
    "dense layers of small images": ((4, 12, 1), [("Flatten", "x", "f", {}), ("MatMul", "f k48", "y", {})]),
    "dense layers, by a constant": ((8, 6, 1), [("Reshape", "x flat", "f", {}), ("MatMul", "f k48", "y", {})]),
    "dense layers, channels first": ((1, 8, 6), [("Flatten", "x", "f", {}), ("MatMul", "f k48", "y", {})]),
    "a transpose in another form": (
        (8, 6, 1),
        [
            ("Reshape", "x first", "i", {}), ("Conv", "i w1", "c", {}), ("Transpose", "c", "l", {"perm": [0, 2, 3, 1]}),
            ("Reshape", "l flat", "f", {}), ("MatMul", "f k48", "y", {}),
        ],
    ),
    "there and back": (
        (8, 6, 1),
        [
            ("Reshape", "x first", "i", {}), ("Relu", "i", "r", {}), ("Reshape", "r last", "l", {}),
            ("Reshape", "l last", "m", {}), ("Reshape", "m flat", "f", {}), ("MatMul", "f k48", "y", {}),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KERAS)
def test_graphs_of_grey_images(name, tmp_path):
    shape, nodes = KERAS[name]
    arrays = {"k48": (48, 4), "w1": (1, 1, 1, 1)}
    used = {n for _, names, _, _ in nodes for n in names.split()}
    path = graph(tmp_path / "model.onnx", nodes, {k: v for k, v in arrays.items() if k in used}, shape)
    model = onnx.load(path)
    values = {"flat": [-1, 48], "first": [-1, 1, 8, 6], "last": [-1, 8, 6, 1]}
    for at, (key, value) in enumerate((k, v) for k, v in values.items() if k in used):
        model.graph.node.insert(at, constant(key, value_ints=value))
    onnx.save(model, path)
    size = max(shape, shape[1:] + shape[:1], key=lambda s: s[2] == 1)
    x = np.random.default_rng(2).normal(size=(5, *size)).astype(np.float32)
    (y,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        ["y"], {"x": x.reshape(-1, *shape)}
    )
    clf = CNNClassifier.from_onnx(path)
    assert clf.image_shape_ == size
    assert_allclose(clf.predict_proba(x), softmax(y), atol=1e-5)


def test_constants_that_are_no_numbers(tmp_path):
    path = graph(tmp_path / "model.onnx", [("Flatten", "x", "f", {}), ("MatMul", "f mh", "y", {})], {"mh": (144, 4)})
    model = onnx.load(path)
    model.graph.node.insert(0, constant("s", value_string="text"))
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"the operator Constant \(s\) with value_string"):
        CNNClassifier.from_onnx(path)


TWO_HEADS = [("Flatten", "x", "f", {}), ("MatMul", "f mh", "l", {}), ("MatMul", "f k4", "k", {})]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([CONV, ("Relu", "c", "r", {})], r"its output is \(\d+, \d+\) places of an image"),
        ([CONV, ("HardSwish", "c", "h", {})], "no layer does what the operator HardSwish does"),
        ([CONV, ("Sigmoid", "c", "e", {}), ("Flatten", "e", "f", {})], "sigmoid"),
        ([("MaxPool", "x", "p", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1})], "MaxPool.*ceil_mode=1"),
        ([("Conv", "x w b", "c", {"auto_pad": "SAME_LOWER"})], "auto_pad=SAME_LOWER"),
        ([("Conv", "x x", "c", {})], "the weight is not a constant"),
        ([CONV, ("Mul", "c two", "t", {})], "Mul.*with a constant, after the first layer"),
        ([("Div", "x zero", "t", {})], "Div.*by 0"),
        ([CONV, ("Transpose", "c", "t", {"perm": [1, 0, 2, 3]})], r"perm=\[1, 0, 2, 3\]"),
        ([CONV, ("Flatten", "c", "f", {"axis": 2})], "axis=2"),
        ([("Conv", "x w b", "c", {"pads": [0, 0, 40_000, 40_000]})], "more than 67108864 values for each image"),
        ([("Flatten", "x", "f", {}), ("Gemm", "f wide", "e", {}), ("Relu", "e", "r", {})], "4097 outputs"),
        ([CONV, ("Reshape", "c bad", "f", {})], r"Reshape.*to \[2, -1\]"),
        ([CONV, ("Conv", "x w b", "e", {}), ("Add", "c e", "a", {})], "Add.*of tensors of shapes"),
        ([("Flatten", "x", "f", {}), ("Gemm", "f m d", "e", {"transB": 1})], "a matrix of 120 rows for vectors of 144"),
        (
            [*TWO_HEADS, ("Softmax", "k", "so", {}), ("Add", "l so", "y", {})],
            "Add.*of probabilities that are not those of views",
        ),
        (
            [
                ("Conv", "x w4 d", "c", {}),
                ("MaxPool", "c", "p", {"kernel_shape": [3, 2], "strides": [3, 2]}),
                ("Conv", "x w2", "e", {}),
                ("MaxPool", "e", "q", {"kernel_shape": [3, 1], "strides": [3, 1]}),
                ("Flatten", "p", "f", {}),
                ("Flatten", "q", "o", {}),
                ("Add", "f o", "y", {}),
            ],
            "Add.*of vectors in different orders",
        ),
    ],
)
def test_graphs_that_no_layers_express(nodes, message, tmp_path):
    last = nodes[-1][2]
    arrays = ARRAYS | {"zero": np.zeros(1, np.float32), "bad": np.array([2, -1]), "wide": (144, 4097)}
    path = graph(tmp_path / "model.onnx", nodes, arrays, output=last)
    with pytest.raises(ValueError, match=rf"model\.onnx: not a network that can be read: .*{message}"):
        CNNClassifier.from_onnx(path)


def test_sums_of_sums_do_not_fill_the_memory(tmp_path):
    """Each of which doubles the layers."""
    nodes = [("Flatten", "x", "f", {}), ("Relu", "f", "a0", {}), ("Tanh", "f", "b0", {})]
    for i in range(40):
        nodes += [("Add", f"a{i} b{i}", f"a{i + 1}", {}), ("Add", f"b{i} a{i}", f"b{i + 1}", {})]
    path = graph(tmp_path / "model.onnx", nodes, ARRAYS, output="a40")
    with pytest.raises(ValueError, match="more than 10,000 layers within one another"):
        CNNClassifier.from_onnx(path)


def test_several_outputs(tmp_path):
    """Logits and their softmax are one network's; two heads are not."""
    for end, works in ((("Softmax", "l", "y", {}), True), (("Softmax", "k", "y", {}), False)):
        used = {n for _, names, _, _ in [*TWO_HEADS, end] for n in names.split()}
        arrays = {k: v for k, v in ARRAYS.items() if k in used}
        path = graph(tmp_path / "model.onnx", [*TWO_HEADS, end], arrays)
        model = onnx.load(path)
        model.graph.output.append(helper.make_tensor_value_info("l", TensorProto.FLOAT, ["n", 4]))
        onnx.save(model, path)
        if works:
            assert CNNClassifier.from_onnx(path).network_.n_params == 145 * 4
        else:
            with pytest.raises(ValueError, match="several outputs that are not one network's logits"):
                CNNClassifier.from_onnx(path)


def test_files_that_are_not_read(tmp_path):
    path = tmp_path / "model.onnx"
    for content in (b"", b"PNG", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.onnx: not a"):
            CNNClassifier.from_onnx(path)
    with pytest.raises(FileNotFoundError):
        CNNClassifier.from_onnx(tmp_path / "nothing.onnx")
    graph(path, [CONV], {"w": WEIGHTS["w"], "b": WEIGHTS["b"]}, output="c")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(ValueError, match=r"model\.onnx: not a"):
        CNNClassifier.from_onnx(path)
    graph(path, [("Add", "x z", "y", {})], {}, inputs=("x", "z"))
    with pytest.raises(ValueError, match="the graph has 2 inputs"):
        CNNClassifier.from_onnx(path)


@pytest.mark.parametrize("metadata", ['["a"]', "[2, 1, 0, 5]", "{}", "[[1], [2], [3], [4]]", "nonsense"])
def test_classes_that_are_none(metadata, tmp_path):
    path = graph(tmp_path / "model.onnx", OTHERS["ends in a pooling"], {k: ARRAYS[k] for k in ("w4", "d")})
    model = onnx.load(path)
    helper.set_model_props(model, {"classes": metadata})
    onnx.save(model, path)
    assert_array_equal(CNNClassifier.from_onnx(path).classes_, range(4))  # another program's, whatever they mean
    model.producer_name = "fastcnn"
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"model\.onnx: not a network that can be read"):
        CNNClassifier.from_onnx(path)
