"""On a GPU: checks, then times; a table on the screen and figures in JSON.

    python -m bench.cuda [--limit SECONDS] [--out FILE] [--quick] [--sections NAME ...]

1. One training step of each network, in each precision, is what the reference in NumPy computes in double precision.
   No figure without that: other sections are run after it, or with a FILE that has it.
2. The card's own limits: a large copy, and large matrix products if PyTorch is there.
3. Convolutions and their gradients alone: GFLOP/s and GB/s, of arrays read and written once.
4. Training steps of `seed` and `vgg` at batch 128, 512 and 4096 in float32 and tf32, at 4096 in bf16 too, beside
   PyTorch where it is installed, eager and as a CUDA graph: channels_last, the same precision (TF32 switched off or on,
   autocast to bfloat16), images on the GPU already, and the loss brought to the host in each step on every side.
5. Fits of Fashion-MNIST to 92 % and 94 % of the test images, if it is on the disk; of `fast` in each precision.
6. PyTorch's steps compiled with max-autotune, which takes a minute or more for each.

What takes long comes last and is left out once `--limit` (540 s) is near, so that one call ends within ten minutes.
With `--quick` sizes are small enough for the simulator: that checks this script, its times mean nothing. All but the
last section runs from a checkout whose Cython extensions are not built.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.machine import RESULTS, cpu_name, versions
from bench.networks import CLASSES, HALVE, NETWORKS, RELU, Conv, Dense, Flatten, Net, fastcnn_layers
from fastcnn.kernels.contract import PRECISIONS

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
# Of a gradient, |found - right| / |right|. One ReLU or maximum that falls the other way makes some 1e-3 of that in a
# deep network, and noise of 1e-6 in the images makes one fall: the reference's own gradient changes as much.
ALLOWED = {"float32": 1e-2, "tf32": 1e-1, "bf16": 2e-1, "fp16": 1e-1}
LOSS_ALLOWED = 2e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which nothing new is begun")
    parser.add_argument("--out", type=Path, default=RESULTS / "cuda.json")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for the simulator")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="NAME")
    args = parser.parse_args()
    try:
        from fastcnn.kernels import get_backend

        get_backend("cuda")
    except (ImportError, RuntimeError) as error:
        raise SystemExit(f"nothing was measured: {error}") from error
    from fastcnn.kernels.cuda import driver

    card = driver.device_names()[0]
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    if result.get("card", card) != card:
        raise SystemExit(f"{args.out} is of another card, {result['card']}")
    result |= {"command": "python -m bench.cuda", "card": card, "cpu": cpu_name(), "simulated": driver.SIMULATED}
    result["versions"] = versions("fastcnn", "numba", "numba-cuda", "numpy", "torch")
    print(f"{card}; {result['versions']}", flush=True)
    if "checks" not in (*result, *args.sections):
        raise SystemExit("the section checks comes first")
    for name in args.sections:
        print(f"\n== {name} (after {perf_counter() - STARTED:.0f} s)", flush=True)
        measured = SECTIONS[name](args)
        # What says why something was not measured does not replace what was.
        if name not in result or (measured and '"why"' not in json.dumps(measured)):
            result[name] = measured
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{args.out} written, {perf_counter() - STARTED:.0f} s in all")


def late(args: argparse.Namespace, needed: float) -> bool:
    """Whether what takes `needed` seconds would end after the limit."""
    return perf_counter() - STARTED + needed > args.limit


def seconds_of(call: Callable[[], Any], wait: Callable[[], Any], quick: bool) -> float:
    """Of one call: the median of seven runs of at least 30 ms each, the GPU idle before and after."""
    for _ in range(1 if quick else 3):
        call()
    wait()
    start = perf_counter()
    call()
    wait()
    count = 1 if quick else max(1, int(0.03 / max(perf_counter() - start, 1e-6)))
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


def check(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The error of all gradients of one step, |found - right| / |right|, by network and precision."""
    from fastcnn import Network

    rows = []
    for name in ("tiny",) if args.quick else ("seed", "vgg", "lenet5", "strided"):
        net = TINY if args.quick else NETWORKS[name]
        x, labels = batch_of(net, 3 if args.quick else 32)
        layers, shape = fastcnn_layers(net), net.input_shape
        right = Network(layers, shape, device="reference", dtype="float64", random_state=0)
        found = {p: Network(layers, shape, device="cuda", precision=p, random_state=0) for p in PRECISIONS}
        right.load_params({key: value.astype(float) for key, value in found["float32"].params.items()})
        expected_loss, expected = right.train_step(x, labels), right.grads
        for precision, network in found.items():
            loss, actual = network.train_step(x, labels), network.grads
            errors = sum(float(np.square(actual[key] - expected[key]).sum()) for key in expected)
            error = (errors / sum(float(np.square(value).sum()) for value in expected.values())) ** 0.5
            row = {"network": name, "precision": precision, "loss": loss, "expected": expected_loss, "error": error}
            rows.append(row)
            print(f"{name:<9}{precision:<9}loss {loss:.5f} ({expected_loss:.5f}), gradients {error:.1e}", flush=True)
            if not (error < ALLOWED[precision] and abs(loss - expected_loss) < LOSS_ALLOWED):
                raise SystemExit(f"{name}: the GPU does not compute what the reference does; nothing is timed")
    return rows


def batch_of(net: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, *net.input_shape)).astype(np.float32), rng.integers(0, 10, n)


# ------------------------------------------------------------------------------------------------------------ limits


def limits(args: argparse.Namespace) -> dict[str, float]:
    """What a copy (GB/s, read and written) and PyTorch's matrix products (TFLOP/s) reach on this card."""
    from fastcnn.kernels.cuda import arrays, driver

    size = 2**16 if args.quick else 2**30
    a, b = arrays.empty(size), arrays.empty(size)
    a[...] = 1
    found = {"copy_gb_per_s": 2e-9 * size / seconds_of(lambda: b.__setitem__(..., a), driver.synchronize, args.quick)}
    torch = torch_or_none()
    for name in ("float32", "tf32", "bf16") if torch is not None else ():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16 if name == "bf16" else torch.float32)
        seconds = seconds_of(lambda x=x: x @ x, torch.cuda.synchronize, args.quick)
        found[f"{name}_tflop_per_s"] = 2e-12 * 8192**3 / seconds
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
    print(f"{'layer':<14}{'kernel':<18}{'precision':<10}{'us':>8}{'GFLOP/s':>10}{'GB/s':>8}")
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
        for (kind, call), precision in product(calls.items(), PRECISIONS[:1] if args.quick else PRECISIONS[:3]):
            with backend.precise(precision):
                recorded = backend.record([call] * 10)
            seconds = seconds_of(recorded, driver.synchronize, args.quick) / 10
            bytes_ = sum(a.nbytes for a in moved[kind])
            row = {"layer": name, "kernel": kind, "precision": precision, "batch": n, "seconds": seconds,
                   "gflop_per_s": 1e-9 * flops / seconds, "gb_per_s": 1e-9 * bytes_ / seconds}  # fmt: skip
            rows.append(row)
            rates = f"{row['gflop_per_s']:>10,.0f}{row['gb_per_s']:>8,.0f}"
            print(f"{name:<14}{kind:<18}{precision:<10}{1e6 * seconds:>8,.1f}{rates}", flush=True)
    return rows


# ------------------------------------------------------------------------------------------------------------- steps


def steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a training step by network, batch, side and precision; None: not measured, and why."""
    sides = {"fastcnn": _fastcnn_step}
    if torch_or_none() is not None:
        sides |= {"torch eager": _torch_step, "torch graph": _torch_step}
    else:
        print("PyTorch with CUDA is not installed: fastcnn alone")
    return _measured(args, sides, PRECISIONS[:1] if args.quick else PRECISIONS[:3], 10)


def compiled(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The same of PyTorch's max-autotune, in float32."""
    return _measured(args, {"torch max-autotune": _torch_step} if torch_or_none() else {}, PRECISIONS[:1], 90)


def _measured(
    args: argparse.Namespace, sides: dict[str, Callable[..., Any]], precisions: Sequence[str], needed: float
) -> list[dict[str, Any]]:
    networks = {"tiny": TINY} if args.quick else {name: NETWORKS[name] for name in ("seed", "vgg")}
    batches, rows = (3,) if args.quick else (128, 512, 4096), []
    print(f"{'network':<9}{'batch':>6}  {'precision':<10}{'side':<20}{'ms':>9}{'images/s':>12}")
    for precision, (name, net), batch, (side, make) in product(precisions, networks.items(), batches, sides.items()):
        if precision == "bf16" and batch < batches[-1]:
            continue
        row: dict[str, Any] = {"network": name, "batch": batch, "precision": precision, "side": side, "seconds": None}
        rows.append(row)
        if late(args, needed):
            row["why"] = "no time left"
            continue
        try:
            row["seconds"] = seconds_of(*make(net, batch, side, precision), args.quick)
        except Exception as error:  # one side's failure must not take the others' figures
            row["why"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            print(f"{name:<9}{batch:>6}  {precision:<10}{side:<20}{row['why']}", flush=True)
            continue
        speed = batch / row["seconds"]
        print(f"{name:<9}{batch:>6}  {precision:<10}{side:<20}{1e3 * row['seconds']:>9.3f}{speed:>12,.0f}", flush=True)
    return rows


def _fastcnn_step(net: Any, batch: int, side: str, precision: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    from fastcnn import Network
    from fastcnn.kernels.cuda import arrays, driver

    network = Network(fastcnn_layers(net), net.input_shape, device="cuda", precision=precision, random_state=0)
    x, labels = batch_of(net, batch)
    placed = arrays.place(x)
    return lambda: network.train_step(placed, labels), driver.synchronize


def _torch_step(net: Any, batch: int, side: str, precision: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import torch

    from bench.framework import BETA_1, BETA_2, EPSILON, LEARNING_RATE
    from bench.framework_torch import _torch_layers
    from bench.networks import DROPOUT

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
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
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16", cache_enabled=not capturable):
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
    """Training seconds until so many of Fashion-MNIST's test images are right, scored after each epoch (scoring is not
    counted), once kernels are compiled.
    """
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
    found: dict[str, Any] = {}
    for recipe, precision in [(fast, p) for p in PRECISIONS] + [(balanced, PRECISIONS[0])]:
        name = f"{recipe.__name__} {precision}"
        if late(args, 40):
            found[name] = {"why": "no time left"}
            continue
        model = recipe(device="cuda", precision=precision, random_state=0)
        some, start = np.arange(2 * model.batch_size + 96), perf_counter()
        model.set_params(max_iter=1).fit(X[some], y[some], X_val=X_test[some], y_val=y_test[some])
        compiling, epochs = perf_counter() - start, recipe().max_iter
        model.set_params(max_iter=epochs).fit(X, y, X_val=X_test, y_val=y_test)
        seconds, scores = np.cumsum(model._history.epoch_seconds), model.validation_scores_
        reached = {f"{goal:.0%}": next((float(t) for t, s in zip(seconds, scores, strict=True) if s >= goal), None)
                   for goal in GOALS}  # fmt: skip
        found[name] = {
            "epochs": len(scores), "epoch_seconds": list(model._history.epoch_seconds), "scores": list(scores),
            "accuracy": scores[-1], "seconds_to": reached, "compile_seconds": compiling,
            "parameters": model.network_.n_params,
        }  # fmt: skip
        told = f"{scores[-1]:.4f} after {seconds[-1]:.1f} s; seconds to {reached}; compiling {compiling:.1f} s"
        print(f"{name:<18}{told}", flush=True)
    return found


_FOLDERS = [f for f in (os.environ.get("FASHION_MNIST"), "/usr/share/datasets/fashion-mnist", "fashion-mnist") if f]


SECTIONS = {
    "checks": check, "limits": limits, "kernels": kernels, "steps": steps, "fit": fit, "compiled": compiled,
}  # fmt: skip

if __name__ == "__main__":
    main()
