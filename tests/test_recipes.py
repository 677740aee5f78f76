"""The recipes: what they are made of, and that they learn images of other kinds too."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone

from fastcnn import CNNClassifier
from fastcnn.datasets import load_idx_folder, load_image_folder
from fastcnn.engine.network import Network
from fastcnn.layers import Conv2D, Dense, Flatten
from fastcnn.recipes import RECIPES, balanced, best, fast
from fastcnn.training.augment import RandomErasing, RandomHorizontalFlip, RandomShift


def n_params(recipe, image_shape):
    return Network([*recipe().layers, Dense(10)], image_shape).n_params


@pytest.mark.small
def test_sizes_are_those_that_are_told():
    sizes = {name: n_params(recipe, (28, 28, 1)) for name, recipe in RECIPES.items()}
    assert sizes["fast"] <= 120_000 and sizes["balanced"] <= 500_000
    for name, size in sizes.items():
        assert f"{size:,} parameters" in RECIPES[name].__doc__


@pytest.mark.small
@pytest.mark.parametrize("recipe", RECIPES.values())
def test_parameters_take_the_place_of_the_recipes(recipe):
    clf = recipe(random_state=7, max_iter=3)
    assert isinstance(clf, CNNClassifier) and (clf.random_state, clf.max_iter) == (7, 3)
    asked = recipe().get_params()
    assert {k for k, v in clf.get_params().items() if v != asked[k]} == {"random_state", "max_iter"}
    assert clone(clf).get_params() == clf.get_params()
    assert recipe(layers=[Flatten()]).layers == [Flatten()]
    assert recipe(layers=None, conv_channels=8).conv_channels == 8
    with pytest.raises(TypeError, match="conv_channels would do nothing beside the recipe's layers"):
        recipe(conv_channels=8)
    with pytest.raises(TypeError, match="no_such"):
        recipe(no_such=1)


@pytest.mark.small
@pytest.mark.parametrize("recipe", RECIPES.values())
def test_prediction_is_a_mean_over_what_training_does(recipe):
    assert recipe().tta == ("flip+shift" if recipe is best else "flip")
    assert recipe(augment=[RandomShift(1)]).tta == "shift"
    assert recipe(augment=None).tta is recipe(augment=RandomErasing()).tta is None
    assert recipe(augment=RandomHorizontalFlip()).tta == "flip"
    assert recipe(augment=[RandomHorizontalFlip(), RandomShift(1)]).tta == "flip+shift"
    assert recipe(tta=None).tta is None and recipe(augment=None, tta="flip").tta == "flip"
    with pytest.raises(ValueError, match="augment must"):
        recipe(augment="flip")


@pytest.mark.small
def test_each_call_gives_lists_of_its_own():
    fast().layers.append(Conv2D(4))
    fast().augment.clear()
    assert fast().layers[-1] != Conv2D(4) and fast().augment


def stripes(n, shape, seed=0):
    """Images with bright rows (class 0) or columns (class 1) and noise; labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    X = rng.integers(0, 80, (n, *shape))
    X[y == 0, ::4] += 150
    X[y == 1, :, ::4] += 150
    return X.astype(np.uint8), y


@pytest.mark.parametrize("recipe", [fast, balanced, best])
@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3), (8, 8), (20, 45, 4)])
def test_learn_images_of_any_kind(recipe, shape):
    X, y = stripes(96, shape)
    clf = recipe(batch_size=16, max_iter=8, random_state=0).fit(X, y)
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]
    assert clf.score(*stripes(40, shape, seed=1)) > 0.9


def test_folders_of_the_mnist_family_and_of_colour_pictures(tmp_path):
    from PIL import Image

    X, y = stripes(64, (28, 28))
    idx = tmp_path / "idx"
    idx.mkdir()
    for name, array in (("images-idx3", X), ("labels-idx1", y.astype(np.uint8))):
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        (idx / f"train-{name}-ubyte").write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
    grey = load_idx_folder(idx, "train")

    for i, (image, label) in enumerate(zip(*stripes(64, (32, 32, 3)), strict=True)):
        folder = tmp_path / "pictures" / ("rows", "columns")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    colour = load_image_folder(tmp_path / "pictures")
    assert colour[0].shape == (64, 32, 32, 3)

    for X, y in (grey, colour):
        assert fast(batch_size=16, max_iter=4, random_state=0).fit(X, y).score(X, y) > 0.9
