"""Results of several processors in one file, and of runs without some of the peers."""

import json
import sys
from types import SimpleNamespace

import pytest

from bench import machine, peers


@pytest.fixture
def on(tmp_path, monkeypatch):
    """`on("A", save, ...)` calls a function as on the processor A."""
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="bench.made_up")))
    monkeypatch.setattr(sys, "argv", ["made_up", "--rounds", "3", "--torch-python", f"{tmp_path}/python"])

    def call(cpu, function, *args, **kwargs):
        monkeypatch.setattr(machine, "cpu_name", lambda: cpu)
        return function(*args, **kwargs)

    return call


def test_a_processor_replaces_only_its_own_results(on, tmp_path):
    on("A", machine.save, "made", {"value": 1})
    on("B", machine.save, "made", {"value": 2})
    on("C", machine.save, "made", {"value": 3})
    on("B", machine.save, "made", {**on("B", machine.saved, "made"), "value": 4, "more": 5})
    on("A", machine.save, "made", {"value": 6})
    about = {"command": "python -m bench.made_up --rounds 3 --torch-python PATH"}
    assert json.loads((tmp_path / "made.json").read_text()) == {
        **about, "cpu": "A", "value": 6,
        "elsewhere": {
            "B": {**about, "cpu": "B", "value": 4, "more": 5},
            "C": {**about, "cpu": "C", "value": 3},
        },
    }  # fmt: skip
    assert on("D", machine.saved, "made") == {} == on("A", machine.saved, "nothing")


def test_runs_that_name_their_processors_stay_together(on, tmp_path):
    on("A", machine.save, "runs", {"runs": [{"cpu": "A"}]}, of_all=True)
    on("B", machine.save, "runs", {"runs": [{"cpu": "A"}, {"cpu": "B"}]}, of_all=True)
    found = json.loads((tmp_path / "runs.json").read_text())
    assert found["cpu"] == "B" and len(found["runs"]) == 2 and "elsewhere" not in found


def test_peers_that_did_not_take_part_keep_their_ratios(on):
    def cell(**ratios):
        return {
            "network": "seed", "what": "train", "batch": 32, "ratios": ratios,
            "rates": {"fastcnn network": [1.0]} | {f"{peer} eager": [ratio] for peer, ratio in ratios.items()},
            "screening": {peer: {"eager": ratio} for peer, ratio in ratios.items()},
            "versions": {"fastcnn": {}} | {peer: {peer: str(ratio)} for peer, ratio in ratios.items()},
        }  # fmt: skip

    on("A", machine.save, "peers", {"cells": on("A", peers.merged, cell(torch=3.0, jax=4.0))})
    (found,) = on("A", peers.merged, cell(torch=5.0))
    assert found["ratios"] == {"torch": 5.0, "jax": 4.0}
    assert found["rates"] == {"fastcnn network": [1.0], "torch eager": [5.0], "jax eager": [4.0]}
    assert found["screening"]["jax"] == {"eager": 4.0} and found["versions"]["jax"] == {"jax": "4.0"}
    (other,) = on("B", peers.merged, cell(torch=5.0))
    assert other["ratios"] == {"torch": 5.0}
