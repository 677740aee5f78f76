"""Plots of what was measured, as SVG. matplotlib is needed for them alone."""

from __future__ import annotations

import statistics
from itertools import product
from pathlib import Path
from typing import Any

from bench import report_recipes
from bench.goals import OTHERS, SHARES, TORCH
from bench.markdown import quartiles
from bench.peers import NAMES

# Okabe and Ito's colours, which the colour-blind can tell apart; markers differ too.
COLOURS, MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), "osD^"


def draw(results: dict[str, dict[str, Any]], folder: Path) -> dict[str, str]:
    """Draw what there is; the plots' file names by the names of the results."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plots")
        return {}
    matplotlib.use("svg")
    # The same figures give the same file.
    matplotlib.rcParams |= {
        "svg.hashsalt": "fastcnn",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    from matplotlib import pyplot

    drawn = {}
    for name, plot in {"peers": peers, "kernels": kernels, "scaling": scaling, "recipes": recipes}.items():
        figure = plot(pyplot, results[name]) if name in results else None
        if figure is not None:
            folder.mkdir(exist_ok=True)
            figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
            pyplot.close(figure)
            drawn[name] = f"{name}.svg"
    return drawn


def _grid(axes: Any, labels: list[str]) -> None:
    """Names from top to bottom, and lines to follow."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)


def peers(pyplot: Any, r: dict[str, Any]) -> Any:
    """How many times as fast, cell by cell: medians with quartiles."""
    panels = [(what, [c for c in r["cells"] if c["what"] == what]) for what in ("train", "predict")]
    panels = [(what, cells) for what, cells in panels if cells]
    if not panels:
        return None
    height = 1.2 + 0.28 * max(len(cells) for _, cells in panels)
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), height), squeeze=False)
    for axes, (what, cells) in zip(all_axes[0], panels, strict=True):
        _grid(axes, [f"{c['network']} {c['batch']}" for c in cells])
        for k, (peer, name) in enumerate((peer, name) for peer, name in NAMES.items() if peer != "fastcnn"):
            shown = [(i, sorted(c["ratios"][peer])) for i, c in enumerate(cells) if peer in c["ratios"]]
            middle = [statistics.median(ratios) for _, ratios in shown]
            ends = [quartiles(ratios) for _, ratios in shown]
            spread = [[m - low for m, (low, _) in zip(middle, ends, strict=True)]]
            spread += [[high - m for m, (_, high) in zip(middle, ends, strict=True)]]
            at = [i + 0.22 * (k - 1) for i, _ in shown]
            if shown:
                style = {"color": COLOURS[k], "marker": MARKERS[k], "markersize": 5, "linestyle": "none"}
                axes.errorbar(middle, at, xerr=spread, label=name, **style)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.axvline(1, color="black", linewidth=1)
        _, goal, _, _ = TORCH[what]
        asked = f"asked: {goal:g} times PyTorch"
        axes.axvline(goal, color=COLOURS[0], linestyle="--", linewidth=1, label=asked)
        if what == "train":
            asked = f"asked: {OTHERS:g} times Keras, JAX"
            axes.axvline(OTHERS, color=COLOURS[1], linestyle=":", linewidth=1, label=asked)
        axes.set_xlabel("fastcnn's speed / the peer's best (logarithmic)")
        axes.set_title({"train": "Training", "predict": "Predicting"}[what] + ", by network and batch", loc="left")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.5 / height - 0.05), ncols=3, frameon=False)
    figure.tight_layout()
    return figure


def kernels(pyplot: Any, r: dict[str, Any]) -> Any:
    """The share of the multiply-add peak of each convolution."""
    rows = [row for row in r["rows"] if row["what"] in SHARES and row["share"]]
    if not rows:
        return None
    labels = list(dict.fromkeys(f"{row['layer']}, {row['algorithm']}" for row in rows))
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.24 * len(labels)))
    _grid(axes, labels)
    for k, what in enumerate(SHARES):
        of_kind = [row for row in rows if row["what"] == what]
        at = [labels.index(f"{row['layer']}, {row['algorithm']}") + 0.2 * (k - 1) for row in of_kind]
        shares = [100 * row["share"] for row in of_kind]
        axes.plot(shares, at, MARKERS[k], color=COLOURS[k], markersize=5, label=what)
    axes.axvline(100, color="black", linewidth=1)
    axes.set_xlim(left=0)
    axes.set_xlabel("% of the multiply-add peak of one core, counting the operations of the direct algorithm")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1 + 0.6 / (1.2 + 0.24 * len(labels))), ncols=3, frameon=False)
    return figure


def scaling(pyplot: Any, r: dict[str, Any]) -> Any:
    """Time against work, both logarithmic."""
    if not r.get("work"):
        return None
    figure, axes = pyplot.subplots(figsize=(6, 4.5))
    for k, (name, found) in enumerate(r["work"].items()):
        millions = [work / 1e6 for work in found["multiply_adds"]]
        label = f"{name}: slope {found['slope']:.2f}"
        milliseconds = [1e3 * s for s in found["seconds"]]
        axes.plot(millions, milliseconds, MARKERS[k % 4] + "-", color=COLOURS[k % 4], markersize=5, label=label)
    axes.set(xscale="log", yscale="log", xlabel="million multiply-adds of a training step", ylabel="CPU time, ms")
    axes.grid(color="0.92")
    axes.legend(frameon=False)
    return figure


def recipes(pyplot: Any, r: dict[str, Any]) -> Any:
    """Accuracy against training time, each point the mean of some seeds."""
    found, cpus = report_recipes.groups(r), report_recipes.processors(r)
    if not found:
        return None
    size = (6 * len(cpus), 4.5)
    figure, panels = pyplot.subplots(1, len(cpus), figsize=size, squeeze=False, sharex=True, sharey=True)
    for axes, cpu in zip(panels[0], cpus, strict=True):
        lines = zip(report_recipes.ASKED, ("o-", "s--", "D:"), strict=True)
        for (k, side), (recipe, line) in product(enumerate(report_recipes.SIDES), lines):
            of_kind = [g for g in found if (g.cpu, g.recipe, g.side) == (cpu, recipe, side)]
            for parameters in sorted({g.parameters for g in of_kind}):
                of_network = [g for g in of_kind if g.parameters == parameters]
                seconds = [statistics.median(g.seconds) for g in of_network]
                accuracies = [100 * g.accuracy for g in of_network]
                label, face = f"{report_recipes.SIDES[side]}, {recipe}", COLOURS[k]
                if parameters != report_recipes.parameters_of(recipe):
                    label, face = f"{label} of {parameters:,} parameters", "none"
                style = {"color": COLOURS[k], "markerfacecolor": face, "markersize": 5}
                axes.plot(seconds, accuracies, line, label=label, **style)
        for target in report_recipes.TARGETS:
            axes.axhline(100 * target, color="0.85", linewidth=1, zorder=0)
        axes.set(xscale="log", xlabel="training (logarithmic)")
        axes.set_xticks([15, 60, 240, 960, 3840], ["15 s", "1 min", "4 min", "16 min", "64 min"])
        axes.minorticks_off()
        axes.set_title(cpu, loc="left")
    panels[0][0].set_ylabel("mean test accuracy, %")
    shown = {label: line for axes in panels[0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = sorted(shown, key=lambda label: ("parameters" in label, label))
    handles = [shown[label] for label in labels]
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False)
    return figure
