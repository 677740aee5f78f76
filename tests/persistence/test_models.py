"""Models in files: what comes back, and files that are damaged, foreign or hostile."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from sklearn.datasets import load_digits

import fastcnn.persistence.files as module
from fastcnn.classifier import CNNClassifier
from fastcnn.layers import AvgPool2D, Conv2D, Dense, GlobalAvgPool2D, Layer, MaxPool2D, Residual
from fastcnn.persistence import models
from fastcnn.persistence.labels import labels_from_json, labels_to_json
from fastcnn.persistence.values import decode, encode
from fastcnn.training.augment import RandomErasing, RandomShift


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return data.images[:200].astype(np.uint8), data.target[:200]


def small(**parameters):
    common = {"conv_channels": (4,), "dense_units": (8,), "batch_size": 32, "max_iter": 2, "random_state": 0}
    return CNNClassifier(**(common | parameters))


@pytest.fixture(scope="module")
def saved(digits, tmp_path_factory):
    """A fitted classifier and the bytes of its file."""
    clf = small().fit(*digits)
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    clf.save(path)
    return clf, path.read_bytes()


def parts(content):
    """The safetensors header, fastcnn's own header, the tensors' bytes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["fastcnn"]), content[8 + length :]


def joined(header, own, data):
    header["__metadata__"]["fastcnn"] = json.dumps(own)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def load(content, tmp_path):
    path = tmp_path / "loaded.safetensors"
    path.write_bytes(content)
    return CNNClassifier.load(path)


# ------------------------------------------------------------------------------------ what comes back


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"batch_norm": True, "scale": "unit"},
        {"dtype": "float64"},
        {
            "layers": [Conv2D(4, (3, 1), padding=((1, 0), (0, 2))), MaxPool2D(), GlobalAvgPool2D()],
            "scale": None,
        },
        {
            "augment": [RandomShift((1, 2)), RandomErasing()],
            "n_iter_no_change": np.inf,
            "image_shape": [8, 8],
        },
        {
            "class_weight": {i: 1.5 for i in range(10)},
            "conv_channels": np.array([4]),
            "dropout": np.float32(0.25),
        },
    ],
)
def test_same_bits(parameters, digits, tmp_path):
    X, y = digits
    clf = small(**parameters).fit(X, y, X_val=X[:50], y_val=y[:50])
    clf.save(tmp_path / "model.safetensors")
    loaded = CNNClassifier.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    assert repr(loaded.get_params()).replace("[4]", "array([4])") == repr(clf.get_params()).replace(
        "np.float32(0.25)", "0.25"
    )
    for name, value in vars(clf).items():
        if name.endswith("_") and name != "network_":
            np.testing.assert_array_equal(getattr(loaded, name), value)
    assert loaded._history == clf._history


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["no", "yes"]),
        np.array(["no", "yes"], dtype=object),
        np.array([False, True]),
        np.array([-1.0, 2.0]),
        np.array([0, 1], dtype=np.float32),
        np.array([3, 2**63], dtype=np.uint64),
        np.array([-7, 7], dtype=np.int8),
        np.array(["é\n\0x", "日本"]),
        np.array(["2020-02-29", "2021-01-01"], dtype="datetime64[D]"),
        np.array(["2020-02-29T00:00:00.5", "2021-01-01"], dtype="datetime64[ns]"),
        np.array([-5, 7], dtype="timedelta64[s]"),
        pd.Series(["no", "yes"], dtype="string").to_numpy(),
    ],
)
def test_labels_come_back(labels, digits, tmp_path):
    X, y = digits
    clf = small(max_iter=1).fit(X, labels[y % 2])
    clf.save(tmp_path / "model.safetensors")
    loaded = CNNClassifier.load(tmp_path / "model.safetensors")
    assert loaded.classes_.dtype == clf.classes_.dtype
    np.testing.assert_array_equal(loaded.predict(X), clf.predict(X))


@pytest.mark.parametrize(
    "classes",
    [
        np.array([b"a", b"\xff"]),
        np.array([b"a", b"\xff"], dtype=object),
        np.array([1, 2.5, 7], dtype=object),
        np.array([-np.inf, 0.5, np.inf]),
    ],
)
def test_labels_that_scikit_learn_does_not_train_on(classes):
    again = labels_from_json(json.loads(json.dumps(labels_to_json(classes), allow_nan=False)))
    assert again.dtype == classes.dtype
    np.testing.assert_array_equal(again, classes)


@pytest.mark.parametrize("classes", [np.array([1j, 2j]), np.array([{}, []], dtype=object), np.array([None, 1])])
def test_labels_that_cannot_be_stored(classes):
    with pytest.raises(TypeError, match="cannot be stored"):
        labels_to_json(classes)


def test_feature_names_come_back(digits, tmp_path):
    frame = pd.DataFrame(digits[0].reshape(-1, 64), columns=[f"pixel{i}" for i in range(64)])
    small().fit(frame, digits[1]).save(tmp_path / "model.safetensors")
    loaded = CNNClassifier.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.feature_names_in_, frame.columns)
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(frame[frame.columns[::-1]])


def test_training_goes_on(saved, digits, tmp_path):
    clf = load(saved[1], tmp_path)
    loss = clf.loss_
    clf.partial_fit(*digits)
    assert clf.n_iter_ == 3
    assert clf.loss_ < loss


def test_what_is_no_value_is_left_out(digits, tmp_path):
    other = np.random.RandomState(np.random.PCG64(0))
    clf = small(callbacks=[object()], scoring=lambda clf, X, y: 0.0, random_state=other)
    clf.fit(*digits)
    with pytest.warns(UserWarning) as warned:
        clf.save(tmp_path / "model.safetensors")
    assert {str(w.message).split()[0] for w in warned} == {"random_state", "callbacks", "scoring"}
    loaded = CNNClassifier.load(tmp_path / "model.safetensors")
    assert (loaded.callbacks, loaded.scoring, loaded.random_state) == (None, None, None)


def test_other_programs_can_read_it(saved, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(saved[1])
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("network.0.weight"), saved[0].network_.params["0.weight"])
        assert json.loads(file.metadata()["fastcnn"])["image_shape"] == [8, 8, 1]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2.5,
        "text",
        [1, (2, [3.0])],
        {1: "a", "b": (2,), None: []},
        -np.inf,
        b"\0\xff",
        {np.datetime64("2020-02-29"): 1.5, np.timedelta64(3, "s"): 2},
        Dense(3),
        RandomShift((1, 2)),
    ],
)
def test_values(value):
    again = decode(json.loads(json.dumps(encode(value), allow_nan=False)))
    assert again == value
    assert type(again) is type(value)


def test_streams_of_random_numbers():
    stream = np.random.RandomState(4)
    stream.normal()  # one more is waiting
    again = decode(json.loads(json.dumps(encode(stream), allow_nan=False)))
    assert again.normal() == stream.normal() and again.randint(2**31) == stream.randint(2**31)


def test_paths_become_strings(tmp_path):
    assert encode(tmp_path) == str(tmp_path)


# ------------------------------------------------------------------------------------------- writing


class Mine(Layer):
    def lower(self, in_shape):
        return Dense(3).lower(in_shape)


@pytest.mark.parametrize("name", ["layers", "class_weight"])
def test_what_cannot_be_stored_is_named(name, digits, tmp_path):
    clf = small().fit(*digits).set_params(**{name: [Mine()] if name == "layers" else {0: object()}})
    with pytest.raises(TypeError, match=f"parameter {name} cannot be stored"):
        clf.save(tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        saved[0].save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_write_over_and_through_a_link(saved, tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "model.safetensors", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    saved[0].save(link)
    assert link.is_symlink()
    assert target.read_bytes() == saved[1]


def test_missing_folder(saved, tmp_path):
    with pytest.raises(FileNotFoundError):
        saved[0].save(tmp_path / "nowhere" / "model.safetensors")


# --------------------------------------------------------------------------------------- what is no model


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        CNNClassifier.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        CNNClassifier.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut off"),
        (b"1234567", "cut off"),
        (b"\xff" * 64, "no safetensors file"),
        ((2).to_bytes(8, "little") + b"{}", "none of fastcnn's"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        ((4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc", "not a model"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "not a model"),
    ],
)
def test_foreign_files(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(content, tmp_path)


def test_every_cut_is_noticed(saved, tmp_path):
    content = saved[1]
    for length in [*range(0, len(content), 97), len(content) - 1]:
        with pytest.raises(ValueError, match=r"loaded\.safetensors: "):
            load(content[:length], tmp_path)
    with pytest.raises(ValueError, match="something was added"):
        load(content + b"\0", tmp_path)


RELUS = [{"dict": [["layer", "ReLU"]]}] * 10_000


def _set(*keys, value):
    def change(header, own):
        target = own if keys[0] in own else header
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format_version", value=3), "reads formats 1 to 2"),
        (_set("image_shape", value=[8, 8]), "image_shape"),
        (_set("image_shape", value=[8, 8, 10**12]), "image_shape"),
        (_set("image_shape", value=[16, 16, 1]), "'network.4.weight'"),
        (_set("image_shape", value=[2**20, 2**20, 1]), "more than 67,108,864 values"),
        (_set("dtype", value="float64"), "'network.0.weight'"),
        (_set("dtype", value="complex128"), "dtype"),
        (_set("layers", value=[]), "end in shape"),
        (_set("layers", value={}), "layers must be"),
        (_set("layers", value=["Dense"]), "no layer"),
        (_set("layers", 0, "spec", "layer", value="Exec"), "unknown layer 'Exec'"),
        (_set("layers", 0, "spec", "filters", value=10**15), "max_parameters=67,108,864 parameters in layers 0 to 0"),
        (_set("layers", 0, "spec", "filters", value=[1]), "filters"),
        (
            _set("layers", 0, value={"spec": {"layer": "AvgPool2D", "pool_size": 1, "padding": 0, "stride": 0}}),
            "stride",
        ),
        (_set("layers", 0, value={"spec": {"layer": "ReLU", "alpha": 2}}), "no field 'alpha'"),
        (_set("layers", value=[{"spec": {"layer": "ReLU"}}] * 10_001), "10001 layers, more than 10000"),
        (
            _set(
                "layers", 0, value={"spec": {"layer": "Residual", "layers": [{"dict": [["layer", "ReLU"]]}] * 10_000}}
            ),
            "10008 layers, more than 10000",
        ),
        (_set("layers", 0, "spec", "shell", value="ls"), "no field 'shell'"),
        (_set("layers", 0, value={"python": "os.system"}), "'python' is not a kind of stored value"),
        (_set("layers", 0, value={"spec": 3}), "not a stored value"),
        (_set("parameters", "shell", value="ls"), "no parameter 'shell'"),
        (_set("parameters", "dropout", value="high"), "'dropout' parameter"),
        (_set("parameters", "dropout", value={"float": "a"}), "could not convert"),
        (
            _set("parameters", "augment", value=[{"augmentation": {"name": "os.system"}}]),
            "not a stored value",
        ),
        (_set("parameters", value=None), "parameters must be"),
        (_set("classes", "values", value=[]), "at least one"),
        (_set("classes", "values", value=list(range(9))), r"\(10,\), but there are 9 classes"),
        (_set("classes", "values", value=[*range(9), 3]), "sorted"),
        (_set("classes", "values", value=[*range(9), 10**400]), "int"),
        (_set("classes", "values", value=[*range(9), "a"]), "not a model"),
        (_set("classes", "values", value=[*range(9), [1]]), "numbers, booleans, strings, bytes or dates"),
        (_set("classes", "dtype", value="S1000000000"), "dtypes"),
        (_set("classes", "dtype", value=["int64"]), "not a model"),
        (_set("history", "t", value="now"), "history has 'now' for t"),
        (_set("history", "loss_curve", value=["a"]), "loss_curve"),
        (_set("history", "shell", value=1), "shell"),
        (_set("feature_names", value=["a"]), "feature_names"),
        (_set("split_seed", value=-1), "split_seed must be null or an int"),
        (_set("split_seed", value=True), "split_seed must be null or an int"),
        (_set("feature_names", value=[1] * 64), "feature_names"),
        (_set("network.0.weight", "shape", value=[3, 3, 1, 5]), "'network.0.weight'"),
        (_set("network.0.weight", "dtype", value="I32"), "'network.0.weight'"),
        (_set("network.0.weight", "data_offsets", value=[-8, 136]), "overlap or leave gaps"),
        (_set("network.0.weight", "data_offsets", value=[10**30, 10**30 + 144]), "overlap or leave gaps"),
        (_set("network.0.weight", "data_offsets", value=[]), "not a model"),
        (_set("network.0.weight", value=None), "not a model"),
        (lambda header, own: header.pop("network.0.weight"), "'network.0.weight' is missing"),
        (lambda header, own: header.update(extra=header["input.scale"]), "'extra' does not belong"),
        (lambda header, own: own.pop("classes"), "classes"),
        (lambda header, own: own.pop("fastcnn_version"), "fastcnn_version"),
    ],
)
def test_changed_headers(change, message, saved, tmp_path):
    header, own, data = parts(saved[1])
    load(joined(header, own, data), tmp_path)  # what is not changed can be read
    change(header, own)
    with pytest.raises(ValueError, match=message):
        load(joined(header, own, data), tmp_path)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([Dense(1 << 22), Dense(10)], "max_parameters=67,108,864 parameters in layers 0 to 0"),
        ([Conv2D(1 << 21, 1), GlobalAvgPool2D(), Dense(10)], "layer 0 makes (8, 8, 2097152) of an image"),
        ([Residual([Conv2D(1 << 26, 1), Conv2D(1, 1)]), Dense(10)], "max_parameters=67,108,864"),
        ([AvgPool2D(1 << 30, padding=1 << 29), Dense(10)], "not a model that can be read"),
    ],
)
def test_hostile_sizes_allocate_nothing(layers, message, saved, tmp_path):
    """Even where the file is as large as its header says, which costs nothing where files have holes."""
    header, own, _ = parts(saved[1])
    own["layers"] = [encode(layer) for layer in layers]
    shape, end = (8, 8, 1), 16
    entries = {name: header[name] for name in ("__metadata__", "input.offset", "input.scale")}
    for i, layer in enumerate(layers):
        for name, sizes in layer.param_shapes(shape).items():
            start, end = end, end + 4 * int(np.prod(sizes, dtype=object))
            entries[f"network.{i}.{name}"] = {"dtype": "F32", "shape": sizes, "data_offsets": [start, end]}
        with suppress(ValueError):
            shape = layer.output_shape(shape)
    path = tmp_path / "model.safetensors"
    path.write_bytes(joined(entries, own, b""))
    os.truncate(path, path.stat().st_size + end)
    tracemalloc.start()
    with pytest.raises(ValueError, match=re.escape(message)):
        CNNClassifier.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def test_max_parameters(saved, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved[1])
    n = sum(value.size for value in saved[0].network_.params.values())
    assert CNNClassifier.load(path, max_parameters=n).n_iter_ == 2
    with pytest.raises(ValueError, match=f"more than max_parameters={n - 1} parameters"):
        CNNClassifier.load(path, max_parameters=n - 1)


def test_images_that_become_large_are_read_if_asked_for(digits, tmp_path, monkeypatch):
    """What was trained can be read again, and a checkpoint gone on with."""
    path = tmp_path / "model.safetensors"
    clf = small(layers=[Conv2D(4, 1), GlobalAvgPool2D()], checkpoint=path).fit(*digits)  # 58 parameters
    monkeypatch.setattr(models, "_MAX_VALUES", 100)
    with pytest.raises(ValueError, match=r"makes \(8, 8, 4\) .*: more than 255 values, which a larger max_parameters"):
        CNNClassifier.load(path, max_parameters=255)
    np.testing.assert_array_equal(
        CNNClassifier.load(path, max_parameters=256).predict_proba(digits[0]), clf.predict_proba(digits[0])
    )
    assert CNNClassifier(**clf.get_params()).fit(*digits).loss_curve_ == clf.loss_curve_


def test_scaling_must_be_finite(saved, tmp_path):
    header, own, data = parts(saved[1])
    start, end = header["input.scale"]["data_offsets"]
    for value in (0.0, np.nan):
        changed = data[:start] + np.array([value]).tobytes() + data[end:]
        with pytest.raises(ValueError, match="finite"):
            load(joined(header, own, changed), tmp_path)


def test_flipped_bytes_never_do_worse_than_an_error(saved, tmp_path, digits):
    content, rng = saved[1], np.random.default_rng(0)
    length = 8 + int.from_bytes(content[:8], "little")
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(0, length, size=rng.integers(1, 4)):
            changed[place] = rng.integers(0, 256)
        try:
            clf = load(bytes(changed), tmp_path)
        except ValueError:
            continue
        assert clf.network_.n_params == saved[0].network_.n_params


# ------------------------------------------------------------------------------------------- files of released formats


FIXTURES = Path(__file__).with_name("fixtures")


def fixture_data():
    """Images and labels that the files in `fixtures` were made with; `fixtures/README.md` says how."""
    n = 24
    X = (np.arange(n * 60) * 37 % 251).astype(np.uint8).reshape(n, 6, 5, 2)
    X[np.arange(n), 0, np.arange(n) % 3] = 255
    return X, np.array(["bag", "shoe", "été"])[np.arange(n) % 3]


@pytest.mark.parametrize("name", sorted(path.stem for path in FIXTURES.glob("*.safetensors")))
def test_files_of_released_formats(name):
    X, y = fixture_data()
    clf = CNNClassifier.load(FIXTURES / f"{name}.safetensors")
    np.testing.assert_allclose(clf.predict_proba(X), np.load(FIXTURES / f"{name}.npy"), rtol=1e-4, atol=1e-6)
    assert clf.classes_.tolist() == ["bag", "shoe", "été"] and clf.n_iter_ == len(clf.validation_scores_) == 2
    assert clf.get_params()["class_weight"] == {"bag": 1.5, "shoe": 1.0, "été": 1.0}
    assert len(clf.layers) == 9 and len(clf.augment) == 2
    clf.partial_fit(X, y)
    assert clf.n_iter_ == 3


def test_there_is_a_file_of_each_format():
    _, own, _ = parts((FIXTURES / f"format_{models.FORMAT_VERSION}.safetensors").read_bytes())
    assert own["format_version"] == models.FORMAT_VERSION
    assert len(list(FIXTURES.glob("format_?.safetensors"))) == models.FORMAT_VERSION


def test_long_names_do_not_fill_the_memory():
    values = ["a" * 100_000, *(f"b{i:04}" for i in range(5_000))]
    with pytest.raises(ValueError, match="5001 classes with names of up to 100000 letters are too large"):
        labels_from_json({"dtype": "str", "values": values})
    with pytest.raises(ValueError, match="5000 classes with names of up to 5000 letters are too large"):
        labels_to_json(np.array([f"{i:05000}" for i in range(5_000)]))
