"""A run that was ended goes on after its last whole epoch."""

import io
import json
import sys

import numpy as np
import pytest

from bench.recipes import FastCNN, Turns
from fastcnn import CNNClassifier
from fastcnn.persistence import Checkpoint


def small():
    return FastCNN(CNNClassifier(conv_channels=(4,), dense_units=(), batch_size=16, random_state=0, ema_decay=0.9))


@pytest.mark.parametrize("after", [1, 2])
def test_training_goes_on(tmp_path, monkeypatch, after):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (48, 8, 8), np.uint8), np.arange(48) % 3
    whole = small()
    whole.fit(X, y, 3, lambda epoch, seconds: None)

    monkeypatch.setattr(sys, "stdin", io.StringIO("\n" * (after - 1)))
    first, file = Turns(io.StringIO(), 3, tmp_path / "turns.json", {"cpu": "a"}), tmp_path / "kept"
    with pytest.raises(SystemExit, match="nobody asks any more"):
        small().fit(X, y, 3, first.at_end_of, file)
    assert len(first.seconds) == after
    with pytest.raises(SystemExit, match="of another processor"):
        Turns(io.StringIO(), 3, tmp_path / "turns.json", {"cpu": "b"})

    monkeypatch.setattr(sys, "stdin", io.StringIO("\n" * 3))
    second, answers = Turns(out := io.StringIO(), 3, tmp_path / "turns.json", {"cpu": "a", "mode": "eager"}), small()
    assert second.seconds == first.seconds and second.parts == [{"cpu": "a"}, {"cpu": "a", "mode": "eager"}]
    answers.fit(X, y, 3, second.at_end_of, file)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == second.seconds[after:2]
    assert second.seconds[:after] == first.seconds and len(second.seconds) == 3
    assert second.fit_seconds >= sum(second.seconds)
    for name, value in whole.clf.network_.params.items():
        np.testing.assert_array_equal(answers.clf.network_.params[name], value)


def test_a_finished_run_only_predicts(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (48, 8, 8), np.uint8), np.arange(48) % 3
    first, again, ended = small(), small(), []
    for side in (first, again):
        side.fit(X, y, 2, lambda epoch, seconds: ended.append(epoch), tmp_path / "kept")
    assert ended == [1, 2]
    np.testing.assert_array_equal(again.predict(X), first.predict(X))


def test_an_epoch_that_is_not_known(tmp_path):
    turns = Turns(io.StringIO(), 3, tmp_path / "turns.json", {"cpu": "a"})
    with pytest.raises(SystemExit, match=r"epoch 2 has ended, 0 are known: .*turns.json must be removed"):
        turns.at_end_of(2, 1.0)


def test_an_epoch_without_a_checkpoint_did_not_happen(tmp_path):
    rng, ended = np.random.default_rng(0), []
    X, y = rng.integers(0, 256, (48, 8, 8), np.uint8), np.arange(48) % 3

    def full(self, *args):
        raise OSError("disk full")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(Checkpoint, "save", full)
        small().fit(X, y, 2, lambda epoch, seconds: ended.append(epoch), tmp_path / "kept")
    assert not ended
