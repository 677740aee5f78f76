"""What `bench.report` says of the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

EAGER, GRAPH, LARGE, SECONDS = 2.0, 1.0, 0.5, 5.0  # asked: times PyTorch's speed at 128 and 512, at 4096; to 92 %
LARGE_BATCH, GOAL = 4096, 0.92
Table = Callable[[list[str], list[list[str]]], list[str]]


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
    for row in r.get("steps", []):
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
    seconds = [s for fit in r.get("fit", {}).values() if (s := _seconds_to_goal(fit)) is not None]
    what, fastest = "GPU: seconds of training to 92 % of Fashion-MNIST, at most", min(seconds, default=None)
    yield what, f"{SECONDS:.0f}", fastest, fastest is not None and fastest < SECONDS


def _seconds_to_goal(fit: dict[str, Any]) -> float | None:
    """Of training until 92 % were right; if they were not counted after each epoch, until the end."""
    if "seconds_to" in fit:
        return fit["seconds_to"]["92%"]
    return sum(fit["epoch_seconds"]) if fit.get("accuracy", 0) >= GOAL else None


def lines(r: dict[str, Any], about: list[str], table: Table) -> list[str]:
    sides = [side for side in ("torch eager", "torch graph", "fastcnn before", "fastcnn")
             if any(side in cell.seconds for cell in cells(r))]  # fmt: skip
    rows = []
    for cell in cells(r):
        ratios = [cell.times(peer) for peer in ("torch eager", "torch graph")]
        row = [f"{cell.network} {cell.batch}", cell.precision]
        row += [f"{1e3 * cell.seconds[side]:.3f}" if side in cell.seconds else "-" for side in sides]
        rows.append(row + [f"{ratio:.2f}" if ratio else "-" for ratio in ratios])
    head = ["network, batch", "precision", *(f"{side}, ms" for side in sides), "times eager", "times graph"]
    found = ["## GPU", "", *about, f"{r['card']}; a copy moves {r['limits']['copy_gb_per_s']:,.0f} GB/s, a product of "
             f"float32 by PyTorch reaches {r['limits']['float32_tflop_per_s']:.0f} TFLOP/s.", ""]  # fmt: skip
    found += [text for note in r.get("notes", []) for text in (note, "")]
    found += ["### Training steps", "", *table(head, rows), ""]
    found += ["### Against the reference in double precision", ""]
    checks = [[c["network"], c["precision"], f"{c['loss']:.5f}", f"{c['expected']:.5f}", f"{c['error']:.1e}"]
              for c in r["checks"]]  # fmt: skip
    found += [*table(["network", "precision", "loss", "reference", "error of the gradient"], checks), ""]
    found += ["### Fashion-MNIST", ""]
    fits = [
        [name, str(fit["epochs"]), ", ".join(f"{s:.2f}" for s in fit["epoch_seconds"]), f"{fit['accuracy']:.4f}"]
        for name, fit in r["fit"].items()
        if "epoch_seconds" in fit
    ]
    return [*found, *table(["recipe", "epochs", "seconds of each", "test accuracy"], fits)]
