"""Networks on the GPU, or its simulator: what the reference computes."""

import copy
import pickle

import numpy as np
import pytest

from fastcnn import CNNClassifier, Network
from fastcnn.kernels.contract import PRECISIONS
from fastcnn.layers import BatchNorm, Conv2D, Dense, Dropout, MaxPool2D, ReLU, SpatialDropout
from fastcnn.training.optimizers import SGD, Adam, AdamW, Muon
from tests.engine.test_network import CHAINS, batch, randomize
from tests.gpu import SIMULATED, unavailable

pytestmark = [pytest.mark.cuda, pytest.mark.small]

if unavailable():
    pytest.skip(f"no GPU and no simulator: {unavailable()}", allow_module_level=True)

SMALL = [Conv2D(4, activation="relu"), MaxPool2D(), SpatialDropout(0.2), BatchNorm(), Dropout(0.3), Dense(3)]


def pair(layers, shape, optimizer=None, **parameters):
    """The same network on the reference and on the GPU."""
    return [
        Network(layers, shape, device=device, random_state=0, optimizer=optimizer and optimizer(), **parameters)
        for device in ("reference", "cuda")
    ]


def assert_equal_networks(nets, rtol=1e-4, atol=1e-5):
    for kind in ("params", "grads"):
        expected, actual = (getattr(net, kind) for net in nets)
        assert expected.keys() == actual.keys()
        for name in expected:
            np.testing.assert_allclose(actual[name], expected[name], rtol=rtol, atol=atol, err_msg=f"{kind} {name}")


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_chains(name, fuse):
    layers, shape = CHAINS[name]
    nets = pair(layers, shape, dtype="float64", fuse=fuse)
    x = batch(shape, 3)
    dy = batch(nets[0].output_shape, 3, seed=2)
    results = []
    for net in nets:
        randomize(net)
        still = net.forward(x)
        y = net.forward(x, training=True)
        results.append((still, y, net.backward(dy)))
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-11)
    assert_equal_networks(nets, 1e-8, 1e-10)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_of_every_product(precision):
    net = Network([Conv2D(32, activation="relu")], (6, 6, 20), device="cuda", precision=precision, random_state=0)
    again = pickle.loads(pickle.dumps(net))
    assert again.precision == precision
    for mode in ("inference", "training_dx"):
        plan = again._plan_for(2, mode)
        names = [call.name for part in (plan._forward, plan._backward) for call in part.calls if "conv_" in call.name]
        assert len(names) == (1 if mode == "inference" else 3)
        assert all(f"'{precision}'" in name for name in names), names
    trained = Network([Conv2D(32), Dense(3)], (6, 6, 4), device="cuda", precision=precision, random_state=0)
    trained.train_step(batch((6, 6, 4), 2, dtype=np.float32), np.arange(2))
    names = [call.name for call in trained.plan._training.program.calls if "conv_forward" in call.name]
    assert any(f"'{precision}'" in name for name in names), names


@pytest.mark.parametrize("optimizer", [Adam, lambda: AdamW(clip_norm=0.1), Muon, lambda: SGD(0.05, l2=0.01)])
def test_training_steps(optimizer):
    nets = pair(SMALL, (6, 6, 2), optimizer)
    x, labels = batch((6, 6, 2), 6, dtype=np.float32), np.arange(6) % 3
    for size in (6, 6, 4):
        losses = [net.train_step(x[:size], labels[:size], label_smoothing=0.1) for net in nets]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    np.testing.assert_allclose(nets[1].predict_proba(x), nets[0].predict_proba(x), rtol=1e-3, atol=1e-4)


def test_weights_blends_and_parts_of_a_batch():
    nets = pair([Conv2D(3), ReLU(), Dense(3)], (4, 4, 1), lambda: SGD(0.1))
    x, labels = batch((4, 4, 1), 5, dtype=np.float32), np.arange(5) % 3
    weights, mix = np.linspace(0, 2, 5), (labels[::-1].copy(), np.linspace(0.2, 0.9, 5))
    for size in (None, 2):
        losses = [net.train_step(x, labels, weights, mix=mix, micro_batch_size=size) for net in nets]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
        assert_equal_networks(nets)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_copies_go_on_with_the_same_bits(clone):
    net = Network(SMALL, (6, 6, 1), random_state=0, device="cuda")
    x, labels = batch((6, 6, 1), 4, dtype=np.float32), np.arange(4) % 3
    net.train_step(x, labels)
    twin = clone(net)
    assert net.train_step(x, labels) == twin.train_step(x, labels)
    for name, value in net.params.items():
        assert value.tobytes() == twin.params[name].tobytes()


def test_parameters_are_copies_that_cannot_be_written_by_mistake():
    net = Network([Dense(2)], (3,), device="cuda", random_state=0)
    with pytest.raises(ValueError, match="read-only"):
        net.params["0.weight"][...] = 1
    new = {name: np.full_like(value, 0.5) for name, value in net.params.items()}
    net.load_params(new)
    np.testing.assert_array_equal(net.params["0.weight"], new["0.weight"])
    np.testing.assert_array_equal(net.forward([[1.0, 2.0, 3.0]]), [[3.5, 3.5]])
    state = net.optimizer.state_dict()
    net.optimizer.load_state_dict(state | {"t": 3, "m": state["m"] + 1})
    assert (net.optimizer.state_dict()["m"] == 1).all() and net.optimizer.t == 3
    net.optimizer.reset()
    assert not net.optimizer.state_dict()["m"].any()


def test_a_batch_that_is_on_the_gpu_already():
    from fastcnn.kernels.cuda.arrays import place

    nets = pair([Conv2D(2), ReLU(), Dense(2)], (4, 4, 1))
    x = batch((4, 4, 1), 3, dtype=np.float32)
    np.testing.assert_allclose(nets[1].forward(place(x)), nets[0].forward(x), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"x has shape \(3, 4, 4\)"):
        nets[1].forward(place(x[..., 0].copy()))


class Foreign:
    """An array of another library."""

    def __init__(self, array):
        self.array, self.__cuda_array_interface__ = array, array.__cuda_array_interface__


@pytest.mark.skipif(SIMULATED, reason="the simulator knows no foreign arrays")
def test_arrays_of_other_libraries_are_read_where_they_are():
    from fastcnn.kernels.cuda.arrays import place

    nets = pair([Conv2D(2), ReLU(), Dense(2)], (4, 4, 1))
    x = batch((4, 4, 1), 3, dtype=np.float32)
    for values in (x, x.astype(np.float64)):
        np.testing.assert_allclose(nets[1].forward(Foreign(place(values))), nets[0].forward(x), rtol=1e-4, atol=1e-6)


def test_a_small_fit(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (12, 6, 6), dtype=np.uint8), np.arange(12) % 3
    X[y == 1, :3] = 250
    X[y == 2, 3:] = 250
    settings = {"conv_channels": (4,), "dense_units": (6,), "batch_size": 6, "max_iter": 2, "n_iter_no_change": np.inf,
                "random_state": 0, "ema_decay": 0.9}  # fmt: skip
    fits = [CNNClassifier(device=device, **settings).fit(X, y) for device in ("cpu", "cuda")]
    np.testing.assert_allclose(fits[1].loss_curve_, fits[0].loss_curve_, rtol=1e-4)
    np.testing.assert_allclose(fits[1].predict_proba(X), fits[0].predict_proba(X), rtol=1e-3, atol=1e-4)
    fits[1].save(tmp_path / "model.safetensors")
    loaded = CNNClassifier.load(tmp_path / "model.safetensors")
    assert loaded.network_.device == "cuda"
    np.testing.assert_array_equal(loaded.predict_proba(X[:4]), fits[1].predict_proba(X[:4]))


def test_more_values_than_kernels_count():
    net = Network([Conv2D(5), Dense(3)], (4, 4, 2), device="cuda", random_state=0)
    assert net._largest_part == (2**31 - 1) // 80
    x = batch((4, 4, 2), 7, dtype=np.float32)
    net._largest_part = 3
    with pytest.raises(ValueError, match="7 images are too many at once"):
        net.train_step(x, np.arange(7) % 3)
    net.train_step(x, np.arange(7) % 3, micro_batch_size=3)


def test_large_batches_are_predicted_in_parts():
    net = Network([Conv2D(5), Dense(3)], (4, 4, 2), device="cuda", random_state=0)
    assert net._part == 2**30 // (4 * (80 + 80))  # of the step that flattens
    x = batch((4, 4, 2), 7, dtype=np.float32)
    proba = net.predict_proba(x)
    net._part = 3
    np.testing.assert_allclose(net.predict_proba(x), proba, rtol=1e-6)
    pooled = Network([Conv2D(64), ReLU(), MaxPool2D(7), Dense(3)], (28, 28, 1), device="cuda")
    assert pooled._part == pooled._largest_part == (2**31 - 1) // (28 * 28 * 64)
    assert max(size for size, _, _ in net._plans) == 7 and min(size for size, _, _ in net._plans) < 7
