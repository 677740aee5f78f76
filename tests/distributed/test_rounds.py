"""Rounds without Dask: they are functions."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from fastcnn.distributed.cluster import Rounds
from fastcnn.distributed.rounds import (
    Images,
    Job,
    Part,
    State,
    average_parts,
    load_state,
    read_state,
    train_part,
)
from fastcnn.engine.network import Network
from fastcnn.layers import BatchNorm, Conv2D, Dense, Dropout, Flatten, ReLU
from fastcnn.training.averaging import ParameterAverage
from fastcnn.training.optimizers import SGD, Adam

RNG = np.random.default_rng(0)
LAYERS = (Conv2D(3), ReLU(), Flatten(), Dense(4))
SIZES = (24, 9, 16)


def job(**changes):
    made = Job(
        name="a fit", layers=LAYERS, image_shape=(4, 4, 1), dtype="float64", device="cpu", precision="float32",
        n_jobs=1,
        optimizer=SGD(0.05, 0.9, True, l2=1e-2), offset=np.zeros(1), scale=np.ones(1), augment=(), batch_size=8,
        shuffle=False, seed=0, label_smoothing=0.1, micro_batch_size=None, ema_decay=None,
        block_momentum=0.0,
    )  # fmt: skip
    return replace(made, **changes)


def images(n, weighted=False):
    weight = RNG.uniform(0.1, 2, n) if weighted else None
    return Images(RNG.normal(size=(n, 16)), RNG.integers(0, 4, n), weight)


def network(of):
    optimizer = deepcopy(of.optimizer)
    return Network(of.layers, of.image_shape, dtype=of.dtype, random_state=0, n_jobs=1, optimizer=optimizer)


def begin(net, average=None):
    return Part(read_state(net, average), np.zeros((0, 3)), np.zeros(0, np.int64))


def part(value, weight, samples, step=1):
    state = State({"x": np.array([value], np.float32)}, step, 0, [[5, step]])
    return Part(state, np.array([[weight * 2.0, weight, weight / 2]]), np.array([samples]))


@pytest.mark.small
def test_states_weigh_as_much_as_their_images():
    mean = average_parts(part(1.0, 3.0, 3, step=7), part(5.0, 1.0, 1, step=2), part(100.0, 0.0, 8, step=2))
    assert mean.state.arrays["x"] == 2.0 and mean.state.arrays["x"].dtype == np.float32
    assert mean.state.step == 7 and mean.state.dropout == [[5, 7]]
    np.testing.assert_array_equal(mean.losses, [[8.0, 4.0, 2.0]])
    assert mean.samples == [12]


@pytest.mark.small
def test_images_without_weight_count_where_all_are_like_that():
    assert average_parts(part(1.0, 0.0, 3), part(5.0, 0.0, 1)).state.arrays["x"] == 2.0


@pytest.mark.small
def test_one_part_stays_as_it_is():
    one = part(1 / 3, 0.7, 3)
    assert average_parts(one) is one


@pytest.mark.parametrize("weighted", [False, True])
def test_one_step_a_round_is_a_step_on_all_images(weighted):
    """Momentum, L2, uneven chunks: after 50 steps the parameters of large batches."""
    these = job()
    parts = [images(n, weighted) for n in SIZES]
    apart, together = network(these), network(job())
    common = begin(apart)
    sizes = [-(-n // these.batch_size) for n in SIZES]
    for step in range(50):
        epoch, number = divmod(step, max(sizes))
        done = [
            train_part([common], part, these, chunk, epoch, number, [0.05])
            for chunk, part in enumerate(parts)
            if sizes[chunk] > number
        ]
        common = average_parts(*done)
        cut = slice(number * these.batch_size, (number + 1) * these.batch_size)
        rows = np.concatenate([p.rows[cut] for p in parts])
        weight = np.concatenate([p.weight[cut] for p in parts]) if weighted else None
        labels = np.concatenate([p.labels[cut] for p in parts])
        loss = together.train_step(rows.reshape(-1, 4, 4, 1), labels, weight, 0.1)
        loss_sum, weight_sum, right = common.losses.sum(axis=0)
        assert loss_sum / weight_sum == pytest.approx(loss)
        assert right / weight_sum == pytest.approx(together.accuracy)
    for name, value in together.params.items():
        np.testing.assert_allclose(common.state.arrays[f"params.{name}"], value, rtol=0, atol=1e-5)
        velocity = common.state.arrays.get(f"moments.velocity.{name}")
        assert velocity is None or np.abs(velocity).max() > 0


def test_statistics_and_moments_are_averaged():
    these = job(
        name="with statistics", layers=(Conv2D(3), BatchNorm(), ReLU(), Flatten(), Dense(4)), optimizer=Adam(0.01),
        ema_decay=0.9,
    )  # fmt: skip
    net = network(these)
    common = begin(net, ParameterAverage(net, 0.9))
    one, other = (train_part([common], images(16), these, chunk, 0, 0, [0.01] * 2) for chunk in (0, 1))
    mean = average_parts(one, other).state
    names = set(mean.arrays)
    assert {"params.1.running_mean", "moments.m.0.weight", "moments.v.0.weight", "average.0.weight"} <= names
    assert mean.step == 2 and mean.average_steps == 2
    for name in names:
        a, b = one.state.arrays[name], other.state.arrays[name]
        np.testing.assert_allclose(mean.arrays[name], (a + b) / 2, atol=1e-12)
        assert not np.array_equal(a, b)


def test_block_momentum_goes_on_by_a_share_of_the_last_move():
    """x(t+1) = mean of what the parts come to from x(t), plus 0.6 (x(t) - x(t-1)); statistics are means alone."""
    layers = (Conv2D(3), BatchNorm(), ReLU(), Flatten(), Dense(4))
    plain = job(name="plain", layers=layers)
    these, parts = replace(plain, name="with momentum", block_momentum=0.6), [images(16), images(8)]
    ends, earlier = [begin(network(these))], ()
    for epoch in range(3):
        now = average_parts(*ends).state.arrays
        right = average_parts(*(train_part(ends, p, plain, i, epoch, 0, [0.05] * 2) for i, p in enumerate(parts)))
        trained = set(network(these).grads)
        if earlier:
            past = average_parts(*earlier).state.arrays
            for name in trained:
                right.state.arrays[f"params.{name}"] += 0.6 * (now[f"params.{name}"] - past[f"params.{name}"])
        new = [train_part(ends, p, these, i, epoch, 0, [0.05] * 2, earlier) for i, p in enumerate(parts)]
        for name, value in average_parts(*new).state.arrays.items():
            np.testing.assert_allclose(value, right.state.arrays[name], rtol=0, atol=1e-12)
        ends, earlier = new, ends
    assert {"params.1.running_mean", "moments.velocity.0.weight"} <= set(now) and "1.running_mean" not in trained


def test_a_round_is_a_function_of_its_arguments():
    these = job(name="with dropout", layers=(Conv2D(3), ReLU(), Flatten(), Dropout(0.5), Dense(4)), shuffle=True)
    common, some = begin(network(these)), images(24)
    before = {name: value.copy() for name, value in common.state.arrays.items()}
    first = train_part([common], some, these, 1, 0, 1, [0.05] * 2)
    train_part([first], some, these, 0, 1, 0, [0.05])  # the network that is kept has another state now
    again = train_part([common], some, these, 1, 0, 1, [0.05] * 2)
    other = train_part([common], some, these, 2, 0, 1, [0.05] * 2)  # another chunk: other masks, another order
    for name, value in first.state.arrays.items():
        np.testing.assert_array_equal(common.state.arrays[name], before[name])
        np.testing.assert_array_equal(again.state.arrays[name], value)
    assert not np.array_equal(other.state.arrays["params.0.weight"], first.state.arrays["params.0.weight"])
    assert first.state.dropout == again.state.dropout == other.state.dropout
    assert first.state.dropout[0][1] == common.state.dropout[0][1] + 2


def test_a_state_comes_back():
    these = job(layers=(Conv2D(3), BatchNorm(), ReLU(), Flatten(), Dropout(0.5), Dense(4)), optimizer=Adam(0.01))
    net, other = network(these), network(these)
    x, labels = RNG.normal(size=(8, 4, 4, 1)), RNG.integers(0, 4, 8)
    net.train_step(x, labels)
    load_state(other, None, read_state(net, None))
    for _ in range(2):
        assert net.train_step(x, labels) == other.train_step(x, labels)


@pytest.mark.small
@pytest.mark.parametrize(
    ("sizes", "n_partitions", "sync_every"), [((20,), 1, 2), ((17, 40, 1, 8), 4, 3), ((17, 40, 1, 8, 30), 2, None)]
)
def test_a_plan_trains_every_batch_once(sizes, n_partitions, sync_every):
    rounds = Rounds(None, job(shuffle=True), [None] * len(sizes), sizes, n_partitions, sync_every, end=3)
    steps = [-(-n // 8) for n in sizes]
    rates = []
    for epoch in range(3):
        done = {chunk: [] for chunk in range(len(sizes))}
        for one in rounds.plan(epoch, float):
            assert len(one.chunks) <= n_partitions and len(one.rates) <= (sync_every or max(steps))
            for chunk in one.chunks:
                done[chunk] += range(one.first, min(one.first + len(one.rates), steps[chunk]))
            rates += one.rates
        assert done == {chunk: list(range(n)) for chunk, n in enumerate(steps)}
    assert rates == sorted(set(rates)) and rates[-1] < 3 * len(rounds)
