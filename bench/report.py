"""`python -m bench.report`: bench/RESULTS.md and its plots from the JSON files in bench/results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import report_cluster, report_cuda, report_recipes
from bench.goals import Results, goals
from bench.machine import RESULTS
from bench.markdown import middle, table
from bench.peers import BUSY, NAMES, suspect
from bench.plots import draw

TITLE = """# Measured

Every figure here comes from a run of the command above its table, on the machine and with the versions named there;
where runs add to a table (peers, estimators, recipes, their steps, features, cluster), the command is the last one's,
and without the options that choose a part it gives all of them but for three things that are asked for: PyTorch's side
of the recipes (`--sides fastcnn torch`), shorter recipes (`--epochs`), and other rounds of the cluster (`--sync-every`,
`--block-momentum`). The raw numbers are in `bench/results`. Written by `python -m bench.report`. A spread is the lower
and the upper quartile. "Incomplete" below: not all of what was asked was measured there yet; as a rule
there are fewer than three seeds or, beside PyTorch, fewer than three that took turns with it. Tables were measured at
different times, and the code has changed since: what today's code does, only a new run tells.
"""


def asked(results: Results) -> list[str]:
    """The goals, first of all."""
    rows = [list(goal) for goal in goals(results)]
    return ["## Asked and measured", "", *table(["goal", "asked", "measured", ""], rows)]


def accuracy(r: dict[str, Any]) -> list[str]:
    epochs = max(len(run["epoch_seconds"]) for run in r["runs"])
    rows = [
        [str(run["seed"]), f"{run['test_accuracy']:.4f}", f"{run['fit_seconds']:.0f}"]
        + [f"{s:.1f}" for s in run["epoch_seconds"]]
        for run in r["runs"]
    ]
    seconds = statistics.median(s for run in r["runs"] for s in run["epoch_seconds"])
    return [
        "## The default classifier on Fashion-MNIST",
        "",
        *about(r),
        f"`CNNClassifier(random_state=s)`, {r['runs'][0]['parameters']:,} parameters, 60,000 training images; the "
        f"10,000 test images used once a run. **Mean test accuracy {r['mean']:.4f}.**",
        "",
        *table(["seed", "test accuracy", "fit, s", *(f"epoch {i + 1}, s" for i in range(epochs))], rows),
        "",
        f"Median epoch: {seconds:.1f} s, {60_000 / seconds:,.0f} images/s.",
    ]


def peers(r: dict[str, Any]) -> list[str]:
    cells, s = r["cells"], r["setting"]
    found = [name for name in NAMES if name != "fastcnn" and any(name in c["ratios"] for c in cells)]
    lines = [
        "## Against PyTorch, Keras and JAX",
        "",
        *about(r),
        f"float32, {s['threads']} threads, Adam, the same parameters and batches; each side in its own process, in "
        "alternating rounds; outputs or losses compared before. The networks are in `bench/networks.py`. A peer runs "
        "in its best mode: all are screened, those near the best take part, and the best of each round counts. "
        "Named is the one that was the fastest on the whole.",
    ]
    busy = False
    for what, title in (("train", "Training"), ("predict", "Predicting")):
        rows = []
        for c in (c for c in cells if c["what"] == what):
            rates: dict[str, tuple[float, str]] = {}
            for mode, values in c["rates"].items():
                side, _, name = mode.partition(" ")
                rates[side] = max(rates.get(side, (0.0, "")), (statistics.median(values), name))
            mark = " †" if suspect(c) else ""
            busy = busy or bool(mark)
            row = [f"{c['network']} {c['batch']}{mark}", f"{rates['fastcnn'][0]:,.0f}"]
            for name in found:
                there = name in c["ratios"]
                row += [f"{rates[name][0]:,.0f}, {rates[name][1]}", middle(c["ratios"][name])] if there else ["-", "-"]
            rows.append(row)
        head = ["network, batch", "fastcnn, images/s", *(x for n in found for x in (f"{NAMES[n]}, images/s", "times"))]
        lines += ["", f"### {title}", "", *table(head, rows)] if rows else []
    lines += _slow_graphs(cells)
    if busy:
        lines += ["", f"† Other processes kept more than {BUSY:.0%} of the machine busy: do not trust it."]
    return lines


def _slow_graphs(cells: list[dict[str, Any]]) -> list[str]:
    """What is odd about Keras on TensorFlow's own executor."""
    best, other = [], []
    for c in cells:
        rates = c.get("screening", {}).get("keras", {}) if c["what"] == "train" else {}
        if len(rates) == 2 and max(rates, key=rates.__getitem__) == "graph":
            best.append(statistics.median(c["ratios"]["keras"]))
        elif len(rates) == 2:
            other.append(1e3 * c["batch"] / rates["graph"])
    if not (best and other):
        return []
    return [
        "",
        f"In {len(best)} training cells Keras was faster as a graph than by XLA, and fastcnn "
        f"{statistics.geometric_mean(best):.2f} times as fast as it (geometric mean). In the others a step as a graph "
        f"took {min(other):.0f} to {max(other):.0f} ms, those of small batches too; why is not known.",
    ]


def estimators(r: dict[str, Any]) -> list[str]:
    lines = ["## Estimators", "", *about(r)]
    lines += ["The clock starts after the imports and a small fit; fastcnn's kernels come from a full cache.", ""]
    if part := r.get("fit"):
        s = part["setting"]
        lines += [
            "### `fit` against skorch",
            "",
            f"The same network (conv32, conv64, dense128), {s['images']:,} images of Fashion-MNIST, {s['epochs']} "
            f"epoch(s), batch {r['batch']}, Adam, {r['threads']} threads; skorch without callbacks and validation. "
            "Times as fast as skorch's best setting of each round: " + middle(part["ratios"]) + ".",
            "",
            *_seconds(part, "test accuracy"),
            "",
        ]
    if part := r.get("grid_search"):
        s = part["setting"]
        lines += [
            "### `GridSearchCV` against skorch",
            "",
            f"{len(s['learning_rates'])} learning rates, {s['folds']} folds, {s['epochs']} epochs on scikit-learn's "
            "digits, the same network (conv32, conv64, dense128), no refit. `n_jobs=1` is one process with all "
            "threads; more are workers of one thread each, whose start is in the time. Times as fast as skorch's best "
            "setting of each round: " + middle(part["ratios"]) + ".",
            "",
            *_seconds(part, "best mean score"),
            "",
            "Tried once before: " + ", ".join(f"{name} {s:.1f} s" for name, s in part["screening"].items()) + ".",
            "",
        ]
    if part := r.get("mlp"):
        s, ratio = part["setting"], statistics.median(part["ratios"])
        rows = []
        for name, values in part["seconds"].items():
            epoch, epochs, score = (part[key][name] for key in ("epoch_seconds", "epochs", "accuracy"))
            last = f"{statistics.median(score):.3f} ({s['epochs'][name]})"
            rows.append([name, middle(values), f"{statistics.median(epochs):.0f}", middle(epoch, ".3f"), last])
        lines += [
            "### `fit` against `MLPClassifier`",
            "",
            "Another model: one hidden layer of 128 units, without convolutions, and so far fewer operations an image. "
            f"Both with their defaults, one epoch (`partial_fit`) after the other, on {s['images']:,} images of "
            "Fashion-MNIST. Compared is the time until the test accuracy is what the MLP settles at, its median over "
            f"the last epochs: {statistics.median(part['target']):.3f}. There `CNNClassifier` is "
            + (f"{ratio:.2f} times as fast." if ratio >= 1 else f"slower: it takes {1 / ratio:.2f} times as long."),
            "",
            *table(["", "s to that accuracy", "epochs", "s an epoch", "accuracy in the end (epochs)"], rows),
            "",
        ]
    return lines[:-1]


def _seconds(part: dict[str, Any], score: str) -> list[str]:
    rows = [
        [name, middle(values), f"{statistics.median(part['accuracy'][name]):.3f}"]
        for name, values in part["seconds"].items()
    ]
    return table(["", "s", f"{score}, median"], rows)


def kernels(r: dict[str, Any]) -> list[str]:
    caches = ", ".join(f"{name} {rate:.0f}" for name, rate in r["bandwidth_gbs"].items())
    lines = [
        "## Kernels",
        "",
        *about(r),
        "One thread, each kernel recorded as a network runs it. Multiply-add peak "
        f"{r['peak_gflops']:.0f} GFLOP/s, measured in turn with each kernel; GB/s: "
        f"{caches}. Operations are those of the direct algorithm, whatever the kernel does, so Winograd's share may "
        "exceed 100 %. Milliseconds and the share of the peak:",
        "",
    ]
    convolutions = [row for row in r["rows"] if row["what"].startswith("conv")]
    if convolutions:
        kinds = ("conv forward", "conv input gradient", "conv weight gradient", "block forward", "block backward")
        cells: dict[tuple[str, str], dict[str, str]] = {}
        for row in convolutions:
            what = row["what"] if "+" not in row["what"] else f"block {row['what'].split()[-1]}"
            cell = f"{row['ms']:.2f}, **{row['share']:.0%}**"
            cells.setdefault((row["layer"], row["algorithm"] or ""), {})[what] = cell
        rows = [[*place, *(found.get(kind, "-") for kind in kinds)] for place, found in cells.items()]
        lines += [
            *table(["layer", "algorithm", *kinds], rows),
            "",
            "A block is convolution, bias, ReLU and, where the layer has it, max-pooling.",
            "",
        ]
    others = [
        [
            row["layer"],
            row["what"],
            f"{row['ms']:.3f}",
            f"{row['share']:.0%}" if row["share"] else "-",
            f"{row['gbs']:.1f}",
        ]
        for row in r["rows"]
        if row not in convolutions
    ]
    lines += table(["layer", "kernel", "ms", "share of peak", "GB/s"], others) if others else []
    return lines


def hotspots(r: dict[str, Any]) -> list[str]:
    rows = []
    for row in r["rows"]:
        shares = list(row["shares"].items())
        first, others = shares[0], [f"`{name}` {share:.0%}" for name, share in shares[1:] if share >= 0.01]
        rows.append([row["layer"], row["what"], row["algorithm"], f"`{first[0]}` {first[1]:.0%}", ", ".join(others)])
    return [
        "## Where a convolution's time goes",
        "",
        *about(r),
        "Shares of the samples of a clock, one thread. `multiply_rows` is the micro-kernel, the rest copies, pads, "
        "packs, transforms and adds up.",
        "",
        *table(["layer", "kernel", "algorithm", "most", "others from 1 % on"], rows),
    ]


def memory(r: dict[str, Any]) -> list[str]:
    keys = ("import_mb", "data_mb", "peak_mb")
    rows = [
        [name, *(f"{found[key]:,.0f}" for key in keys), str(len(found["runs"]))] for name, found in r["sides"].items()
    ]
    lines = [
        "## Memory",
        "",
        *about(r),
        f"Resident memory of training one epoch on {r['setting']['images']:,} uint8 images, MB, medians of processes "
        "of their own; the most there was after the imports, with the data, and in the end.",
        "",
        *table(["", "imports", "data", "peak", "runs"], rows),
    ]
    if "ratio" in r:
        lines += [
            "",
            f"fastcnn's peak is **{r['ratio']:.2f}** times PyTorch's smaller one; {r['ratio_empty_cache']:.2f} times "
            "where kernels are compiled first (one run, without the memory of the processes that help).",
        ]
    return lines


def coldstart(r: dict[str, Any]) -> list[str]:
    rows = [[name, middle(row["wall"]), middle(row["cpu"]), str(len(row["wall"]))] for name, row in r["rows"].items()]
    lines = [
        "## Cold start",
        "",
        *about(r),
        "Every measurement is a process of its own. A first fit is `CNNClassifier(max_iter=1).fit` on scikit-learn's "
        'digits after the imports; "process" is from start to end, imports included.',
        "",
        *table(["", "s", "CPU s", "processes"], rows),
    ]
    if ratios := r.get("ratio_first_fit_to_import_torch"):
        lines += ["", f"First fit, cache full / `import torch`: {middle(ratios)}."]
    if ratios := r.get("ratio_first_fit_process_to_import_torch_process"):
        lines[-1] += f" Of the whole processes, imports included: {middle(ratios)}."
    return lines


def compiling(r: dict[str, Any]) -> list[str]:
    alone, together = r["seconds"].values()
    rows = [[name, middle(values), str(len(values))] for name, values in r["seconds"].items()]
    times = [a / b for a, b in zip(alone, together, strict=True)]
    return [
        "## Compilation",
        "",
        *about(r),
        "A first fit as above, with an empty cache, alternating:",
        "",
        *table(["kernels are compiled by", "s", "fits"], rows),
        "",
        f"One process takes {middle(times)} times as long.",
    ]


def scaling(r: dict[str, Any]) -> list[str]:
    lines = ["## Scaling", "", *about(r)]
    rows = []
    for net, found in r["threads"].items():
        for n, speed_up in found["speed_up"].items():
            low, high = speed_up["quartiles"]
            rows.append([net, n, f"**{speed_up['median']:.2f}** ({low:.2f} to {high:.2f})"])
    if rows:
        lines += [
            f"Training steps at batch {r['batch']}, how many times as fast as with one thread:",
            "",
            *table(["network", "threads", "times as fast"], rows),
            "",
        ]
    rows = [
        [
            name,
            f"{found['values'][0]} to {found['values'][-1]}",
            f"{found['slope']:.3f}",
            f"{found['largest_deviation']:.0%}",
        ]
        for name, found in r["work"].items()
    ]
    return [
        *lines,
        "CPU time of a training step against its multiply-adds, as one size grows; slope 1 is proportional. The last "
        "column is how far the time of one multiply-add strays from the median's at most.",
        "",
        *table(["what grows", "", "slope on logarithmic axes", "largest deviation"], rows),
    ]


def one_image(r: dict[str, Any]) -> list[str]:
    rows = []
    for name, found in r["rows"].items():
        added = [a - b for a, b in zip(found["estimator"], found["engine"], strict=True)]
        rows.append([name, *(middle(values, ".0f") for values in (found["estimator"], found["engine"], added))])
    return [
        "## One image",
        "",
        *about(r),
        "`CNNClassifier.predict` of one image, and `Network.predict_proba` of the same image scaled before, "
        "microseconds.",
        "",
        *table(["images", "estimator", "engine", "added by the estimator"], rows),
    ]


def about(r: dict[str, Any]) -> list[str]:
    """The command, the machine, and all versions that took part."""
    found: dict[str, set[str]] = {}

    def collect(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else ():
            if key == "elsewhere":
                continue
            if key in ("versions", "torch_versions"):
                for name, version in _leaves(inner):
                    found.setdefault(name, set()).add(version)
            else:
                for part in inner if isinstance(inner, list) else [inner]:
                    collect(part)

    collect(r)
    names = ", ".join(f"{name} {' and '.join(sorted(known))}" for name, known in found.items())
    rows = [*(cell.get("run", {}) for cell in r.get("cells", [])), *r.get("runs", [])]
    cpus = dict.fromkeys([row["cpu"] for row in rows if "cpu" in row] or [r["cpu"]])
    return [f"`{r['command']}`  ", f"{' and '.join(cpus)}; {names}", ""]


def _leaves(value: dict[str, Any]) -> list[tuple[str, str]]:
    return [p for k, v in value.items() for p in (_leaves(v) if isinstance(v, dict) else [(k, v)])]


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "accuracy": accuracy, "peers": peers, "estimators": estimators, "kernels": kernels, "hotspots": hotspots,
    "memory": memory, "coldstart": coldstart, "compiling": compiling, "scaling": scaling, "one_image": one_image,
    "recipes": lambda r: report_recipes.lines(r, about(r)),
    "recipe_steps": lambda r: report_recipes.steps(r, about(r)),
    "features": lambda r: report_recipes.features(r, about(r)),
    "cluster": lambda r: report_cluster.lines(r, about(r)),
    "cuda": lambda r: report_cuda.lines(r, about(r)),
}  # fmt: skip


def write(results: Path, target: Path) -> None:
    """The report on the JSON files in `results`; plots go into a folder beside it."""
    found = {name: json.loads(path.read_text()) for name in SECTIONS if (path := results / f"{name}.json").exists()}
    plots = draw(found, target.parent / "plots")
    lines = [TITLE, *asked(found), ""]
    for name, r in found.items():
        lines += [*SECTIONS[name](r), ""]
        if name in plots:
            lines += [f"![{name}](plots/{plots[name]})", ""]
        for cpu, other in r.get("elsewhere", {}).items():
            heading, *rest = SECTIONS[name](other)
            lines += [f"{heading}: {cpu}", *rest, ""]
    if "cuda" not in found:
        lines += ["## GPU", "", "Not measured on a GPU.", ""]
    target.write_text("\n".join(lines))


def main() -> None:
    target = Path(__file__).parent / "RESULTS.md"
    write(RESULTS, target)
    print(f"written: {target}")


if __name__ == "__main__":
    main()
