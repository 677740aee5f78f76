"""Files with the training state: training goes on bit for bit; and states that do not belong to their model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastcnn import CNNClassifier
from fastcnn.layers import BatchNorm, Conv2D, Dropout, MaxPool2D, ReLU, Residual, SpatialDropout
from fastcnn.persistence import read_model
from fastcnn.training.augment import Cutout, MixUp, RandomShift

rng = np.random.default_rng(0)
X, Y = rng.integers(0, 256, (70, 6, 6), np.uint8), np.array(["a", "b", "c"])[rng.integers(0, 3, 70)]
LAYERS = [
    Conv2D(4, groups=1), BatchNorm(), ReLU(), Residual([Conv2D(4)], skip=[Conv2D(4, 1)]), SpatialDropout(0.2),
    MaxPool2D(), Dropout(0.3),
]  # fmt: skip


def new(**parameters):
    return CNNClassifier(**{"layers": LAYERS, "batch_size": 16, "max_iter": 2, "random_state": 0} | parameters)


def assert_same_bits(one, other):
    states = [
        {**clf.network_.params, **clf.network_.optimizer.state_dict(), "losses": clf.loss_curve_}
        for clf in (one, other)
    ]
    for name, value in states[0].items():
        assert_array_equal(value, states[1][name], name)


CASES = {
    "adam": {},
    "adamw": {"solver": "adamw", "alpha": 0.1},
    "muon": {"solver": "muon"},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.05},
    "averaged": {"ema_decay": 0.8, "clip_norm": 0.5},
    "augmented": {"augment": [RandomShift(1), Cutout(2), MixUp()]},
    "stopped early": {"early_stopping": True},
    "float64": {"dtype": "float64", "micro_batch_size": 6},
    "a stream of random numbers": {"random_state": "stream"},
}


@pytest.mark.parametrize("way", ["partial_fit", "warm start"])
@pytest.mark.parametrize("name", CASES)
def test_training_goes_on_bit_for_bit(name, way, tmp_path):
    parameters = dict(CASES[name], warm_start=True)
    if name == "a stream of random numbers":
        parameters["random_state"] = np.random.RandomState(3)
    clf = new(**parameters).fit(X, Y)
    clf.partial_fit(X[:40], Y[:40])
    clf.save(tmp_path / "model.safetensors", include_training_state=True)
    loaded = CNNClassifier.load(tmp_path / "model.safetensors")
    assert_same_bits(loaded, clf)
    for _ in range(2):
        if way == "partial_fit":
            clf.partial_fit(X, Y)
            loaded.partial_fit(X, Y)
        else:
            clf.fit(X, Y)
            loaded.fit(X, Y)
        assert_same_bits(loaded, clf)
    loaded.save(tmp_path / "again.safetensors", include_training_state=True)
    again = CNNClassifier.load(tmp_path / "again.safetensors")
    assert_same_bits(again.partial_fit(X, Y), clf.partial_fit(X, Y))


def test_without_the_state_a_warm_start_has_the_same_bits_and_partial_fit_a_new_optimizer(tmp_path):
    clf = new(warm_start=True).fit(X, Y)
    clf.save(tmp_path / "model.safetensors")
    loaded = CNNClassifier.load(tmp_path / "model.safetensors")
    assert (clf.network_.optimizer.t, loaded.network_.optimizer.t) == (10, 0)
    assert_same_bits(CNNClassifier.load(tmp_path / "model.safetensors").fit(X, Y), clf.fit(X, Y))


def test_the_optimizer_is_that_of_the_network_not_of_later_parameters(tmp_path):
    clf = new(beta_1=0.8).fit(X, Y).set_params(solver="sgd", beta_1=0.9)
    clf.save(tmp_path / "model.safetensors", include_training_state=True)
    loaded = CNNClassifier.load(tmp_path / "model.safetensors")
    assert loaded.solver == "sgd" and loaded.network_.optimizer.beta_1 == 0.8
    assert_same_bits(loaded.partial_fit(X, Y), clf.partial_fit(X, Y))


def test_sizes_and_names(tmp_path):
    clf = new().fit(X, Y)
    clf.save(tmp_path / "without")
    clf.save(tmp_path / "with", include_training_state=True)
    moments = sum(2 * value.nbytes for name, value in clf.network_.params.items() if "running" not in name)
    sizes = [(tmp_path / name).stat().st_size for name in ("with", "without")]
    assert 0 < sizes[0] - sizes[1] - moments < 4000
    model = read_model(tmp_path / "with")
    assert set(model.training.state.moments) == {"m", "v"}
    assert set(model.versions) >= {"python", "numpy", "numba", "scikit-learn"}


# ------------------------------------------------------------------------------------------------- damaged and hostile


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A checkpoint's bytes: it has everything that a file can have."""
    path = tmp_path_factory.mktemp("content") / "run.ckpt"
    new(early_stopping=True, ema_decay=0.9, checkpoint=path).fit(X, Y)
    return path.read_bytes()


def load(content, change, tmp_path):
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    own = json.loads(header["__metadata__"]["fastcnn"])
    change(own, header)
    header["__metadata__"]["fastcnn"] = json.dumps(own)
    text = json.dumps(header).encode()
    (tmp_path / "run.ckpt").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return CNNClassifier.load(tmp_path / "run.ckpt")


def put(*keys, value):
    def change(own, header):
        target = own if keys[0] in own else header
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("training", value=[]), "not a model"),
        (put("training", value="all"), "not a model"),
        (put("training", "optimizer", value="Exec"), "optimizer must be one of"),
        (put("training", "optimizer", value=["Adam"]), "not a model"),
        (put("training", "optimizer", value="SGD"), "not a model"),
        (put("training", "settings", "learning_rate", value=-1.0), "learning_rate must be a finite number > 0"),
        (put("training", "settings", "learning_rate", value="fast"), "not a model"),
        (put("training", "settings", "shell", value="ls"), "shell"),
        (put("training", "step", value=-1), "step must be an int"),
        (put("training", "step", value=10**30), "step must be an int"),
        (put("training", "step", value=True), "step must be an int"),
        (put("training", "dropout", value=[[0, 0]]), "the state of 1 dropout layers, expected 2"),
        (put("training", "dropout", value=[[0, 2**64], [0, 0]]), "dropout must be a list of pairs"),
        (put("training", "dropout", value=[[0.5, 0], [0, 0]]), "dropout must be a list of pairs"),
        (put("training", "dropout", value={}), "dropout must be a list of pairs"),
        (put("run", value=3), "not a model"),
        (put("run", "seed", value=None), "run must have ints"),
        (put("run", "seed", value=2**80), "run must have ints"),
        (put("run", "finished", value=1), "run does not say"),
        (put("run", "data", value=[]), "run does not say"),
        (put("run", "to_beat", value="high"), "run does not say"),
        (put("run", "within", value=[1]), "not a model"),
        (put("run", "within", value={"batch": 1}), "not a model"),
        (put("run", "within", value={"done": -1}), "run has -1 for done of an epoch"),
        (put("run", "within", value={"samples": 1.5}), "run has 1.5 for samples of an epoch"),
        (put("run", "within", value={"loss": "low"}), "run has 'low' for loss of an epoch"),
        (put("run", "result", value="secret"), "run has the parameters 'secret'"),
        (put("run", "copies", value=["average"]), "'run.params.0.bias' does not belong"),
        (put("run", "copies", value=["params", "average", "data"]), "run has the parameters"),
        (put("run", "copies", value=[]), "does not belong"),
        (lambda own, header: own["run"].pop("waited"), "waited"),
        (lambda own, header: own.update(training=None), "does not belong"),
        (lambda own, header: header.pop("optimizer.m.0.weight"), "'optimizer.m.0.weight' is missing"),
        (put("optimizer.v.0.bias", "shape", value=[5]), "'optimizer.v.0.bias'"),
        (put("run.average.0.bias", "dtype", value="F64"), "'run.average.0.bias'"),
        (put("versions", value=[1]), "not a model"),
        (put("parameters", "random_state", value={"random_state": {"key": [], "pos": 0}}), "not a stored value"),
        (
            put(
                "parameters", "random_state",
                value={"random_state": {"key": [0] * 624, "pos": 10**6, "has_gauss": 0, "gauss": 0.0}},
            ),
            "not the state of a RandomState",
        ),
    ],
)  # fmt: skip
def test_changed_headers(change, message, content, tmp_path):
    load(content, lambda own, header: None, tmp_path)  # what is not changed can be read
    with pytest.raises(ValueError, match=message):
        load(content, change, tmp_path)


def test_flipped_bytes_never_do_worse_than_an_error(content, tmp_path):
    draw, loaded = np.random.default_rng(1), 0
    length = 8 + int.from_bytes(content[:8], "little")
    for _ in range(300):
        changed = bytearray(content)
        for place in draw.integers(0, length, size=draw.integers(1, 4)):
            changed[place] = draw.integers(0, 256)
        (tmp_path / "run.ckpt").write_bytes(changed)
        try:
            clf = CNNClassifier.load(tmp_path / "run.ckpt")
        except ValueError:
            continue
        loaded += 1
        assert clf.network_.n_params > 100
    assert loaded < 300
