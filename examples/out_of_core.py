"""Learning from more than the memory holds.

The images lie in a file of uint8, opened as a memory map. `partial_fit` takes them part by part; what it reads is
converted batch by batch, so that little more than a batch is ever in memory as floats. To show it, the process is
forbidden to allocate as much memory as the file is long (Linux).
"""

import resource
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from fastcnn import CNNClassifier
from fastcnn.layers import Conv2D, MaxPool2D

SIDE, PART = 48, 20_000
MEGABYTE = 2**20


def draw(n, rng):
    """`n` digits of 8x8, each somewhere in a noisy image, and which they are."""
    digits = load_digits()
    which = rng.integers(len(digits.target), size=n)
    images = rng.integers(0, 64, (n, SIDE, SIDE), dtype=np.uint8)
    top, left = rng.integers(0, SIDE - 8, (2, n, 1, 1))
    rows, columns = top + np.arange(8)[:, np.newaxis], left + np.arange(8)
    images[np.arange(n)[:, np.newaxis, np.newaxis], rows, columns] += (
        (digits.images[which] * 12 - 1).clip(0).astype(np.uint8)
    )
    return images, digits.target[which]


def megabytes_in_use():
    """What the process has allocated; the pages of a file that it looks at do not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) // 1024
    raise OSError("no VmData in /proc/self/status")


layers = [Conv2D(16, 5, stride=2, activation="relu"), MaxPool2D(), Conv2D(32, activation="relu"), MaxPool2D()]
clf = CNNClassifier(layers=layers, scale="unit", learning_rate_init=2e-3, random_state=0)
rng = np.random.default_rng(0)
figure, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
X_test, y_test = draw(2_000, rng)
clf.partial_fit(*draw(256, rng), classes=np.arange(10))  # Numba and the kernels are loaded

limit = megabytes_in_use() + 256
n_parts = int(limit * MEGABYTE) // (PART * SIDE * SIDE) + 2  # a part more than would fit

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "images.npy")
    shape = (n_parts * PART, SIDE, SIDE)
    X = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    y = np.empty(len(X), np.int64)
    for start in range(0, len(X), PART):
        X[start : start + PART], y[start : start + PART] = draw(PART, rng)
    del X
    print(f"{len(y):,} images, {path.stat().st_size // MEGABYTE} MB; the process may allocate {limit} MB")

    resource.setrlimit(resource.RLIMIT_DATA, (limit * MEGABYTE,) * 2)
    X = np.load(path, mmap_mode="r")
    try:
        np.array(X)
        raise SystemExit("the limit does not work here")
    except MemoryError:
        print("all of it does not fit into memory")

    seen, scores = [], []
    for part in range(n_parts):
        here = slice(part * PART, (part + 1) * PART)
        clf.partial_fit(X[here], y[here])
        if part % 5 == 0 or part == n_parts - 1:
            seen.append(clf.t_)
            scores.append(clf.score(X_test, y_test))
            print(f"{clf.t_:>9,} images seen  loss {clf.loss_:.3f}  test accuracy {scores[-1]:.3f}")

ax.plot(seen, scores, "o-")
ax.set(xlabel="images seen", ylabel="test accuracy", title="digits somewhere in noisy images of 48x48")
plt.show()
