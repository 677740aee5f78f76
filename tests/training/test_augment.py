"""Augmentation specs: what they accept and what they draw."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fastcnn.training.augment import (
    Cutout,
    MixUp,
    RandomAffine,
    RandomBrightness,
    RandomContrast,
    RandomErasing,
    RandomHorizontalFlip,
    RandomShift,
    check_augment,
    draw,
)

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
        (lambda: RandomAffine(rotation=-1), "rotation"),
        (lambda: RandomAffine(shear=90), "shear"),
        (lambda: RandomAffine(scale=(1.1, 0.9)), "scale"),
        (lambda: RandomAffine(scale=0.1), "scale"),
        (lambda: RandomAffine(p=2), "p must"),
        (lambda: Cutout(0), "size"),
        (lambda: Cutout(2.5), "2.5"),
        (lambda: RandomContrast(1.5), "max_change"),
        (lambda: RandomBrightness("much"), "much"),
        (lambda: MixUp(0), "alpha"),
        (lambda: MixUp(float("inf")), "alpha"),
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
    for wrong, named in [
        ([erasing, Cutout()], "one rectangle"),
        ([flip, flip], "2 times"),
        (["flip"], "'flip'"),
        ("flip", "'flip'"),
        (3, "3"),
    ]:
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


def drawn(item, m=20000, height=28, width=20):
    return draw(check_augment(item), np.random.default_rng(0), m, height, width)


def test_affine_draws():
    warp = drawn(RandomAffine(rotation=30, scale=(0.5, 2.0), p=0.75)).warp
    changed = warp[~np.all(warp == np.eye(2), axis=(1, 2))]
    assert abs(len(changed) / len(warp) - 0.75) < 0.02
    factor = np.sqrt(np.linalg.det(changed))
    assert 0.5 <= factor.min() < 0.52 and 1.95 < factor.max() <= 2.0 and abs(np.log(factor).mean()) < 0.02
    angle = np.degrees(np.arctan2(changed[:, 1, 0], changed[:, 0, 0]))
    assert -30 <= angle.min() < -29 and 29 < angle.max() <= 30
    slanted = drawn(RandomAffine(rotation=0, scale=(1, 1), shear=45)).warp
    assert_array_equal(slanted[:, 0], np.tile([1.0, 0.0], (20000, 1)))  # rows stay rows
    assert_array_equal(slanted[:, 1, 1], 1.0)
    assert -1 <= slanted[:, 1, 0].min() < -0.98 and 0.98 < slanted[:, 1, 0].max() <= 1


def test_cutout_draws():
    erase = drawn(Cutout(6, p=0.5)).erase
    cut = erase[erase[:, 2] > 0]
    assert abs(len(cut) / 20000 - 0.5) < 0.02
    assert_array_equal(cut[:, 2:], 6)
    assert (cut[:, 0].min(), cut[:, 0].max()) == (-3, 24) and (cut[:, 1].min(), cut[:, 1].max()) == (-3, 16)


def test_light_and_mixing_draws():
    draws = drawn([RandomContrast(0.3), RandomBrightness(0.1), MixUp(0.4)])
    assert 0.7 <= draws.contrast.min() < 0.71 and 1.29 < draws.contrast.max() <= 1.3
    assert -0.1 <= draws.brightness.min() < -0.099 and 0.099 < draws.brightness.max() <= 0.1
    assert_array_equal(np.sort(draws.partner), np.arange(20000))
    assert abs(draws.share.mean() - 0.5) < 0.01 and draws.share.std() > 0.3
