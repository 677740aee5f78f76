"""Augmentation specs: what they accept and what they draw."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fastcnn.training.augment import RandomErasing, RandomHorizontalFlip, RandomShift, check_augment, draw

pytestmark = pytest.mark.small

nan = float("nan")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: RandomHorizontalFlip(p=1.5), "1.5"),
        (lambda: RandomHorizontalFlip(p=nan), "nan"),
        (lambda: RandomHorizontalFlip(p="half"), "half"),
        (lambda: RandomShift(-1), "-1"),
        (lambda: RandomShift(1.5), "1.5"),
        (lambda: RandomShift((1, 2, 3)), "3"),
        (lambda: RandomShift((1, -2)), "-2"),
        (lambda: RandomErasing(p=-0.1), "-0.1"),
        (lambda: RandomErasing(scale=(0.5, 0.2)), "scale"),
        (lambda: RandomErasing(scale=(0.0, 0.2)), "scale"),
        (lambda: RandomErasing(scale=(0.1, 1.2)), "scale"),
        (lambda: RandomErasing(scale=0.2), "scale"),
        (lambda: RandomErasing(ratio=(0.3, float("inf"))), "ratio"),
        (lambda: RandomErasing(ratio=(nan, 1)), "ratio"),
        (lambda: RandomErasing(ratio=("a", "b")), "ratio"),
    ],
)
def test_values_out_of_range_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_specs_are_values():
    specs = [RandomHorizontalFlip(0.3), RandomShift((1, 2)), RandomErasing()]
    assert pickle.loads(pickle.dumps(specs)) == specs
    assert hash(specs[1]) == hash(RandomShift((1, 2)))
    with pytest.raises(AttributeError):
        specs[0].p = 1.0


def test_check_augment():
    flip, shift, erasing = RandomHorizontalFlip(), RandomShift(), RandomErasing()
    assert check_augment(None) == check_augment([]) == ()
    assert check_augment(flip) == (flip,)
    assert check_augment([erasing, shift, flip]) == (flip, shift, erasing)
    for wrong, named in [([flip, flip], "2 times"), (["flip"], "'flip'"), ("flip", "'flip'"), (3, "3")]:
        with pytest.raises(ValueError, match=named):
            check_augment(wrong)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 30),
    st.floats(0.01, 1),
    st.floats(0.05, 20),
    st.integers(0),
)
def test_draws_stay_inside(height, width, m, share, ratio, seed):
    augment = check_augment(
        [RandomHorizontalFlip(), RandomShift((3, 0)), RandomErasing(1.0, (0.01, share), (0.05, ratio))]
    )
    draws = draw(augment, np.random.default_rng(seed), m, height, width)
    assert set(np.unique(draws.flip)) <= {0, 1}
    assert np.all(np.abs(draws.shift[:, 0]) <= 3) and np.all(draws.shift[:, 1] == 0)
    top, left, rows, columns = draws.erase.T
    assert np.all((rows >= 1) & (columns >= 1) & (top >= 0) & (left >= 0))
    assert np.all((top + rows <= height) & (left + columns <= width))


def test_probabilities_and_coverage():
    rng = np.random.default_rng(0)
    draws = draw(check_augment([RandomHorizontalFlip(0.25), RandomShift(2), RandomErasing(0.5)]), rng, 20000, 28, 28)
    assert abs(draws.flip.mean() - 0.25) < 0.02
    assert_array_equal(np.unique(draws.shift), [-2, -1, 0, 1, 2])
    erased = draws.erase[draws.erase[:, 2] > 0]
    assert abs(len(erased) / 20000 - 0.5) < 0.02
    area = erased[:, 2] * erased[:, 3] / 28**2
    assert 0.01 < area.min() and area.max() < 0.25 and abs(area.mean() - 0.11) < 0.01
    for p in (0, 1):
        assert_array_equal(draw(check_augment(RandomHorizontalFlip(p)), rng, 50, 4, 4).flip, p)
