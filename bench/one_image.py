"""What the estimator adds to the engine when it predicts one image: checking X, scaling it, finding the label.

`CNNClassifier.predict` of one image against `Network.predict_proba` of the same image, scaled before; turns of both
alternate. Both give the same probabilities, which is checked first.
`python -m bench.one_image [--rounds 15]`
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.machine import save, versions
from fastcnn import CNNClassifier

CALLS = 300
IMAGES = {  # size of the images and their dtype
    "8x8, uint8": ((8, 8), np.uint8),
    "28x28, uint8": ((28, 28), np.uint8),
    "28x28, float32": ((28, 28), np.float32),
    "28x28, float64": ((28, 28), np.float64),
    "32x32x3, uint8": ((32, 32, 3), np.uint8),
}


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS


def measure(shape: tuple[int, ...], dtype: Any, rounds: int) -> dict[str, list[float]]:
    """Microseconds of both, round by round."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (64, *shape)).astype(dtype)
    clf = CNNClassifier(conv_channels=(8, 16), dense_units=(32,), max_iter=1, random_state=0).fit(X, np.arange(64) % 10)
    image = X[:1]
    x = ((image.reshape(1, *clf.image_shape_) - clf.channel_offset_) / clf.channel_scale_).astype(np.float32)
    np.testing.assert_allclose(clf.predict_proba(image), clf.network_.predict_proba(x), rtol=1e-4, atol=1e-6)
    calls = {"estimator": lambda: clf.predict(image), "engine": lambda: clf.network_.predict_proba(x)}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        seconds_of(call)
    for i in range(rounds):
        for name in list(calls)[:: 1 if i % 2 == 0 else -1]:
            found[name].append(1e6 * seconds_of(calls[name]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    rows = {}
    for name, (shape, dtype) in IMAGES.items():
        rows[name] = found = measure(shape, dtype, args.rounds)
        added = [a - b for a, b in zip(found["estimator"], found["engine"], strict=True)]
        medians = {side: statistics.median(values) for side, values in found.items()}
        print(f"{name:<16} estimator {medians['estimator']:6.1f} us, engine {medians['engine']:6.1f} us, "
              f"added {statistics.median(added):6.1f} us")  # fmt: skip
    known = versions("fastcnn", "numpy", "scikit-learn", "numba")
    print(f"written: {save('one_image', {'versions': known, 'rows': rows})}")


if __name__ == "__main__":
    main()
