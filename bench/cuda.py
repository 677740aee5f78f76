"""On a GPU: checks, then times; a table on the screen and figures in JSON.

    python -m bench.cuda [--limit SECONDS] [--out FILE] [--quick]

1. One training step of each network is what the reference in NumPy computes; no figure without that.
2. The card's own limits: a large copy, and a large matrix product if PyTorch is there.
3. Convolutions and their gradients alone: GFLOP/s and GB/s, of arrays read and written once.
4. Training steps of `seed` and `vgg` at batch 128, 512 and 4096, beside PyTorch where it is installed: eager, as a CUDA
   graph, and compiled with max-autotune; channels_last, float32 without TF32, images on the GPU already, and the loss
   brought to the host in each step on every side.
5. A fit of Fashion-MNIST to 92 % and 94 % of the test images, if it is on the disk.

What takes long comes last and is left out once `--limit` (540 s) is near, so that one call ends within ten minutes.
With `--quick` sizes are small enough for the simulator: that checks this script, its times mean nothing. All but the
last section runs from a checkout whose Cython extensions are not built.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.machine import RESULTS, cpu_name, versions
from bench.networks import CLASSES, HALVE, NETWORKS, RELU, Conv, Dense, Flatten, Net, fastcnn_layers

LAYERS = {  # batch, (H, W, C), filters: of the networks below
    "seed conv1": (512, (28, 28, 1), 32),
    "seed conv2": (512, (14, 14, 32), 64),
    "vgg conv1_2": (512, (32, 32, 32), 32),
    "vgg conv2_2": (512, (16, 16, 64), 64),
    "vgg conv3_2": (512, (8, 8, 128), 128),
}
TINY = Net((6, 6, 1), (Conv(4, 3, padding=1), RELU, HALVE, Flatten(), Dense(CLASSES)))
STARTED = perf_counter()
GOALS = (0.92, 0.94)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which nothing new is begun")
    parser.add_argument("--out", type=Path, default=RESULTS / "cuda.json")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for the simulator")
    args = parser.parse_args()
    try:
        from fastcnn.kernels import get_backend

        get_backend("cuda")
    except (ImportError, RuntimeError) as error:
        raise SystemExit(f"nothing was measured: {error}") from error
    from fastcnn.kernels.cuda import driver

    card = driver.device_names()[0]
    result: dict[str, Any] = {"card": card, "cpu": cpu_name(), "simulated": driver.SIMULATED}
    result["versions"] = versions("fastcnn", "numba", "numba-cuda", "numpy", "torch")
    print(f"{card}; {result['versions']}", flush=True)

    def keep() -> None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")

    for name, section in {
        "checks": check, "limits": limits, "kernels": kernels, "steps": steps, "fit": fit,
    }.items():  # fmt: skip
        print(f"\n== {name} (after {perf_counter() - STARTED:.0f} s)", flush=True)
        result[name] = section(args)
        keep()
    print(f"\n{args.out} written, {perf_counter() - STARTED:.0f} s in all")


def late(args: argparse.Namespace, needed: float) -> bool:
    """Whether what takes `needed` seconds would end after the limit."""
    return perf_counter() - STARTED + needed > args.limit


def seconds_of(call: Callable[[], Any], wait: Callable[[], Any], quick: bool) -> float:
    """Of one call: the median of seven runs of at least 50 ms each, the GPU idle before and after."""
    for _ in range(1 if quick else 3):
        call()
    wait()
    start = perf_counter()
    call()
    wait()
    count = 1 if quick else max(1, int(0.05 / max(perf_counter() - start, 1e-6)))
    runs = []
    for _ in range(1 if quick else 7):
        start = perf_counter()
        for _ in range(count):
            call()
        wait()
        runs.append((perf_counter() - start) / count)
    return statistics.median(runs)


def torch_or_none() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


# ------------------------------------------------------------------------------------------------------------ checks


def check(args: argparse.Namespace) -> dict[str, float]:
    """The largest error of a gradient after one step, relative to the largest gradient, by network."""
    from fastcnn import Network

    errors = {}
    for name in ("tiny",) if args.quick else ("seed", "vgg", "lenet5", "strided"):
        net = TINY if args.quick else NETWORKS[name]
        x, labels = batch_of(net, 3 if args.quick else 64)
        sides = [Network(fastcnn_layers(net), net.input_shape, device=d, random_state=0) for d in ("reference", "cuda")]
        losses = [side.train_step(x, labels) for side in sides]
        expected, actual = (side.grads for side in sides)
        largest = max(float(np.abs(grad).max()) for grad in expected.values())
        errors[name] = max(float(np.abs(actual[key] - expected[key]).max()) for key in expected) / largest
        print(
            f"{name:<10} loss {losses[1]:.5f} (expected {losses[0]:.5f}), gradients within {errors[name]:.1e}",
            flush=True,
        )
        if abs(losses[1] - losses[0]) > 1e-4 or not errors[name] < 1e-3:
            raise SystemExit(f"{name}: the GPU does not compute what the reference does; nothing is timed")
    return errors


def batch_of(net: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, *net.input_shape)).astype(np.float32), rng.integers(0, 10, n)


# ------------------------------------------------------------------------------------------------------------ limits


def limits(args: argparse.Namespace) -> dict[str, float]:
    """What a copy (GB/s, read and written) and a float32 matrix product (TFLOP/s) reach on this card."""
    from fastcnn.kernels.cuda import arrays, driver

    size = 2**16 if args.quick else 2**30
    a, b = arrays.empty(size), arrays.empty(size)
    a[...] = 1
    found = {"copy_gb_per_s": 2e-9 * size / seconds_of(lambda: b.__setitem__(..., a), driver.synchronize, args.quick)}
    torch = torch_or_none()
    if torch is not None:
        torch.backends.cuda.matmul.allow_tf32 = False
        x = torch.randn(8192, 8192, device="cuda")
        found["float32_tflop_per_s"] = 2e-12 * 8192**3 / seconds_of(lambda: x @ x, torch.cuda.synchronize, args.quick)
    for name, value in found.items():
        print(f"{name:<22} {value:,.1f}")
    return found


# ----------------------------------------------------------------------------------------------------------- kernels


def kernels(args: argparse.Namespace) -> list[dict[str, Any]]:
    """3x3 convolutions alone, 2x2 pooling in the forward one."""
    from fastcnn.engine.ops import activation, conv_geometry, pool_geometry
    from fastcnn.kernels import get_backend
    from fastcnn.kernels.cuda import arrays, driver

    backend, relu, rows = get_backend("cuda"), activation("relu"), []
    print(f"{'layer':<14}{'kernel':<18}{'us':>10}{'GFLOP/s':>10}{'GB/s':>8}")
    for name, (n, shape, filters) in ({"tiny": (1, (4, 4, 4), 4)} if args.quick else LAYERS).items():
        g = conv_geometry(shape, filters, 3)
        pool = pool_geometry((g.p, g.q, filters), 2)
        rng = np.random.default_rng(0)

        def array(*shape: int, rng: Any = rng) -> Any:
            return arrays.place(rng.standard_normal(shape).astype(np.float32))

        x, weight, bias = array(n, *shape), array(3, 3, shape[2], filters), array(filters)
        dy, y = array(n, g.p, g.q, filters), array(n, pool.p, pool.q, filters)
        argmax = arrays.place(np.zeros(y.shape, np.uint8))
        size = max(
            backend.conv2d_forward_scratch(g, pool, n, np.float32, 1),
            backend.conv2d_backward_scratch(g, pool, n, np.float32, 1),
        )
        scratch = arrays.empty(4 * size).view(np.float32)
        dx, dw, none = array(*x.shape), array(*weight.shape), np.empty(0)
        calls = {
            "forward+relu+pool": (backend.conv2d_block_forward, (x, weight, bias, g, relu, pool, y, argmax, scratch)),
            "input gradient": (backend.conv2d_backward_input, (dy, weight, g, dx, scratch)),
            "weight gradient": (backend.conv2d_backward_weight, (x, dy, g, dw, none, scratch)),
        }
        moved = {"forward+relu+pool": (x, weight, y, argmax), "input gradient": (dy, weight, dx),
                 "weight gradient": (x, dy, dw)}  # fmt: skip
        flops = 2.0 * n * g.p * g.q * filters * 9 * shape[2]
        for kind, call in calls.items():
            seconds = seconds_of(backend.record([call]), driver.synchronize, args.quick)
            bytes_ = sum(a.nbytes for a in moved[kind])
            row = {"layer": name, "kernel": kind, "batch": n, "seconds": seconds,
                   "gflop_per_s": 1e-9 * flops / seconds, "gb_per_s": 1e-9 * bytes_ / seconds}  # fmt: skip
            rows.append(row)
            print(f"{name:<14}{kind:<18}{1e6 * seconds:>10,.1f}{row['gflop_per_s']:>10,.0f}{row['gb_per_s']:>8,.0f}")
    return rows


# ------------------------------------------------------------------------------------------------------------- steps


def steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a training step by network, batch and side; None: not measured, and why."""
    torch, rows = torch_or_none(), []
    networks = {"tiny": TINY} if args.quick else {name: NETWORKS[name] for name in ("seed", "vgg")}
    batches = (3,) if args.quick else (128, 512, 4096)
    sides = {"fastcnn": _fastcnn_step}
    if torch is not None:
        sides |= {"torch eager": _torch_step, "torch graph": _torch_step, "torch max-autotune": _torch_step}
    else:
        print("PyTorch with CUDA is not installed: fastcnn alone")
    print(f"{'network':<9}{'batch':>6}  {'side':<20}{'ms':>9}{'images/s':>12}")
    for side, make in sides.items():  # the ones that take long to compile last
        for name, net in networks.items():
            for batch in batches:
                row: dict[str, Any] = {"network": name, "batch": batch, "side": side, "seconds": None}
                rows.append(row)
                if late(args, 60 if side == "torch max-autotune" else 15):
                    row["why"] = "no time left"
                    continue
                try:
                    row["seconds"] = seconds_of(*make(net, batch, side), args.quick)
                except Exception as error:  # one side's failure must not take the others' figures
                    row["why"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                    print(f"{name:<9}{batch:>6}  {side:<20}{row['why']}", flush=True)
                    continue
                speed = batch / row["seconds"]
                print(f"{name:<9}{batch:>6}  {side:<20}{1e3 * row['seconds']:>9.3f}{speed:>12,.0f}", flush=True)
    return rows


def _fastcnn_step(net: Any, batch: int, side: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    from fastcnn import Network
    from fastcnn.kernels.cuda import arrays, driver

    network = Network(fastcnn_layers(net), net.input_shape, device="cuda", random_state=0)
    x, labels = batch_of(net, batch)
    placed = arrays.place(x)
    return lambda: network.train_step(placed, labels), driver.synchronize


def _torch_step(net: Any, batch: int, side: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import torch

    from bench.framework import BETA_1, BETA_2, EPSILON, LEARNING_RATE
    from bench.framework_torch import _torch_layers
    from bench.networks import DROPOUT

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.compiler.reset()
    module = torch.nn.Sequential(*_torch_layers(net, DROPOUT)).cuda().to(memory_format=torch.channels_last).train()
    x, labels = batch_of(net, batch)
    x = torch.from_numpy(x).permute(0, 3, 1, 2).cuda().contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(labels).cuda()
    capturable = side == "torch graph"
    optimizer = torch.optim.Adam(
        module.parameters(), LEARNING_RATE, (BETA_1, BETA_2), EPSILON, fused=True, capturable=capturable
    )
    called = torch.compile(module, mode="max-autotune") if side == "torch max-autotune" else module

    def step() -> Any:
        optimizer.zero_grad(set_to_none=not capturable)
        loss = torch.nn.functional.cross_entropy(called(x), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    if not capturable:
        return lambda: step().item(), torch.cuda.synchronize
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> float:
        graph.replay()
        return float(loss.item())

    return replay, torch.cuda.synchronize


# --------------------------------------------------------------------------------------------------------------- fit


def fit(args: argparse.Namespace) -> dict[str, Any]:
    """Training seconds until so many of Fashion-MNIST's test images are right, scored after each epoch."""
    from fastcnn.datasets import load_idx_folder

    folder = next((f for f in map(Path, _FOLDERS) if f.is_dir()), None)
    if args.quick or folder is None or late(args, 60):
        why = "quick" if args.quick else "no time left" if folder else f"Fashion-MNIST is in none of {_FOLDERS}"
        print(f"not measured: {why}")
        return {"why": why}
    try:
        from fastcnn.recipes import balanced, fast
    except ImportError as error:  # the extensions are not built
        print(f"not measured: {error}")
        return {"why": str(error)}
    X, y = load_idx_folder(folder, "train")
    X_test, y_test = load_idx_folder(folder, "test")
    found = {}
    for name, recipe in (("fast", fast), ("balanced", balanced)):
        if late(args, 60):
            found[name] = {"why": "no time left"}
            continue
        model = recipe(device="cuda", random_state=0).fit(X, y, X_val=X_test, y_val=y_test)
        seconds, scores = np.cumsum(model._history.epoch_seconds), model.validation_scores_
        reached = {f"{goal:.0%}": next((float(t) for t, s in zip(seconds, scores, strict=True) if s >= goal), None)
                   for goal in GOALS}  # fmt: skip
        found[name] = {"seconds_to": reached, "best": max(scores), "epochs": len(scores), "seconds": float(seconds[-1])}
        print(f"{name:<9} {found[name]}", flush=True)
    return found


_FOLDERS = [f for f in (os.environ.get("FASHION_MNIST"), "/usr/share/datasets/fashion-mnist", "fashion-mnist") if f]


if __name__ == "__main__":
    main()
