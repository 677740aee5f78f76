"""What `bench.report` says of the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from bench.markdown import table
from bench.report_recipes import or_not, parameters_of
from fastcnn.kernels.contract import PRECISIONS
from fastcnn.recipes import RECIPES

EAGER, GRAPH, LARGE, SECONDS = 2.0, 1.0, 0.8, 5.0  # asked: times PyTorch's speed at 128 and 512, at 4096; to 92 %
LARGE_BATCH, GOAL = 4096, 0.92


class Cell(NamedTuple):
    """A network at a batch size in a precision: the seconds of a step by side."""

    network: str
    batch: int
    precision: str
    seconds: dict[str, float]

    def times(self, peer: str) -> float | None:
        """How many times as fast as `peer`."""
        ours, theirs = self.seconds.get("fastcnn"), self.seconds.get(peer)
        return theirs / ours if ours and theirs else None


def cells(r: dict[str, Any]) -> list[Cell]:
    found: dict[tuple[str, int, str], dict[str, float]] = {}
    for row in (*r.get("steps", []), *r.get("compiled", [])):
        if row["seconds"] is not None:
            found.setdefault((row["network"], row["batch"], row["precision"]), {})[row["side"]] = row["seconds"]
    return [Cell(*key, seconds) for key, seconds in found.items()]


def least(r: dict[str, Any], peer: str, large: bool) -> float | None:
    """The least ratio of the cells at batch 4096, or of the others."""
    found = [cell.times(peer) for cell in cells(r) if (cell.batch == LARGE_BATCH) == large]
    return min((ratio for ratio in found if ratio is not None), default=None)


def asked(r: dict[str, Any]) -> Iterator[tuple[str, str, float | None, bool]]:
    """What was asked, how much, what was measured, and whether that is reached."""
    for what, peer, large, bound in (
        ("step at batch 128 and 512, times as fast as PyTorch eager; the least", "torch eager", False, EAGER),
        ("step at batch 128 and 512, times as fast as PyTorch's CUDA graph; the least", "torch graph", False, GRAPH),
        ("step at batch 4096, times as fast as PyTorch's CUDA graph; the least", "torch graph", True, LARGE),
    ):
        ratio = least(r, peer, large)
        yield f"GPU: {what}", f"{bound:.1f}", ratio, ratio is not None and ratio >= bound
    seconds = [
        s
        for fit in r.get("fit", {}).values()
        if isinstance(fit, dict) and (s := fit.get("seconds_to", {}).get(f"{GOAL:.0%}")) is not None
    ]
    what, fastest = "GPU: seconds of training to 92 % of Fashion-MNIST, at most", min(seconds, default=None)
    yield what, f"{SECONDS:.0f}", fastest, fastest is not None and fastest < SECONDS


STEPS = (
    "max-autotune is PyTorch's `torch.compile`, which was measured while time was left. Ratios are to PyTorch eager "
    "and to its CUDA graph. '-': not measured."
)
CHECKS = (
    "|found - right| / |right| of all gradients of one step. In a deep network one ReLU or maximum that falls the "
    "other way makes some 1e-3 of it, and numbers of 11 or 8 bits make many fall."
)
KERNELS = "3x3, batch 512; the forward one has ReLU and 2x2 pooling. Bytes are those of arrays read and written once."
FITS = (
    "One fit each (seed 0), kernels compiled; test images are scored after each epoch, which is not counted. The first "
    "epoch may have some compiling left in it."
)


def lines(r: dict[str, Any], about: list[str]) -> list[str]:
    found = ["## GPU", "", *about, f"{r['card']}{_limits(r)}.", ""]
    for section, title, text, made in (
        ("steps", "Training steps", STEPS, _steps),
        ("checks", "Against the reference in double precision", CHECKS, _checks),
        ("kernels", "Convolutions alone", KERNELS, _kernels),
        ("fit", "Fashion-MNIST", FITS, _fits),
    ):
        if section in r:
            found += [f"### {title}", "", text, "", *made(r), ""]
    return found[:-1]


def _limits(r: dict[str, Any]) -> str:
    limits = r.get("limits", {})
    rates = [f"{limits[key]:.0f} in {p}" for p in PRECISIONS if (key := f"{p}_tflop_per_s") in limits]
    copied = f"; a copy moves {limits['copy_gb_per_s']:,.0f} GB/s" if limits else ""
    return copied + (f"; PyTorch's products of large matrices reach {', '.join(rates)} TFLOP/s" if rates else "")


def _checks(r: dict[str, Any]) -> list[str]:
    rows = [
        [c["network"], c["precision"], f"{c['loss']:.5f}", f"{c['expected']:.5f}", f"{c['error']:.1e}"]
        for c in r["checks"]
    ]
    return table(["network", "precision", "loss", "reference", "error of the gradient"], rows)


def _steps(r: dict[str, Any]) -> list[str]:
    sides = [side for side in ("torch eager", "torch graph", "torch max-autotune", "fastcnn")
             if any(side in cell.seconds for cell in cells(r))]  # fmt: skip
    rows = []
    for cell in cells(r):
        ratios = [cell.times(peer) for peer in ("torch eager", "torch graph")]
        row = [f"{cell.network} {cell.batch}", cell.precision]
        row += [f"{1e3 * cell.seconds[side]:.3f}" if side in cell.seconds else "-" for side in sides]
        rows.append(row + [f"{ratio:.2f}" if ratio else "-" for ratio in ratios])
    return table(["network, batch", "precision", *(f"{s}, ms" for s in sides), "times eager", "times graph"], rows)


def _kernels(r: dict[str, Any]) -> list[str]:
    rows = [
        [k["layer"], k["kernel"], k["precision"], f"{1e6 * k['seconds']:.0f}", f"{1e-3 * k['gflop_per_s']:.1f}",
         f"{k['gb_per_s']:,.0f}"]
        for k in r["kernels"]
    ]  # fmt: skip
    return table(["layer", "kernel", "precision", "us", "TFLOP/s", "GB/s"], rows)


def _of_recipe(recipe: str, fit: dict[str, Any]) -> list[str]:
    """Parameters and epochs, and what the recipe has now."""
    return [or_not(fit["parameters"], parameters_of(recipe)), or_not(fit["epochs"], RECIPES[recipe]().max_iter)]


def _fits(r: dict[str, Any]) -> list[str]:
    def told(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds:.1f}"

    rows = [
        [name, *_of_recipe(name.split()[0], fit), f"{median(fit['epoch_seconds']):.2f}",
         f"{sum(fit['epoch_seconds']):.1f}", f"{fit['accuracy']:.4f}", *map(told, fit["seconds_to"].values())]
        for name, fit in r["fit"].items() if "epoch_seconds" in fit
    ]  # fmt: skip
    return table(
        ["recipe", "parameters", "epochs", "seconds of one", "of all", "test accuracy", "to 92 %", "to 94 %"], rows
    )
