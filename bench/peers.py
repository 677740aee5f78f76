"""Training and predicting side by side with PyTorch: the same network, batch, optimiser and dropout, float32,
the same threads.

Each side runs in a process of its own, alternating in rounds; before anything is timed, all sides must give
the same outputs and the same loss from the same parameters. PyTorch runs contiguous and channels_last, and
its better mode of each round counts. `python -m bench.peers [--threads 2] [--rounds 9] [--torch-python
PATH]`, where PATH is a Python that has torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import save, usable_cores, versions

BATCH, CLASSES, DROPOUT, RATE = 128, 10, 0.4, 1e-3
SIDES = ("fastcnn", "torch contiguous", "torch channels_last")
# PyTorch's names of the seed network's parameters, and how its layout follows from ours.
TORCH_NAMES = {"0.weight": "0", "2.weight": "3", "5.weight": "7", "7.weight": "10"}


def seed_layers(dropout: float) -> list[Any]:
    """conv32-3x3 / pool / conv64-3x3 / pool / dense128 / dropout / dense10."""
    from fastcnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPool2D

    return [
        Conv2D(32, activation="relu"), MaxPool2D(), Conv2D(64, activation="relu"), MaxPool2D(), Flatten(),
        Dense(128, activation="relu"), Dropout(dropout), Dense(CLASSES),
    ]  # fmt: skip


Run = Callable[[int], float]  # (steps) -> seconds


def fastcnn_side(threads: int, data: dict[str, np.ndarray]) -> tuple[dict[str, Any], Run, Run]:
    """What is checked (logits, loss), a function that trains and one that predicts some batches."""
    from fastcnn import Network

    def network(dropout: float) -> Any:
        net = Network(seed_layers(dropout), (28, 28, 1), n_jobs=threads, random_state=0)
        net.load_params({name: data[name] for name in net.params})
        return net

    x, labels = data["x"], data["labels"]
    check = network(0.0)
    checked = {"logits": check.forward(x).tolist(), "losses": [check.train_step(x, labels) for _ in range(3)]}
    net = network(DROPOUT)

    def train(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            net.train_step(x, labels)
        return time.perf_counter() - start

    def predict(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            net.forward(x)
        return time.perf_counter() - start

    return checked, train, predict


def torch_side(threads: int, data: dict[str, np.ndarray], channels_last: bool) -> tuple[dict[str, Any], Run, Run]:
    """The same in PyTorch."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def network(dropout: float) -> tuple[Any, Any]:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, CLASSES),
        )  # fmt: skip
        state = {}
        for ours, theirs in TORCH_NAMES.items():
            weight, bias = data[ours], data[ours.replace("weight", "bias")]
            if weight.ndim == 4:
                weight = weight.transpose(3, 2, 0, 1)
            elif weight.shape[0] == 3136:  # flattened (7, 7, 64) here, (64, 7, 7) there
                weight = weight.reshape(7, 7, 64, 128).transpose(2, 0, 1, 3).reshape(3136, 128).T
            else:
                weight = weight.T
            state[f"{theirs}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
            state[f"{theirs}.bias"] = torch.from_numpy(bias)
        net.load_state_dict(state)
        net = net.to(memory_format=layout)
        return net, torch.optim.Adam(net.parameters(), lr=RATE)

    x = torch.from_numpy(data["x"].transpose(0, 3, 1, 2).copy()).contiguous(memory_format=layout)
    labels, loss_of = torch.from_numpy(data["labels"]), nn.CrossEntropyLoss()

    def step(net: Any, optimizer: Any) -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(net(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    check, optimizer = network(0.0)
    with torch.inference_mode():
        logits = check(x).tolist()
    checked = {"logits": logits, "losses": [float(step(check, optimizer).detach()) for _ in range(3)]}
    net, optimizer = network(DROPOUT)

    def train(steps: int) -> float:
        net.train()
        start = time.perf_counter()
        for _ in range(steps):
            step(net, optimizer)
        return time.perf_counter() - start

    def predict(steps: int) -> float:
        net.eval()
        start = time.perf_counter()
        with torch.inference_mode():
            for _ in range(steps):
                net(x)
        return time.perf_counter() - start

    return checked, train, predict


def worker(side: str, threads: int, path: str) -> None:
    """Print what is checked, then answer each line "train N" or "predict N" with seconds."""
    data = dict(np.load(path))
    if side == "fastcnn":
        checked, train, predict = fastcnn_side(threads, data)
    else:
        checked, train, predict = torch_side(threads, data, side.endswith("channels_last"))
    print(json.dumps(checked | {"versions": versions("fastcnn", "numba", "numpy", "torch")}), flush=True)
    for line in sys.stdin:
        what, steps = line.split()
        print({"train": train, "predict": predict}[what](int(steps)), flush=True)


class Side:
    """A worker process."""

    def __init__(self, name: str, python: str, threads: int, path: str) -> None:
        command = [python, "-m", "bench.peers", "--worker", name, "--threads", str(threads), "--data", path]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.checked = json.loads(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended: {self.process.args}")
        return line

    def images_per_second(self, what: str, steps: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {steps}\n")
        self.process.stdin.flush()
        return BATCH * steps / float(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(sides: dict[str, Side], rounds: int, steps: int) -> dict[str, Any]:
    """Rounds of one turn a side, in alternating order; rates, and the ratio to the better mode of PyTorch."""
    result: dict[str, Any] = {}
    for what in ("train", "predict"):
        for side in sides.values():
            side.images_per_second(what, 5)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for i in range(rounds):
            for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
                rates[name].append(sides[name].images_per_second(what, steps))
        best = [max(rates[SIDES[1]][i], rates[SIDES[2]][i]) for i in range(rounds)]
        ratios = [ours / theirs for ours, theirs in zip(rates[SIDES[0]], best, strict=True)]
        result[what] = {"images_per_second": rates, "ratios": ratios, "quartiles": statistics.quantiles(ratios, n=4)}
        for name in sides:
            print(f"{what:<8} {name:<20} {statistics.median(rates[name]):>9,.0f} images/s", flush=True)
        low, middle, high = result[what]["quartiles"]
        print(f"{what:<8} ratio {middle:.2f} (quartiles {low:.2f} to {high:.2f})", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.threads, args.data)
        return

    from fastcnn import Network

    rng = np.random.default_rng(0)
    net = Network(seed_layers(0.0), (28, 28, 1), random_state=0)
    data = {name: value.copy() for name, value in net.params.items()}
    data |= {"x": rng.standard_normal((BATCH, 28, 28, 1)).astype(np.float32), "labels": rng.integers(0, CLASSES, BATCH)}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "data.npz")
        np.savez(path, **data)
        pythons = dict(zip(SIDES, (sys.executable, args.torch_python, args.torch_python), strict=True))
        sides = {name: Side(name, pythons[name], args.threads, path) for name in SIDES}
        try:
            ours = sides["fastcnn"].checked
            for name, side in sides.items():
                np.testing.assert_allclose(side.checked["logits"], ours["logits"], rtol=1e-3, atol=1e-4, err_msg=name)
                np.testing.assert_allclose(side.checked["losses"], ours["losses"], rtol=1e-3, err_msg=name)
            print("checked: equal outputs and losses on every side", flush=True)
            result = compare(sides, args.rounds, args.steps)
        finally:
            for side in sides.values():
                side.close()
    about = {name: side.checked["versions"] for name, side in sides.items()}
    setting = {"batch": BATCH, "dropout": DROPOUT, "threads": args.threads, "steps": args.steps, "rounds": args.rounds}
    print(f"written: {save('peers', {'versions': about, 'setting': setting, **result})}")


if __name__ == "__main__":
    main()
