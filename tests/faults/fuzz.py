"""Mutated files: each is read, or refused with a ValueError that says why. Nothing else may happen.

Input number i of a reader follows from (seed, i) alone, so that one that fails can be made again.
"""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastcnn import CNNClassifier
from fastcnn.datasets import load_idx_folder, load_image_folder
from fastcnn.layers import BatchNorm, Conv2D, Dropout, MaxPool2D, ReLU, Residual
from fastcnn.training.augment import RandomHorizontalFlip, RandomShift
from tests.faults.tally import Tally

SLOW = 5.0  # seconds that no input may take
EXTRA_MEMORY = 1 << 31  # bytes of address space that a child may add to what it starts with

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 6)).astype(np.uint8)
LABELS = np.arange(12) % 3


# ---------------------------------------------------------------------------------------------------------- mutations


def mutate_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """One to a few changes of bytes: flipped, set, cut, repeated, put in, left out."""
    data = bytearray(content)
    for _ in range(int(rng.geometric(0.5))):
        at, size = (int(rng.integers(0, len(data) + 1)) for _ in range(2))
        size = size % 9 if rng.random() < 0.8 else size
        match int(rng.integers(0, 8)):
            case 0 if at < len(data):
                data[at] ^= 1 << int(rng.integers(0, 8))
            case 1 if at < len(data):
                data[at] = int(rng.choice([0, 1, 127, 128, 255]))
            case 2:
                del data[at:]
            case 3:
                data[at:at] = data[at : at + size]
            case 4:
                data[at:at] = rng.bytes(size)
            case 5:
                del data[at : at + size]
            case 6:
                data[at : at + size] = rng.bytes(min(size, len(data) - at))
            case _:
                data[:64] = mutate_bytes(bytes(data[:64]), rng)[:64] if len(data) > 64 else data[:64]
    return bytes(data)


def _deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


_DEEP = "deeper than what can be written"
HOSTILE: list[Any] = [
    0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**62, 2**63, 10**30, 0.5, 1.5, -0.0, 1e308, float("nan"), float("inf"),
    None, True, False, "", "x", "\x00", "relu", "x" * 5000, [], {}, [0], [[]], _deep(60), _DEEP, {"tuple": []},
    {"tuple": [1, 2]}, {"float": "nan"}, {"float": "-inf"}, {"float": []}, {"dict": [[1, 2]]}, {"dict": [[[], 2]]},
    {"spec": {"layer": "ReLU"}}, {"spec": {}}, {"augmentation": {"name": "MixUp"}}, {"augmentation": {}},
    "F64", "float64",
]  # fmt: skip


def mutate_json(value: Any, rng: np.random.Generator) -> Any:
    """One node of a JSON value replaced, left out or doubled."""
    nodes = list(_nodes(value))
    if not nodes:
        return HOSTILE[int(rng.integers(len(HOSTILE)))]
    holder, key = nodes[int(rng.integers(len(nodes)))]
    kind = rng.random()
    if kind < 0.6:
        holder[key] = HOSTILE[int(rng.integers(len(HOSTILE)))]
    elif kind < 0.75:
        other, place = nodes[int(rng.integers(len(nodes)))]
        holder[key] = json.loads(json.dumps(other[place]))
    elif kind < 0.9:
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, json.loads(json.dumps(holder[key])))
    else:
        holder[f"{key}x"] = holder[key]
    return value


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _nodes(item)


def mutate_model(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes, or the meaning of the header: values of its JSON, sizes and tensors."""
    if rng.random() < 0.4:
        return mutate_bytes(content, rng)
    length = int.from_bytes(content[:8], "little")
    header, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(int(rng.geometric(0.7))):
        try:
            inner = json.loads(header["__metadata__"]["fastcnn"])
        except (LookupError, TypeError, ValueError):
            break
        if rng.random() < 0.8:
            header["__metadata__"]["fastcnn"] = json.dumps(mutate_json(inner, rng))
        else:
            header = mutate_json(header, rng)
    text = json.dumps(header)
    for quote in ('"', r"\""):  # in the header, and in the JSON that is a string within it
        text = text.replace(f"{quote}{_DEEP}{quote}", "[" * 5000 + "]" * 5000)
    text = text.encode()
    if rng.random() < 0.1:
        tensors = mutate_bytes(tensors, rng)
    return len(text).to_bytes(8, "little") + text + tensors


def mutate_idx(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes, or one of the sizes in the header."""
    if rng.random() < 0.5:
        return mutate_bytes(content, rng)
    at = 4 + 4 * int(rng.integers(0, content[3]))
    size = int(rng.choice([0, 1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, int(rng.integers(0, 20))]))
    changed = content[:at] + size.to_bytes(4, "big") + content[at + 4 :]
    return mutate_bytes(changed, rng) if rng.random() < 0.3 else changed


def mutate_gzip(content: bytes, rng: np.random.Generator) -> bytes:
    """The packed bytes, or what is packed."""
    if rng.random() < 0.5:
        return mutate_bytes(gzip.compress(content, 1), rng)
    return gzip.compress(mutate_idx(content, rng), 1)


# ------------------------------------------------------------------------------------------------------------ readers


@lru_cache(maxsize=1)
def model_files() -> list[bytes]:
    """Small models with something of everything that a file can hold."""
    some = [
        {"conv_channels": (2,), "dense_units": (3,)},
        {
            "layers": [Conv2D(2, 3), BatchNorm(), ReLU(), Residual([Conv2D(2, 1)]), MaxPool2D(2), Dropout(0.2)],
            "augment": [RandomShift(1), RandomHorizontalFlip()],
            "dtype": "float64",
            "class_weight": {"class 0": 1.0, "class 1": 2.0, "class 2": 0.5},
            "scale": "unit",
            "early_stopping": True,
            "validation_fraction": 0.5,
        },
    ]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for i, parameters in enumerate(some):
            y = np.array([f"class {label}" for label in LABELS]) if i else LABELS
            clf = CNNClassifier(max_iter=2, random_state=0, **parameters).fit(IMAGES, y)
            clf.save(Path(folder, "model"))
            found.append(Path(folder, "model").read_bytes())
    return found


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


FORMATS = ("png", "jpg", "gif", "bmp", "ppm", "tif", "webp")


@lru_cache(maxsize=1)
def pictures() -> list[tuple[str, bytes]]:
    from PIL import Image

    found = []
    color = np.stack([IMAGES[0], IMAGES[1], IMAGES[2]], axis=-1)
    for suffix in FORMATS:
        for pixels in (IMAGES[0], color):
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, Image.registered_extensions()[f".{suffix}"])
            found.append((suffix, content.getvalue()))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    Image.fromarray(color).save(content, "JPEG", exif=exif)
    return [*found, ("jpg", content.getvalue())]


class Input(NamedTuple):
    """Files by name, and what reads the folder they are in."""

    files: dict[str, bytes]
    read: Callable[[Path], Any]


def _read_model(folder: Path) -> None:
    clf = CNNClassifier.load(folder / "model")
    if prod(clf.image_shape_) <= 4096:
        clf.predict(np.zeros((1, *clf.image_shape_)))


def _model_input(rng: np.random.Generator) -> Input:
    originals = model_files()
    return Input({"model": mutate_model(originals[int(rng.integers(len(originals)))], rng)}, _read_model)


def _idx_input(rng: np.random.Generator, gz: bool) -> Input:
    files = {"images-idx3": idx_bytes(IMAGES), "labels-idx1": idx_bytes(LABELS)}
    changed = str(rng.choice(list(files)))
    content = {name: gzip.compress(value, 1) if gz else value for name, value in files.items()}
    content[changed] = (mutate_gzip if gz else mutate_idx)(files[changed], rng)
    return Input({f"train-{name}-ubyte": value for name, value in content.items()}, load_idx_folder)


def _picture_input(rng: np.random.Generator) -> Input:
    every = pictures()
    suffix, content = every[int(rng.integers(len(every)))]
    suffix = suffix if rng.random() < 0.9 else str(rng.choice(FORMATS))
    files = {f"a/1.{suffix}": mutate_bytes(content, rng), "b/1.png": every[0][1]}
    color = (None, True, False)[int(rng.integers(3))]
    shape = None if rng.random() < 0.5 else (5, 6)
    return Input(files, lambda folder: load_image_folder(folder, shape, color))


READERS: dict[str, Callable[[np.random.Generator], Input]] = {
    "model file": _model_input,
    "IDX file": lambda rng: _idx_input(rng, gz=False),
    "IDX file, gzip": lambda rng: _idx_input(rng, gz=True),
    "image folder": _picture_input,
}


def make(reader: str, seed: int, number: int) -> Input:
    """Input `number` of a reader."""
    return READERS[reader](np.random.default_rng([seed, list(READERS).index(reader), number]))


def fuzz(reader: str, seed: int, first: int, count: int, folder: Path) -> Tally:
    """Read inputs `first` to `first + count` in this process."""
    tally = Tally(f"{reader}, mutated")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of corrupt tags
        for number in range(first, first + count):
            (folder / "number").write_text(str(number))
            here = folder / "input"
            given = make(reader, seed, number)
            for name, content in given.files.items():
                path = here / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            start = time.perf_counter()
            try:
                given.read(here)
                outcome = "read"
            except ValueError:
                outcome = "ValueError"
            except Exception as error:
                outcome = ""
                tally.failed(f"input {number}: {type(error).__name__}: {error}")
            taken = time.perf_counter() - start
            if taken > SLOW:
                tally.failed(f"input {number} took {taken:.1f} s")
            elif outcome:
                tally.survived(outcome)
            for name in given.files:
                (here / name).unlink()
    return tally


def fuzz_in_children(reader: str, seed: int, count: int, chunk: int = 5000) -> Tally:
    """The same in processes with little memory, one after another: so a crash is noticed, and survived."""
    total = Tally(f"{reader}, mutated")
    first = 0
    while first < count:
        with tempfile.TemporaryDirectory() as folder:
            size = min(chunk, count - first)
            command = [sys.executable, "-m", "tests.faults.fuzz", reader, *map(str, (seed, first, size)), folder]
            done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
            result = Path(folder, "result.json")
            if done.returncode == 0:
                found = json.loads(result.read_text())
                total.outcomes.update(found["outcomes"])
                total.failures += found["failures"]
                first += size
            else:
                number = int(Path(folder, "number").read_text())
                total.failed(f"input {number} ended the process: {done.returncode} {done.stderr[-300:]}")
                first = number + 1
    return total


def _main() -> None:
    import resource

    reader, (seed, first, count), folder = sys.argv[1], map(int, sys.argv[2:5]), Path(sys.argv[5])
    make(reader, seed, 0)  # what inputs are made from exists before memory is limited
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + EXTRA_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    tally = fuzz(reader, seed, first, count, folder)
    (folder / "result.json").write_text(json.dumps(tally.to_json()))


if __name__ == "__main__":
    _main()
