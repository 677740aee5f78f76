"""The report says of each goal whether it was reached, and has a section for what was measured."""

import json
import re

import pytest

from bench.machine import RESULTS
from bench.report import write
from fastcnn.recipes import RECIPES
from tests.cases import LAYERS

ABOUT = {"command": "python -m bench.made_up", "cpu": "a processor, 2 cores", "versions": {"python": "3.11"}}


def cell(network, what, batch, ratio):
    return {
        "network": network, "what": what, "batch": batch, "versions": {"torch": {"torch": "2"}}, "busy": [0.0],
        "rates": {"fastcnn network": [ratio * 100.0] * 3, "torch eager-contiguous": [100.0] * 3},
        "ratios": {"torch": [ratio] * 3},
    }  # fmt: skip


def kernel(layer, what, algorithm, share):
    return {
        "layer": layer, "what": what, "algorithm": algorithm, "ms": 1.0, "gflops": 50.0, "gbs": 1.0, "share": share,
        "share_quartiles": [share, share],
    }  # fmt: skip


def report(folder, **results):
    """The lines of the report on these results."""
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(ABOUT | result))
    write(folder, folder / "RESULTS.md")
    return (folder / "RESULTS.md").read_text().splitlines()


def verdict(lines, goal):
    """The last column of the goal's line."""
    (line,) = [line for line in lines if line.startswith(f"| {goal}")]
    return line.split("|")[-2].strip()


def test_the_report_is_that_of_the_results(tmp_path):
    pytest.importorskip("matplotlib")
    write(RESULTS, tmp_path / "RESULTS.md")
    assert (tmp_path / "RESULTS.md").read_text() == (RESULTS.parent / "RESULTS.md").read_text(), "run bench.report"
    drawn = sorted((tmp_path / "plots").glob("*.svg"))
    assert drawn
    for plot in drawn:  # their texts: the rest differs with the version of matplotlib
        pair = plot, RESULTS.parent / "plots" / plot.name
        now, kept = ({*re.findall("<!-- .* -->", path.read_text("utf-8"))} for path in pair)
        assert now == kept, f"{plot.name}: run bench.report"


def test_without_results_nothing_is_reached(tmp_path):
    lines = report(tmp_path)
    goals = [line for line in lines if line.endswith("not measured |")]
    assert len(goals) > 10
    assert not [line for line in lines if line.endswith("reached |")]
    assert "Not measured on a GPU." in lines


@pytest.mark.parametrize(("ratio", "expected"), [(3.5, "reached so far; incomplete"), (2.0, "**not reached**")])
def test_a_few_cells_do_not_reach_a_goal_for_all(tmp_path, ratio, expected):
    cells = [cell("seed", "train", 32, ratio), cell("seed", "train", 128, ratio)]
    lines = report(tmp_path, peers={"setting": {"threads": 2}, "cells": cells})
    assert verdict(lines, "training, times as fast as PyTorch") == expected
    assert verdict(lines, "predicting, times as fast as PyTorch") == "not measured"
    assert any(line.startswith("| seed 32 |") and f"**{ratio:.2f}**" in line for line in lines)


def test_all_cells_reach_a_goal(tmp_path):
    networks = ("seed", "lenet5", "digits", "vgg", "strided")
    cells = [cell(network, "train", batch, 3.5) for network in networks for batch in (32, 128, 512)]
    cells[4] = cell("lenet5", "train", 128, 1.2)
    lines = report(tmp_path, peers={"setting": {"threads": 2}, "cells": cells})
    assert verdict(lines, "training, times as fast as PyTorch") == "reached"
    assert verdict(lines, "training, no cell") == "**not reached**"


def test_a_share_of_the_peak_is_asked_of_every_layer(tmp_path):
    wide = [
        c.name for c in LAYERS if c.geometry.c >= 32 and c.geometry.k >= 32 and c.kernel_size == 3 and c.groups == 1
    ]
    shares = [0.95] * (len(wide) - 1) + [0.8]
    rows = [kernel(name, "conv forward", "direct", share) for name, share in zip(wide, shares, strict=True)]
    rows += [kernel(name, "conv weight gradient", "direct", 0.9) for name in wide]
    rows += [kernel("LeNet-5 C1", "conv weight gradient", "direct", 0.1)]  # not asked of few channels
    lines = report(tmp_path, kernels={"peak_gflops": 60.0, "bandwidth_gbs": {"L1": 100.0}, "rows": rows})
    assert verdict(lines, "direct 3x3 conv forward") == "**not reached**"
    assert verdict(lines, "direct 3x3 conv weight gradient") == "reached"
    assert verdict(lines, "Winograd 3x3 conv forward") == "not measured"


def test_what_is_slower_is_said(tmp_path):
    both = {"fastcnn": [2.0], "MLPClassifier": [1.0]}
    mlp = {
        "seconds": both, "epoch_seconds": both, "epochs": both, "accuracy": both, "target": [0.84], "ratios": [0.5],
        "setting": {"images": 1000, "epochs": {"fastcnn": 6, "MLPClassifier": 40}},
    }  # fmt: skip
    lines = report(tmp_path, estimators={"threads": 2, "batch": 128, "mlp": mlp})
    assert any("slower: it takes 2.00 times as long" in line for line in lines)


@pytest.mark.parametrize(("added", "expected"), [(80.0, "reached"), (200.0, "**not reached**")])
def test_what_one_image_costs(tmp_path, added, expected):
    rows = {
        "8x8": {"estimator": [50.0 + added] * 3, "engine": [50.0] * 3},
        "28x28": {"estimator": [90.0], "engine": [80.0]},
    }
    lines = report(tmp_path, one_image={"rows": rows})
    assert verdict(lines, "what `predict` adds") == expected
    assert any(line.startswith("| 8x8 |") and f"**{added:.0f}**" in line for line in lines)


PARAMETERS = {"fast": 102_442, "balanced": 174_442, "best": 354_410}


def recipe_run(recipe, side, seed, accuracy, seconds, epochs=None):
    return {
        "recipe": recipe, "side": side, "seed": seed, "epochs": epochs or RECIPES[recipe]().max_iter, "split": False,
        "accuracy": accuracy, "fit_seconds": seconds, "parameters": PARAMETERS[recipe], "mode": "",
        "cpu": "a processor",
        "versions": {"python": "3.11"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("accuracy", "seconds", "torch", "verdicts"),
    [
        (0.94, 200.0, (0.9402, 700.0), ("reached", "reached", "reached")),
        (0.93, 300.0, (0.9302, 500.0), ("**not reached**", "**not reached**", "**not reached**")),
        (0.94, 200.0, (0.93, 700.0), ("reached", "reached", "**not reached**")),  # fast, but not the same accuracy
    ],
)
def test_recipes(tmp_path, accuracy, seconds, torch, verdicts):
    runs = [recipe_run("fast", "fastcnn", seed, accuracy + seed / 1e3, seconds) for seed in (-1, 0, 1)]
    runs += [recipe_run("fast", "torch", seed, torch[0], torch[1]) for seed in (-1, 0, 1)]
    runs = [run | {"turns": f"of seed {run['seed']}"} for run in runs]
    runs += [recipe_run("fast", "fastcnn", 0, 0.925, 30.0, epochs=2)]
    runs += [recipe_run("balanced", "fastcnn", 0, 0.95, 60.0)]
    runs[-1] |= {"split": True}  # says nothing of test images
    lines = report(tmp_path, recipes={"runs": runs, "compile_seconds": {"a processor": {"fast": 9.0}}})
    whats = ("recipe `fast`: test accuracy", "recipe `fast`: training time", "recipe `fast` in PyTorch")
    assert tuple(verdict(lines, what) for what in whats) == verdicts
    assert verdict(lines, "recipe `balanced`: test accuracy") == "not measured"
    # One side after the other, or each with another one: the machine may have changed in between.
    for turns in (lambda run: False, lambda run: run["side"]):
        alone = [run | {"turns": turns(run)} for run in runs]
        found = verdict(report(tmp_path, recipes={"runs": alone, "compile_seconds": {}}), whats[2])
        assert found == ("reached so far; incomplete" if verdicts[2] == "reached" else verdicts[2])
    row = f"| {torch[1] / seconds:.2f} ({torch[1] / seconds:.2f} to {torch[1] / seconds:.2f}), in turns |"
    assert any(line.endswith(row) for line in lines)
    of = "| a processor |"
    (short, whole) = [line for line in lines if line.startswith(f"{of} `fast` | fastcnn |")]
    assert "| 2, not 8 | **0.9250** |" in short and f"| 8 | **{accuracy:.4f}** |" in whole
    assert any(line.startswith(f"{of} 92% | fastcnn | `fast`, 2 epochs |") and "| 30 | 39 |" in line for line in lines)
    assert not any(line.startswith(f"{of} 94% | PyTorch") for line in lines) or torch[0] >= 0.94


def test_a_recipe_that_had_another_network(tmp_path):
    """What was measured of it stays in the table, and reaches nothing."""
    now = [recipe_run("fast", side, 0, 0.94, 200.0) for side in ("fastcnn", "torch")]
    then = [run | {"parameters": 7_000, "accuracy": 0.95, "fit_seconds": seconds, "turns": True}
            for run, seconds in zip(now, (10.0, 40.0), strict=True)]  # fmt: skip
    lines = report(tmp_path, recipes={"runs": [*then, *now], "compile_seconds": {}})
    assert any("| 94.00% (1 seed, 102,442 parameters) |" in line for line in lines)
    (row,) = [line for line in lines if "| PyTorch | 7,000, not 102,442 | 8 |" in line]
    assert row.endswith("| 4.00, in turns |")
    assert any("| 94% | fastcnn | `fast` of 7,000 parameters, 8 epochs | 0.9500 | 10 |" in line for line in lines)
    lines = report(tmp_path, recipes={"runs": then, "compile_seconds": {}})
    assert verdict(lines, "recipe `fast`: test accuracy") == "not measured"


def test_recipes_on_two_processors(tmp_path):
    """Times are those of one processor; what seeds do to accuracy, that of all."""
    runs = [recipe_run("fast", "fastcnn", seed, 0.94 + seed / 1e3, 200.0) for seed in (-1, 0, 1)]
    runs += [recipe_run("fast", side, 0, *found) | {"cpu": "another", "turns": True} for side, found in (
        ("fastcnn", (0.941, 300.0)), ("torch", (0.9395, 900.0))
    )]  # fmt: skip
    lines = report(tmp_path, recipes={"runs": runs, "compile_seconds": {}})
    (first, second) = [line for line in lines if line.startswith("| recipe `fast`: training time")]
    assert "(a processor) | at most 4 min | 3.3 min | reached |" in first
    assert "(another) | at most 4 min | 5.0 min | **not reached** |" in second
    (first, second) = [line for line in lines if line.startswith("| recipe `fast` in PyTorch")]
    assert "(a processor)" in first and first.endswith("| not measured |")
    assert "(another) | 3 | 3.00; 93.95%, ours 94.10% | reached so far; incomplete |" in second
    (row,) = [line for line in lines if line.startswith("| another | `fast` | PyTorch |")]
    assert row.endswith("| 3.00, in turns |")
    without = [run for run in runs if (run["cpu"], run["side"]) != ("another", "fastcnn")]
    lines = report(tmp_path, recipes={"runs": without, "compile_seconds": {}})  # nothing to set PyTorch beside
    (row,) = [line for line in lines if line.startswith("| another | `fast` | PyTorch |")]
    assert row.endswith("|  |")
    in_two = {"fastcnn": [{"mode": ""}] * 2, "torch": [{"mode": "eager"}, {"mode": "compiled"}]}
    parts = [run | {"parts": in_two[run["side"]]} if run["cpu"] == "another" else run for run in runs]
    lines = report(tmp_path, recipes={"runs": parts, "compile_seconds": {}})
    (row,) = [line for line in lines if line.startswith("| another | `fast` | PyTorch compiled, eager |")]
    assert row.endswith("| 3.00, in turns, in parts |")


def test_features(tmp_path):
    """Differences are to the recipe of the same seed; a seed without one counts for nothing."""
    measured = {
        ("the recipe", 0): (0.93, 0.25), ("the recipe", 1): (0.94, 0.26),
        ("without flips", 0): (0.92, 0.27), ("without flips", 1): (0.936, 0.27), ("without flips", 2): (0.1, 2.3),
    }  # fmt: skip
    runs = [
        {"recipe": "fast", "epochs": 8, "cpu": "A", "change": change, "seed": seed, "accuracy": accuracy, "loss": loss}
        for (change, seed), (accuracy, loss) in measured.items()
    ]
    runs.append(runs[2] | {"cpu": "B", "accuracy": 0.1})  # where the recipe was not measured
    runs += [run | {"epochs": 10, "accuracy": 0.9} for run in runs[:1]]
    runs.append(runs[2] | {"epochs": 10, "accuracy": 0.895})
    lines = report(tmp_path, features={"runs": runs})
    assert "| `fast` | 8 | the recipe | 2 | 0.9350 |  | 0.2550 |  |" in lines
    assert any(line.startswith("| `fast` | 10, not 8 | without flips | 1 | 0.8950 | -0.50 ") for line in lines)
    differences = ("-0.70 (-1.00 to -0.40)", "+0.0150 (+0.0100 to +0.0200)")
    assert "| `fast` | 8 | without flips | 2 | 0.9280 | {} | 0.2700 | {} |".format(*differences) in lines


def test_cluster(tmp_path):
    """The goals are those of the fewest averages; the model is set against what was measured."""
    fits = []
    for seed in range(3):
        for sync_every, times, accuracy in ((118, 1.8, 0.91), (16, 1.5, 0.919)):
            fits.append({"side": "one process", "seed": seed, "epochs": 12, "images": 1000, "images_per_second": 1e4})
            fits[-1] |= {"accuracy": 0.92, "sync_every": sync_every, "learning_rate": 0.006}
            fits.append(fits[-1] | {"side": "two workers", "rounds": 24})
            fits[-1] |= {"images_per_second": 1e4 * times, "accuracy": accuracy}
    per_round = {str(k): 0.01 * k + 0.04 for k in (1, 16, 128)}
    rounds = {"steps_per_round": [1, 16, 128], "batch": 128, "state_bytes": 5e6}
    constants = {"bytes_per_second": 1e9, "latency": 0.01, "seconds_per_task": 1e-3, "average_seconds_per_byte": 1e-9}
    rounds["seconds_per_round"] = {"1": per_round, "2": per_round}
    lines = report(tmp_path, cluster={"fits": fits, "rounds": rounds, "constants": constants})
    assert verdict(lines, "2 workers of Dask, times") == "reached"
    assert verdict(lines, "2 workers of Dask, test accuracy") == "**not reached**"
    assert "Median ratio **1.50**; mean accuracy -0.10 points." in lines
    (row,) = [line for line in lines if line.startswith("| 128 | 1320 | 1320 |")]
    step = 1.32 / 128
    modelled = 128 * step + (0.01 + 5e-3 + 2 * 5e-3) + 4e-3  # averaged where the next round trains
    assert float(row.split("|")[4]) == round(modelled * 1e3)
    least = [int(line.split("|")[-2].replace(",", "")) for line in lines if line.startswith(("| 4 | ", "| 1024 | "))]
    assert len(least) == 4 and least[0] < least[1] < least[3] and least[0] < least[2]


def test_a_step_of_each_recipe_by_processor(tmp_path):
    sides = {"fastcnn": {"mode": ""}, "torch": {"mode": "eager-channels_last"}}
    one = {"batches": 16, "sides": sides, "ms": {"fastcnn": [10.0, 10.0, 20.0], "torch": [30.0, 50.0, 80.0]}}
    now, then = ({"parameters": PARAMETERS["fast"], "batch": 128}, {"parameters": 7_000, "batch": 32})
    machines = {"old, 2 cores": {"fast": one | then | {"remark": "noisy"}}, "new, 2 cores": {"fast": one | now}}
    lines = report(tmp_path, recipe_steps={"machines": machines})
    rows = [line for line in lines if line.endswith("| 3 |")]
    expected = "**10.0** (10.0 to 15.0) | **50.0** (40.0 to 65.0) | eager-channels_last | **4.00** (3.50 to 4.50) | 3 |"
    assert rows == [
        f"| old, 2 cores | `fast` | 7,000, not 102,442 | 32, not 128 | {expected}",
        f"| new, 2 cores | `fast` | 102,442 | 128 | {expected}",
    ]
    after = lines.index(rows[-1]) + 1
    assert lines[after : after + 2] == ["", "old, 2 cores, `fast`: noisy."]
    assert not any(line.startswith("new, 2 cores, `fast`:") for line in lines)


def test_results_of_another_processor_have_a_section_of_their_own(tmp_path):
    rows = {"one": {"estimator": [20.0] * 3, "engine": [15.0] * 3}}
    other = {"command": "python -m bench.elsewhere", "cpu": "another processor", "versions": {"python": "3.12"}}
    lines = report(tmp_path, one_image={"rows": rows, "elsewhere": {"another processor": other | {"rows": rows}}})
    first, second = lines.index("## One image"), lines.index("## One image: another processor")
    assert any("3.11" in line and "3.12" not in line for line in lines[first:second])
    assert any("another processor; python 3.12" in line for line in lines[second:])
