"""The loop with a softmax regression in place of a network: history, stopping, restoring."""

from copy import deepcopy
from dataclasses import replace
from math import inf, nan
from typing import NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastcnn.training import loop
from fastcnn.training.batches import BatchLoader
from fastcnn.training.builders import BatchBuilder
from fastcnn.training.callbacks import Callback
from fastcnn.training.loop import EpochPart, History, Progress, train

pytestmark = pytest.mark.small


class PlainSGD:
    learning_rate = 0.0
    resets = 0

    def reset(self):
        self.resets += 1


class SoftmaxRegression:
    """What the loop needs of a network. `losses` (batch number -> loss) takes the place of the true loss."""

    def __init__(self, n_in=4, n_classes=3, losses=None):
        self.params = {"0.weight": np.zeros((n_in, n_classes)), "0.bias": np.zeros(n_classes)}
        self.optimizer = PlainSGD()
        self.accuracy = 0.0
        self.losses = losses or {}
        self.rates = []
        self.smoothing = set()

    def load_params(self, params):
        for name, value in params.items():
            self.params[name][...] = value

    def logits(self, x):
        return x.reshape(len(x), -1) @ self.params["0.weight"] + self.params["0.bias"]

    def train_step(self, x, labels, sample_weight=None, label_smoothing=0.0, mix=None, micro_batch_size=None):
        self.rates.append(self.optimizer.learning_rate)
        self.smoothing.add(label_smoothing)
        weights = np.ones(len(x)) if sample_weight is None else sample_weight
        proba = np.exp(self.logits(x))
        proba /= proba.sum(axis=1, keepdims=True)
        loss = weights @ -np.log(proba[np.arange(len(x)), labels]) / weights.sum()
        self.accuracy = weights @ (proba.argmax(axis=1) == labels) / weights.sum()
        dlogits = (proba - np.eye(proba.shape[1])[labels]) * weights[:, None] / weights.sum()
        self.params["0.weight"] -= self.optimizer.learning_rate * x.reshape(len(x), -1).T @ dlogits
        self.params["0.bias"] -= self.optimizer.learning_rate * dlogits.sum(axis=0)
        return float(self.losses.get(len(self.rates), loss))


class Batch(NamedTuple):
    rows: np.ndarray
    x: np.ndarray
    y: np.ndarray
    sample_weight: np.ndarray | None
    mix: None = None


class Loader:
    """Batches of 8 in a fixed order; notes which epochs were asked for, and whether they were closed."""

    def __init__(self, n=40, weighted=False):
        rng = np.random.default_rng(0)
        self.y = rng.integers(0, 3, n)
        self.x = np.eye(4)[self.y].reshape(n, 2, 2, 1) + 0.3 * rng.normal(size=(n, 2, 2, 1))
        self.weights = rng.uniform(0.1, 3, n) if weighted else None
        self.epochs, self.closed = [], 0

    def __len__(self):
        return -(-len(self.y) // 8)

    def epoch(self, epoch):
        self.epochs.append(epoch)
        try:
            for rows in np.split(np.arange(len(self.y)), range(8, len(self.y), 8)):
                weights = None if self.weights is None else self.weights[rows]
                yield Batch(rows, self.x[rows], self.y[rows], weights)
        finally:
            self.closed += 1


def fit(network=None, loader=None, *, rate=0.5, max_iter=5, **options):
    network = SoftmaxRegression() if network is None else network
    loader = Loader() if loader is None else loader
    return train(network, loader, schedule=lambda step: rate, max_iter=max_iter, **options)


def scores_of(*scores):
    """A `validate` that gives these scores one after the other."""
    remaining = iter(scores)
    return lambda: (next(remaining), 0.5)


class Recorder(Callback):
    """Remembers what it is told, and the parameters after each epoch; may stop, or raise, at epoch `at`."""

    def __init__(self, at=None, error=None):
        self.at, self.error = at, error
        self.begun, self.epochs, self.params, self.ended = [], [], [], []

    def on_fit_begin(self, info):
        self.begun.append(info)

    def on_epoch_end(self, info):
        self.epochs.append(info)
        self.params.append({name: value.copy() for name, value in self.begun[-1].network.params.items()})
        if info.epoch == self.at and self.error is not None:
            raise self.error
        return info.epoch == self.at

    def on_fit_end(self, history):
        self.ended.append(history)


def assert_params(network, expected):
    for name, value in expected.items():
        assert_array_equal(network.params[name], value)


def test_all_callbacks_are_told_the_end_whatever_one_of_them_does():
    class Fails:
        def on_fit_end(self, history):
            raise OSError("disk full")

    first, last = Recorder(), Recorder()
    with pytest.raises(OSError, match="disk full"):
        fit(SoftmaxRegression(), Loader(42), max_iter=1, callbacks=[first, Fails(), last])
    assert len(first.ended) == len(last.ended) == 1


def test_the_loss_goes_down_and_the_history_says_so():
    network, loader, seen = SoftmaxRegression(), Loader(42), Recorder()
    history = fit(network, loader, max_iter=6, callbacks=[seen], label_smoothing=0.1)
    assert history.loss_curve == sorted(history.loss_curve, reverse=True)
    assert history.n_iter == len(history.epoch_seconds) == len(history.learning_rates) == 6
    assert (history.best_iter, history.best_loss) == (6, history.loss_curve[-1])
    assert history.t == 6 * 42
    assert history.reason == "max_iter"
    assert (history.validation_scores, history.validation_loss_curve, history.best_score) == ([], [], None)
    assert loader.epochs == list(range(6))
    assert loader.closed == 6
    assert network.smoothing == {0.1}
    assert [info[1:] for info in seen.begun] == [(0, 6, 6)]
    assert [info.epoch for info in seen.epochs] == [1, 2, 3, 4, 5, 6]
    assert [info.loss for info in seen.epochs] == history.loss_curve
    assert [info.training_score for info in seen.epochs] == history.training_scores
    assert {(info.max_iter, info.n_samples, info.learning_rate) for info in seen.epochs} == {(6, 42, 0.5)}
    assert all(info.images_per_second == pytest.approx(42 / info.seconds) for info in seen.epochs)
    assert all(info.validation_score is None for info in seen.epochs)
    assert seen.ended == [history]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_epochs_loss_is_the_weighted_mean(weighted):
    """With a learning rate of zero it is the loss of the whole set, though the last batch is a short one."""
    network, loader = SoftmaxRegression(), Loader(43, weighted)
    network.params["0.weight"][...] = np.random.default_rng(1).normal(size=(4, 3))
    history = fit(network, loader, rate=0.0, max_iter=1)
    logits = network.logits(loader.x)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(43), loader.y]
    assert_allclose(history.loss_curve, [np.average(losses, weights=loader.weights)])


def test_the_schedule_is_asked_for_every_step():
    network = SoftmaxRegression()
    history = train(network, Loader(), schedule=lambda step: 0.1 / (1 + step), max_iter=2)
    assert network.rates == [0.1 / (1 + step) for step in range(10)]
    assert history.learning_rates == [0.1 / 5, 0.1 / 10]


def test_going_on_is_as_training_in_one_go():
    whole, parts = SoftmaxRegression(), SoftmaxRegression()

    def schedule(step):
        return 0.5 / (1 + step)

    expected = train(whole, Loader(), schedule=schedule, max_iter=5)
    loader, seen = Loader(), Recorder()
    history = train(parts, loader, schedule=schedule, max_iter=2)
    again = train(parts, loader, schedule=schedule, max_iter=3, start_epoch=2, history=history, callbacks=[seen])
    assert again is history
    assert history.loss_curve == expected.loss_curve
    assert (history.n_iter, history.t, history.best_iter) == (5, 200, 5)
    assert loader.epochs == [0, 1, 2, 3, 4]
    assert [(info.epoch, info.max_iter) for info in seen.epochs] == [(3, 5), (4, 5), (5, 5)]
    assert_params(parts, whole.params)


class TestStopping:
    def test_on_the_training_loss(self):
        history = fit(rate=0.0, max_iter=50, n_iter_no_change=3)
        assert history.reason == "tol"
        assert history.n_iter == 4  # the first, then three that did not improve

    def test_a_loss_that_improves_by_less_than_tol(self):
        assert fit(rate=1e-9, max_iter=50, tol=1e-3, n_iter_no_change=2).n_iter == 3

    def test_not_while_it_improves(self):
        assert fit(max_iter=20, n_iter_no_change=1).reason == "max_iter"

    def test_never_with_infinite_patience(self):
        assert fit(rate=0.0, max_iter=30, n_iter_no_change=inf).n_iter == 30

    def test_on_the_validation_score(self):
        validate = scores_of(0.5, 0.7, 0.6, 0.7, 0.65)
        history = fit(max_iter=50, early_stopping=True, validate=validate, n_iter_no_change=3)
        assert history.reason == "tol"
        assert history.validation_scores == [0.5, 0.7, 0.6, 0.7, 0.65]
        assert history.validation_loss_curve == [0.5] * 5
        assert (history.best_iter, history.best_score) == (2, 0.7)

    def test_small_gains_add_up_to_no_improvement_but_to_the_best(self):
        validate = scores_of(0.5, 0.51, 0.52)
        history = fit(max_iter=3, tol=0.1, early_stopping=True, validate=validate, n_iter_no_change=2)
        assert history.reason == "tol"
        assert (history.best_iter, history.best_score) == (3, 0.52)

    def test_validation_without_early_stopping_stops_nothing_and_restores_nothing(self):
        network, seen = SoftmaxRegression(), Recorder()
        history = fit(network, max_iter=4, validate=scores_of(0.9, 0.3, 0.2, 0.1), n_iter_no_change=2, callbacks=[seen])
        assert history.reason == "max_iter"
        assert (history.best_iter, history.best_score) == (4, 0.9)
        assert [info.validation_score for info in seen.epochs] == [0.9, 0.3, 0.2, 0.1]
        assert_params(network, seen.params[-1])

    def test_a_score_of_nan_is_no_improvement(self):
        validate = scores_of(nan, 0.4, nan, nan)
        history = fit(max_iter=9, early_stopping=True, validate=validate, n_iter_no_change=2)
        assert history.reason == "tol"
        assert (history.best_iter, history.best_score) == (2, 0.4)

    def test_by_a_callback_after_all_were_called(self):
        first, second = Recorder(at=2), Recorder()
        history = fit(max_iter=9, callbacks=[first, second])
        assert history.reason == "callback"
        assert history.n_iter == len(first.epochs) == len(second.epochs) == 2
        assert (len(first.ended), len(second.ended)) == (1, 1)


@pytest.mark.parametrize(
    "scores, best, options",
    [
        ((0.5, 0.9, 0.8, 0.7), 2, {"max_iter": 4}),
        ((0.5, 0.9, 0.8, 0.9), 2, {"max_iter": 4}),
        ((0.9, 0.8, 0.7), 1, {"max_iter": 9, "n_iter_no_change": 2}),
        ((0.1, 0.2, 0.3), 3, {"max_iter": 3}),
    ],
)
def test_early_stopping_restores_the_best(scores, best, options):
    network, seen = SoftmaxRegression(), Recorder()
    fit(network, early_stopping=True, validate=scores_of(*scores), callbacks=[seen], **options)
    assert len(seen.params) == len(scores)
    assert_params(network, seen.params[best - 1])


class TestDivergence:
    @pytest.mark.parametrize("loss", [nan, inf, -inf])
    def test_a_loss_that_is_not_finite(self, loss):
        """The 13th batch is the third of the third epoch: what the second epoch ended with comes back."""
        network, loader, seen = SoftmaxRegression(losses={13: loss}), Loader(), Recorder()
        history = fit(network, loader, max_iter=9, callbacks=[seen])
        assert history.reason == "diverged"
        assert history.n_iter == len(history.epoch_seconds) == 2
        assert np.isfinite(history.loss_curve).all()
        assert len(network.rates) == 13
        assert network.optimizer.resets == 1
        assert loader.closed == 3
        assert len(seen.ended) == 1
        assert_params(network, seen.params[1])

    def test_in_the_first_epoch(self):
        network = SoftmaxRegression(losses={1: nan})
        history = fit(network)
        assert (history.reason, history.n_iter, history.best_iter) == ("diverged", 0, 0)
        assert_params(network, SoftmaxRegression().params)

    def test_a_parameter_in_the_last_step(self):
        """No loss shows it: the epoch's end looks at the parameters."""
        network, loader = SoftmaxRegression(), Loader()
        history = train(network, loader, schedule=lambda step: nan if step == 9 else 0.5, max_iter=9)
        assert (history.reason, history.n_iter) == ("diverged", 1)
        assert np.isfinite(network.params["0.weight"]).all()

    def test_the_best_is_restored_under_early_stopping(self):
        network, seen = SoftmaxRegression(losses={18: nan}), Recorder()
        history = fit(network, early_stopping=True, validate=scores_of(0.1, 0.9, 0.3), callbacks=[seen])
        assert history.reason == "diverged"
        assert_params(network, seen.params[1])


class TestInterruption:
    def test_between_epochs_keeps_what_was_learnt(self):
        network, seen = SoftmaxRegression(), Recorder(at=2, error=KeyboardInterrupt())
        history = fit(network, callbacks=[seen])
        assert (history.reason, history.n_iter) == ("interrupted", 2)
        assert len(seen.ended) == 1
        assert network.optimizer.resets == 0
        assert_params(network, seen.params[1])

    def test_between_batches(self):
        def schedule(step):
            if step == 8:
                raise KeyboardInterrupt
            return 0.5

        network, loader = SoftmaxRegression(), Loader()
        history = train(network, loader, schedule=schedule, max_iter=9)
        assert (history.reason, history.n_iter, history.t) == ("interrupted", 1, 64)
        assert loader.closed == 2
        expected = SoftmaxRegression()
        for epoch, batches in ((0, 5), (1, 3)):
            for batch, _ in zip(Loader().epoch(epoch), range(batches), strict=False):
                expected.optimizer.learning_rate = 0.5
                expected.train_step(batch.x, batch.y)
        assert_params(network, expected.params)

    def test_in_a_step_that_left_a_parameter_not_finite(self):
        def schedule(step):
            if step == 8:
                raise KeyboardInterrupt
            return nan if step == 7 else 0.5

        network = SoftmaxRegression()
        history = train(network, Loader(), schedule=schedule, max_iter=9)
        assert history.reason == "interrupted"
        assert_params(network, trained(1).params)

    def test_the_best_is_restored_under_early_stopping(self):
        network, seen = SoftmaxRegression(), Recorder(at=3, error=KeyboardInterrupt())
        fit(network, early_stopping=True, validate=scores_of(0.9, 0.2, 0.3), callbacks=[seen])
        assert_params(network, seen.params[0])


def trained(epochs):
    network = SoftmaxRegression()
    fit(network, max_iter=epochs)
    return network


class TestCallbacks:
    def test_an_object_with_one_hook_is_enough(self):
        class Counter:
            n = 0

            def on_epoch_end(self, info):
                self.n += 1

        counter = Counter()
        fit(callbacks=[counter], max_iter=3)
        assert counter.n == 3

    def test_the_end_is_told_when_a_callback_raises(self):
        seen, loader = Recorder(at=1, error=RuntimeError("mine")), Loader()
        with pytest.raises(RuntimeError, match="mine"):
            fit(loader=loader, callbacks=[seen])
        assert [history.reason for history in seen.ended] == ["error"]
        assert loader.closed == 1

    def test_batches_are_told_no_more_than_now_and_then(self, monkeypatch):
        class Clock(Callback):
            def __init__(self):
                self.seen = []

            def on_batch_end(self, info):
                self.seen.append(info)

        now = iter(0.04 * i for i in range(1000))  # a batch takes 40 ms
        monkeypatch.setattr(loop, "perf_counter", lambda: next(now))
        clock = Clock()
        fit(loader=Loader(80), max_iter=1, callbacks=[clock])
        assert [(info.epoch, info.batch) for info in clock.seen] == [(1, 3), (1, 6), (1, 9)]
        assert [info.images_per_second for info in clock.seen] == pytest.approx([200.0] * 3)
        assert all(0 < info.loss < 1.1 for info in clock.seen)


@pytest.fixture
def shuffled_images():
    """A loader of uint8 images whose class can be read off their brightest pixel."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 50)
    images = rng.integers(0, 100, (50, 2, 2, 1)) + 150 * np.eye(4, dtype=int)[y].reshape(50, 2, 2, 1)
    builder = BatchBuilder(images.astype(np.uint8), (2, 2, 1), mean=80.0, inv_std=1 / 40, dtype="float64")
    return BatchLoader(builder, y, rng.uniform(0.5, 2, 50), batch_size=8, seed=3)


def test_with_shuffled_batches(shuffled_images):
    first, second = SoftmaxRegression(), SoftmaxRegression()
    history = fit(first, shuffled_images, max_iter=4)
    assert history.t == 200
    assert history.loss_curve[-1] < 0.3 * history.loss_curve[0]
    assert fit(second, shuffled_images, max_iter=4).loss_curve == history.loss_curve
    assert_params(second, first.params)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_with_a_network(shuffled_images, early_stopping):
    from fastcnn.engine.network import Network
    from fastcnn.layers import Conv2D, Dense, Flatten

    layers = [Conv2D(4, 2, activation="tanh"), Flatten(), Dense(3)]
    network = Network(layers, (2, 2, 1), dtype="float64", device="reference", random_state=0)
    seen = Recorder()
    validate = scores_of(0.1, 0.2, 0.9, 0.5, 0.4, 0.3) if early_stopping else None
    history = fit(
        network,
        shuffled_images,
        rate=0.02,
        max_iter=6,
        early_stopping=early_stopping,
        validate=validate,
        callbacks=[seen],
    )
    assert history.loss_curve[-1] < 0.5 * history.loss_curve[0]
    assert network.optimizer.t == 6 * 7
    assert_params(network, seen.params[2 if early_stopping else 5])


# ---------------------------------------------------------------------------------------------- going on amid training


class Keeps:
    """Remembers where training stood after each epoch."""

    def __init__(self):
        self.seen = []

    def __call__(self, progress):
        self.seen.append(deepcopy(progress))


RUNS = {
    "plain": {},
    "averaged": {"ema_decay": 0.8},
    "early stopping": {"early_stopping": True, "scores": [0.1, 0.5, 0.3, 0.2, 0.4, 0.1]},
    "averaged, early stopping, ends by tol": {
        "ema_decay": 0.8, "early_stopping": True, "scores": [0.1, 0.5, 0.3, 0.2], "n_iter_no_change": 2,
    },
    "ends by a callback": {"callbacks": [Recorder(at=4)]},
}  # fmt: skip


def run(name, keeps, **more):
    options = dict(RUNS[name])
    scores = options.pop("scores", None)
    if scores is not None:
        options["validate"] = scores_of(*scores[len(more["progress"].history.loss_curve) if more else 0 :])
    network, loader = SoftmaxRegression(), Loader()
    history = fit(network, loader, max_iter=6, keep=keeps, **options, **more)
    return network, history, loader


def test_all_of_a_batch_reaches_the_step():
    told = []

    class Told(SoftmaxRegression):
        def train_step(self, x, labels, sample_weight=None, **rest):
            told.append(rest)
            return super().train_step(x, labels, sample_weight, **rest)

    class Mixed(Loader):
        def epoch(self, epoch):
            for one in super().epoch(epoch):
                yield one._replace(mix=one.rows)

    fit(Told(), Mixed(8), max_iter=1, label_smoothing=0.1, micro_batch_size=3)
    assert told[0]["mix"].tolist() == list(range(8))
    assert (told[0]["label_smoothing"], told[0]["micro_batch_size"]) == (0.1, 3)


@pytest.mark.parametrize("name", RUNS)
def test_from_any_epoch_on_it_ends_the_same(name):
    keeps = Keeps()
    whole, history, loader = run(name, keeps)
    assert [p.epoch for p in keeps.seen] == list(range(1, history.n_iter + 1)) == [e + 1 for e in loader.epochs]
    assert [p.finished for p in keeps.seen] == [False] * (history.n_iter - 1) + [True]
    for progress in keeps.seen:
        again, resumed, used = run(name, Keeps(), progress=deepcopy(progress))
        assert_params(again, whole.params)
        assert used.epochs == list(range(progress.epoch, history.n_iter))
        assert replace(resumed, epoch_seconds=[]) == replace(history, epoch_seconds=[])
    assert_params(whole, keeps.seen[-1].result)


def test_what_keep_raises_ends_training():
    def full(progress):
        raise OSError("No space left on device")

    seen = Recorder()
    with pytest.raises(OSError, match="No space"):
        fit(keep=full, callbacks=[seen])
    assert len(seen.epochs) == len(seen.ended) == 1


def test_early_stopping_needs_validation():
    with pytest.raises(ValueError, match="early_stopping=True needs validate"):
        fit(early_stopping=True)


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="no batches"):
        fit(loader=Loader(0))


def test_within_an_epoch_somebody_must_know_how_to_go_on():
    progress = Progress(0, History(), False, {}, None, 0, None, -inf, 0, EpochPart(done=1))
    with pytest.raises(ValueError, match="run_epoch alone"):
        fit(progress=progress)


def test_no_epochs():
    history = fit(max_iter=0, history=History())
    assert (history.n_iter, history.reason, history.best_loss) == (0, "max_iter", inf)


def test_weights_that_sum_to_zero():
    class Weightless(SoftmaxRegression):
        def train_step(self, x, labels, sample_weight=None, label_smoothing=0.0, **rest):
            return 0.0

    loader = Loader()
    loader.weights = np.zeros(40)
    assert fit(Weightless(), loader, max_iter=1).loss_curve == [0.0]
