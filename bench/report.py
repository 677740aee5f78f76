"""`python -m bench.report`: bench/RESULTS.md from the JSON files in bench/results."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from bench.machine import RESULTS

TITLE = """# Measured

Every figure here comes from a run of the command above its table, on the machine and with the versions named
there; the raw numbers are in `bench/results`. Written by `python -m bench.report`.
"""


def accuracy(r: dict[str, Any]) -> list[str]:
    """The default classifier on Fashion-MNIST."""
    epochs = max(len(run["epoch_seconds"]) for run in r["runs"])
    lines = [
        "## The default classifier on Fashion-MNIST",
        "",
        *_about(r),
        f"`CNNClassifier(random_state=s)`, {r['runs'][0]['parameters']:,} parameters, 60,000 training images; the "
        f"10,000 test images used once a run. **Mean test accuracy {r['mean']:.4f}.**",
        "",
        "| seed | test accuracy | fit, s | " + " | ".join(f"epoch {i + 1}, s" for i in range(epochs)) + " |",
        "|---|---|---|" + "---|" * epochs,
    ]
    for run in r["runs"]:
        seconds = " | ".join(f"{s:.1f}" for s in run["epoch_seconds"])
        lines.append(f"| {run['seed']} | {run['test_accuracy']:.4f} | {run['fit_seconds']:.0f} | {seconds} |")
    median = statistics.median(s for run in r["runs"] for s in run["epoch_seconds"])
    return [*lines, "", f"Median epoch: {median:.1f} s, {60_000 / median:,.0f} images/s."]


def peers(r: dict[str, Any]) -> list[str]:
    """Side by side with PyTorch."""
    s = r["setting"]
    lines = [
        "## Against PyTorch",
        "",
        *_about(r),
        "conv32-3x3 / relu / pool / conv64-3x3 / relu / pool / dense128 / relu / dropout / dense10 on 28x28x1, "
        f"float32, Adam, batch {s['batch']}, {s['threads']} threads; each side in its own process, {s['rounds']} "
        f"alternating rounds of {s['steps']} batches, outputs and losses compared before. The ratio of a round is to "
        "PyTorch's better mode in it.",
        "",
        "| | fastcnn, images/s | torch contiguous | torch channels_last | ratio, median | quartiles |",
        "|---|---|---|---|---|---|",
    ]
    for what, name in (("train", "training"), ("predict", "predicting")):
        rates = [f"{statistics.median(v):,.0f}" for v in r[what]["images_per_second"].values()]
        low, middle, high = r[what]["quartiles"]
        lines.append(f"| {name} | {' | '.join(rates)} | **{middle:.2f}** | {low:.2f} to {high:.2f} |")
    return lines


def _about(r: dict[str, Any]) -> list[str]:
    found: dict[str, str] = {}
    for name, value in r["versions"].items():
        found |= value if isinstance(value, dict) else {name: value}
    names = ", ".join(f"{name} {version}" for name, version in found.items())
    return [f"`{r['command']}`  ", f"{r['cpu']}; {names}", ""]


SECTIONS = {"accuracy": accuracy, "peers": peers}


def main() -> None:
    lines = [TITLE]
    for name, section in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            lines += [*section(json.loads(path.read_text())), ""]
    lines += ["## GPU", "", "Not measured on a GPU.", ""]
    target = Path(__file__).parent / "RESULTS.md"
    target.write_text("\n".join(lines))
    print(f"written: {target}")


if __name__ == "__main__":
    main()
