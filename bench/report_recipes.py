"""What `bench.report` says of the recipes."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from itertools import product
from math import isnan, nan
from typing import Any, NamedTuple

from fastcnn.recipes import RECIPES

ASKED = {  # test accuracy, most seconds of training, most parameters
    "fast": (0.933, 240, 120_000),
    "balanced": (0.942, 720, 500_000),
    "best": (0.950, 2700, None),
}
TIMES_TORCH = 3.0
SEEDS = 3
AS_IT_IS = "the recipe"  # the change of `bench.features` that is none
TARGETS = (0.92, 0.93, 0.94)
SIDES = {"fastcnn": "fastcnn", "torch": "PyTorch"}


class Group(NamedTuple):
    """Runs that differ in the seed only."""

    cpu: str
    recipe: str
    side: str
    epochs: int
    runs: list[dict[str, Any]]

    @property
    def accuracies(self) -> list[float]:
        return [run["accuracy"] for run in self.runs]

    @property
    def accuracy(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def seconds(self) -> list[float]:
        return [run["fit_seconds"] for run in self.runs]


def groups(r: dict[str, Any]) -> list[Group]:
    """All runs that were tested on the test images, those of the processor with the most runs first."""
    found: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for run in r["runs"]:
        if not run["split"]:
            found.setdefault((run["cpu"], run["recipe"], run["side"], run["epochs"]), []).append(run)
    cpus = Counter(run["cpu"] for run in r["runs"])
    order = {name: i for i, name in enumerate(RECIPES)}
    grouped = [Group(*key, runs) for key, runs in found.items()]
    return sorted(grouped, key=lambda g: (-cpus[g.cpu], g.cpu, order[g.recipe], g.epochs, g.side))


def processors(r: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(g.cpu for g in groups(r)))


def of_recipe(r: dict[str, Any], cpu: str, recipe: str, side: str, epochs: int | None = None) -> Group | None:
    """The runs of so many epochs, by default the recipe's."""
    wanted = (cpu, recipe, side, RECIPES[recipe]().max_iter if epochs is None else epochs)
    return next((g for g in groups(r) if g[:4] == wanted), None)


def compile_seconds(r: dict[str, Any], group: Group) -> float:
    """What compiling adds; not a number while that is not measured yet."""
    return r["compile_seconds"].get(group.cpu, {}).get(group.recipe, nan)


def pairs(mine: Group | None, other: Group | None) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Runs of both sides with the same seed."""
    by_seed = {run["seed"]: run for run in mine.runs} if mine else {}
    return [(by_seed[run["seed"]], run) for run in (other.runs if other else []) if run["seed"] in by_seed]


def ratio(a: dict[str, Any], b: dict[str, Any]) -> float:
    """How many times as long as `a` the run `b` took."""
    return b["fit_seconds"] / a["fit_seconds"]


def in_turns(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether they took turns with each other; else the machine may have changed in between."""
    return bool(a.get("turns")) and a["turns"] == b.get("turns")


def times_as_long(found: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """The median, and between what the pairs' ratios are."""
    all_of_them = [ratio(*pair) for pair in found]
    spread = f" ({min(all_of_them):.2f} to {max(all_of_them):.2f})" if len(all_of_them) > 1 else ""
    return f"{statistics.median(all_of_them):.2f}{spread}"


def _seeds(n: int) -> str:
    return f"{n} seed" + "s" * (n != 1)


def seeds_spread(r: dict[str, Any], recipe: str) -> float:
    """How far apart the seeds of one side are, that of the two for which it is more; on all processors."""
    epochs = RECIPES[recipe]().max_iter
    accuracies = [
        [a for g in groups(r) if (g.recipe, g.side, g.epochs) == (recipe, side, epochs) for a in g.accuracies]
        for side in SIDES
    ]
    return max(max(found) - min(found) for found in accuracies if found)


def goals(r: dict[str, Any] | None) -> Iterator[tuple[str, str, str, bool | None, bool]]:
    """What, what was asked, what was measured, whether that reaches it (None: not measured), whether it is all."""
    for recipe in ASKED:
        cpus = [cpu for cpu in processors(r) if of_recipe(r, cpu, recipe, "fastcnn")] if r else []
        for cpu in cpus or [""]:
            yield from _goals_of(r or {"runs": []}, cpu, recipe)


def _goals_of(r: dict[str, Any], cpu: str, recipe: str) -> Iterator[tuple[str, str, str, bool | None, bool]]:
    accuracy, seconds, parameters = ASKED[recipe]
    mine, torch = (of_recipe(r, cpu, recipe, side) for side in SIDES)
    on = f" ({cpu})" if cpu else ""
    size = f", at most {parameters:,} parameters" if parameters else ""
    what, asked = f"recipe `{recipe}`: test accuracy, mean of {SEEDS} seeds{size}{on}", f"{accuracy:.1%}"
    if mine:
        found = mine.runs[0]["parameters"]
        small = not parameters or found <= parameters
        measured = f"{mine.accuracy:.2%} ({_seeds(len(mine.runs))}, {found:,} parameters)"
        yield what, asked, measured, mine.accuracy >= accuracy and small, len(mine.runs) >= SEEDS
    else:
        yield what, asked, "-", None, False
    what, asked = f"recipe `{recipe}`: training time, the longest{on}", f"at most {seconds / 60:.0f} min"
    if mine:
        most = max(mine.seconds)
        yield what, asked, f"{most / 60:.1f} min", most <= seconds, len(mine.runs) >= SEEDS
    else:
        yield what, asked, "-", None, False
    what = f"recipe `{recipe}` in PyTorch: time, times ours; the same accuracy within the seeds' spread{on}"
    if mine and torch and (found := pairs(mine, torch)):
        times = statistics.median(ratio(*pair) for pair in found)
        same = abs(mine.accuracy - torch.accuracy) <= seeds_spread(r, recipe)
        measured = f"{times_as_long(found)}; {torch.accuracy:.2%}, ours {mine.accuracy:.2%}"
        enough = sum(in_turns(*pair) for pair in found) >= SEEDS
        yield what, f"{TIMES_TORCH:.0f}", measured, times >= TIMES_TORCH and same, enough
    else:
        yield what, f"{TIMES_TORCH:.0f}", "-", None, False


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def lines(r: dict[str, Any], about: list[str]) -> list[str]:
    """The section."""
    found = ["## Recipes on Fashion-MNIST", "", *about]
    found += [
        "60,000 training images, 2 threads; each run used the 10,000 test images once, after training. The time is "
        "that of `fit` with compiled kernels at hand; what compiling adds on a new machine is beside it. PyTorch "
        "trains the same network from the same parameters with the same settings in the fastest of its modes (compiled "
        "or not, contiguous or channels last, ReLU in place or not), whose compilation is not counted. Where it says "
        "so, the two took turns, epoch by epoch; elsewhere one trained after the other. In parts: a run was ended "
        "between two epochs, and went on later. With fewer epochs than the recipe's, the learning rate has a schedule "
        "for so many. In brackets the least and the most of the seeds. Runs are added over time: rows may be of "
        "different states of the code; of November's runs up to the 28th, none had ReLU in place.",
        "",
    ]
    rows = []
    for g in groups(r):
        added = compile_seconds(r, g) if g.side == "fastcnn" else nan
        compiling = "-" if isnan(added) else f"{added:.1f}"
        mine = of_recipe(r, g.cpu, g.recipe, "fastcnn", g.epochs)
        usual = RECIPES[g.recipe]().max_iter
        found_pairs = pairs(mine, g) if g.side != "fastcnn" else []
        times = times_as_long(found_pairs) if found_pairs else ""
        if found_pairs and all(in_turns(*pair) for pair in found_pairs):
            times += ", in turns"
        if any(len(run.get("parts", [])) > 1 for run in g.runs):
            times = f"{times}, in parts".removeprefix(", ")
        modes = ", ".join(sorted({run["mode"] for run in g.runs}))
        fit = f"**{statistics.median(g.seconds):.0f}** ({min(g.seconds):.0f} to {max(g.seconds):.0f})"
        rows.append(
            [
                g.cpu, f"`{g.recipe}`", f"{SIDES[g.side]} {modes}".strip(),
                f"{g.runs[0]['parameters']:,}", f"{g.epochs}, not {usual}" if g.epochs != usual else str(usual),
                f"**{g.accuracy:.4f}**", ", ".join(f"{a:.4f}" for a in g.accuracies),
                fit, compiling, times,
            ]
        )  # fmt: skip
    head = ["processor", "recipe", "side", "parameters", "epochs", "mean test accuracy", "by seed"]
    found += table([*head, "fit, s", "compiling, s", "times as long"], rows)
    found += ["", *_time_to(r)]
    return found


def _time_to(r: dict[str, Any]) -> list[str]:
    rows = []
    for cpu, (side, name), target in product(processors(r), SIDES.items(), TARGETS):
        reaching = [g for g in groups(r) if (g.cpu, g.side) == (cpu, side) and g.accuracy >= target]
        if not reaching:
            continue
        g = min(reaching, key=lambda g: statistics.median(g.seconds))
        seconds = statistics.median(g.seconds)
        total = f"{seconds + compile_seconds(r, g):.0f}" if side == "fastcnn" else "-"
        epochs = f"`{g.recipe}`, {g.epochs} epochs"
        rows.append([cpu, f"{target:.0%}", name, epochs, f"{g.accuracy:.4f}", f"{seconds:.0f}", total])
    if not rows:
        return []
    text = (
        "Time to an accuracy: a recipe whose schedule is made for fewer epochs (`max_iter`), the quickest of those "
        "that were run and whose mean test accuracy is at least that much."
    )
    head = ["processor", "accuracy", "side", "quickest", "mean test accuracy", "fit, s", "with compiling, s"]
    return ["### Time to 92, 93 and 94 %", "", text, "", *table(head, rows)]


def steps(r: dict[str, Any], about: list[str], middle: Any) -> list[str]:
    """The section of `bench.recipe_steps`."""
    found = ["## A recipe's training step beside PyTorch's", "", *about]
    found += [
        "Batches of Fashion-MNIST with the recipe's augmentation, 2 threads; each side in its own process, in "
        "alternating rounds, PyTorch in its best mode, its first losses compared before. The ratio is that of each "
        "round.",
        "",
    ]
    rows = []
    for cpu, recipes in r["machines"].items():
        for recipe in (name for name in RECIPES if name in recipes):
            ms, sides = recipes[recipe]["ms"], recipes[recipe]["sides"]
            times = [b / a for a, b in zip(ms["fastcnn"], ms["torch"], strict=True)]
            rows.append(
                [
                    cpu, f"`{recipe}`", middle(ms["fastcnn"], ".1f"), middle(ms["torch"], ".1f"),
                    sides["torch"]["mode"], middle(times), str(len(times)),
                ]
            )  # fmt: skip
    head = ["processor", "recipe", "fastcnn, ms", "PyTorch, ms", "its mode", "times as long", "rounds"]
    return [*found, *table(head, rows)]


def features(r: dict[str, Any], about: list[str]) -> list[str]:
    """The section of `bench.features`."""
    runs = {(run["recipe"], run["change"], run["seed"], run["cpu"]): run for run in r["runs"]}
    found = ["## What each feature is worth", "", *about]
    found += [
        "Trained on 55,000 of Fashion-MNIST's training images, judged by the other 5,000; no test image was read. "
        "Differences are to the recipe of the same seed on the same processor: their mean, and the least and the most. "
        "A mean of three seeds is uncertain by about 0.2 points of accuracy; the cross-entropy (lower is better) says "
        "more.",
        "",
    ]
    rows = []
    for recipe in RECIPES:
        changes = list(dict.fromkeys(run["change"] for run in r["runs"] if run["recipe"] == recipe))
        for change in changes:
            seeds = sorted(
                own for rec, c, *own in runs if (rec, c) == (recipe, change) and (recipe, AS_IT_IS, *own) in runs
            )
            mine, base = ([runs[recipe, c, *own] for own in seeds] for c in (change, AS_IT_IS))
            if not seeds:
                continue
            points = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(mine, base, strict=True)]
            losses = [a["loss"] - b["loss"] for a, b in zip(mine, base, strict=True)]
            rows.append(
                [
                    f"`{recipe}`", change, str(len(seeds)), f"{statistics.mean(a['accuracy'] for a in mine):.4f}",
                    _difference(points, 2), f"{statistics.mean(a['loss'] for a in mine):.4f}", _difference(losses, 4),
                ]
            )  # fmt: skip
    head = ["recipe", "change", "seeds", "accuracy", "points more", "cross-entropy", "more"]
    return [*found, *table(head, rows)]


def _difference(values: list[float], digits: int) -> str:
    if not any(values):
        return ""
    mean, least, most = (f"{v:+.{digits}f}" for v in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})"
