"""Whole chains: gradients, fused against unfused, backends, threads, copies, errors."""

import copy
import multiprocessing
import pickle
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcnn import Network
from fastcnn.engine.plan import Plan
from fastcnn.kernels.cpu import launch
from fastcnn.kernels.cpu.runtime import lanes, max_threads
from fastcnn.layers import (
    ELU,
    AdaptiveMaxPool2D,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Residual,
    SiLU,
    SpatialDropout,
    Tanh,
)
from fastcnn.training.optimizers import SGD, Adam, AdamW, Muon
from tests import naive

DEVICES = ("cpu", "reference")
SEED_NET = [
    Conv2D(32, activation="relu"), MaxPool2D(), Conv2D(64), ReLU(), MaxPool2D(), Flatten(),
    Dense(128, activation="relu"), Dropout(0.4), Dense(10),
]  # fmt: skip
NORMED = [Conv2D(3, use_bias=False), BatchNorm(), ReLU()]
CHAINS = {
    "lenet": ([Conv2D(3, 5, activation="tanh"), AvgPool2D(), Conv2D(4, 3, padding="valid"), Tanh(), AvgPool2D(),
               Dense(7, activation="tanh"), Dense(3)], (12, 12, 1)),
    "norm": ([Conv2D(4, 3, 2, use_bias=False), BatchNorm(), ReLU(), Conv2D(4, groups=4), ELU(0.7), GlobalAvgPool2D(),
              Dense(3)], (9, 7, 2)),
    "overlap": ([Conv2D(5, (3, 2), dilation=(1, 2), padding=((2, 1), (0, 3))), ELU(), MaxPool2D(3, 2, 1),
                 Conv2D(3, 1, activation="relu"), MaxPool2D(2, 1), Flatten(), Dense(4)], (8, 7, 3)),
    "normed pools": ([Conv2D(5), BatchNorm(), ReLU(), MaxPool2D(), BatchNorm(), MaxPool2D(2), ReLU(), Conv2D(3),
                      BatchNorm(), MaxPool2D((1, 2)), Dense(3)], (9, 11, 2)),
    "adaptive": ([Conv2D(5, use_bias=False), BatchNorm(), ReLU(), AdaptiveMaxPool2D((2, 3)), Dense(3)], (7, 5, 2)),
    "residual": ([Residual([Conv2D(3), LeakyReLU(0.2), Conv2D(2)]), ELU(0.8),
                  Residual([Conv2D(5, 3, 2, use_bias=False), BatchNorm(), SiLU(), Conv2D(5)],
                           [Conv2D(5, 1, 2), BatchNorm()]),
                  Residual([Residual([SiLU()]), Conv2D(5, 3, groups=5), Conv2D(5, 1)]), GlobalAvgPool2D(),
                  Residual([Dense(5)], [Dense(5)]), Dense(3)], (7, 6, 2)),
    "normed residual": ([Residual(NORMED), Residual([*NORMED, *NORMED]), Residual([Residual(NORMED), *NORMED]),
                         Residual([*NORMED, MaxPool2D()], [MaxPool2D(), *NORMED]), *NORMED, Dense(3)], (7, 6, 3)),
    "dropout": ([Conv2D(4, activation="tanh"), SpatialDropout(0.3), BatchNorm(), Dropout(0.4),
                 Dense(6, activation="leaky_relu"), Dropout(0.5), Dense(3)], (5, 6, 2)),
    "dense": ([BatchNorm(), Dense(9, activation="elu"), Dense(5, use_bias=False), ReLU(), Dense(3)], (6,)),
}  # fmt: skip


def batch(shape, n=4, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(dtype)


def randomize(net, seed=1):
    """Parameters away from special values: no bias is zero, no gamma one."""
    rng = np.random.default_rng(seed)
    scale = {name: 1 / np.sqrt(max(np.prod(p.shape[:-1]), 1)) for name, p in net.params.items()}
    values = {name: rng.standard_normal(p.shape) * scale[name] for name, p in net.params.items()}
    net.load_params({n: np.abs(v) + 0.5 if n.endswith("running_var") else v for n, v in values.items()})


@pytest.mark.small
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CHAINS)
def test_gradients_against_central_differences(name, device):
    layers, shape = CHAINS[name]
    net = Network(layers, shape, dtype="float64", device=device, random_state=0)
    randomize(net)
    x = batch(shape)
    dy = batch(net.output_shape, seed=2)
    masks = net.training_state()
    net.forward(x, training=True)
    dx = net.backward(dy)
    grads = {key: value.copy() for key, value in net.grads.items()}
    state = {key: value.copy() for key, value in net.params.items()}

    def value(params, x):
        net.load_params(params)
        net.load_training_state(masks)  # the same masks of dropout again
        return float((net.forward(x, training=True) * dy).sum())

    rng, h = np.random.default_rng(3), 1e-6
    for key, gradient in [*grads.items(), ("x", dx)]:
        for _ in range(2):
            direction = rng.standard_normal(gradient.shape)
            up, down = ({k: v.copy() for k, v in state.items()} for _ in range(2))
            x_up, x_down = x, x
            if key == "x":
                x_up, x_down = x + h * direction, x - h * direction
            else:
                up[key] += h * direction
                down[key] -= h * direction
            measured = (value(up, x_up) - value(down, x_down)) / (2 * h)
            np.testing.assert_allclose((gradient * direction).sum(), measured, rtol=1e-5, atol=1e-7, err_msg=key)


@pytest.mark.small
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_a_training_step_takes_the_gradients_of_backward(name, weighted, device):
    """`train_step` has plans of its own."""
    layers, shape = CHAINS[name]
    step, alone = (
        Network(layers, shape, dtype="float64", device=device, random_state=0, optimizer=SGD(0.5, 0.0, clip_norm=0.1))
        for _ in range(2)
    )
    for net in (step, alone):
        randomize(net)
    before = {key: value.copy() for key, value in step.params.items()}
    x, labels = batch(shape, 6), np.arange(6) % 3
    weights = np.linspace(0, 2, 6) if weighted else np.ones(6)
    losses, dlogits = naive.softmax_cross_entropy(alone.forward(x, training=True), labels, weights, 0.1)
    alone.backward(dlogits)
    loss = step.train_step(x, labels, weights if weighted else None, 0.1)
    assert loss == pytest.approx(losses.sum() / weights.sum(), rel=1e-10)
    if name == "adaptive":
        assert "conv2d_norm_forward" in [one.name for one in step.plan.forward_steps] or device == "reference"
    norm = np.sqrt(sum((grad**2).sum() for grad in alone.grads.values()))
    for key, value in alone.params.items():
        expected = value  # running statistics have moved in both
        if key in alone.grads:
            np.testing.assert_allclose(step.grads[key], alone.grads[key], rtol=1e-8, atol=1e-10, err_msg=key)
            expected = before[key] - 0.5 * min(1, 0.1 / norm) * alone.grads[key]
        np.testing.assert_allclose(step.params[key], expected, rtol=1e-8, atol=1e-10, err_msg=key)


@pytest.mark.parametrize("fuse", [True, False])
def test_winograd_is_the_direct_sum(fuse, monkeypatch):
    normed = [Conv2D(32, use_bias=False), BatchNorm(), ReLU()]
    layers = [
        Conv2D(32, 1), Residual([*normed, *normed]), Conv2D(32, activation="elu"), MaxPool2D(), Conv2D(32, 5), Tanh(),
        Dense(3),
    ]  # fmt: skip
    x, results = batch((12, 12, 3)), []
    for winograd in (False, True):
        net = Network(
            layers, (12, 12, 3), dtype="float64", random_state=0, fuse=fuse, winograd=winograd, optimizer=SGD(0.1, 0.0)
        )
        randomize(net)
        still, y = net.forward(x), net.forward(x, training=True)
        assert any(step.how.startswith("winograd") for step in net.plan.forward_steps) == winograd
        dx = net.backward(batch((3,), seed=2))
        grads = [grad.copy() for grad in net.grads.values()]
        results.append([still, y, dx, *grads, net.train_step(x, np.array([0, 1, 2, 0])), *net.params.values()])
    for direct, fast in zip(*results, strict=True):
        np.testing.assert_allclose(fast, direct, rtol=1e-7, atol=1e-8)
    monkeypatch.setenv("FASTCNN_WINOGRAD", "0")
    assert not Network(layers, (12, 12, 3)).winograd


@st.composite
def chains(draw):
    shape = (draw(st.integers(3, 9)), draw(st.integers(3, 9)), draw(st.integers(1, 4)))
    layers, now = [], shape
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["conv", "conv", "max", "avg", "act", "norm", "normed", "normed", "skip"]))
        if kind == "conv":
            groups = draw(st.sampled_from([g for g in range(1, now[2] + 1) if now[2] % g == 0]))
            layer = Conv2D(
                groups * draw(st.integers(1, 5)), (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
                stride=draw(st.integers(1, 2)), padding=draw(st.sampled_from(["same", "valid", 1, ((2, 0), (1, 1))])),
                dilation=draw(st.integers(1, 2)), groups=groups, use_bias=draw(st.booleans()),
                activation=draw(st.sampled_from([None, "relu", "elu", "tanh", "leaky_relu", "silu"])),
            )  # fmt: skip
        elif kind == "normed":
            layers += [Conv2D(draw(st.integers(1, 6)), draw(st.integers(1, 3)), use_bias=False), BatchNorm()]
            now = (*now[:2], layers[-2].filters)
            layer = draw(st.sampled_from([ReLU(), ELU(0.6), MaxPool2D(2)]))
        elif kind == "skip":
            inner = [
                Conv2D(draw(st.integers(1, 4)), use_bias=False),
                BatchNorm(),
                *draw(st.sampled_from([[], [ReLU()], [SiLU()]])),
            ]
            skip = [Conv2D(inner[0].filters, 1)] if draw(st.booleans()) else []
            layer = Residual(inner, skip)
        elif kind in ("max", "avg"):
            pool = MaxPool2D if kind == "max" else AvgPool2D
            layer = pool(draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from(["same", "valid"])))
        else:
            layer = (
                draw(st.sampled_from([ReLU(), ELU(0.6), Tanh(), LeakyReLU(0.1), SiLU()]))
                if kind == "act"
                else BatchNorm()
            )
        try:
            after = layer.output_shape(now)
        except ValueError:
            continue
        layers.append(layer)
        now = after
    layers += [Flatten(), Dense(draw(st.integers(1, 9)), activation=draw(st.sampled_from([None, "tanh"])))]
    return layers, shape


@settings(max_examples=60)
@given(chains(), st.integers(1, 3))
def test_random_chains_fused_unfused_and_reference_agree(chain, n):
    layers, shape = chain
    x = batch(shape, n)
    results = []
    for device, fuse in (("reference", False), ("reference", True), ("cpu", False), ("cpu", True)):
        net = Network(
            layers, shape, dtype="float64", device=device, fuse=fuse, random_state=0, optimizer=SGD(0.01, 0.0)
        )
        randomize(net)
        still = net.forward(x)
        y = net.forward(x, training=True)
        dx = net.backward(batch(net.output_shape, n, seed=5))
        grads = [grad.copy() for grad in net.grads.values()]
        loss = net.train_step(x, np.zeros(n, np.int64))
        results.append([still, y, dx, *grads, loss, *net.params.values()])
    for other in results[1:]:
        for ours, expected in zip(other, results[0], strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("optimizer", [Adam, AdamW, Muon, SGD])
def test_same_bits_for_every_thread_count_and_run(optimizer):
    x, labels = batch((28, 28, 1), 96, dtype=np.float32), np.arange(96) % 10
    results = []
    for n_jobs in (1, 2, 2):
        net = Network(SEED_NET, (28, 28, 1), n_jobs=n_jobs, random_state=7, optimizer=optimizer(clip_norm=5.0))
        losses = [net.train_step(x, labels, np.linspace(0.5, 2, 96)) for _ in range(3)]
        results.append([np.array(losses), net.forward(x), *(p.copy() for p in net.params.values())])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_small_steps_too_have_the_same_bits(monkeypatch):
    monkeypatch.setattr(launch, "SMALL", 0)  # everything goes parallel
    layers, shape = CHAINS["norm"]
    results = []
    for n_jobs in (1, 2):
        net = Network(layers, shape, n_jobs=n_jobs, random_state=0)
        losses = [net.train_step(batch(shape, 9), np.arange(9) % 3) for _ in range(4)]
        results.append([losses, *(p.tolist() for p in net.params.values())])
    assert results[0] == results[1]


def test_the_number_of_threads_may_change_within_a_step(monkeypatch):
    """As another Python thread may do it: a plan still runs on the threads that it has scratch for."""
    monkeypatch.setattr(launch, "SMALL", 0)
    layers, shape = CHAINS["norm"]
    fixed, changing = (Network(layers, shape, n_jobs=1, random_state=0) for _ in range(2))
    forward, seen = changing._run_forward, []

    def run_forward(*args):
        plan = forward(*args)
        changing.n_jobs = 2
        monkeypatch.setattr(type(plan), "backward", lambda self: seen.append(lanes()) or backward(self))
        return plan

    backward = Plan.backward
    monkeypatch.setattr(changing, "_run_forward", run_forward)
    x, labels, weights = batch(shape, 9), np.arange(9) % 3, np.ones(9)
    assert changing.train_step(x, labels, weights) == fixed.train_step(x, labels, weights)
    assert seen[0] == 1
    for name, value in changing.params.items():
        np.testing.assert_array_equal(value, fixed.params[name])


def test_the_number_of_threads_may_change(monkeypatch):
    """Plans have scratch for the threads they were made for."""
    monkeypatch.setattr(launch, "SMALL", 0)
    layers, shape = CHAINS["norm"]
    fixed, changing = (Network(layers, shape, n_jobs=1, random_state=0) for _ in range(2))
    x, labels = batch(shape, 9), np.arange(9) % 3
    for n_jobs in (1, 2, 1, 2):
        changing.n_jobs = n_jobs
        assert changing.train_step(x, labels) == fixed.train_step(x, labels)
        assert changing.plan.lanes == max_threads(n_jobs)
    changing.n_jobs = 1
    y = changing.forward(x, training=True)
    changing.n_jobs = 2
    np.testing.assert_array_equal(y, fixed.forward(x, training=True))
    np.testing.assert_array_equal(changing.backward(y), fixed.backward(y))


@pytest.mark.slow
def test_alexnet_learns_a_handful_of_images():
    layers = [
        Conv2D(96, 11, 4, padding="valid", activation="relu"), MaxPool2D(3, 2),
        Conv2D(256, 5, activation="relu"), MaxPool2D(3, 2),
        Conv2D(384, activation="relu"), Conv2D(384, activation="relu"), Conv2D(256, activation="relu"),
        MaxPool2D(3, 2), Flatten(), Dropout(0.5), Dense(4096, activation="relu"), Dropout(0.5),
        Dense(4096, activation="relu"), Dense(10),
    ]  # fmt: skip
    net = Network(layers, (227, 227, 3), random_state=0, optimizer=Adam(learning_rate=1e-4))
    assert [group.out_shape for group in net._make_groups("training") if group.find("maxpool2d")] == [
        (27, 27, 96),
        (13, 13, 256),
        (6, 6, 256),
    ]
    x, labels = batch((227, 227, 3), 4, dtype=np.float32), np.arange(4)
    losses = [net.train_step(x, labels) for _ in range(6)]
    assert np.isfinite(losses).all() and min(losses[3:]) < 0.7 * losses[0]


@pytest.mark.small
@pytest.mark.parametrize("device", DEVICES)
def test_batches_of_any_size(device):
    layers, shape = CHAINS["overlap"]
    net = Network(layers, shape, dtype="float64", device=device, random_state=0)
    x = batch(shape, 5)
    whole = net.forward(x)
    np.testing.assert_allclose(np.concatenate([net.forward(x[i : i + 1]) for i in range(5)]), whole, rtol=1e-10)
    assert net.forward(x[:0]).shape == (0, 4)
    assert net.train_step(x[:0], np.zeros(0, int)) == 0.0
    net.forward(x[:0], training=True)
    assert net.backward(np.zeros((0, 4))).shape == (0, *shape)
    assert all((g == 0).all() for g in net.grads.values())


def test_large_batches_are_predicted_in_parts():
    net = Network([Conv2D(32, 1), GlobalAvgPool2D(), Dense(3)], (64, 64, 3), random_state=0)
    x = np.random.default_rng(0).normal(size=(40, 64, 64, 3)).astype(np.float32)
    y, proba = net.forward(x), net.predict_proba(x)
    assert net.plan.batch < 20
    size = 14  # 40 images in equal parts of at most 16
    for first in range(0, 40, size):
        assert np.array_equal(y[first : first + size], net.forward(x[first : first + size]))
        assert np.array_equal(proba[first : first + size], net.predict_proba(x[first : first + size]))


def test_full_memory_is_tried_again_without_earlier_plans(monkeypatch):
    """Where two arenas do not fit beside each other, the first one makes room."""
    alive, room = [], [10**9]

    def empty(n):
        if sum(array().nbytes for array in alive if array() is not None) + n > room[0]:
            raise MemoryError("full")
        array = np.empty(n, np.uint8)
        alive.append(weakref.ref(array))
        return array

    def forward(net, n):
        return net.forward(np.ones((n, 8, 8, 1)))

    first, second = (Network([Conv2D(4), Dense(3)], (8, 8, 1), random_state=0, device="reference") for _ in range(2))
    monkeypatch.setattr(first._kernels, "empty", empty)
    forward(first, 20)
    expected = forward(first, 40)
    sizes = [array().nbytes for array in alive]
    assert len(sizes) == 2 and sizes[0] < sizes[1]
    del first
    room[0] = sum(sizes) - 1
    forward(second, 20)
    np.testing.assert_array_equal(forward(second, 40), expected)
    with pytest.raises(MemoryError, match="full: "):
        forward(second, 80)


@pytest.mark.small
def test_parameters_may_change_places():
    net = Network([Dense(4), Dense(4)], (4,), random_state=0)
    before = {name: value.copy() for name, value in net.params.items()}
    net.load_params(net.params | {"0.weight": net.params["1.weight"], "1.weight": net.params["0.weight"]})
    np.testing.assert_array_equal(net.params["0.weight"], before["1.weight"])
    np.testing.assert_array_equal(net.params["1.weight"], before["0.weight"])


@pytest.mark.small
def test_any_input_layout():
    layers, shape = CHAINS["lenet"]
    net = Network(layers, shape, random_state=0)
    x = batch(shape, 6)
    expected = net.forward(x)
    read_only = x.copy()
    read_only.flags.writeable = False
    wide = np.zeros((6, 12, 12, 3))
    wide[..., 1:2] = x
    for other in (read_only, np.asfortranarray(x), wide[..., 1:2], x.tolist()):
        np.testing.assert_array_equal(net.forward(other), expected)


@pytest.mark.small
def test_nan_is_seen():
    layers, shape = CHAINS["lenet"]
    net = Network(layers, shape, random_state=0)
    x = batch(shape)
    x[1, 3, 3] = np.nan
    assert np.isnan(net.forward(x)[1]).all() and np.isfinite(net.forward(x)[0]).all()
    assert np.isnan(net.train_step(x, np.zeros(4, int)))


def test_the_loss_goes_down():
    net = Network(SEED_NET, (28, 28, 1), random_state=0)
    x, labels = batch((28, 28, 1), 64), np.arange(64) % 10
    losses = [net.train_step(x, labels) for _ in range(25)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.small
def test_errors_name_what_is_wrong_and_change_nothing(monkeypatch):
    net = Network([Conv2D(2), Dense(3)], (4, 4, 1), random_state=0)
    before = {name: value.copy() for name, value in net.params.items()}
    x = batch((4, 4, 1))
    wrong = {name: value + 1 for name, value in before.items()}
    with pytest.raises(ValueError, match=r"missing parameters: 0\.bias"):
        net.load_params({k: v for k, v in wrong.items() if k != "0.bias"})
    with pytest.raises(ValueError, match=r"unknown parameters: 9\.weight"):
        net.load_params(wrong | {"9.weight": np.zeros(2)})
    with pytest.raises(ValueError, match=r"1\.bias has shape \(4,\), expected \(3,\)"):
        net.load_params(wrong | {"1.bias": np.zeros(4)})
    with pytest.raises(ValueError, match=r"x has shape \(4, 4, 4, 2\), expected \(n, 4, 4, 1\)"):
        net.forward(np.zeros((4, 4, 4, 2)))
    with pytest.raises(ValueError, match="label 3 is out of range: expected 0 to 2"):
        net.train_step(x, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="labels must be 4 integers"):
        net.train_step(x, [0.0, 1.0, 2.0, 0.0])
    with pytest.raises(ValueError, match="sample_weight has shape"):
        net.train_step(x, [0, 1, 2, 0], np.ones(3))
    for weights in ([np.nan, 1, 1, 1], [np.inf, 1, 1, 1], [1, -1, 0, 0]):
        with pytest.raises(ValueError, match="weights and shares must be finite and not negative"):
            net.train_step(x, [0, 1, 2, 0], weights)
    with pytest.raises(ValueError, match=r"the shares of mix must be in \[0, 1\]"):
        net.train_step(x, [0, 1, 2, 0], mix=([1, 1, 1, 1], [0, 1, 0.5, 1.5]))
    for smoothing in (-0.1, 1.0, np.nan):
        with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\)"):
            net.train_step(x, [0, 1, 2, 0], label_smoothing=smoothing)
    with pytest.raises(ValueError, match="micro_batch_size must be an int from 1 on, got 0"):
        net.train_step(x, [0, 1, 2, 0], micro_batch_size=0)
    with pytest.raises(ValueError, match=r"backward\(\) needs a forward"):
        net.backward(np.zeros((4, 3)))
    net.forward(x, training=True)
    with pytest.raises(ValueError, match=r"dy has shape \(4, 2\), expected \(4, 3\)"):
        net.backward(np.zeros((4, 2)))
    net.backward(np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"backward\(\) needs a forward\(x, training=True\) of its own"):
        net.backward(np.zeros((4, 3)))  # the first one has used the memory of what it went back through
    for between in (lambda: net.predict_proba(x), lambda: net.load_params(net.params)):
        net.forward(x, training=True)
        between()
        with pytest.raises(ValueError, match=r"backward\(\) needs a forward"):
            net.backward(np.zeros((4, 3)))
    net.forward(x, training=True)

    def interrupted(plan):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Plan, "forward", interrupted)
        net.forward(x, training=True)
    with pytest.raises(ValueError, match=r"backward\(\) needs a forward"):
        net.backward(np.zeros((4, 3)))
    for name, value in net.params.items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(ValueError, match=r"predict_proba needs an output of shape \(n_classes,\).*\(4, 4, 3\)"):
        Network([Conv2D(3)], (4, 4, 1)).predict_proba(x)
    for make, message in [
        (lambda: Network([Conv2D(2), "relu"], (4, 4, 1)), "layer 1 is 'relu'"),
        (lambda: Network([MaxPool2D(5)], (4, 4, 1)), "layer 0, MaxPool2D.*does not fit"),
        (lambda: Network([Dense(2)], (4, 0, 1)), "input_shape must be"),
        (lambda: Network([Dense(2)], 4), r"input_shape must be .*, got 4"),
        (lambda: Network([Dense(2)], (4,), dtype="float16"), "dtype must be"),
        (lambda: Network([Dense(2)], (4,), precision="half"), "precision must be one of 'float32', 'tf32'"),
        (lambda: Network([Dense(2)], (4,), device="tpu"), "no backend 'tpu'"),
        (lambda: Network([Dense(2)], (4,), n_jobs=0), "n_jobs must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.small
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_copies_go_on_with_the_same_bits(clone):
    net = Network(
        [Conv2D(3, activation="relu"), MaxPool2D(), Dropout(0.3), BatchNorm(), Dense(3)], (6, 6, 1), random_state=0
    )
    x, labels = batch((6, 6, 1), 6), np.arange(6) % 3
    net.train_step(x, labels)
    twin = clone(net)
    for _ in range(3):
        assert net.train_step(x, labels) == twin.train_step(x, labels)
    for name, value in net.params.items():
        np.testing.assert_array_equal(value, twin.params[name])


def test_threads_share_a_network():
    net = Network(SEED_NET, (28, 28, 1), random_state=0)
    xs = [batch((28, 28, 1), 8 + i, seed=i) for i in range(6)]
    expected = [net.predict_proba(x) for x in xs]
    found: list = [[] for _ in xs]

    def work(i):
        for _ in range(10):
            found[i].append(net.predict_proba(xs[i]))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, [theirs] * 10)


def _train_in_child(net, x, labels, queue):
    queue.put([net.train_step(x, labels) for _ in range(3)])


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_a_forked_child_trains_with_the_same_bits():
    net = Network(SEED_NET, (28, 28, 1), random_state=0, n_jobs=2)
    x, labels = batch((28, 28, 1), 64), np.arange(64) % 10
    net.train_step(x, labels)  # the thread pool is up before the fork
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_train_in_child, args=(net, x, labels, queue))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get() == [net.train_step(x, labels) for _ in range(3)]


def test_pytorch_agrees():
    torch = pytest.importorskip("torch")
    net = Network(
        [Conv2D(4, activation="relu"), MaxPool2D(), Flatten(), Dense(3)], (6, 6, 2), dtype="float64", random_state=0
    )
    twin = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(36, 3),
    ).double()  # fmt: skip
    with torch.no_grad():
        twin[0].weight.copy_(torch.from_numpy(net.params["0.weight"].transpose(3, 2, 0, 1)))
        twin[0].bias.copy_(torch.from_numpy(net.params["0.bias"]))
        dense = net.params["3.weight"].reshape(3, 3, 4, 3).transpose(2, 0, 1, 3).reshape(36, 3)
        twin[4].weight.copy_(torch.from_numpy(dense.T.copy()))
        twin[4].bias.copy_(torch.from_numpy(net.params["3.bias"]))
    x, dy = batch((6, 6, 2)), batch((3,), seed=2)
    theirs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    y = twin(theirs)
    y.backward(torch.from_numpy(dy))
    np.testing.assert_allclose(net.forward(x, training=True), y.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(net.backward(dy), theirs.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(net.grads["0.weight"], twin[0].weight.grad.numpy().transpose(2, 3, 1, 0), rtol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_parts_of_a_batch_add_up(device):
    layers = [Conv2D(4, activation="tanh"), AvgPool2D(), Dense(3)]
    x, labels, weights = batch((8, 8, 2), 11), np.arange(11) % 3, np.linspace(0, 2, 11)
    whole, parts = (
        Network(layers, (8, 8, 2), dtype="float64", device=device, random_state=0, optimizer=SGD(0.1)) for _ in range(2)
    )
    for _ in range(3):
        right = whole.forward(x).argmax(axis=1) == labels
        loss = whole.train_step(x, labels, weights, 0.1)
        assert whole.accuracy == pytest.approx(weights @ right / weights.sum())
        assert parts.train_step(x, labels, weights, 0.1, micro_batch_size=4) == pytest.approx(loss, rel=1e-12)
        assert parts.accuracy == pytest.approx(whole.accuracy)
    for name, value in whole.params.items():
        np.testing.assert_allclose(parts.params[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.small
def test_parts_of_a_small_integer_of_numpy():
    """Whose sums would wrap."""
    x, labels = batch((4, 4, 1), 160), np.arange(160) % 3
    losses = [
        Network([Dense(3)], (4, 4, 1), random_state=0).train_step(x, labels, micro_batch_size=size)
        for size in (100, np.int8(100))
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_blend_of_labels_is_a_blend_of_losses(device, micro_batch_size):
    layers = [Conv2D(4, activation="tanh"), Dense(3)]
    x, labels, others = batch((5, 5, 1), 7), np.arange(7) % 3, np.arange(7) // 3
    shares, weights = np.linspace(0, 1, 7), np.linspace(1, 2, 7)
    kept = {"dtype": "float64", "device": device, "random_state": 0}
    mixed = Network(layers, (5, 5, 1), **kept, optimizer=SGD(0.1))
    found = mixed.forward(x).argmax(axis=1)
    loss = mixed.train_step(x, labels, weights, 0.1, mix=(others, shares), micro_batch_size=micro_batch_size)
    # Each image twice, once with each label, weighted by its share.
    twice = Network(layers, (5, 5, 1), **kept, optimizer=SGD(0.1))
    both = np.concatenate([labels, others]), np.concatenate([weights * shares, weights * (1 - shares)])
    assert twice.train_step(np.concatenate([x, x]), *both, 0.1) == pytest.approx(loss, rel=1e-12)
    hits = shares * (found == labels) + (1 - shares) * (found == others)
    assert mixed.accuracy == pytest.approx(weights @ hits / weights.sum())
    assert twice.accuracy == pytest.approx(mixed.accuracy)
    for name, value in twice.params.items():
        np.testing.assert_allclose(mixed.params[name], value, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="label 9 is out of range"):
        mixed.train_step(x, labels, mix=(np.full(7, 9), shares))


def test_folded_normalisation_is_the_unfolded(monkeypatch):
    layers = [
        Conv2D(8, use_bias=False), BatchNorm(), ReLU(), MaxPool2D(), Conv2D(8), BatchNorm(), SiLU(),
        Conv2D(8, groups=8), BatchNorm(), Dense(6, use_bias=False), BatchNorm(), Tanh(), Dense(3),
    ]  # fmt: skip
    x = batch((12, 12, 3), 5)
    for dtype, tolerance in (("float64", 1e-11), ("float32", 2e-5)):
        net, plain = (Network(layers, (12, 12, 3), dtype=dtype, fuse=fuse, random_state=0) for fuse in (True, False))
        randomize(net)
        plain.load_params(net.params)
        np.testing.assert_allclose(net.forward(x), plain.forward(x), rtol=tolerance, atol=tolerance)
        assert "batchnorm_fold" in net.plan.describe() and "batchnorm_fold" not in plain.plan.describe()
        net.train_step(x, [0, 1, 2, 0, 1])  # the statistics move, and the next fold sees it
        plain.load_params(net.params)
        np.testing.assert_allclose(net.forward(x), plain.forward(x), rtol=tolerance, atol=tolerance)


def test_spatial_dropout():
    net = Network([SpatialDropout(0.5)], (6, 7, 40), dtype="float64", random_state=0)
    x = np.ones((50, 6, 7, 40))
    y = net.forward(x, training=True)
    kept = y[:, 0, 0] == 2
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_array_equal(y, np.where(kept[:, None, None], 2.0, 0.0) * x)
    np.testing.assert_array_equal(net.backward(x), y)
    np.testing.assert_array_equal(net.forward(x), x)
    assert not np.array_equal(net.forward(x, training=True), y)


def test_residual_blocks_share_memory_rightly():
    """Against the same sums written out, over several batch sizes: a skip must survive what lies beside it."""
    inner = [Conv2D(4), ReLU(), Conv2D(4)]
    net = Network(
        [Residual(inner), ReLU(), Residual(inner, [Conv2D(4, 1)])], (9, 9, 4), dtype="float64", random_state=0
    )
    randomize(net)

    def part(prefix, layers, x):
        alone = Network(layers, (9, 9, 4), dtype="float64")
        alone.load_params({n.removeprefix(prefix): v for n, v in net.params.items() if n.startswith(prefix)})
        return alone.forward(x)

    for n in (1, 3, 8):
        x = batch((9, 9, 4), n, seed=n)
        first = np.maximum(x + part("0.layers.", inner, x), 0)
        expected = part("2.layers.", inner, first) + part("2.skip.", [Conv2D(4, 1)], first)
        for training in (False, True):
            np.testing.assert_allclose(net.forward(x, training=training), expected, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------ what training goes on from


def dropout_net(optimizer=None, **options):
    layers = [Conv2D(3), BatchNorm(), Dropout(0.5), Flatten(), Dense(3)]
    return Network(layers, (4, 4, 1), optimizer=optimizer or Muon(), random_state=0, **options)


def test_training_goes_on_from_a_state():
    x, labels = np.random.default_rng(0).normal(size=(6, 4, 4, 1)).astype(np.float32), np.arange(6) % 3
    net, twin = dropout_net(), dropout_net()
    for _ in range(3):
        net.train_step(x, labels)
    state = net.training_state()
    assert state.step == 3 and set(state.moments) == {"m", "v"}
    assert set(state.moments["m"]) == {name for name in net.params if "running" not in name}
    twin.load_params(net.params)
    twin.load_training_state(state)
    assert twin.train_step(x, labels) == net.train_step(x, labels)
    for name, value in net.params.items():
        np.testing.assert_array_equal(twin.params[name], value)


def test_states_of_other_networks():
    net = dropout_net()
    state = net.training_state()
    m = state.moments["m"]
    for wrong, message in (
        (state._replace(dropout=[]), "0 dropout layers, expected 1"),
        (state._replace(moments={"m": m}), "the state has"),
        (state._replace(moments={"m": m, "v": {}}), r"v has \[\]"),
        (state._replace(moments={"m": m, "v": m | {"0.bias": np.zeros(4)}}), r"v of 0.bias has shape \(4,\)"),
        (state._replace(step=-1), "t must be an int"),
        (dropout_net(SGD()).training_state(), "the state has"),
    ):
        with pytest.raises(ValueError, match=message):
            net.load_training_state(wrong)


@pytest.mark.parametrize("optimizer", [Adam(clip_norm=2), AdamW(0.1), Muon(0.1, 0.8, False), SGD(0.3, l2=0.1)])
def test_settings_make_another_optimizer(optimizer):
    again = type(optimizer)(**optimizer.settings)
    assert again.settings == optimizer.settings
    assert optimizer.vectors() == tuple(name for name in dropout_net(again).optimizer.state_dict() if name != "t")
