"""The command line, in this process for the most part: output, files, exit codes."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.utils import Bunch

import fastcnn
from fastcnn import commands, console, datasets, doctor
from fastcnn.classifier import CNNClassifier
from fastcnn.cli import main, parse_layer
from fastcnn.kernels.cpu import backend, runtime
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
    MaxPool2D,
    ReLU,
    Tanh,
)
from fastcnn.persistence import MAX_PARAMETERS
from fastcnn.recipes import RECIPES
from fastcnn.training.augment import RandomShift

TINY = ["--layers", "conv:8", "relu", "maxpool:2", "dense:32", "relu"]


def run(*args):
    """Exit code and standard output."""
    with redirect_stdout(io.StringIO()) as out:
        code = main([str(arg) for arg in args])
    return code, out.getvalue()


def failure(capsys, *args):
    """Exit code and the one line on standard error, without its start."""
    try:
        code = main([str(arg) for arg in args])
    except SystemExit as error:
        code = error.code
    text = capsys.readouterr().err
    assert text.startswith("fastcnn: error: ") and text.count("\n") == 1, text
    return code, text.removeprefix("fastcnn: error: ")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of digits, and what `train` printed."""
    path = tmp_path_factory.mktemp("models") / "digits.safetensors"
    options = ["--epochs", 3, "--learning-rate", 0.005, "--threads", 1, "--save", path]
    code, out = run("train", "digits", *TINY, *options)
    assert code == 0
    return path, out


@pytest.fixture(scope="module")
def digits():
    return datasets.load_digits_images()


@pytest.fixture
def pictures(digits, tmp_path):
    """One file for each of five digits, and their names."""
    X, y = digits
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, X, strict=False):
        Image.fromarray(image).save(path)
    return paths, [str(label) for label in y[:5]]


@pytest.fixture
def pets(tmp_path):
    """A folder of ten pictures, not all of one size, of each of two classes, dark and bright."""
    for name, level in (("cat", 20), ("dog", 230)):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8 + i % 2, 8), (level, level + i, level)).save(folder / f"{i}.png")
    return tmp_path / "pets"


def write_idx(folder, parts, n=40, size=6, classes=(3, 7)):
    """Dark images of class 3 and bright ones of class 7."""
    folder.mkdir(exist_ok=True)
    for part in parts:
        y = np.tile(np.array(classes, np.uint8), n // 2)
        X = np.repeat(y * np.uint8(30), size**2).reshape(n, size, size)
        for name, array in (("images-idx3", X), ("labels-idx1", y)):
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{part}-{name}-ubyte").write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
    return folder


def fashion(subset, return_X_y):
    """In the place of the data set: ten classes of one grey level each."""
    assert subset in ("train", "test") and return_X_y is False
    y = np.arange(60) % 10
    X = np.repeat(y * 25, 784).reshape(-1, 28, 28).astype(np.uint8)
    return Bunch(data=X, target=y, target_names=datasets.FASHION_NAMES)


# --- layers


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        ("conv:32", Conv2D(32)),
        ("conv:64:5", Conv2D(64, 5)),
        ("conv:64:3x5:2", Conv2D(64, (3, 5), 2)),
        ("maxpool:2", MaxPool2D(2)),
        ("maxpool:3:2", MaxPool2D(3, 2)),
        ("avgpool:2x3:1x2", AvgPool2D((2, 3), (1, 2))),
        ("globalavgpool", GlobalAvgPool2D()),
        ("adaptivemaxpool:2", AdaptiveMaxPool2D()),
        ("adaptivemaxpool:2x3", AdaptiveMaxPool2D((2, 3))),
        ("flatten", Flatten()),
        ("dense:128", Dense(128)),
        ("dropout:0.5", Dropout(0.5)),
        ("dropout:.25", Dropout(0.25)),
        ("batchnorm", BatchNorm()),
        ("relu", ReLU()),
        ("elu", ELU()),
        ("tanh", Tanh()),
    ],
)
def test_layer(text, layer):
    assert parse_layer(text) == layer


sizes = st.integers(1, 999) | st.tuples(st.integers(1, 99), st.integers(1, 99))


def written(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


@given(st.integers(1, 9999), st.lists(sizes, max_size=2))
def test_layer_that_was_written_is_read_again(n, values):
    texts = [written(value) for value in values]
    assert parse_layer(":".join(["conv", str(n), *texts])) == Conv2D(n, *values)
    assert parse_layer(f"dense:{n}") == Dense(n)
    if values:
        assert parse_layer(":".join(["maxpool", *texts])) == MaxPool2D(*values)
        assert parse_layer(":".join(["avgpool", *texts])) == AvgPool2D(*values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("convv:3", "'convv:3' is not a layer: expected one of conv:FILTERS[:KERNEL[:STRIDE]], maxpool"),
        ("Conv2D(3)", "'Conv2D(3)' is not a layer"),
        ("conv", "'conv': expected conv:FILTERS[:KERNEL[:STRIDE]]"),
        ("conv:", "'conv:': expected conv:FILTERS[:KERNEL[:STRIDE]]; filters must be a whole number, got ''"),
        ("conv:0", "'conv:0': expected conv:FILTERS[:KERNEL[:STRIDE]]; filters must be a positive int, got 0"),
        ("conv:8:3:1:1", "'conv:8:3:1:1': expected conv"),
        ("conv:8:3x", "kernel_size must be a whole number such as 3, or a pair such as 3x5, got '3x'"),
        ("conv:8x8", "filters must be a whole number, got '8x8'"),
        ("conv:-8", "filters must be a whole number, got '-8'"),
        ("maxpool", "'maxpool': expected maxpool:SIZE[:STRIDE]"),
        ("maxpool:0", "pool_size"),
        ("dense:1e3", "'dense:1e3': expected dense:UNITS; units must be a whole number, got '1e3'"),
        ("dropout:half", "'dropout:half': expected dropout:RATE; RATE must be a number from 0 to 1, got 'half'"),
        ("dropout:1", "'dropout:1': expected dropout:RATE; rate must be in [0, 1), got 1.0"),
        ("relu:1", "'relu:1': expected relu"),
    ],
)
def test_bad_layers_are_named(text, expected, capsys):
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_layer(text)
    code, message = failure(capsys, "train", "digits", "--layers", "relu", text, "relu")
    assert code == 2 and expected in message


# --- train


def test_train_tells_what_it_does(trained):
    path, out = trained
    lines = out.splitlines()
    assert lines[0].split(None, 1) == ["data", "scikit-learn's digits: 1,540 training images of 8x8, 10 classes"]
    assert "257 images kept back" in lines[1]
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert float(re.search(r"test accuracy +(\d\.\d{4})\n", out)[1]) > 0.85
    assert re.search(r"training time +\d+\.\d s for 3 epochs\n", out)
    assert re.search(r"speed +[\d,]+ images/s", out)
    # 3*3*8 + 8, 4*4*8 * 32 + 32, 32 * 10 + 10
    assert re.search(r"parameters +4,538\n", out)
    assert str(path) in lines[-1] and "MB" in lines[-1]


def test_model_has_names_and_nothing_of_the_run(trained):
    clf = CNNClassifier.load(trained[0])
    assert clf.classes_.tolist() == list("0123456789")
    assert clf.layers == [Conv2D(8), ReLU(), MaxPool2D(2), Dense(32), ReLU()]
    assert (clf.n_jobs, clf.callbacks, clf.verbose, clf.random_state) == (None, None, False, 0)
    assert clf.n_iter_ == 3


def test_a_checkpoint_is_gone_on_from(trained, tmp_path, capsys):
    path, model = tmp_path / "run.ckpt", tmp_path / "model.safetensors"
    command = ["train", "digits", *TINY, "--epochs", 3, "--learning-rate", 0.005, "--threads", 1, "--checkpoint", path]
    code, out = run(*command)
    assert code == 0 and "done already" not in out
    assert "of a finished fit" in run("info", path)[1]
    code, again = run(*command, "--save", model)
    assert code == 0
    assert re.search(r"checkpoint +\S+run.ckpt:\s+3\s+epochs\s+were\s+done\s+already", again)
    assert re.search(r"training time +0.0 s for 0 epochs", again) and "speed" not in again
    accuracy = [re.search(r"test accuracy .*", text)[0] for text in (out, again, trained[1])]
    assert len(set(accuracy)) == 1
    assert CNNClassifier.load(model).checkpoint is None
    capsys.readouterr()
    code, text = failure(capsys, *command, "--solver", "sgd")
    assert code == 1 and "a checkpoint of another fit: solver was 'adam' and is 'sgd'" in text


def test_same_seed_same_model(trained, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    options = ["--epochs", 3, "--learning-rate", 0.005, "--quiet"]
    assert run("train", "digits", *TINY, *options, "--save", again)[0] == 0
    code, out = run("train", "digits", *TINY, *options, "--seed", 1, "--save", other)
    assert code == 0 and "epoch 1" not in out and "test accuracy" in out
    first, second, third = (CNNClassifier.load(path).network_.params for path in (trained[0], again, other))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    assert not np.array_equal(first["0.weight"], third["0.weight"])


def test_options_reach_the_estimator(monkeypatch):
    seen = {}

    class Fitted(CNNClassifier):
        def fit(self, X, y):
            seen.update(self.get_params())
            raise KeyboardInterrupt

    monkeypatch.setattr(commands.fastcnn, "CNNClassifier", Fitted, raising=False)
    options = "--epochs 7 --batch-size 16 --learning-rate .01 --schedule step --solver sgd --dropout 0"
    more = "--augment flip shift:3 --validation-fraction .2 --seed 5 --threads 2 --quiet"
    assert run("train", "digits", *options.split(), *more.split())[0] == 130
    asked = {"max_iter": 7, "batch_size": 16, "learning_rate_init": 0.01, "learning_rate": "step", "solver": "sgd"}
    asked |= {"dropout": 0.0, "early_stopping": True, "validation_fraction": 0.2, "random_state": 5, "n_jobs": 2}
    assert asked.items() <= seen.items() and not seen["verbose"] and seen["n_iter_no_change"] == 10
    assert repr(seen["augment"]) == "[RandomHorizontalFlip(p=0.5), RandomShift(max_shift=3)]"

    assert run("train", "digits", "--layers", "conv:4 relu", "flatten")[0] == 130
    assert seen["layers"] == [Conv2D(4), ReLU(), Flatten()]
    assert (seen["max_iter"], seen["batch_size"]) == (30, 32)  # there are few digits
    assert not seen["early_stopping"] and seen["n_iter_no_change"] == np.inf
    defaults = CNNClassifier().get_params()
    names = ("dropout", "learning_rate", "learning_rate_init", "solver", "augment", "validation_fraction")
    assert all(seen[name] == defaults[name] for name in names)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(recipe, monkeypatch):
    seen = []

    def fit(self, X, y):
        seen.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(CNNClassifier, "fit", fit)
    monkeypatch.setattr(datasets, "fetch_fashion_mnist", fashion)
    monkeypatch.setattr(commands, "_SMALL", 1)
    assert run("train", "--recipe", recipe, "--seed", 3)[0] == 130
    asked, (made,) = RECIPES[recipe](random_state=3), seen
    changed = {"callbacks", "verbose", "n_jobs"}
    assert {k: v for k, v in made.get_params().items() if k not in changed} == {
        k: v for k, v in asked.get_params().items() if k not in changed
    }

    options = "--epochs 2 --augment shift:1 --early-stopping --learning-rate .001 --layers conv:4"
    assert run("train", "digits", "--recipe", recipe, *options.split())[0] == 130
    made = seen[-1].get_params()
    assert made["augment"] == [RandomShift(1)] and made["tta"] == "shift" and made["layers"] == [Conv2D(4)]
    assert (made["max_iter"], made["learning_rate_init"], made["n_iter_no_change"]) == (2, 0.001, 10)
    assert made["solver"] == asked.solver and made["label_smoothing"] == asked.label_smoothing

    monkeypatch.setattr(commands, "_SMALL", 10_000)
    assert run("train", "digits", "--recipe", recipe)[0] == 130
    assert seen[-1].max_iter == max(30, asked.max_iter)


def test_the_command_line_has_all_recipes(capsys):
    _, message = failure(capsys, "train", "--recipe", "none")
    assert set(re.findall(r"'(\w+)'", message.partition("choose from")[2])) == set(RECIPES)


@pytest.mark.parametrize(("option", "parameter"), [("--schedule", "learning_rate"), ("--solver", "solver")])
def test_choices_are_those_of_the_estimator(option, parameter, capsys):
    _, message = failure(capsys, "train", option, "none")
    (constraint,) = CNNClassifier._parameter_constraints[parameter]
    assert set(re.findall(r"'(\w+)'", message.partition("choose from")[2])) == constraint.options


def test_help_tells_the_estimators_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    clf = CNNClassifier()
    for value in (clf.max_iter, clf.batch_size):
        assert f"default: {value}, or" in text
    for value in (clf.dropout, clf.learning_rate_init, clf.learning_rate, clf.solver, clf.validation_fraction):
        assert f"(default: {value})" in text
    assert "--layers conv:32 relu maxpool:2" in text and "pets/cat/1.jpg" in text


def test_without_fashion_mnist_the_digits_are_used_and_it_is_said(monkeypatch, capsys):
    def fetch(*args, **kwargs):
        raise OSError("no network; three ways to get it")

    monkeypatch.setattr(datasets, "fetch_fashion_mnist", fetch)
    code, out = run("train", *TINY, "--epochs", 1, "--quiet")
    assert code == 0
    note, data = out.splitlines()[:2]
    assert "Fashion-MNIST is not on disk and cannot be downloaded" in note and "digits" in note
    assert "scikit-learn's digits: 1,540 training images" in data
    assert "--save FILE" in out.splitlines()[-1]
    assert failure(capsys, "train", "fashion-mnist") == (1, "no network; three ways to get it\n")


def test_fashion_mnist_is_the_default_and_its_classes_have_names(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "fetch_fashion_mnist", fashion)
    path = tmp_path / "model"
    code, out = run("train", "--layers", "avgpool:14", "dense:16", "relu", "--epochs", 2, "--quiet", "--save", path)
    assert code == 0 and "Fashion-MNIST: 60 training images of 28x28, 10 classes" in out
    assert "60 images that come with it" in out
    clf = CNNClassifier.load(path)
    assert clf.classes_.tolist() == sorted(datasets.FASHION_NAMES)
    code, out = run("evaluate", path)
    assert code == 0 and re.search(r"^Ankle boot +6 ", out, re.M) and "its test images" in out
    Image.new("L", (28, 28), 200).save(tmp_path / "shoe.png")
    code, out = run("predict", path, tmp_path / "shoe.png", "--top", 1)
    assert code == 0 and any(name in out for name in datasets.FASHION_NAMES)


@pytest.mark.parametrize("parts", [("train", "t10k"), ("train",)])
def test_idx_folder(tmp_path, parts):
    folder, path = write_idx(tmp_path / "set", parts), tmp_path / "model"
    if len(parts) == 1:  # a prefix that is no part
        for file in folder.iterdir():
            file.rename(folder / f"latest-{file.name}")
    code, out = run("train", folder, "--layers", "dense:8", "relu", "--learning-rate", 0.01, "--quiet", "--save", path)
    n_test = 40 if len(parts) == 2 else 6
    n_training = 40 if len(parts) == 2 else 34
    assert code == 0 and f"{folder}: {n_training} training images of 6x6, 2 classes" in " ".join(out.split())
    assert re.search(rf"^test data +{n_test} images", out, re.M)
    assert "test accuracy  1.0000" in out
    assert CNNClassifier.load(path).classes_.tolist() == [3, 7]
    code, out = run("evaluate", path, folder)
    assert code == 0 and "40 images" in out and re.search(r"^7 +20 +1.0000$", out, re.M)
    assert "mixed up" not in out
    code, out = run("evaluate", path, folder, "--held-out")
    assert code == 0 and f"{n_test} images" in out


def test_test_images_are_compared_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(CNNClassifier, "fit", None)
    folder = write_idx(tmp_path / "set", ["train"])
    write_idx(folder, ["t10k"], size=5)
    code, message = failure(capsys, "train", folder)
    assert code == 1 and "test images of 5x5, but training images of 6x6" in message
    write_idx(folder, ["t10k"], classes=(3, 5))
    code, message = failure(capsys, "train", folder)
    assert code == 1 and "there are images of '5' to test on, but none to train on" in message


def test_a_model_is_saved_before_it_is_tested(tmp_path, capsys, monkeypatch):
    def fails(self, X, y):
        raise MemoryError

    monkeypatch.setattr(CNNClassifier, "score", fails)
    path = tmp_path / "model"
    code, message = failure(capsys, "train", write_idx(tmp_path / "set", ["train"]), "--quiet", "--save", path)
    assert code == 1 and "MemoryError" in message
    assert CNNClassifier.load(path).n_iter_ == 30


def test_each_class_is_tested():
    y = np.repeat([0, 1], [2, 98])
    X = np.arange(100)
    (training, y_training), (test, y_test) = commands._hold_out(commands._Source("a", "idx", False), X, y)
    assert sorted([*training, *test]) == X.tolist() and 15 <= len(test) <= 16
    assert np.unique(y_training).tolist() == np.unique(y_test).tolist() == [0, 1]


def test_folder_of_pictures(tmp_path, pets, capsys):
    path = tmp_path / "model"
    code, message = failure(capsys, "train", pets)
    assert code == 1 and "expected (H, W)" in message
    options = ["--layers", "dense:8", "relu", "--learning-rate", 0.01, "--quiet"]
    code, out = run("train", pets, "--image-size", "8x10", *options, "--save", path)
    words = " ".join(out.split())  # long lines are wrapped
    assert code == 0 and "17 training images of 8x10x3, 2 classes" in words and "test accuracy 1.0000" in words
    assert CNNClassifier.load(path).image_shape_ == (8, 10, 3)
    code, out = run("evaluate", path, pets)
    assert code == 0 and "20 images, all images" in out and "accuracy       1.0000" in out
    code, out = run("evaluate", path, pets, "--held-out")
    assert code == 0 and "3 images, the one in 7" in out
    code, out = run("predict", path, pets / "dog" / "3.png", pets / "cat" / "3.png")
    assert code == 0 and [line.split()[1] for line in out.splitlines()] == ["class", "dog", "cat"]
    code, message = failure(capsys, "evaluate", path)
    assert code == 1 and "name the data to evaluate on (2 classes, images of 8x10)" in message

    (pets / "emu").mkdir()
    Image.new("RGB", (8, 8)).save(pets / "emu" / "0.png")
    code, message = failure(capsys, "train", pets, "--image-size", 8)
    assert code == 1 and "found one of 'emu'" in message
    code, message = failure(capsys, "evaluate", path, pets)
    assert code == 1 and "has the class 'emu', which the model does not know: cat, dog" in message


def test_folders_train_and_test(tmp_path, pets):
    root, path = tmp_path / "root", tmp_path / "model"
    root.mkdir()
    for part, name in (("train", "pets"), ("test", "more")):
        for source in pets.rglob("*.png"):
            target = root / part / source.relative_to(pets)
            target.parent.mkdir(parents=True, exist_ok=True)
            if name == "pets" or source.stem in "0123":
                # Grey test pictures of another size are made like the training pictures.
                image = Image.open(source)
                (image.resize((8, 8)) if part == "train" else image.convert("L")).save(target)
    options = ["--layers", "dense:8", "relu", "--learning-rate", 0.01, "--quiet"]
    code, out = run("train", root, *options, "--save", path)
    assert code == 0 and "20 training images of 8x8x3" in " ".join(out.split()) and "8 images that come with it" in out
    code, out = run("evaluate", path, root)
    words = " ".join(out.split())  # lines are broken where the folder's name is long
    assert code == 0 and "8 images, its test images" in words and "accuracy 1.0000" in words


@pytest.mark.parametrize("epochs", [0, 2])
def test_diverged_training(epochs, monkeypatch, capsys):
    def diverge(self, x, labels, *args, **kwargs):
        steps.append(0)
        return float("nan") if len(steps) > epochs * 49 else 1.0

    steps = []
    monkeypatch.setattr(fastcnn.Network, "train_step", diverge)
    if not epochs:
        code, message = failure(capsys, "train", "digits", *TINY)
        assert code == 1 and "diverged in its first epoch: a lower --learning-rate" in message
        return
    assert main(["train", "digits", *TINY]) == 0
    captured = capsys.readouterr()
    assert captured.err == "fastcnn: warning: training diverged in epoch 3; what was learnt is kept\n"
    assert "for 2 epochs" in captured.out


# --- evaluate, predict, info


def test_evaluate(trained, digits):
    path, train_out = trained
    code, out = run("evaluate", path)
    assert code == 0
    accuracy = re.search(r"^accuracy +(\d\.\d{4})$", out, re.M)[1]
    assert accuracy == re.search(r"test accuracy +(\d\.\d{4})", train_out)[1]
    classes = re.findall(r"^(\d) +(\d+) +(\d\.\d{4})$", out, re.M)
    assert [name for name, *_ in classes] == list("0123456789")
    assert sum(int(n) for _, n, _ in classes) == 257
    mean = sum(int(n) * float(of_class) for _, n, of_class in classes) / 257
    assert abs(mean - float(accuracy)) < 1e-3
    pairs = re.findall(r"^(\d) -> (\d) +(\d+) +[\d.]+%$", out, re.M)
    assert 1 <= len(pairs) <= 5 and all(a != b for a, b, _ in pairs)
    counts = [int(n) for *_, n in pairs]
    assert counts == sorted(counts, reverse=True)
    assert run("evaluate", path, "digits", "--threads", 1) == (0, out)


@pytest.mark.parametrize(
    ("shape", "names"), [((8, 8), ["a", "b"]), ((28, 28), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"])]
)
def test_other_images_of_a_known_size_are_not_taken_for_known_ones(shape, names, tmp_path, capsys):
    X, y = np.zeros((20, *shape), np.uint8), np.array(names)[np.arange(20) % len(names)]
    CNNClassifier(layers=[], max_iter=1).fit(X, y).save(tmp_path / "model")
    code, message = failure(capsys, "evaluate", tmp_path / "model")
    assert code == 1 and f"name the data to evaluate on ({len(names)} classes" in message


def test_what_commands_a_terminal_is_not_printed(capsys):
    console.say("classes", "a\x1b]0;title\x07 \u202eb\nc")
    console.print_table(("class",), [("a\x9b2Jb\nc",)], "<")
    out = capsys.readouterr().out
    assert out == "classes        a\ufffd]0;title\ufffd \ufffdb c\nclass\na\ufffd2Jb\ufffdc\n"


def test_larger_networks_are_read_when_asked_to(trained, capsys):
    code, message = failure(capsys, "info", trained[0], "--max-parameters", 4537)
    assert code == 1 and "more than max_parameters=4,537" in message
    with pytest.raises(SystemExit):
        main(["info", "--help"])
    assert f"(default: {MAX_PARAMETERS})" in " ".join(capsys.readouterr().out.split())
    assert run("evaluate", trained[0], "--max-parameters", 4538)[0] == 0


def test_confusion_counts(capsys):
    commands._print_confusion(np.array([[5, 3, 0], [0, 8, 1], [0, 0, 0]]), ["a", "b", "c"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [["a", "8", "0.6250"], ["b", "9", "0.8889"], ["c", "0", "-"]]
    assert lines[6:] == [["a", "->", "b", "3", "37.5%"], ["b", "->", "c", "1", "11.1%"]]


def test_evaluate_a_model_with_numbers_for_classes(digits, tmp_path, capsys):
    X, y = digits
    path = tmp_path / "model"
    CNNClassifier(layers=[Dense(16), ReLU()], batch_size=32, max_iter=2, random_state=0).fit(X, y).save(path)
    code, out = run("evaluate", path, "digits")
    assert code == 0 and "257 images" in out
    code, message = failure(capsys, "evaluate", path)
    assert code == 1 and "name the data" in message


def test_predict(trained, pictures):
    paths, names = pictures
    code, out = run("predict", trained[0], *paths)
    assert code == 0
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[0] for row in rows] == [str(path) for path in paths]
    assert all(len(row) == 7 for row in rows)
    assert np.mean([row[1] == name for row, name in zip(rows, names, strict=True)]) >= 0.8
    clf = CNNClassifier.load(trained[0])
    proba = clf.predict_proba(np.stack([datasets.load_image(path) for path in paths]))
    for row, expected in zip(rows, proba, strict=True):
        found = dict(zip(row[1::2], map(float, row[2::2]), strict=True))
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert all(abs(expected[int(name)] - value) < 1e-3 for name, value in found.items())


def test_predict_converts_pictures(trained, digits, tmp_path):
    X, _ = digits
    Image.fromarray(X[0]).save(tmp_path / "as-it-is.png")
    Image.fromarray(255 - X[0]).convert("RGB").resize((16, 16), Image.Resampling.NEAREST).save(tmp_path / "photo.png")
    code, plain = run("predict", trained[0], tmp_path / "as-it-is.png", "--top", 1)
    assert code == 0
    code, inverted = run("predict", trained[0], tmp_path / "photo.png", "--top", 1, "--invert")
    assert code == 0
    assert plain.split()[-2] == inverted.split()[-2] == "0"
    assert abs(float(plain.split()[-1]) - float(inverted.split()[-1])) < 0.1
    code, out = run("predict", trained[0], tmp_path / "as-it-is.png", "--top", 99)
    assert code == 0 and len(out.splitlines()[1].split()) == 21


def test_predict_needs_a_model_of_pictures(tmp_path, pictures, capsys):
    path = tmp_path / "model"
    X = np.random.default_rng(0).normal(size=(8, 4, 4, 2))
    CNNClassifier(layers=[], max_iter=1, random_state=0).fit(X, [0, 1] * 4).save(path)
    code, message = failure(capsys, "predict", path, pictures[0][0])
    assert code == 1 and "images of 2 channels, but pictures have 1 or 3" in message


def test_info(trained):
    path, _ = trained
    code, out = run("info", path)
    assert code == 0
    assert "8x8, grey" in out and "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in out
    assert f"({path.stat().st_size / 1e6:.2f} MB)" in out
    assert f"fastcnn {fastcnn.__version__};" in out
    assert f"numpy {np.__version__}" in out
    assert "3 epochs, 4,620 images" in out and "learning_rate_init=0.005" in out
    assert re.search(r"\(pixel - 77\.\d+\) / 95\.\d+", out)
    table = [line.split() for line in out[out.index("layer") :].splitlines()]
    assert table[1] == ["images", "8x8x1", "256", "B"]
    assert table[2] == ["0", "Conv2D(filters=8)", "8x8x8", "80", "4,608", "conv2d+bias+relu+maxpool2d"]
    assert table[4] == ["2", "MaxPool2D()", "4x4x8", "512", "B", "with", "0"]
    assert table[-2] == ["5", "Dense(units=10)", "10", "330", "320", "40", "B", "dense+bias"]
    assert table[-1] == ["all", "4,538", "9,024", "936", "B"]


def test_info_has_the_summarys_kernels(tmp_path):
    clf = CNNClassifier(
        layers=[Conv2D(32), ReLU(), Conv2D(32), Conv2D(8, stride=2)], max_iter=1, n_iter_no_change=np.inf
    )
    clf.fit(np.zeros((20, 12, 12, 1), np.uint8), np.arange(20) % 2).save(tmp_path / "model")
    code, out = run("info", tmp_path / "model")
    assert code == 0 and str(clf.summary()) in out and "winograd F(" in out


# --- report


def test_a_report_does_not_replace_the_model(trained, tmp_path, capsys):
    model = tmp_path / "model"
    model.write_bytes(Path(trained[0]).read_bytes())
    code, message = failure(capsys, "report", model, "-o", tmp_path / "." / "model")
    assert code == 2 and "the page would replace the model" in message
    assert model.read_bytes() == Path(trained[0]).read_bytes()


def test_report(trained, tmp_path):
    path, _ = trained
    code, out = run("report", path, "-o", tmp_path / "page.html", "--images", 5, "--title", "Digits & <more>")
    words = " ".join(out.split())
    assert code == 0 and "257 images" in words and "5 images to walk through" in words
    page = (tmp_path / "page.html").read_text("utf-8")
    assert f"({(tmp_path / 'page.html').stat().st_size / 1e6:.2f} MB)" in words
    assert page.count('role="radio" aria-checked') == page.count('"bytes":"') == 5
    assert "<h1>Digits &amp; &lt;more&gt;</h1>" in page and "digits.safetensors" in page


# --- bench


FIGURES = r"""network +{} parameters, {}
machine +\S.*, {}
first step +after [\d.]+ s, .*
training +[\d,]+ images/s, ([\d.,]+) ms \(([\d.,]+) to ([\d.,]+)\) for a mini-batch of {}
prediction +[\d,]+ images/s, {} of them in [\d.,]+ ms \([\d.,]+ to [\d.,]+\)
one image +[\d.,]+ ms \([\d.,]+ to [\d.,]+\)
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ("default: 421,642", "10 classes, images of 28x28x1", r"\d+ threads?", 128, 512)),
        (["--recipe", "fast", "--batch-size", 8, "--threads", 1],
         (r"fast: [\d,]+", "10 classes, images of 28x28x1", "1 thread", 8, 32)),
    ],
)  # fmt: skip
def test_bench(options, expected):
    code, out = run("bench", "--seconds", 0.01, *options)
    found = re.fullmatch(FIGURES.format(*expected), out)
    assert code == 0 and found, out
    median, low, high = (float(text.replace(",", "")) for text in found.groups())
    assert 0 < low <= median <= high


def test_bench_of_a_model(trained, capsys):
    path, _ = trained
    code, out = run("bench", path, "--seconds", 0.01, "--batch-size", 2)
    parameters = CNNClassifier.load(path).network_.n_params
    expected = (f"digits.safetensors: {parameters:,}", "10 classes, images of 8x8x1", r"\d+ threads?", 2, 10)
    assert code == 0 and re.fullmatch(FIGURES.format(*expected), out), out
    assert failure(capsys, "bench", path, "--recipe", "fast")[0] == 2


# --- doctor


def test_doctor():
    code, out = run("doctor")
    assert code == 0 and out.endswith("everything works\n")
    for name in (
        "Python",
        "numba 0",
        "llvmlite 0",
        "scikit-learn 1",
        "CPU features",
        "CUDA",
        "BLAS",
    ):
        assert name in out
    assert re.search(r"^micro-kernel +\w+: vectors of \d+ bytes, tiles of \d+ rows x \d+ vectors$", out, re.M)
    assert re.search(r"^self-check +a training step is right", out, re.M)
    assert "FAILED" not in out


def test_doctor_says_what_is_wrong(monkeypatch):
    def broken():
        raise OSError("no\nluck")

    monkeypatch.setitem(doctor._CHECKS, "threads", broken)
    monkeypatch.setitem(doctor._CHECKS, "self-check", lambda: "left out")
    code, out = run("doctor")
    assert code == 1 and re.search(r"^threads +FAILED: OSError: no luck$", out, re.M)
    assert out.endswith("something is wrong: threads\n")
    with pytest.raises(OSError, match="luck"):
        run("doctor", "--debug")


def test_doctor_tells_where_compiled_code_is_kept(monkeypatch, tmp_path):
    (tmp_path / "0123").mkdir()
    (tmp_path / "0123" / "kernel.nbc").write_bytes(bytes(100_000))
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path / "0123")
    monkeypatch.setenv("FASTCNN_CACHE_DIR", str(tmp_path))
    assert doctor._compiled_code() == f"{tmp_path / '0123'} (writable, 1 files, 0.1 MB)"
    monkeypatch.setenv("FASTCNN_CACHE_DIR", str(tmp_path / "nowhere"))
    assert doctor._compiled_code().endswith(f"FASTCNN_CACHE_DIR={tmp_path / 'nowhere'} cannot be used")
    monkeypatch.setattr(runtime, "cache_dir", lambda: None)
    assert "no folder can be written" in doctor._compiled_code()


def test_self_check_sees_a_wrong_kernel(monkeypatch):
    def off(logits, labels, weights, smoothing, *outputs, right=backend.softmax_cross_entropy):
        right(logits, labels, weights, smoothing + 0.01, *outputs)

    monkeypatch.setattr(backend, "softmax_cross_entropy", off)
    with pytest.raises(ArithmeticError, match="gradients are off"):
        doctor._self_check()


def test_self_check_sees_what_is_no_number():
    good, bad = (SimpleNamespace(grads={"a": np.ones(2), "b": np.full(2, value)}) for value in (1.0, np.nan))
    assert doctor._difference((0.5, good), (0.5, good)) == 0
    with pytest.raises(ArithmeticError, match="off by nan"):
        doctor._difference((0.5, bad), (0.5, good))


# --- exit codes, errors, start


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_what_is_no_file_is_not_replaced(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    code, message = failure(capsys, "train", "digits", "--save", tmp_path / "pipe")
    assert code == 1 and "a device or a pipe, expected a file to save the model to" in message


@pytest.mark.parametrize(
    ("line", "code", "expected"),
    [
        ("frobnicate", 2, "invalid choice: 'frobnicate'"),
        ("train --frobnicate", 2, "unrecognized arguments: --frobnicate"),
        ("train --epoch 3", 2, "unrecognized arguments"),  # no abbreviations
        ("train --epochs 0", 2, "--epochs: expected a whole number from 1 on, got '0' (see fastcnn train --help)"),
        ("train --batch-size many", 2, "expected a whole number from 1 on, got 'many'"),
        ("train --learning-rate nan", 2, "expected a number above 0, got 'nan'"),
        ("train --validation-fraction 1", 2, "expected a number between 0 and 1, got '1'"),
        ("train --dropout 1", 2, "expected a number from 0 to below 1, got '1'"),
        ("train --seed -1", 2, "--seed"),
        ("train --seed 4294967296", 2, "expected a whole number from 0 to 2**32 - 1"),
        ("train --augment mirror", 2, "expected flip, shift, shift:PIXELS or erase, got 'mirror'"),
        ("train --image-size 3x", 2, "expected a size such as 64 or 48x64 (height x width), got '3x'"),
        ("train --layers relu --dropout 0.5", 2, "put dropout:RATE among the layers (see fastcnn train --help)"),
        ("train --recipe fast --dropout 0.5", 2, "--dropout does nothing beside --recipe"),
        ("train --layers relu digits", 2, "'digits' is not a layer"),
        ("evaluate", 2, "the following arguments are required: MODEL"),
        ("predict model", 2, "the following arguments are required: IMAGE"),
        ("train nowhere", 1, "nowhere: no such folder, nor is it the name of a data set (fashion-mnist, digits)"),
        ("train digits --image-size 9", 1, "--image-size is for folders of pictures, which scikit-learn's digits is"),
        ("train digits --save nowhere/model", 1, "nowhere: no such folder to save the model in"),
        ("train digits --save .", 1, ".: a folder, expected a file to save the model to"),
        ("train digits --save run --checkpoint ./run", 2, "--save and --checkpoint are the same file, run"),
        ("train digits --layers=", 2, "argument --layers: expected a layer, got nothing"),
        ("train digits --checkpoint nowhere/run", 1, "nowhere: no such folder to save a checkpoint in"),
        ("train digits --save nowhere/", 1, "nowhere/: no such folder"),
        ("train digits --checkpoint nowhere/", 1, "nowhere/: no such folder"),
        ("report nothing -o nowhere/page.html", 1, "nowhere: no such folder to save the report in"),
        ("report nothing --images 0", 2, "argument --images: expected a whole number from 1 on, got '0'"),
        ("train digits --layers maxpool:16", 1, "layer 0, MaxPool2D(pool_size=16"),
        ("train digits --augment flip flip", 1, "augment holds RandomHorizontalFlip 2 times"),
        ("train .", 1, "expected one sub-folder of images per class"),
        ("evaluate nothing", 1, "nothing: No such file or directory"),
        ("predict nothing nothing", 1, "nothing: No such file or directory"),
        ("info empty", 1, "empty: not a model that can be read"),
        ("predict MODEL empty", 1, "empty: cannot be read as an image"),
        ("predict MODEL nothing.png", 1, "nothing.png: No such file or directory"),
        ("evaluate MODEL nothing", 1, "nothing: no such folder"),
    ],
)
def test_errors_are_one_line(line, code, expected, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    found, message = failure(capsys, *line.replace("MODEL", str(trained[0])).split())
    assert found == code and expected in message


def test_a_link_is_followed_before_training(tmp_path, capsys):
    """What is saved takes the place of the file that a link points to."""
    link = tmp_path / "latest"
    link.symlink_to(tmp_path / "gone" / "model")
    code, message = failure(capsys, "train", "digits", "--save", str(link))
    assert code == 1 and f"{tmp_path / 'gone'}: no such folder to save the model in" in message


def test_errors_show_their_traceback_when_asked_to(monkeypatch, capsys):
    for line in ("--debug info nothing", "info nothing --debug"):
        with pytest.raises(FileNotFoundError):
            main(line.split())
    monkeypatch.setenv("FASTCNN_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["info", "nothing"])


def test_unexpected_errors_name_their_kind(monkeypatch, capsys):
    def info(args):
        raise KeyError("x")

    monkeypatch.setattr(commands, "info", info)
    assert failure(capsys, "info", "x") == (1, "KeyError: 'x' (--debug shows where)\n")


def test_interrupt(monkeypatch, capsys):
    def info(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "info", info)
    assert main(["info", "x"]) == 130
    assert capsys.readouterr().err == "fastcnn: interrupted\n"


@pytest.mark.filterwarnings("always")
def test_warnings_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(commands, "info", lambda args: warnings.warn("mind\nthis", stacklevel=1) or 0)
    assert main(["info", "x"]) == 0
    assert capsys.readouterr().err == "fastcnn: warning: mind this\n"


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "fastcnn train --save model.safetensors" in capsys.readouterr().err


def test_help_and_version_are_quick():
    code = """
import sys
from fastcnn.cli import main
names = "train evaluate predict info report bench doctor".split()
for line in (["--version"], ["--help"], *([name, "--help"] for name in names)):
    try:
        main(line)
    except SystemExit as stop:
        assert stop.code == 0, line
slow = {"numba", "sklearn", "scipy", "numpy", "rich", "PIL"} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"fastcnn {fastcnn.__version__}\n") and done.stdout.count("examples:") == 6


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "fastcnn", "info", "nothing"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "fastcnn: error: nothing: No such file or directory\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a child process")
def test_control_c_keeps_what_was_learnt(tmp_path):
    path = tmp_path / "model"
    # A suite that runs in the background hands down an ignored SIGINT, with which Python raises no KeyboardInterrupt.
    listening = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('fastcnn', run_name='__main__')"
    )
    command = [sys.executable, "-c", listening, "train", "digits", *TINY, "--epochs", "1000000", "--save", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not process.stdout.readline().startswith("epoch"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"fastcnn: warning: training interrupted in epoch \d+; what was learnt is kept\n", err)
    assert "test accuracy" in out and CNNClassifier.load(path).n_iter_ >= 1
