"""What the system does not give: ``python -m tests.faults.limits memory|disk|full TIMES SEED``.

memory: fits and predictions with a random limit of the address space (RLIMIT_AS). disk: writes that end at a random
byte (RLIMIT_FSIZE, under which write() fails). full FOLDER: the same in a small file system that is filled up before.
"""

from __future__ import annotations

import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastcnn import CNNClassifier
from tests.faults.children import X, bits, report, small, y
from tests.faults.tally import Tally

UNLIMITED = resource.RLIM_INFINITY


@contextmanager
def limit(what: int, size: int) -> Iterator[None]:
    resource.setrlimit(what, (size, UNLIMITED))
    try:
        yield
    finally:
        resource.setrlimit(what, (UNLIMITED, UNLIMITED))


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def memory(times: int, seed: int) -> Tally:
    tally = Tally("memory limit (RLIMIT_AS) reached")
    sizes = random.Random(seed)
    large = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(256) % 3
    settings = {"conv_channels": (32,), "dense_units": (256,), "batch_size": 256, "max_iter": 1}
    clf = small(**settings).fit(large, labels)  # everything is compiled, and lanes have their stacks
    before, proba = bits(clf), clf.predict_proba(large)
    settings["conv_channels"] = (33,)
    asleep = pickle.dumps(clf)
    actions: dict[str, Callable[[], Any]] = {
        "fit": lambda: clf.set_params(**settings).fit(large, labels),
        "predict": lambda: clf.predict_proba(large),
        "partial_fit": lambda: clf.partial_fit(large, labels),
    }
    for number in range(times):
        name = sizes.choice(list(actions))
        extra = int(2 ** sizes.uniform(16, 28))
        clf = pickle.loads(asleep)  # has made no plan yet
        try:
            with limit(resource.RLIMIT_AS, address_space() + extra):
                actions[name]()
            outcome = "enough"
        except MemoryError:
            outcome = "MemoryError"
        except BaseException as error:
            tally.failed(f"number {number}, {name} with {extra} bytes more: {error!r}")
            continue
        if outcome == "MemoryError" and (bits(clf) != before or not np.array_equal(clf.predict_proba(large), proba)):
            tally.failed(f"number {number}, {name}: the estimator changed")
        else:
            tally.survived(f"{name}: {outcome}")
        if bits(clf.set_params(**settings | {"conv_channels": (32,)}).fit(large, labels)) != before:
            tally.failed(f"number {number}, {name}: a later fit gives other bits")
    return tally


def _writes(clf: CNNClassifier, folder: Path) -> dict[str, Callable[[], Any]]:
    return {
        "save": lambda: clf.save(folder / "model"),
        "checkpointed fit": lambda: small(checkpoint=folder / "run", random_state=1).fit(X, y),
        "to_onnx": lambda: clf.to_onnx(folder / "graph"),
    }


def disk(times: int, seed: int) -> Tally:
    """Writes that fail at a random byte."""
    tally = Tally("disk full while a file is written (write() fails)")
    sizes = random.Random(seed)
    folder = Path(tempfile.mkdtemp())
    old, new = small().fit(X, y), small(random_state=1).fit(X, y)
    for write in _writes(old, folder).values():
        write()
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    for number in range(times):
        name, file = sizes.choice([("save", "model"), ("checkpointed fit", "run"), ("to_onnx", "graph")])
        if name == "checkpointed fit":
            (folder / file).unlink()  # or it would have nothing to do
        try:
            with limit(resource.RLIMIT_FSIZE, sizes.randrange(0, len(kept[file]))):
                _writes(new, folder)[name]()
            outcome = "enough"
        except OSError as error:
            outcome = f"OSError ({os.strerror(error.errno) if error.errno else error})"
        _check(tally, f"number {number}, {name}", f"{name}: {outcome}", folder, kept, outcome == "enough")
    shutil.rmtree(folder)
    return tally


def full(folder: Path) -> Tally:
    """Writes to a file system of some hundred KB, with ever less of it left."""
    tally = Tally("disk full while a file is written (a full file system)")
    old, new = small().fit(X, y), small(random_state=1).fit(X, y)
    for write in _writes(old, folder).values():
        write()
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    ballast = folder / "ballast"
    for left in range(0, max(map(len, kept.values())), 4096):
        for name in _writes(new, folder):
            ballast.unlink(missing_ok=True)
            if name == "checkpointed fit":
                (folder / "run").unlink()
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            ballast.write_bytes(bytes(max(0, free - left)))
            try:
                _writes(new, folder)[name]()
                outcome = "enough"
            except OSError as error:
                outcome = f"OSError ({os.strerror(error.errno or 0)})"
            ballast.unlink()
            _check(tally, f"{left} bytes left, {name}", f"{name}: {outcome}", folder, kept, outcome == "enough")
    return tally


def _check(tally: Tally, what: str, outcome: str, folder: Path, kept: dict[str, bytes], written: bool) -> None:
    """All files are as they were, but for what was written, and no part of one is left; then put them back."""
    now = {path.name: path.read_bytes() for path in folder.iterdir()}
    old = {name: content for name, content in kept.items() if written or name != "run" or "fit" not in what}
    if now.keys() != old.keys() or (not written and now != old):
        tally.failed(f"{what}: {sorted(now)} is there")
    else:
        tally.survived(outcome)
    for path in folder.iterdir():
        path.unlink()
    for name, content in kept.items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    kind = sys.argv[1]
    if kind == "full":
        report(full(Path(sys.argv[2])))
    else:
        report({"memory": memory, "disk": disk}[kind](int(sys.argv[2]), int(sys.argv[3])))
