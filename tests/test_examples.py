"""Every example runs, without a warning, and says what it promises. The pages show what it gave here."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"


def run(name):
    pytest.importorskip("matplotlib")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs" / "extensions")
        import programs

    return programs.run(FOLDER / name).printed


def test_all_examples_are_known():
    tested = {name.removeprefix("test_") + ".py" for name in globals() if name.startswith("test_")}
    examples = {path.name for path in FOLDER.glob("*.py")}
    assert examples <= tested
    listed = set(re.findall(r"\((\w+\.py)\)", (FOLDER / "README.md").read_text()))
    assert listed == examples


def test_pipeline():
    linear, network = (float(line.split()[-3]) for line in run("pipeline.py").splitlines())
    assert 0.85 < linear < network and network > 0.95


def test_grid_search():
    *candidates, best = run("grid_search.py").splitlines()
    scores = [float(line.split()[0]) for line in candidates]
    assert len(scores) == 6 and scores == sorted(scores, reverse=True)
    assert "Conv2D" in "".join(candidates) and float(best.split()[-1]) > 0.95


def test_early_stopping():
    stopped, validation, accuracy, search = run("early_stopping.py").splitlines()
    epochs, best = map(int, re.findall(r"\d+", stopped))
    assert best <= epochs < 200
    first, top = map(float, re.findall(r"-?\d\.\d+", validation))
    assert first < top < 0
    assert float(accuracy.split()[-1]) > 0.95 and float(search.split()[-1]) > 0.9


def test_learning_rates():
    lines = run("learning_rates.py").splitlines()
    assert [line.split()[0] for line in lines] == ["constant", "cosine", "onecycle", "step"]
    assert all(float(line.split()[-1]) > 0.95 for line in lines)


def test_few_images():
    plain, shifted = (
        [float(score) for score in re.findall(r"0\.\d+", line)] for line in run("few_images.py").splitlines()
    )
    assert plain == sorted(plain) and plain[0] < shifted[0]


def test_filters_and_maps():
    assert float(run("filters_and_maps.py").split()[-1]) > 0.9


def test_look_inside():
    accuracy, wrong, n = (float(number) for number in re.findall(r"\d+\.?\d*", run("look_inside.py")))
    assert accuracy == round(1 - wrong / n, 3) > 0.95


def test_imbalanced():
    plain, balanced, given = (
        [float(number) for number in re.findall(r"\d\.\d+", line)] for line in run("imbalanced.py").splitlines()
    )
    assert balanced[0] > plain[0] and balanced[1] > plain[1] and given[0] > plain[0]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="limits and counts memory as Linux does")
def test_out_of_core():
    sizes, refused, *parts = run("out_of_core.py").splitlines()
    _, file, limit = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", sizes))
    assert file > limit and "does not fit" in refused
    accuracy = [float(line.split()[-1]) for line in parts]
    assert len(parts) >= 3 and accuracy[-1] > 0.8 > accuracy[0] + 0.2
