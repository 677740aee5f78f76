"""Peak memory of training: `CNNClassifier.fit` on the 60,000 uint8 images of Fashion-MNIST, one epoch, against the same
network in PyTorch with the images kept as uint8 and each batch made float and scaled in the loop.

Each run is a process of its own, sides alternate; the same arrays, batch size, optimiser and number of steps. The peak
is the kernel's high-water mark of resident memory (VmHWM); it is also given after the imports and after loading the
data. fastcnn runs with a full cache of kernels, and once with an empty one: compiling takes memory too. PyTorch runs
with contiguous and with channels_last tensors, and the smaller counts. Linux only.
`python -m bench.memory --torch-python PATH [--images N] [--runs 3]`
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from bench.coldstart import has_module
from bench.machine import save, saved, usable_cores, versions

BATCH, DROPOUT, LEARNING_RATE, L2 = 128, 0.4, 1e-3, 1e-4
IMAGES = 60_000
LOSS = 0.8  # the mean loss of the epoch must be lower; few steps must only not diverge (guessing: 2.3)
FASTCNN, COMPILING = "fastcnn", "fastcnn, empty cache"
TORCH = {"torch contiguous": "contiguous_format", "torch channels_last": "channels_last"}


def peak_mb() -> float:
    """Most resident memory this process has had. (getrusage's begins with what the parent had when it forked.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def train_fastcnn(folder: Path, threads: int) -> dict[str, Any]:
    from fastcnn import CNNClassifier
    from fastcnn.kernels import get_backend

    get_backend("cpu")
    found = {"import_mb": peak_mb()}
    X, y = np.load(folder / "X.npy"), np.load(folder / "y.npy")
    found["data_mb"] = peak_mb()
    clf = CNNClassifier(
        dropout=DROPOUT, learning_rate_init=LEARNING_RATE, learning_rate="constant", alpha=L2, batch_size=BATCH,
        max_iter=1, tol=0, n_iter_no_change=np.inf, random_state=0, n_jobs=threads,
    )  # fmt: skip
    clf.fit(X, y)
    return found | {"peak_mb": peak_mb(), "loss": clf.loss_, "steps": ceil(clf.t_ / BATCH)}


def train_torch(folder: Path, threads: int, layout: str) -> dict[str, Any]:
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    found = {"import_mb": peak_mb()}
    # The tensors share the arrays' memory.
    X, y = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in "Xy")
    found["data_mb"] = peak_mb()
    # What scaling needs, without a float copy of all images.
    levels = torch.zeros(256, dtype=torch.float64)
    for part in X.split(1000):
        levels += torch.bincount(part.flatten(), minlength=256)
    values, share = torch.arange(256), levels / levels.sum()
    mean = float((share * values).sum())
    deviation = float((share * (values - mean) ** 2).sum() ** 0.5)
    net = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(DROPOUT), nn.Linear(64 * (X.shape[1] // 4) * (X.shape[2] // 4), 128), nn.ReLU()),
        *(nn.Dropout(DROPOUT), nn.Linear(128, 10)),
    ).to(memory_format=getattr(torch, layout))
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE, weight_decay=L2, fused=True)
    total, steps = 0.0, 0
    for chosen in torch.randperm(len(X)).split(BATCH):
        x = X[chosen].float().sub_(mean).div_(deviation).unsqueeze(1)
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(net(x), y[chosen])
        loss.backward()
        optimizer.step()
        total += loss.item() * len(chosen)
        steps += 1
    return found | {"peak_mb": peak_mb(), "loss": total / len(X), "steps": steps}


def run(side: str, python: str, folder: str, threads: int, cache: str, images: int) -> dict[str, Any]:
    """One training run in a fresh process."""
    done = subprocess.run(
        [python, "-m", "bench.memory", "--worker", side, "--folder", folder, "--threads", str(threads)],
        stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1],
        env=os.environ | {"FASTCNN_CACHE_DIR": cache},
    )  # fmt: skip
    found = json.loads(done.stdout)
    limit = LOSS if images == IMAGES else 4.0
    assert found["steps"] == ceil(images / BATCH), f"{side}: {found['steps']} steps for {images} images"
    assert found["loss"] < limit, f"{side} did not learn: a mean loss of {found['loss']:.3f}"
    sizes = ", ".join(f"{found[key]:6.0f} MB" for key in ("import_mb", "data_mb", "peak_mb"))
    print(f"{side:22s} imports, data, peak: {sizes}; loss {found['loss']:.3f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH", help="a Python that has PyTorch")
    parser.add_argument("--images", type=int, default=IMAGES, help="fewer for a try; nothing is written then")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, usable_cores()))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker in TORCH:
        print(json.dumps(train_torch(args.folder, args.threads, TORCH[args.worker])))
        return
    if args.worker:
        print(json.dumps(train_fastcnn(args.folder, args.threads)))
        return

    from fastcnn.datasets import fetch_fashion_mnist

    X, y = fetch_fashion_mnist("train")
    sides = {FASTCNN: sys.executable}
    if has_module(args.torch_python, "torch"):
        sides |= dict.fromkeys(TORCH, args.torch_python)
    else:
        print(f"{args.torch_python} has no PyTorch: left out")
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/X.npy", X[: args.images])
        np.save(f"{folder}/y.npy", y[: args.images])
        cache, images = f"{folder}/cache", len(X[: args.images])
        runs[COMPILING] = [run(COMPILING, sys.executable, folder, args.threads, cache, images)]
        for _ in range(args.runs):
            for side, python in sides.items():
                runs.setdefault(side, []).append(run(side, python, folder, args.threads, cache, images))

    result: dict[str, Any] = {"versions": versions("fastcnn", "numpy", "numba")}
    result["setting"] = {"images": images, "batch": BATCH, "threads": args.threads, "runs": args.runs}
    keys = ("import_mb", "data_mb", "peak_mb")
    result["sides"] = {
        side: {key: statistics.median(one[key] for one in of_side) for key in keys} | {"runs": of_side}
        for side, of_side in runs.items()
    }
    peaks = {side: found["peak_mb"] for side, found in result["sides"].items()}
    for side, peak in peaks.items():
        print(f"{side:22s} {peak:6.0f} MB (median)")
    if len(sides) > 1:
        best = min(TORCH, key=lambda side: peaks[side])
        result |= {"ratio": peaks[FASTCNN] / peaks[best], "ratio_empty_cache": peaks[COMPILING] / peaks[best]}
        result["torch_side"] = best
        code = "import json; from bench.machine import versions; print(json.dumps(versions('torch')))"
        answer = subprocess.run([args.torch_python, "-c", code], stdout=subprocess.PIPE, check=True)
        result["torch_versions"] = json.loads(answer.stdout)
        print(f"fastcnn / {best}: {result['ratio']:.2f}; with an empty cache {result['ratio_empty_cache']:.2f}")
    if images == IMAGES and (len(sides) > 1 or "ratio" not in saved("memory")):
        print(f"written: {save('memory', result)}")
    else:
        print("not written")


if __name__ == "__main__":
    main()
