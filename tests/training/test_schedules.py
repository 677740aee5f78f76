"""Schedules: their end points, and which way they go in between."""

import pickle
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcnn.training.schedules import SCHEDULES, Cosine, StepDecay, make_schedule

pytestmark = pytest.mark.small

names = st.sampled_from(SCHEDULES)
rates = st.floats(1e-6, 10.0)
totals = st.integers(1, 500)


def values(schedule, total):
    return [schedule(step) for step in range(total)]


def test_constant():
    assert set(values(make_schedule("constant", 0.3, 10), 20)) == {0.3}


def test_cosine():
    schedule = make_schedule("cosine", 0.8, 100)
    assert schedule(0) == 0.8
    assert schedule(50) == pytest.approx(0.4)
    assert 0 < schedule(99) < 0.001
    assert schedule(100) == 0.0
    assert Cosine(0.8, 100, final=0.1)(100) == pytest.approx(0.1)


def test_onecycle():
    schedule = make_schedule("onecycle", 0.5, 100)
    assert schedule(0) == pytest.approx(0.02)
    assert schedule(30) == 0.5
    assert schedule(65) == pytest.approx(0.25, abs=1e-4)
    assert schedule(100) == pytest.approx(2e-6)


def test_step():
    schedule = make_schedule("step", 1.0, 100)
    assert [schedule(s) for s in (0, 49, 50, 74, 75, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_step_drops_where_an_epoch_starts():
    schedule = make_schedule("step", 1.0, total_steps=30, steps_per_epoch=6)  # half: 15, in the third epoch
    assert values(schedule, 30) == pytest.approx([1.0] * 18 + [0.1] * 6 + [0.01] * 6)


def test_one_epoch_has_no_drop():
    assert set(values(StepDecay(1.0, total_steps=8, steps_per_epoch=8), 20)) == {1.0}


@given(st.sampled_from(["constant", "cosine", "step"]), rates, totals, st.integers(1, 50))
def test_going_down(name, rate, total, per_epoch):
    seen = values(make_schedule(name, rate, total, per_epoch), total + 5)
    assert seen[0] == rate
    assert all(a >= b for a, b in pairwise(seen))


@given(rates, totals)
def test_onecycle_goes_up_then_down(rate, total):
    seen = values(make_schedule("onecycle", rate, total), total)
    peak = seen.index(max(seen))
    assert seen[peak] == rate
    assert peak == round(0.3 * total)
    assert seen[: peak + 1] == sorted(seen[: peak + 1])
    assert seen[peak:] == sorted(seen[peak:], reverse=True)


@given(names, rates, totals, st.integers(1, 50), st.integers(0, 10_000))
def test_the_last_value_is_kept(name, rate, total, per_epoch, beyond):
    schedule = make_schedule(name, rate, total, per_epoch)
    assert schedule(total + beyond) == schedule(total)
    assert 0 <= schedule(total) <= rate


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_values(name):
    schedule = make_schedule(name, 0.1, 10, 2)
    assert schedule == make_schedule(name, 0.1, 10, 2)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert hash(schedule) == hash(make_schedule(name, 0.1, 10, 2))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("linear", 0.1, 10), r"unknown learning-rate schedule 'linear': expected one of \('constant'"),
        (("cosine", 0.0, 10), "learning_rate_init must be a finite number > 0, got 0.0"),
        (("cosine", float("inf"), 10), "learning_rate_init must be a finite number > 0, got inf"),
        (("cosine", 0.1, 0), "total_steps must be at least 1, got 0"),
        (("step", 0.1, 10, 0), "steps_per_epoch must be at least 1, got 0"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(*arguments)


@pytest.mark.parametrize("name", ["constant", "cosine", "step"])
def test_warmup_rises_on_a_line(name):
    schedule = make_schedule(name, 0.8, 100, warmup=0.2)
    assert values(schedule, 20) == pytest.approx([0.8 * (i + 1) / 20 for i in range(20)])
    assert schedule(20) == 0.8
    if name == "cosine":
        assert schedule(60) == pytest.approx(0.4) and schedule(100) == 0
    assert make_schedule(name, 0.8, 100, warmup=0.0)(0) == 0.8


@given(names, rates, st.integers(1, 20), st.floats(0, 1, exclude_max=True))
def test_the_last_step_does_not_rise(name, rate, total, warmup):
    seen = values(make_schedule(name, rate, total, warmup=warmup), total + 2)
    assert all(0 <= value <= rate * (1 + 1e-12) for value in seen)
    assert max(seen[:total]) == pytest.approx(rate)


def test_warmup_of_onecycle():
    schedule = make_schedule("onecycle", 0.5, 100, warmup=0.1)
    assert schedule(10) == 0.5 == max(values(schedule, 100))
    assert make_schedule("onecycle", 0.5, 100, warmup=0.0)(0) == 0.5
    assert make_schedule("onecycle", 0.5, 3, warmup=0.9)(3) == pytest.approx(2e-6)
    with pytest.raises(ValueError, match="warmup"):
        make_schedule("cosine", 0.5, 100, warmup=1.0)
