"""Checkpoints: a fit that was broken off goes on with the same bits, and only that fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.model_selection import GridSearchCV

from fastcnn import CNNClassifier
from fastcnn.layers import BatchNorm, Conv2D, Dropout, Layer, MaxPool2D, ReLU, SpatialDropout
from fastcnn.persistence import checkpoints, read_model
from fastcnn.persistence.checkpoints import fingerprint
from fastcnn.training.augment import Cutout, MixUp, RandomShift

N = 90
LAYERS = [Conv2D(4), BatchNorm(), ReLU(), SpatialDropout(0.1), MaxPool2D(), Dropout(0.3)]


def images(n=N):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    X = rng.integers(0, 200, (n, 6, 6), np.uint8)
    X[np.arange(n), y] += 50
    return X, np.array(["bag", "coat", "shoe"])[y]


X, Y = images()


def new(path=None, **parameters):
    common = {"layers": LAYERS, "batch_size": 16, "max_iter": 6, "random_state": 0, "checkpoint": path}
    return CNNClassifier(**common | parameters)


class Death(Exception):
    """What ends a fit in the middle."""


class DiesAfter:
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_begin(self, epoch):
        if epoch > self.epoch:
            raise Death


class Numbers:
    """The epochs that are trained."""

    def __init__(self):
        self.seen = []

    def __deepcopy__(self, memo):
        return self

    def on_epoch_begin(self, epoch):
        self.seen.append(epoch)


def broken_off(clf, *data, after=3, **more):
    """Fit a copy of `clf` that dies after some epochs; a file is left."""
    with pytest.raises(Death):
        CNNClassifier(**clf.get_params() | {"callbacks": [DiesAfter(after)]}).fit(*data, **more)


def state(clf):
    """All that a fit ends with, but how long it took."""
    found = {f"params {name}": value for name, value in clf.network_.params.items()}
    found |= {f"optimizer {name}": value for name, value in clf.network_.optimizer.state_dict().items()}
    found |= {name: value for name, value in vars(clf._history).items() if name != "epoch_seconds"}
    found["dropout"] = clf.network_.training_state().dropout
    for name in ("classes_", "channel_offset_", "channel_scale_", "n_iter_", "best_iter_", "loss_curve_", "t_"):
        found[name] = getattr(clf, name)
    return found


def assert_same_state(one, other):
    one, other = state(one), state(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert_array_equal(value, other[name], name)


# ---------------------------------------------------------------------------------------------------- fits that go on


CASES = {
    "adam": {},
    "adamw, averaged": {"solver": "adamw", "ema_decay": 0.9, "alpha": 0.1},
    "muon, stopped early": {"solver": "muon", "early_stopping": True, "n_iter_no_change": 2},
    "sgd, averaged and stopped early": {
        "solver": "sgd", "learning_rate_init": 0.05, "ema_decay": 0.9, "early_stopping": True, "scoring": "loss",
    },
    "augmented": {"augment": [RandomShift(1), Cutout(2), MixUp()], "class_weight": "balanced"},
    "in parts": {"micro_batch_size": 5, "clip_norm": 0.1, "label_smoothing": 0.1, "dtype": "float64"},
    "schedules": {"learning_rate": "cosine", "warmup": 0.2, "scale": "unit", "shuffle": False},
    "constant rate until nothing improves": {
        "learning_rate": "constant", "tol": 0.5, "n_iter_no_change": 2, "max_iter": 20,
    },
}  # fmt: skip


@pytest.mark.parametrize("after", [1, 2, 5])
@pytest.mark.parametrize("name", CASES)
def test_same_bits_as_without_a_break(name, after, tmp_path):
    clf = new(**CASES[name])
    whole = new(**CASES[name]).fit(X, Y)
    clf.set_params(checkpoint=tmp_path / "run.ckpt")
    after = min(after, whole.n_iter_ - 1)
    broken_off(clf, X, Y, after=after)
    assert read_model(tmp_path / "run.ckpt").history.n_iter == after
    assert_same_state(clf.fit(X, Y), whole)


def test_broken_off_again_and_again_with_other_threads(tmp_path):
    clf = new(str(tmp_path / "run.ckpt"), solver="muon", n_jobs=1, augment=[RandomShift(1)])
    for after in (1, 2, 3, 5):
        broken_off(clf.set_params(n_jobs=after % 2 + 1), X, Y, after=after)
    assert_same_state(clf.fit(X, Y), new(solver="muon", augment=[RandomShift(1)]).fit(X, Y))


def test_validation_data_and_weights(tmp_path):
    weight = np.linspace(0.1, 2, N)
    more = {"sample_weight": weight, "X_val": X[:20], "y_val": Y[:20], "sample_weight_val": weight[:20]}
    clf = new(tmp_path / "run.ckpt", early_stopping=True)
    broken_off(clf, X, Y, **more)
    assert_same_state(clf.fit(X, Y, **more), new(early_stopping=True).fit(X, Y, **more))


@pytest.mark.parametrize("place", ["run.ckpt", "."])
def test_a_dict_has_no_order(place, tmp_path):
    """As one made of a set of strings, which other processes go through in another order."""
    weights = {"bag": 1.0, "coat": 2.0, "shoe": 0.5}
    clf = new(tmp_path / place, class_weight=weights)
    broken_off(clf, X, Y)
    trained = Numbers()
    clf.set_params(class_weight=dict(reversed(weights.items())), callbacks=[trained])
    assert_same_state(clf.fit(X, Y), new(class_weight=weights).fit(X, Y))
    assert trained.seen == [4, 5, 6]


def test_functions_are_known_by_what_they_are_not_where(tmp_path):
    """As in another process: a partial of a function at another address, an instance at another address."""

    def scorers():
        def share(wanted, clf, X, y):
            return float(np.mean(clf.predict(X) == wanted))

        class Share:
            def __call__(self, clf, X, y):
                return share("bag", clf, X, y)

        return partial(share, "coat"), Share()

    for number, (one, other) in enumerate(zip(scorers(), scorers(), strict=True)):
        clf = new(tmp_path / f"{number}.ckpt", early_stopping=True, scoring=one)
        broken_off(clf, X, Y)
        assert_same_state(clf.set_params(scoring=other).fit(X, Y), new(early_stopping=True, scoring=other).fit(X, Y))
    with pytest.raises(ValueError, match=r"scoring was '<.*Share.* and is .functools.partial\(<func"):
        clf.set_params(scoring=scorers()[0]).fit(X, Y)


def test_functions_are_known_by_what_they_hold(tmp_path):
    """Else a fit would return what another one, with another scorer, has led to."""

    def share_of(wanted, name):
        def share(clf, X, y, sample_weight=None, wanted=wanted):
            return float(np.mean(clf.predict(X) == wanted))

        class Share:
            def __init__(self, wanted):
                self.wanted = wanted

            def __call__(self, clf, X, y):
                return share(clf, X, y)

        def outer(clf, X, y, sample_weight=None):
            return share(clf, X, y)

        kinds = {
            "closure": share,
            "instance": Share(wanted),
            "closure of a closure": outer,
            "method": Share(wanted).__call__,
            "lambda": lambda clf, X, y: float(np.mean(clf.predict(X) == wanted)),
            "partial": partial(outer, sample_weight=None),
        }
        return kinds[name]

    for name in ("closure", "instance", "closure of a closure", "method", "lambda", "partial"):
        clf = new(tmp_path / f"{name}.ckpt", early_stopping=True, scoring=share_of("bag", name), max_iter=1).fit(X, Y)
        finished = new(tmp_path / f"{name}.ckpt", early_stopping=True, scoring=share_of("bag", name), max_iter=1)
        assert_same_state(finished.fit(X, Y), clf)
        with pytest.raises(ValueError, match="a checkpoint of another fit: scoring was"):
            clf.set_params(scoring=share_of("coat", name)).fit(X, Y)
    one, other = lambda clf, X, y: 0.5, lambda clf, X, y: 0.75
    clf = new(tmp_path / "lambdas.ckpt", early_stopping=True, scoring=one, max_iter=1).fit(X, Y)
    with pytest.raises(ValueError, match="a checkpoint of another fit: scoring was"):
        clf.set_params(scoring=other).fit(X, Y)


def test_a_lambda_has_one_name_in_every_process():
    """Wherever it stands, and however its process goes through sets."""
    program = """
from fastcnn.persistence.checkpoints import _name
print(_name(lambda clf, X, y: float(sum(p in {"bag", "coat", "shoe", "hat"} for p in [q for q in clf.predict(X)]))))
"""
    names = {
        subprocess.run(
            [sys.executable, "-c", "\n" * lines + program], env=os.environ | {"PYTHONHASHSEED": str(seed)}, text=True,
            check=True, capture_output=True,
        ).stdout
        for lines, seed in ((0, 0), (1, 1), (2, 2))
    }  # fmt: skip
    assert len(names) == 1 and "<lambda> [" in names.pop()
    one, other = (lambda p: [q == "bag" for q in p]), (lambda p: [q == "hat" for q in p])
    assert checkpoints._name(one) != checkpoints._name(other)


def test_a_folder_has_a_file_for_each_choice_of_views(tmp_path):
    """Which a search may try side by side."""
    for tta in (None, "flip"):
        new(tmp_path, tta=tta).fit(X, Y)
    assert len(list(tmp_path.iterdir())) == 2


def test_after_an_interrupt_a_fit_can_be_finished(tmp_path):
    class Interrupts:
        def on_epoch_begin(self, epoch):
            if epoch == 4:
                raise KeyboardInterrupt

    clf = new(tmp_path / "run.ckpt", callbacks=[Interrupts()])
    with pytest.warns(UserWarning, match="interrupted"):
        clf.fit(X, Y)
    assert clf.n_iter_ == 3
    assert_same_state(clf.set_params(callbacks=None).fit(X, Y), new().fit(X, Y))


def test_a_finished_fit_is_returned_at_once(tmp_path):
    class Notes:
        epochs = 0

        def on_fit_begin(self, info):
            self.start = info.start_epoch

        def on_epoch_begin(self, epoch):
            self.epochs += 1

    for parameters in ({}, {"early_stopping": True, "tol": 0.5, "n_iter_no_change": 1}):
        path = tmp_path / f"{len(parameters)}.ckpt"
        first = new(path, callbacks=[Notes()], **parameters).fit(X, Y)
        before = path.read_bytes()
        second = new(path, callbacks=[Notes()], **parameters).fit(X, Y)
        assert (first.callbacks_[0].epochs, second.callbacks_[0].epochs) == (first.n_iter_, 0)
        assert second.callbacks_[0].start == first.n_iter_
        assert_same_state(second, first)
        assert path.read_bytes() == before


def test_divergence_ends_the_same_way(tmp_path):
    clf = new(tmp_path / "run.ckpt", learning_rate_init=0.01)
    broken_off(clf, X, Y, after=2)

    def diverges(path):
        class Bomb:
            def on_epoch_begin(self, epoch):
                if epoch == 4:
                    self.network.params["0.weight"][...] = np.inf

            def on_fit_begin(self, info):
                type(self).network = info.network

        fitted = new(path, learning_rate_init=0.01, callbacks=[Bomb()])
        with pytest.warns(UserWarning, match="diverged in epoch 4"):
            fitted.fit(X, Y)
        return fitted

    assert_same_state(diverges(tmp_path / "run.ckpt"), diverges(None))


@pytest.mark.parametrize("random_state", [None, "instance"])
def test_seeds_that_are_no_ints(random_state, tmp_path):
    def seeded(path):
        return new(path, random_state=random_state and np.random.RandomState(5))

    broken_off(seeded(tmp_path / "run.ckpt"), X, Y)
    seed = read_model(tmp_path / "run.ckpt").run.seed
    gone_on = seeded(tmp_path / "run.ckpt").fit(X, Y)
    if random_state is None:  # the seed is that of the file
        assert read_model(tmp_path / "run.ckpt").run.seed == seed
        again = seeded(tmp_path / "run.ckpt").fit(X, Y)
    else:
        again = seeded(None).fit(X, Y)
    assert_same_state(gone_on, again)


def test_warm_start(tmp_path):
    path = tmp_path / "run.ckpt"
    clf, whole = new(path, warm_start=True).fit(X, Y), new(warm_start=True).fit(X, Y)
    clf.save(tmp_path / "after 6.safetensors")
    clf.set_params(callbacks=[DiesAfter(8)])
    with pytest.raises(Death):  # the finished checkpoint led to what this goes on from, and so makes room
        clf.fit(X, Y)
    assert clf.n_iter_ == 6
    assert CNNClassifier.load(path).n_iter_ == 8
    whole.fit(X, Y)
    assert_same_state(CNNClassifier.load(tmp_path / "after 6.safetensors").fit(X, Y), whole)
    clf.set_params(callbacks=None)
    with pytest.raises(ValueError, match=r"it began after 6 epochs, .* this one after 0"):
        new(path).fit(X, Y)
    with pytest.raises(ValueError, match="it began after 6 epochs"):
        new(None).fit(X[::-1], Y[::-1]).set_params(warm_start=True, checkpoint=path).fit(X, Y)


def test_a_checkpoint_is_a_model(tmp_path):
    clf = new(tmp_path / "run.ckpt", early_stopping=True, ema_decay=0.9)
    broken_off(clf, X, Y)
    with pytest.raises(Death):
        seen = clf.set_params(callbacks=[DiesAfter(3)]).fit(X, Y)
    loaded = CNNClassifier.load(tmp_path / "run.ckpt")
    assert loaded.n_iter_ == 3 and loaded.checkpoint == str(tmp_path / "run.ckpt")
    best = read_model(tmp_path / "run.ckpt").run.progress.best
    for name, value in best.items():
        assert_array_equal(loaded.network_.params[name], value)
    seen = loaded.set_params(max_iter=6).fit(X, Y)
    assert_same_state(seen, new(early_stopping=True, ema_decay=0.9).fit(X, Y))
    assert loaded.partial_fit(X, Y).n_iter_ == 7  # and no file is written
    assert read_model(tmp_path / "run.ckpt").history.n_iter == 6


def test_a_file_chooses_no_other_file_to_write_to(tmp_path):
    clf = new(tmp_path / "run.ckpt").fit(X, Y)
    clf.save(tmp_path / "model.safetensors")
    assert CNNClassifier.load(tmp_path / "model.safetensors").checkpoint is None
    shutil.copy(tmp_path / "run.ckpt", tmp_path / "copy.ckpt")
    assert CNNClassifier.load(tmp_path / "copy.ckpt").checkpoint is None


def test_sigkill_at_random_moments(tmp_path):
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, "0", "3"],
        env=os.environ | {"PYTHONPATH": str(script.parents[2])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["other_bits"] == 0
    assert found["kills"] >= 6 and found["with_checkpoint"] >= 3, found


# ------------------------------------------------------------------------------------------------------- other fits


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate_init": 0.001}, "learning_rate_init was 0.003 and is 0.001"),
        ({"max_iter": 8}, "max_iter was 6 and is 8"),
        ({"random_state": 1}, "random_state was 0 and is 1"),
        ({"random_state": None}, "random_state was 0 and is None"),
        ({"solver": "sgd", "momentum": 0.8}, "momentum was 0.9 and is 0.8; solver was 'adam' and is 'sgd'"),
        ({"layers": LAYERS[1:]}, r"layers was \[Conv2D\(filters=4.* and is \[BatchNorm"),
        ({"augment": [RandomShift(1)]}, r"augment was None and is \[RandomShift"),
        ({"scoring": "accuracy"}, "scoring was None and is 'accuracy'"),
        ({"scoring": lambda clf, X, y: 0}, "scoring was None and is .*lambda"),
        ({"early_stopping": True, "dtype": "float64"}, "dtype was 'float32' and is 'float64'; early_stopping was"),
    ],
)
def test_other_parameters_are_named(changed, message, tmp_path):
    clf = new(tmp_path / "run.ckpt")
    broken_off(clf, X, Y, after=1)
    before = (tmp_path / "run.ckpt").read_bytes()
    with pytest.raises(ValueError, match=f"run.ckpt: a checkpoint of another fit: {message}"):
        clf.set_params(**changed).fit(X, Y)
    assert (tmp_path / "run.ckpt").read_bytes() == before


def other_value(array):
    changed = array.copy()
    changed[-1] = changed[0]
    return changed


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((other_value(X), Y), "X has other values"),
        ((X[:-1], Y[:-1]), r"X was uint8 \(90, 36\) and is uint8 \(89, 36\); y was int64 \(90,\)"),
        ((X.astype(np.float32), Y), "X was uint8 .* and is float32"),
        ((X, other_value(Y)), "y has other values"),
        ((X, np.where(Y == "bag", "hat", Y)), r"the classes were \['bag', 'coat', 'shoe'\] and are \['coat', 'hat'"),
        ((X, Y, np.ones(N)), "sample_weight was not given and is given"),
    ],
)
def test_other_data_are_named(data, message, tmp_path):
    clf = new(tmp_path / "run.ckpt")
    broken_off(clf, X, Y, after=1)
    with pytest.raises(ValueError, match=f"run.ckpt: a checkpoint of another fit: {message}"):
        clf.fit(*data)
    assert not hasattr(clf, "network_")


def test_other_validation_data_are_named(tmp_path):
    clf = new(tmp_path / "run.ckpt")
    broken_off(clf, X, Y, after=1, X_val=X[:9], y_val=Y[:9])
    with pytest.raises(ValueError, match="X_val was given and is not given; y_val was given"):
        clf.fit(X, Y)
    with pytest.raises(ValueError, match="X_val has other values"):
        clf.fit(X, Y, X_val=X[1:10], y_val=Y[:9])


def test_another_draw_of_a_seed_is_noticed(tmp_path):
    clf = new(tmp_path / "run.ckpt", random_state=np.random.RandomState(0))
    broken_off(clf, X, Y, after=1)
    with pytest.raises(ValueError, match="random_state drew another seed"):
        clf.set_params(random_state=np.random.RandomState(1)).fit(X, Y)


def test_what_may_differ(tmp_path):
    free = {"n_jobs": 1, "verbose": False, "callbacks": [object()], "tta": "flip", "warm_start": True}
    of_dask = {"client", "checkpoint_every"}
    assert checkpoints.FREE_PARAMETERS == {*free, "checkpoint", *of_dask}
    clf = new(tmp_path / "run.ckpt")
    broken_off(clf, X, Y)
    (tmp_path / "run.ckpt").rename(tmp_path / "moved.ckpt")
    gone_on = clf.set_params(**free, checkpoint=tmp_path / "moved.ckpt").fit(X, Y)
    assert_same_state(gone_on, new().fit(X, Y))
    as_list = clf.set_params(layers=tuple(LAYERS), warm_start=False).fit(X.reshape(N, 36), Y)
    assert_same_state(as_list, gone_on)  # the same layers, the same rows


def test_the_same_rows_are_not_images_of_any_shape(tmp_path):
    wide, high = X.reshape(N, 4, 9), X.reshape(N, 9, 4)
    for place in ("run.ckpt", "a folder"):
        (tmp_path / "a folder").mkdir(exist_ok=True)
        new(tmp_path / place).fit(wide, Y)
        if place == "run.ckpt":
            with pytest.raises(ValueError, match=r"another fit: images were \(4, 9, 1\) and are \(9, 4, 1\)"):
                new(tmp_path / place).fit(high, Y)
        else:
            assert_same_state(new(tmp_path / place).fit(high, Y), new().fit(high, Y))
            assert len(list((tmp_path / place).iterdir())) == 2


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "run.ckpt"
    path.write_bytes(b"a photo")
    with pytest.raises(ValueError, match=r"run.ckpt: not a model that can be read: no safetensors file"):
        new(path).fit(X, Y)
    assert path.read_bytes() == b"a photo"
    for with_state in (False, True):
        new().fit(X, Y).save(path, include_training_state=with_state)
        with pytest.raises(ValueError, match=r"run.ckpt: a model that is no checkpoint"):
            new(path).fit(X, Y)
    with pytest.raises(FileNotFoundError, match="no such folder for a checkpoint"):
        new(tmp_path / "no" / "run.ckpt").fit(X, Y)
    with pytest.raises(ValueError, match="checkpoint"):
        new(3).fit(X, Y)


def test_what_cannot_be_stored_is_said_before_training(tmp_path):
    class Mine(Layer):
        def lower(self, in_shape):
            return ReLU().lower(in_shape)

    with pytest.raises(TypeError, match="the parameter layers cannot be stored in a checkpoint"):
        new(tmp_path / "run.ckpt", layers=[Mine()]).fit(X, Y)


# --------------------------------------------------------------------------------------------- many fits, one parameter


def test_a_folder_gives_each_fit_a_file(tmp_path):
    def search(checkpoint):
        grid = {"learning_rate_init": [0.001, 0.01]}
        return GridSearchCV(new(checkpoint, max_iter=2), grid, cv=2, error_score="raise").fit(X, Y)

    first = search(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 2 * 2 + 1
    second = search(tmp_path)  # all finished
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert_same_state(first.best_estimator_, second.best_estimator_)
    assert_array_equal(first.cv_results_["mean_test_score"], search(None).cv_results_["mean_test_score"])


def test_one_file_for_many_fits_is_an_error(tmp_path):
    one = new(tmp_path / "run.ckpt", max_iter=1)
    grid = GridSearchCV(one, {"batch_size": [16, 32]}, cv=2, refit=False, error_score="raise")
    with pytest.raises(ValueError, match=r"X has other values.* a folder gives it"):
        grid.fit(X, Y)


def test_two_fits_at_a_time_notice_each_other(tmp_path):
    class Meanwhile:
        def on_epoch_end(self, info):
            if info.epoch == 2:
                (tmp_path / "run.ckpt").unlink()
                new(tmp_path / "run.ckpt", random_state=1, max_iter=1).fit(X, Y)

    with pytest.raises(ValueError, match="another fit has written this checkpoint meanwhile"):
        new(tmp_path / "run.ckpt", callbacks=[Meanwhile()]).fit(X, Y)


def test_a_failed_write_ends_the_fit_and_leaves_the_old_file(tmp_path, monkeypatch):
    clf = new(tmp_path / "run.ckpt")
    broken_off(clf, X, Y)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    before = (tmp_path / "run.ckpt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            clf.fit(X, Y)
    assert (tmp_path / "run.ckpt").read_bytes() == before
    assert not hasattr(clf, "network_")
    assert_same_state(clf.fit(X, Y), new().fit(X, Y))


# ------------------------------------------------------------------------------------------------------- fingerprints


def test_fingerprints_depend_on_values_not_on_layout(monkeypatch):
    x = np.arange(60, dtype=np.float32).reshape(12, 5)
    plain = fingerprint(x)
    assert plain == fingerprint(np.asfortranarray(x)) == fingerprint(np.repeat(x, 2, axis=0)[::2])
    monkeypatch.setattr(checkpoints, "_PIECE", 40)  # bytes: several pieces
    assert fingerprint(x) == plain
    for other in (x[::-1], x.reshape(5, 12), x.astype(np.float64), x.astype(np.int32).view(np.float32)):
        assert fingerprint(other) != plain


def test_fingerprints_do_not_copy_a_mapped_file(tmp_path):
    import tracemalloc

    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (1 << 14, 1 << 12))
    fingerprint(mapped)
    tracemalloc.start()
    fingerprint(mapped)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20 < mapped.nbytes
