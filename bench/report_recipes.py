"""What `bench.report` says of the recipes."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import product
from math import isnan, nan
from typing import Any, NamedTuple

from bench.markdown import middle, table
from fastcnn.engine.network import Network
from fastcnn.layers import Dense
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
    parameters: int
    runs: list[dict[str, Any]]

    @property
    def settings(self) -> tuple[str, int, int]:
        """What is the same on every processor and side."""
        return self.recipe, self.epochs, self.parameters

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
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in r["runs"]:
        if not run["split"]:
            key = run["cpu"], run["recipe"], run["side"], run["epochs"], run["parameters"]
            found.setdefault(key, []).append(run)
    cpus = Counter(run["cpu"] for run in r["runs"])
    order = {name: i for i, name in enumerate(RECIPES)}
    grouped = [Group(*key, runs) for key, runs in found.items()]
    return sorted(grouped, key=lambda g: (-cpus[g.cpu], g.cpu, order[g.recipe], g.epochs, g.parameters, g.side))


def processors(r: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(g.cpu for g in groups(r)))


@cache
def parameters_of(recipe: str) -> int:
    """Of the recipe's network as it is now, for Fashion-MNIST."""
    return Network([*RECIPES[recipe]().layers, Dense(10)], (28, 28, 1)).n_params


def settings_of(recipe: str) -> tuple[str, int, int]:
    """`Group.settings` of the recipe as it is now."""
    return recipe, RECIPES[recipe]().max_iter, parameters_of(recipe)


def of_recipe(r: dict[str, Any], cpu: str, recipe: str, side: str) -> Group | None:
    """The runs of the recipe as it is now."""
    return _group(groups(r), cpu, side, settings_of(recipe))


def _group(found: list[Group], cpu: str, side: str, settings: tuple[str, int, int]) -> Group | None:
    return next((g for g in found if (g.cpu, g.side, g.settings) == (cpu, side, settings)), None)


def compile_seconds(r: dict[str, Any], group: Group) -> float:
    """What compiling adds; not a number while that is not measured yet, or no more."""
    if group.parameters != parameters_of(group.recipe):
        return nan
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


def or_not(measured: int, now: int) -> str:
    """What was measured, and what the recipe has now if that is something else."""
    return f"{measured:,}" if measured == now else f"{measured:,}, not {now:,}"


def _seeds(n: int) -> str:
    return f"{n} seed" + "s" * (n != 1)


def seeds_spread(r: dict[str, Any], recipe: str) -> float:
    """How far apart the seeds of one side are, that of the two for which it is more; on all processors."""
    accuracies = [
        [a for g in groups(r) if (g.side, g.settings) == (side, settings_of(recipe)) for a in g.accuracies]
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
        small = not parameters or mine.parameters <= parameters
        measured = f"{mine.accuracy:.2%} ({_seeds(len(mine.runs))}, {mine.parameters:,} parameters)"
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


def lines(r: dict[str, Any], about: list[str]) -> list[str]:
    """The section."""
    found = ["## Recipes on Fashion-MNIST", "", *about]
    found += [
        "60,000 training images, 2 threads; each run used the 10,000 test images once, after training. The time is "
        "that of `fit` with compiled kernels at hand; what compiling adds on a new machine is beside it. PyTorch "
        "trains the same network from the same parameters with the same settings in the fastest of its modes (compiled "
        "or not, contiguous or channels last, ReLU in place or not), whose compilation is not counted. Where it says "
        "so, the two took turns, epoch by epoch; elsewhere one trained after the other. In parts: a run was ended "
        "between two epochs, and went on later. With other epochs than the recipe's, the learning rate has a schedule "
        "for so many; with other parameters, the network is an earlier one, and batches may have had another size. In "
        "brackets the least and the most of the seeds. Runs are added over time: rows may be of different states of "
        "the code; of November's runs up to the 28th, none had ReLU in place.",
        "",
    ]
    rows, all_of_them = [], groups(r)
    for g in all_of_them:
        added = compile_seconds(r, g) if g.side == "fastcnn" else nan
        compiling = "-" if isnan(added) else f"{added:.1f}"
        mine = _group(all_of_them, g.cpu, "fastcnn", g.settings)
        found_pairs = pairs(mine, g) if g.side != "fastcnn" else []
        times = times_as_long(found_pairs) if found_pairs else ""
        if found_pairs and all(in_turns(*pair) for pair in found_pairs):
            times += ", in turns"
        if any(len(run.get("parts", [])) > 1 for run in g.runs):
            times = f"{times}, in parts".removeprefix(", ")
        modes = ", ".join(sorted({part["mode"] for run in g.runs for part in run.get("parts", [run])}))
        fit = f"**{statistics.median(g.seconds):.0f}** ({min(g.seconds):.0f} to {max(g.seconds):.0f})"
        rows.append(
            [
                g.cpu, f"`{g.recipe}`", f"{SIDES[g.side]} {modes}".strip(),
                or_not(g.parameters, parameters_of(g.recipe)), or_not(g.epochs, RECIPES[g.recipe]().max_iter),
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
        total = seconds + compile_seconds(r, g) if side == "fastcnn" else nan
        earlier = f" of {g.parameters:,} parameters" if g.parameters != parameters_of(g.recipe) else ""
        epochs = f"`{g.recipe}`{earlier}, {g.epochs} epochs"
        told = "-" if isnan(total) else f"{total:.0f}"
        rows.append([cpu, f"{target:.0%}", name, epochs, f"{g.accuracy:.4f}", f"{seconds:.0f}", told])
    if not rows:
        return []
    text = (
        "Time to an accuracy: a recipe, or one whose schedule is made for other epochs (`max_iter`), the quickest of "
        "those that were run and whose mean test accuracy is at least that much."
    )
    head = ["processor", "accuracy", "side", "quickest", "mean test accuracy", "fit, s", "with compiling, s"]
    return ["### Time to 92, 93 and 94 %", "", text, "", *table(head, rows)]


def steps(r: dict[str, Any], about: list[str]) -> list[str]:
    """The section of `bench.recipe_steps`; a measurement's `remark`, put in by hand, goes when it is made again."""
    found = ["## A recipe's training step beside PyTorch's", "", *about]
    found += [
        "Batches of Fashion-MNIST with the recipe's augmentation, 2 threads; each side in its own process, in "
        "alternating rounds, PyTorch in its best mode, its first losses compared before. The ratio is that of each "
        "round.",
        "",
    ]
    rows, remarks = [], []
    for cpu, recipes in r["machines"].items():
        for recipe in (name for name in RECIPES if name in recipes):
            if remark := recipes[recipe].get("remark"):
                remarks += ["", f"{cpu}, `{recipe}`: {remark}."]
            ms, sides = recipes[recipe]["ms"], recipes[recipe]["sides"]
            times = [b / a for a, b in zip(ms["fastcnn"], ms["torch"], strict=True)]
            rows.append(
                [
                    cpu, f"`{recipe}`", or_not(recipes[recipe]["parameters"], parameters_of(recipe)),
                    or_not(recipes[recipe]["batch"], RECIPES[recipe]().batch_size),
                    middle(ms["fastcnn"], ".1f"), middle(ms["torch"], ".1f"),
                    sides["torch"]["mode"], middle(times), str(len(times)),
                ]
            )  # fmt: skip
    head = ["processor", "recipe", "parameters", "images", "fastcnn, ms", "PyTorch, ms", "its mode"]
    return [*found, *table([*head, "times as long", "rounds"], rows), *remarks]


def features(r: dict[str, Any], about: list[str]) -> list[str]:
    """The section of `bench.features`."""
    runs = {(run["recipe"], run["epochs"], run["change"], run["seed"], run["cpu"]): run for run in r["runs"]}
    found = ["## What each feature is worth", "", *about]
    found += [
        "Trained on 55,000 of Fashion-MNIST's training images, judged by the other 5,000; no test image was read. "
        "Differences are to the recipe of the same seed on the same processor: their mean, and the least and the most. "
        "A mean of three seeds is uncertain by about 0.2 points of accuracy; the cross-entropy (lower is better) says "
        "more.",
        "",
    ]
    rows = []
    for recipe, epochs in sorted({key[:2] for key in runs}, key=lambda key: (list(RECIPES).index(key[0]), key[1])):
        changes = list(dict.fromkeys(key[2] for key in runs if key[:2] == (recipe, epochs)))
        for change in changes:
            found_seeds = (key[3:] for key in runs if key[:3] == (recipe, epochs, change))
            seeds = sorted(own for own in found_seeds if (recipe, epochs, AS_IT_IS, *own) in runs)
            mine, base = ([runs[recipe, epochs, c, *own] for own in seeds] for c in (change, AS_IT_IS))
            if not seeds:
                continue
            points = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(mine, base, strict=True)]
            losses = [a["loss"] - b["loss"] for a, b in zip(mine, base, strict=True)]
            rows.append(
                [
                    f"`{recipe}`", or_not(epochs, RECIPES[recipe]().max_iter), change, str(len(seeds)),
                    f"{statistics.mean(a['accuracy'] for a in mine):.4f}",
                    _difference(points, 2), f"{statistics.mean(a['loss'] for a in mine):.4f}", _difference(losses, 4),
                ]
            )  # fmt: skip
    head = ["recipe", "epochs", "change", "seeds", "accuracy", "points more", "cross-entropy", "more"]
    return [*found, *table(head, rows)]


def _difference(values: list[float], digits: int) -> str:
    if not any(values):
        return ""
    mean, least, most = (f"{v:+.{digits}f}" for v in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})"
