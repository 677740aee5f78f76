"""What the commands `fastcnn train`, `evaluate`, `predict`, `info` and `report` do; `cli` reads the command line.

Slow imports wait until they are needed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from math import inf
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import fastcnn
from fastcnn.console import count, megabytes, print_table, say

if TYPE_CHECKING:
    from fastcnn.classifier import CNNClassifier
    from fastcnn.inspection import Summary

__all__ = ["evaluate", "info", "predict", "report", "train"]

Data = tuple[np.ndarray, np.ndarray]  # images and labels

_BUILT_IN = {"fashion-mnist": "Fashion-MNIST", "digits": "scikit-learn's digits"}
_HELD_OUT = 7  # one image in so many is a test image where a data set has none of its own
_MIXED_UP = 5  # pairs of classes that `evaluate` shows
_SMALL = 10_000  # training images; with fewer, mini-batches are smaller and epochs more


# ---------------------------------------------------------------------------------------------------------------- data


class _Source(NamedTuple):
    """A data set by name or path, before any of it is read."""

    name: str
    kind: str  # "fashion-mnist", "digits", "idx" (a folder of IDX files) or "images" (a folder for each class)
    has_test: bool  # whether it comes with test images

    @property
    def title(self) -> str:
        return _BUILT_IN.get(self.name, self.name)


def _find_source(name: str) -> _Source:
    if name in _BUILT_IN:
        return _Source(name, name, has_test=name == "fashion-mnist")
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: no such folder, nor is it the name of a data set ({', '.join(_BUILT_IN)})")
    idx = [path.name for path in folder.iterdir() if re.search(r"[-.]idx[13]-ubyte(\.gz)?$", path.name)]
    if idx:
        parts = [re.search(r"(?:^|[-_.])(t10k|test)-(images|labels)[-.]idx", file) for file in idx]
        return _Source(name, "idx", has_test=any(parts))
    return _Source(name, "images", has_test=(folder / "train").is_dir() and (folder / "test").is_dir())


def _load(
    source: _Source,
    part: str,
    image_size: tuple[int, int] | None = None,
    color: bool | None = None,
    named: bool = True,
) -> Data:
    """The images of `part`, "train" or "test"; all there are if the source has no test images.

    Labels are the classes' names, where there are any, unless not `named`. Folders of pictures alone are read
    at an `image_size` and in `color`.
    """
    from fastcnn import datasets

    if source.kind == "idx":
        X, y = datasets.load_idx_folder(source.name, part if source.has_test else "train")
        return X, y
    if source.kind == "images":
        return datasets.load_image_folder(Path(source.name, part * source.has_test), image_size, color)
    if source.kind == "digits":
        data: Any = datasets.load_digits_images(return_X_y=False)
    else:
        data = datasets.fetch_fashion_mnist(part, return_X_y=False)
    return data.data, np.array(data.target_names)[data.target] if named else data.target


def _hold_out(source: _Source, X: np.ndarray, y: np.ndarray) -> tuple[Data, Data]:
    """Training and test images: each class in both by the same share, and the same images each time."""
    from sklearn.model_selection import train_test_split

    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        raise ValueError(
            f"{source.name}: expected two images or more of each class, as one is kept for the test; "
            f"found one of {str(classes[counts.argmin()])!r}"
        )
    size = max(-(-len(y) // _HELD_OUT), len(classes))
    training, test = train_test_split(np.arange(len(y)), test_size=size, stratify=y, random_state=0)
    untested = [training[y[training] == name][0] for name in np.setdiff1d(classes, y[test])]  # of few images
    training, test = training[~np.isin(training, untested)], np.append(test, np.array(untested, int))
    return (X[training], y[training]), (X[test], y[test])


def _load_training(name: str | None, image_size: tuple[int, int] | None) -> tuple[_Source, Data, Data]:
    """The data set `name`, or the best there is: its training and its test images."""
    from fastcnn.inspection.summary import shape_text

    source = _find_source(name or "fashion-mnist")
    if image_size and source.kind != "images":
        raise ValueError(f"--image-size is for folders of pictures, which {source.title} is not")
    try:
        training = X, y = _load(source, "train", image_size)
    except OSError:
        if name:
            raise
        say("note", "Fashion-MNIST is not on disk and cannot be downloaded: using scikit-learn's digits instead")
        return _load_training("digits", None)
    if not source.has_test:
        return source, *_hold_out(source, X, y)
    # Test pictures are made like the training pictures.
    X_test, y_test = _load(source, "test", X.shape[1:3], X.ndim == 4)
    if X_test.shape[1:] != X.shape[1:]:
        theirs, ours = shape_text(X_test.shape[1:]), shape_text(X.shape[1:])
        raise ValueError(f"{source.name}: test images of {theirs}, but training images of {ours}")
    if unknown := np.setdiff1d(y_test, y).tolist():
        raise ValueError(f"{source.name}: there are images of {str(unknown[0])!r} to test on, but none to train on")
    return source, training, (X_test, y_test)


# --------------------------------------------------------------------------------------------------------------- train


class _Watch:
    """The callback that keeps what is reported after training."""

    def __init__(self) -> None:
        self.speeds: list[float] = []
        self.seconds = 0.0
        self.reason = ""
        self.done_before = 0  # epochs that came from a checkpoint

    def on_fit_begin(self, info: Any) -> None:
        self.done_before = info.start_epoch

    def on_epoch_end(self, info: Any) -> None:
        self.speeds.append(info.images_per_second)
        self.seconds += info.seconds

    def on_fit_end(self, history: Any) -> None:
        self.reason = history.reason


def train(args: argparse.Namespace) -> int:
    """Train a classifier, save it, test it."""
    from fastcnn.inspection.summary import shape_text

    if args.save:
        _check_writable(args.save, "the model")
    if args.checkpoint and not Path(args.checkpoint).is_dir():  # a folder gives each training a file
        _check_writable(args.checkpoint, "a checkpoint")
        if args.save and os.path.realpath(args.save) == os.path.realpath(args.checkpoint):
            args.fail(f"--save and --checkpoint are the same file, {args.save}: a model would replace the checkpoint")
    source, (X, y), (X_test, y_test) = _load_training(args.data, args.image_size)
    size = shape_text(X.shape[1:])
    say("data", f"{source.title}: {len(X):,} training images of {size}, {len(np.unique(y))} classes")
    kept = "that come with it" if source.has_test else f"kept back, one in {_HELD_OUT} of each class, always the same"
    say("test data", f"{len(X_test):,} images {kept}")

    clf = _new_classifier(args, small=len(X) < _SMALL)
    say("training", f"{count(clf.max_iter, 'epoch')} in mini-batches of {clf.batch_size}, seed {args.seed}")
    with warnings.catch_warnings():  # what is to be said of it is said below
        warnings.filterwarnings("ignore", "Training (diverged|interrupted)|Maximum iterations")
        clf.fit(X, y)
    (watch,) = clf.callbacks_
    if watch.done_before:
        say("checkpoint", f"{args.checkpoint}: {count(watch.done_before, 'epoch')} were done already")
    interrupted = watch.reason == "interrupted"
    if not clf.n_iter_:
        if interrupted:
            raise KeyboardInterrupt
        raise ValueError("training diverged in its first epoch: a lower --learning-rate may help")
    if watch.reason in ("interrupted", "diverged"):
        text = f"training {watch.reason} in epoch {clf.n_iter_ + 1}; what was learnt is kept"
        text += "; the same command goes on from the checkpoint" * bool(interrupted and args.checkpoint)
        print(f"fastcnn: warning: {text}", file=sys.stderr)

    if args.save:  # before anything else can go wrong
        saved = copy(clf).set_params(callbacks=None, checkpoint=None, verbose=False, n_jobs=None)  # of this run
        saved.save(args.save)
    print()
    say("test accuracy", f"{clf.score(X_test, y_test):.4f}")
    say("training time", f"{watch.seconds:.1f} s for {count(clf.n_iter_ - watch.done_before, 'epoch')}")
    if watch.speeds:
        speed = float(f"{median(watch.speeds):.3g}")  # more digits would be noise
        say("speed", f"{speed:,.0f} images/s (median of the epochs)")
    say("parameters", f"{clf.network_.n_params:,}")
    if args.save:
        say("saved to", f"{args.save} ({megabytes(args.save)})")
    else:
        say("not saved", "--save FILE keeps the model")
    return 130 if interrupted else 0


def _new_classifier(args: argparse.Namespace, small: bool) -> CNNClassifier:
    make: Callable[..., CNNClassifier] = fastcnn.CNNClassifier
    if args.recipe:
        from fastcnn.recipes import RECIPES

        make = RECIPES[args.recipe]
    early_stopping = args.early_stopping or args.validation_fraction is not None
    asked: dict[str, Any] = {
        "max_iter": args.epochs or (max(30, make().max_iter) if small else None),
        "batch_size": args.batch_size or (32 if small else None),
        "layers": [layer for item in args.layers for layer in item] or None,
        "learning_rate_init": args.learning_rate,
        "learning_rate": args.schedule,
        "solver": args.solver,
        "dropout": args.dropout,
        "augment": args.augment,
        "validation_fraction": args.validation_fraction,
        "early_stopping": early_stopping,
        "n_iter_no_change": 10 if early_stopping else inf,  # inf: the epochs that were asked for are done
    }
    return make(
        **{name: value for name, value in asked.items() if value is not None},
        random_state=args.seed,
        n_jobs=args.threads,
        callbacks=[_Watch()],
        checkpoint=args.checkpoint,
        verbose=not args.quiet,
    )


def _check_writable(name: str, what: str) -> None:
    """Better now than after the training."""
    from fastcnn.persistence.files import target_of

    path, target = Path(name), target_of(name)
    folder = target.parent if path.is_symlink() else path.parent
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, expected a file to save {what} to")
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: a device or a pipe, expected a file to save {what} to")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder to save {what} in")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: no permission to save {what} there")


# ------------------------------------------------------------------------------------------------------------ evaluate


def evaluate(args: argparse.Namespace) -> int:
    """Accuracy on test images: of all, of each class, and what is taken for what."""
    clf = _load_classifier(args)
    source, which, (X, y) = _load_test(args, clf)
    predicted = clf.predict(X)
    say("model", args.model)
    say("data", f"{source.title}: {len(X):,} images, {which}")
    say("accuracy", f"{np.mean(predicted == y):.4f}")
    print()
    n_classes = len(clf.classes_)
    pairs = np.searchsorted(clf.classes_, y) * n_classes + np.searchsorted(clf.classes_, predicted)
    confusion = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
    _print_confusion(confusion, [str(name) for name in clf.classes_.tolist()])
    return 0


def _load_test(args: argparse.Namespace, clf: CNNClassifier) -> tuple[_Source, str, Data]:
    """The images to test a model with, and which of the data set's they are."""
    source = _find_source(args.data or _data_of(clf, args.model))
    named = clf.classes_.dtype.kind in "UO"
    X, y = _load(source, "test", *_picture_format(clf, args.model), named=named)
    which = "its test images" if source.has_test else "all images"
    if not source.has_test and (args.held_out or source.kind == "digits"):
        _, (X, y) = _hold_out(source, X, y)
        which = f"the one in {_HELD_OUT} that `fastcnn train` keeps for the test"
    if named:
        y = y.astype(str)
    if unknown := sorted(set(y.tolist()) - set(clf.classes_.tolist()), key=str):
        raise ValueError(f"{source.name} has the class {unknown[0]!r}, which the model does not know: {_classes(clf)}")
    return source, which, (X, y)


def _print_confusion(confusion: np.ndarray, names: Sequence[str]) -> None:
    """`confusion[i, j]`: images of class i taken for class j."""
    totals = confusion.sum(axis=1)
    rows = [
        (name, f"{total:,}", f"{right / total:.4f}" if total else "-")
        for name, total, right in zip(names, totals, confusion.diagonal(), strict=True)
    ]
    print_table(("class", "images", "accuracy"), rows, "<>>")
    wrong = confusion - np.diag(confusion.diagonal())
    places = np.argsort(-wrong, axis=None, kind="stable")[:_MIXED_UP]
    mixed_up = [(int(i), int(j)) for i, j in zip(*np.unravel_index(places, wrong.shape), strict=True) if wrong[i, j]]
    if mixed_up:
        rows = [
            (f"{names[i]} -> {names[j]}", f"{wrong[i, j]:,}", f"{wrong[i, j] / totals[i]:.1%}") for i, j in mixed_up
        ]
        print()
        print_table(("most often mixed up", "images", "of the class"), rows, "<>>")


def _data_of(clf: CNNClassifier, path: str) -> str:
    """The data set that comes with fastcnn and has images and classes like the model's."""
    from fastcnn.datasets import FASHION_NAMES

    known = {"fashion-mnist": ((28, 28, 1), FASHION_NAMES), "digits": ((8, 8, 1), [str(n) for n in range(10)])}
    for name, (shape, classes) in known.items():
        if clf.image_shape_ == shape and clf.classes_.tolist() == sorted(classes):  # names, as `train` has them
            return name
    height, width, _ = clf.image_shape_
    raise ValueError(f"{path}: name the data to evaluate on ({len(clf.classes_)} classes, images of {height}x{width})")


def _load_classifier(args: argparse.Namespace) -> CNNClassifier:
    clf = fastcnn.CNNClassifier.load(args.model, args.max_parameters)
    return clf.set_params(n_jobs=args.threads)


def _picture_format(clf: CNNClassifier, path: str) -> tuple[tuple[int, int], bool]:
    """What `load_image` is to make of pictures: (H, W), and whether in colour."""
    height, width, channels = clf.image_shape_
    if channels not in (1, 3):
        raise ValueError(f"{path}: a model for images of {channels} channels, but pictures have 1 or 3")
    return (height, width), channels == 3


# ------------------------------------------------------------------------------------------------------------- predict


def predict(args: argparse.Namespace) -> int:
    """Name what is on pictures."""
    from fastcnn.datasets import load_image

    clf = _load_classifier(args)
    size, color = _picture_format(clf, args.model)
    images = np.stack([load_image(path, size, color) for path in args.images])
    proba = clf.predict_proba(255 - images if args.invert else images)
    best = np.argsort(-proba, axis=1, kind="stable")[:, : args.top]
    # For each image: its name, then class and probability by turns.
    rows = [
        (path, *(text for j in order for text in (str(clf.classes_[j]), f"{row[j]:.3f}")))
        for path, row, order in zip(args.images, proba, best, strict=True)
    ]
    print_table(("image", *("class", "probability") * best.shape[1]), rows, "<" + "<>" * best.shape[1])
    return 0


# ---------------------------------------------------------------------------------------------------------------- info


def info(args: argparse.Namespace) -> int:
    """What a model file holds."""
    from fastcnn.engine.network import Network
    from fastcnn.inspection import summarize
    from fastcnn.persistence import read_model

    model = read_model(args.model, args.max_parameters)
    height, width, channels = model.image_shape
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    settings, history = model.parameters, model.history
    scaling = ", ".join(f"(pixel - {a:.4g}) / {b:.4g}" for a, b in zip(model.offset, model.scale, strict=True))
    say("model", f"{args.model} ({megabytes(args.model)})")
    say("written by", f"fastcnn {model.version}; this is fastcnn {fastcnn.__version__}")
    if model.versions:
        say("written with", ", ".join(f"{name} {version}" for name, version in model.versions.items()))
    say("images", f"{height}x{width}, {kind}")
    say("scaling", scaling)
    say("classes", f"{len(model.classes)}: {', '.join(map(str, model.classes.tolist()))}")
    say("trained", f"{count(history.n_iter, 'epoch')}, {history.t:,} images, lowest loss {history.best_loss:.4f}")
    if model.run is not None:
        how = "of a finished fit" if model.run.progress.finished else "of a fit that can go on"
        say("checkpoint", how)
    elif model.training is not None:
        say("optimiser", f"{type(model.training.optimizer).__name__} after {count(model.training.state.step, 'step')}")
    names = ("solver", "learning_rate_init", "learning_rate", "batch_size", "random_state")
    say("settings", ", ".join(f"{name}={settings[name]}" for name in names if name in settings))
    say("numbers", model.dtype)
    print()
    network = Network(model.layers, model.image_shape, dtype=model.dtype)  # how this machine would run it
    _print_summary(summarize(model.layers, model.image_shape, dtype=model.dtype, kernels=network.kernels()))
    return 0


# -------------------------------------------------------------------------------------------------------------- report


def report(args: argparse.Namespace) -> int:
    """Write a page about a model."""
    from fastcnn.inspection import write_report

    _check_writable(args.output, "the report")
    if os.path.realpath(args.output) == os.path.realpath(args.model):
        args.fail(f"the model and the report are the same file, {args.model}: the page would replace the model")
    clf = _load_classifier(args)
    source, which, (X, y) = _load_test(args, clf)
    say("model", args.model)
    say("data", f"{source.title}: {len(X):,} images, {which}")
    names: dict[str, Any] = {
        "data": f"{source.title}, {which}",
        "model": f"{Path(args.model).name} ({megabytes(args.model)})",
    }
    if args.title:
        names["title"] = args.title
    n = write_report(args.output, clf, X, y, n_images=args.images, **names)
    say("report", f"{args.output} ({megabytes(args.output)}), with {count(n, 'image')} to walk through the network")
    return 0


def _print_summary(summary: Summary) -> None:
    """In a terminal as a table of rich; plain lines where another program reads them."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console(file=sys.stdout, highlight=False).print(summary)
    else:
        print(summary)


def _classes(clf: CNNClassifier) -> str:
    text = ", ".join(map(str, clf.classes_.tolist()))
    return text if len(text) <= 200 else text[:197] + "..."
