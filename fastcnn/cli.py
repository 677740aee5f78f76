"""The command line: `fastcnn train|evaluate|predict|info|report|bench|doctor`.

Only the standard library is imported here, so that `fastcnn --help` answers at once; what a command needs is
imported when it runs. Exit codes: 0 fine, 1 it failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn

from fastcnn import __version__

if TYPE_CHECKING:
    from fastcnn.layers import Layer
    from fastcnn.training.augment import Augmentation

__all__ = ["main", "parse_layer"]

_MAIN_EPILOG = """
examples:
  fastcnn train --save model.safetensors        train on Fashion-MNIST, or on the embedded digits
  fastcnn evaluate model.safetensors            how good it is, class by class
  fastcnn predict model.safetensors shoe.png    what is on a picture
  fastcnn report model.safetensors -o report.html   what the network sees, as one page for a browser
  fastcnn bench --recipe fast                   how fast it trains and predicts here
  fastcnn doctor                                what fastcnn found on this machine, and whether it works

`fastcnn COMMAND --help` tells more, with examples. In Python: from fastcnn import CNNClassifier
"""

_TRAIN_EPILOG = """
data:
  fashion-mnist  60,000 + 10,000 images of clothes, 28x28; downloaded (30 MB) if it is not on disk
  digits         scikit-learn's 1,797 digits, 8x8; nothing is downloaded
  PATH           a folder of IDX files (MNIST, KMNIST; EMNIST, whose images are stored transposed), or a folder of
                 pictures with one sub-folder for each class, or with `train` and `test` above those
  Without test images of its own, one image in 7 of each class (always the same) is kept for the test.

layers, from the image to the last dense layer, which is added (one unit for each class):
  conv:FILTERS[:KERNEL[:STRIDE]]   convolution, padded so that stride 1 keeps the size; KERNEL 3 by default
  maxpool:SIZE[:STRIDE]  avgpool:SIZE[:STRIDE]  globalavgpool
  adaptivemaxpool:SIZE (of the output)  batchnorm  relu  elu  tanh  leakyrelu  silu
  flatten  dense:UNITS  dropout:RATE  spatialdropout:RATE
  Sizes and strides are a number (3) or height x width (3x5).

examples:
  fastcnn train --save model.safetensors
  fastcnn train digits --epochs 20 --layers conv:32 relu maxpool:2 dense:64 relu dropout:0.5
  fastcnn train fashion-mnist --recipe fast --save fast.safetensors
  fastcnn train kmnist/ --recipe fast --augment shift:2             letters have no mirror images
  fastcnn train fashion-mnist --augment flip shift:2 --early-stopping --epochs 40 --save better.safetensors
  fastcnn train fashion-mnist --layers conv:32 relu maxpool:2 conv:64:3 relu maxpool:2 flatten dense:128 relu
  fastcnn train pets/ --image-size 64 --save pets.safetensors       pets/cat/1.jpg, pets/dog/1.jpg ...
  fastcnn train fashion-mnist --recipe best --checkpoint run.ckpt   and again, if the machine was switched off meanwhile
"""

_EVALUATE_EPILOG = """
DATA is what `fastcnn train` takes. Without it: Fashion-MNIST or the digits, for a model with images of their size
and classes of their names (one that was saved in Python, with labels 0 to 9, needs the name).
Of a data set with test images, these are used; of the digits always the one in 7 that `fastcnn train` keeps for the
test; of another folder all images, or with --held-out that one in 7.

examples:
  fastcnn evaluate model.safetensors
  fastcnn evaluate pets.safetensors pets/ --held-out     the folder it was trained on
  fastcnn evaluate pets.safetensors new-pets/            pictures it has never seen
"""

_PREDICT_EPILOG = """
Pictures are resized to the model's images and made grey or coloured as those were. A picture should look like
the training images: Fashion-MNIST is white on black, so a photo of a shoe on a white table needs --invert.

examples:
  fastcnn predict model.safetensors shoe.png
  fastcnn predict model.safetensors photos/*.jpg --invert --top 1
"""

_REPORT_EPILOG = """
The page shows the layers, the course of the training, the confusion matrix, filters and mistakes, and walks test images
through the network step by step. It is one file, loads nothing, and needs no other program than a browser.
DATA is what `fastcnn evaluate` takes.

examples:
  fastcnn report model.safetensors -o report.html
  fastcnn report pets.safetensors --data pets/ --held-out -o pets.html
"""

_BENCH_EPILOG = """
Times training steps (with augmentation) and predictions for many images and for one. Images are random: as large as the
model's, or for a new network 28x28 grey in 10 classes. Medians, with the quartiles in brackets. With
nothing else running, figures of two machines or versions can be compared.

examples:
  fastcnn bench                        the default network
  fastcnn bench --recipe balanced      another one, of fastcnn.recipes
  fastcnn bench model.safetensors --threads 1
"""

_DOCTOR_EPILOG = """
Ends with a training step on the compiled kernels, compared with the reference kernels. Exit code 1 if
something does not work. On a new machine this compiles kernels, which takes a while.
"""


# -------------------------------------------------------------------------------------------------------------- layers

_FORMS: dict[str, tuple[str, str, tuple[str, ...], int]] = {  # form, layer, its fields, how many are needed
    "conv": ("conv:FILTERS[:KERNEL[:STRIDE]]", "Conv2D", ("filters", "kernel_size", "stride"), 1),
    "maxpool": ("maxpool:SIZE[:STRIDE]", "MaxPool2D", ("pool_size", "stride"), 1),
    "avgpool": ("avgpool:SIZE[:STRIDE]", "AvgPool2D", ("pool_size", "stride"), 1),
    "globalavgpool": ("globalavgpool", "GlobalAvgPool2D", (), 0),
    "adaptivemaxpool": ("adaptivemaxpool:SIZE", "AdaptiveMaxPool2D", ("output_size",), 1),
    "flatten": ("flatten", "Flatten", (), 0),
    "dense": ("dense:UNITS", "Dense", ("units",), 1),
    "dropout": ("dropout:RATE", "Dropout", ("rate",), 1),
    "spatialdropout": ("spatialdropout:RATE", "SpatialDropout", ("rate",), 1),
    "batchnorm": ("batchnorm", "BatchNorm", (), 0),
    "relu": ("relu", "ReLU", (), 0),
    "elu": ("elu", "ELU", (), 0),
    "tanh": ("tanh", "Tanh", (), 0),
    "leakyrelu": ("leakyrelu", "LeakyReLU", (), 0),
    "silu": ("silu", "SiLU", (), 0),
}


def parse_layer(item: str) -> Layer:
    """A layer from its short form, such as "conv:32", "maxpool:2" or "relu".

    Raises
    ------
    ValueError
        If it is none; the message names it and the form that is expected.
    """
    from fastcnn import layers

    name, *values = item.split(":")
    if name not in _FORMS:
        forms = ", ".join(form for form, *_ in _FORMS.values())
        raise ValueError(f"{item!r} is not a layer: expected one of {forms}")
    form, kind, fields, needed = _FORMS[name]
    if not needed <= len(values) <= len(fields):
        raise ValueError(f"{item!r}: expected {form}")
    try:
        given = {field: _layer_value(field, value) for field, value in zip(fields, values, strict=False)}
        return getattr(layers, kind)(**given)
    except ValueError as error:
        raise ValueError(f"{item!r}: expected {form}; {error}") from error


def _layer_value(field: str, text: str) -> Any:
    sizes = field in ("kernel_size", "pool_size", "output_size", "stride")
    if field == "rate":
        if re.fullmatch(r"[0-9]*\.?[0-9]+", text):
            return float(text)
        raise ValueError(f"RATE must be a number from 0 to 1, got {text!r}")
    if re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})?" if sizes else r"[0-9]{1,9}", text):
        numbers = tuple(map(int, text.split("x")))
        return numbers if len(numbers) == 2 else numbers[0]
    what = "a whole number such as 3, or a pair such as 3x5" if sizes else "a whole number"
    raise ValueError(f"{field} must be {what}, got {text!r}")


# ----------------------------------------------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fastcnn: error: {_one_line(message)} (see {self.prog} --help)\n")


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="fastcnn",
        description="Train and use convolutional neural networks for images.",
        epilog=_MAIN_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"fastcnn {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error (or set FASTCNN_DEBUG)")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    def add(name: str, summary: str, epilog: str = "") -> _Parser:
        command: _Parser = commands.add_parser(name, help=summary, description=summary, epilog=epilog)
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        command.set_defaults(fail=command.error)
        return command

    _add_train(add("train", "Train a classifier on images.", _TRAIN_EPILOG))

    command = add("evaluate", "Accuracy of a model, class by class.", _EVALUATE_EPILOG)
    _add_model(command)
    command.add_argument("data", metavar="DATA", nargs="?", help="fashion-mnist, digits or a folder")
    command.add_argument("--held-out", action="store_true", help="only the images that `fastcnn train` keeps back")
    _add_threads(command)

    command = add("predict", "Class names and probabilities for pictures.", _PREDICT_EPILOG)
    _add_model(command)
    command.add_argument("images", metavar="IMAGE", nargs="+", help="picture files (png, jpg, ...)")
    command.add_argument("--top", type=_count, default=3, metavar="K", help="classes to show (default: 3)")
    command.add_argument("--invert", action="store_true", help="swap dark and bright first")
    _add_threads(command)

    command = add("info", "What is in a model file: layers, classes, images.")
    _add_model(command)

    command = add("report", "What a network sees, as one page for a browser.", _REPORT_EPILOG)
    _add_model(command)
    command.add_argument("--data", metavar="DATA", help="fashion-mnist, digits or a folder")
    command.add_argument("--held-out", action="store_true", help="only the images that `fastcnn train` keeps back")
    command.add_argument("-o", "--output", metavar="FILE", default="report.html", help="default: report.html")
    command.add_argument("--images", type=_count, default=24, metavar="N", help="images to choose from (default: 24)")
    command.add_argument("--title", metavar="TEXT", help="of the page")
    _add_threads(command)

    command = add("bench", "How fast a network trains and predicts on this machine.", _BENCH_EPILOG)
    _add_model(command, "a file that `fastcnn train --save` wrote (default: a new network)", nargs="?")
    _add_recipe(command, "a network and its training from fastcnn.recipes, instead of the default one")
    command.add_argument("--batch-size", type=_count, metavar="N", help="images of a step (default: the network's)")
    command.add_argument(
        "--seconds", type=_positive, default=3.0, metavar="S", help="for each figure (default: %(default)g)"
    )
    _add_threads(command)

    add("doctor", "What fastcnn found on this machine, and whether it works.", _DOCTOR_EPILOG)
    return parser


def _add_train(command: _Parser) -> None:
    data = command.add_argument_group("data and result")
    data.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        help="fashion-mnist, digits or a folder (default: fashion-mnist if it can be had, else digits)",
    )
    data.add_argument("--image-size", type=_image_size, metavar="N", help="resize pictures to N or HxW pixels")
    data.add_argument("--save", metavar="FILE", help="write the trained model there")
    data.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="write it after each epoch (in a folder each training has its own); when training was broken off, the "
        "same command goes on from there",
    )

    network = command.add_argument_group("network")
    _add_recipe(
        network, "a network and its training from fastcnn.recipes, instead of the defaults below; options change parts"
    )
    network.add_argument(
        "--layers",
        type=_layers,
        nargs="+",
        default=[],
        metavar="SPEC",
        help="the layers, see below (default: two convolutions with max-pooling and a dense layer)",
    )
    network.add_argument("--dropout", type=_share_or_zero, metavar="RATE", help="before dense layers (default: 0.4)")

    training = command.add_argument_group("training")
    training.add_argument(
        "--epochs",
        type=_count,
        metavar="N",
        help="default: 12, or with --recipe its own; at least 30 for fewer than 10,000 training images",
    )
    training.add_argument(
        "--batch-size", type=_count, metavar="N", help="default: 128, or 32 for fewer than 10,000 training images"
    )
    training.add_argument("--learning-rate", type=_positive, metavar="RATE", help="at its highest (default: 0.003)")
    training.add_argument(
        "--schedule",
        choices=("constant", "cosine", "onecycle", "step"),
        help="of the learning rate (default: onecycle)",
    )
    training.add_argument("--solver", choices=("adam", "adamw", "muon", "sgd"), help="the optimiser (default: adam)")
    training.add_argument(
        "--augment",
        type=_augmentation,
        nargs="+",
        metavar="NAME",
        help="change training images at random: flip (left to right), shift[:PIXELS], erase (a rectangle)",
    )
    training.add_argument(
        "--early-stopping",
        action="store_true",
        help="stop when the accuracy on validation images has not grown for 10 epochs, and keep the best epoch",
    )
    training.add_argument(
        "--validation-fraction",
        type=_share,
        metavar="SHARE",
        help="of the training images, for --early-stopping, which it turns on (default: 0.1)",
    )
    training.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="the same seed gives the same model (default: 0)"
    )
    _add_threads(training)
    training.add_argument("--quiet", action="store_true", help="no line for each epoch")


def _add_recipe(command: Any, text: str) -> None:
    command.add_argument("--recipe", choices=("fast", "balanced", "best"), help=text)


def _add_model(command: Any, text: str = "a file that `fastcnn train --save` wrote", **settings: Any) -> None:
    command.add_argument("model", metavar="MODEL", help=text, **settings)
    command.add_argument(
        "--max-parameters",
        type=_count,
        default=1 << 26,
        metavar="N",
        help="refuse a network that has more, before memory is spent on it (default: %(default)s)",
    )


def _add_threads(command: Any) -> None:
    command.add_argument("--threads", type=_count, metavar="N", help="threads (default: all there are)")


def _number(of: Callable[[str], Any], good: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            value = of(text)
        except ValueError:
            value = None
        if value is None or not good(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return convert


_count = _number(int, lambda n: n >= 1, "a whole number from 1 on")
_seed = _number(int, lambda n: 0 <= n < 2**32, "a whole number from 0 to 2**32 - 1")
_positive = _number(float, lambda x: 0 < x < inf, "a number above 0")
_share = _number(float, lambda x: 0 < x < 1, "a number between 0 and 1")
_share_or_zero = _number(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")


def _image_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected a size such as 64 or 48x64 (height x width), got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _layers(text: str) -> list[Layer]:
    """One layer, or several in quotes."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a layer, got nothing")
    try:
        return [parse_layer(item) for item in text.split()]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _augmentation(text: str) -> Augmentation:
    from fastcnn.training.augment import RandomErasing, RandomHorizontalFlip, RandomShift

    if text == "flip":
        return RandomHorizontalFlip()
    if text == "erase":
        return RandomErasing()
    if match := re.fullmatch(r"shift(?::([0-9]{1,4}))?", text):
        return RandomShift(int(match[1])) if match[1] else RandomShift()
    raise argparse.ArgumentTypeError(f"expected flip, shift, shift:PIXELS or erase, got {text!r}")


# ---------------------------------------------------------------------------------------------------------------- main


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str or None
        The arguments after the program's name; None: those of this process.

    Raises
    ------
    SystemExit
        With code 2 for wrong usage, with 0 after ``--help`` and ``--version``.
    """
    parser = _make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    if args.command == "train" and args.layers and args.dropout is not None:
        args.fail("--dropout does nothing beside --layers: put dropout:RATE among the layers")
    if args.command == "train" and args.recipe and args.dropout is not None:
        args.fail("--dropout does nothing beside --recipe, which has its own layers")
    module = {"doctor": "doctor", "bench": "speed"}.get(args.command, "commands")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code: int = getattr(import_module(f"fastcnn.{module}"), args.command)(args)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        print("fastcnn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `fastcnn info model | head`: nobody reads on, and Python must not try at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug or os.environ.get("FASTCNN_DEBUG"):
            raise
        print(f"fastcnn: error: {_describe(error)}", file=sys.stderr)
        return 1


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return _one_line(f"{error.filename}: {error.strerror}")
    if isinstance(error, (OSError, ValueError, ImportError)) and str(error):
        return _one_line(error)
    return _one_line(f"{type(error).__name__}: {error} (--debug shows where)")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    print(f"fastcnn: warning: {_one_line(message)}", file=sys.stderr)


def _one_line(text: object) -> str:
    from fastcnn.console import printable

    return printable(" ".join(str(text).split()))
