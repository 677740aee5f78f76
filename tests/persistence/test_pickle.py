"""pickle, joblib and cloudpickle: the same bits, training that goes on, and no compiled code in between."""

from __future__ import annotations

import copy
import pickle
import pickletools
import subprocess
import sys

import cloudpickle
import joblib
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastcnn import CNNClassifier, Network
from fastcnn.kernels import BACKENDS, reference
from fastcnn.layers import BatchNorm, Conv2D, Dense, Dropout, Flatten, MaxPool2D, ReLU, Residual
from fastcnn.training.augment import RandomShift
from fastcnn.training.optimizers import Muon

rng = np.random.default_rng(0)
X, Y = rng.integers(0, 256, (60, 6, 6), np.uint8), np.array(["a", "b", "c"])[rng.integers(0, 3, 60)]
LAYERS = [Conv2D(4), BatchNorm(), ReLU(), Residual([Conv2D(4)]), MaxPool2D(), Flatten(), Dropout(0.3)]


def through_joblib(clf, tmp_path):
    joblib.dump(clf, tmp_path / "model.joblib", compress=3)
    return joblib.load(tmp_path / "model.joblib")


def mapped_from_a_file(clf, tmp_path):
    joblib.dump(clf, tmp_path / "mapped.joblib")
    return joblib.load(tmp_path / "mapped.joblib", mmap_mode="r")


WAYS = {
    **{f"pickle {p}": lambda clf, _, p=p: pickle.loads(pickle.dumps(clf, p)) for p in range(2, 6)},
    "joblib": through_joblib,
    "joblib, mapped": mapped_from_a_file,
    "cloudpickle": lambda clf, _: cloudpickle.loads(cloudpickle.dumps(clf)),
    "deepcopy": lambda clf, _: copy.deepcopy(clf),
}


@pytest.fixture(scope="module")
def fitted():
    clf = CNNClassifier(
        layers=LAYERS, solver="muon", batch_size=16, max_iter=2, random_state=0, augment=[RandomShift(1)]
    )
    return clf.fit(X, Y)


@pytest.mark.parametrize("way", WAYS)
def test_predictions_and_training_go_on(way, fitted, tmp_path):
    twin = WAYS[way](fitted, tmp_path)
    assert_array_equal(twin.predict_proba(X), fitted.predict_proba(X))
    assert repr(twin) == repr(fitted)
    original = copy.deepcopy(fitted)
    for _ in range(2):
        assert_array_equal(twin.partial_fit(X, Y).predict_proba(X), original.partial_fit(X, Y).predict_proba(X))
    assert twin.loss_curve_ == original.loss_curve_


def test_not_fitted(tmp_path):
    for way in WAYS.values():
        assert not hasattr(way(CNNClassifier(max_iter=3), tmp_path), "network_")


def test_a_class_of_the_main_program_with_cloudpickle(tmp_path):
    program = """
import sys, cloudpickle, numpy as np
from fastcnn import CNNClassifier
class Mine(CNNClassifier):
    def rates(self, X):
        return self.predict_proba(X).max(axis=1)
X = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)
mine = Mine(max_iter=1, conv_channels=(2,), dense_units=(), random_state=0).fit(X, np.arange(20) % 2)
open(sys.argv[1], "wb").write(cloudpickle.dumps((mine, X, mine.rates(X))))
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "mine.pkl"], check=True, timeout=120)
    mine, images, rates = pickle.loads((tmp_path / "mine.pkl").read_bytes())
    assert type(mine).__name__ == "Mine"
    assert_array_equal(mine.rates(images), rates)


def test_a_pickle_holds_values_of_known_classes_only(fitted):
    fitted.predict(X)  # so that there are plans
    content = pickle.dumps(fitted)
    known = {"fastcnn", "numpy", "builtins", "copyreg", "_codecs", "collections"}
    by_name = pickletools.genops(pickle.dumps(fitted, 3))  # later protocols put names on the stack
    found = {arg.split(".")[0].split()[0] for op, arg, _ in by_name if op.name == "GLOBAL"}
    strings = [arg for op, arg, _ in pickletools.genops(content) if op.name in ("SHORT_BINUNICODE", "BINUNICODE")]
    assert "fastcnn" in found and found <= known
    assert not [
        text for text in strings if text.startswith(("numba", "llvmlite", "ctypes", "threading", "fastcnn.kernels"))
    ]
    of_params = sum(value.nbytes for value in fitted.network_.params.values())
    assert len(content) < 3 * of_params + 12_000  # parameters and two moments


# ------------------------------------------------------------------------------------------------- from other devices


@pytest.fixture
def with_cuda(monkeypatch):
    """A stand-in for a machine with a GPU: call it to make that machine this one, or to leave it."""

    monkeypatch.setattr(reference, "require_device", lambda: None, raising=False)

    def here(there):
        if there:
            monkeypatch.setitem(BACKENDS, "cuda", "fastcnn.kernels.reference")
        else:
            monkeypatch.setitem(BACKENDS, "cuda", "fastcnn.kernels.no_such_device")

    return here


@pytest.mark.parametrize("way", ["pickle 5", "joblib", "cloudpickle"])
def test_from_a_gpu_to_a_machine_without(way, with_cuda, tmp_path):
    with_cuda(True)
    clf = CNNClassifier(layers=LAYERS, batch_size=16, max_iter=1, random_state=0, device="cuda").fit(X, Y)
    assert clf.network_.device == "cuda"
    expected = clf.predict_proba(X)
    dump = pickle.dumps if way == "pickle 5" else cloudpickle.dumps
    content = dump(clf)
    joblib.dump(clf, tmp_path / "model.joblib")
    with_cuda(False)
    with pytest.warns(UserWarning, match="device 'cuda' is not to be had here, the CPU takes its place"):
        twin = joblib.load(tmp_path / "model.joblib") if way == "joblib" else pickle.loads(content)
    assert (twin.network_.device, twin.device) == ("cpu", "cuda")
    np.testing.assert_allclose(twin.predict_proba(X), expected, atol=1e-5)
    assert twin.network_.optimizer.t == clf.network_.optimizer.t > 0


def test_a_file_from_a_gpu(with_cuda, tmp_path):
    with_cuda(True)
    clf = CNNClassifier(layers=LAYERS, batch_size=16, max_iter=1, random_state=0, device="cuda").fit(X, Y)
    expected = clf.predict_proba(X)
    clf.save(tmp_path / "model.safetensors", include_training_state=True)
    with_cuda(False)
    with pytest.warns(UserWarning, match="device 'cuda' is not to be had here"):
        loaded = CNNClassifier.load(tmp_path / "model.safetensors")
    np.testing.assert_allclose(loaded.predict_proba(X), expected, atol=1e-5)
    assert loaded.network_.device == "cpu"


def test_networks_alone():
    net = Network([Dense(5), ReLU(), Dropout(0.5), Dense(3)], (4,), optimizer=Muon(), random_state=0)
    x, labels = rng.normal(size=(8, 4)).astype(np.float32), np.arange(8) % 3
    net.train_step(x, labels)
    twin = pickle.loads(pickle.dumps(net))
    for _ in range(3):
        assert twin.train_step(x, labels) == net.train_step(x, labels)
    assert_array_equal(twin.forward(x), net.forward(x))
