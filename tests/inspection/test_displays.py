"""Each display draws what it was given: shapes, labels, values."""

from __future__ import annotations

import sys
from copy import copy

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import confusion_matrix

from fastcnn import CNNClassifier, Network
from fastcnn.inspection import (
    ArchitectureDisplay,
    ConfusionDisplay,
    FeatureMapsDisplay,
    FiltersDisplay,
    LearningCurvesDisplay,
    PredictionsDisplay,
    SaliencyDisplay,
    activations,
    grad_cam,
    gradient_saliency,
    occlusion,
    summarize,
)
from fastcnn.inspection.displays.predictions import worst_mistakes
from fastcnn.inspection.report.sections import learning
from fastcnn.layers import Conv2D, Dense, Residual
from tests.inspection.networks import fitted

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def drawn(figure):
    figure.canvas.draw()
    return figure


def pixels(panel):
    return np.asarray(panel.images[0].get_array())


# --------------------------------------------------------------------------------------------------------------- curves


def test_learning_curves_of_a_classifier():
    clf, *_ = fitted(1)
    display = LearningCurvesDisplay.from_estimator(clf)
    drawn(display.figure_)
    assert [panel.get_title() for panel in display.axes_] == ["loss", "score", "learning rate"]
    curves = {
        "training loss": clf.loss_curve_,
        "validation loss": clf.validation_loss_curve_,
        "training score": clf.training_scores_,
        "validation score": clf.validation_scores_,
        "learning rate": clf.learning_rates_,
    }
    assert set(display.lines_) == set(curves)
    for name, values in curves.items():
        np.testing.assert_array_equal(display.lines_[name].get_xdata(), [1, 2, 3])
        np.testing.assert_array_equal(display.lines_[name].get_ydata(), values)
    for one in "loss", "score":
        styles = {display.lines_[f"{which} {one}"].get_linestyle() for which in ("training", "validation")}
        assert len(styles) == 2


def test_learning_curves_keep_epochs_in_their_places():
    clf, X, y = fitted(1)
    clf = clone(clf).set_params(max_iter=3).fit(X, y, X_val=X, y_val=y).partial_fit(X, y)
    clf.set_params(warm_start=True, max_iter=1).fit(X, y, X_val=X, y_val=y)
    assert np.isfinite(clf.validation_scores_).tolist() == [True, True, True, False, True]
    display = LearningCurvesDisplay.from_estimator(clf)
    np.testing.assert_array_equal(display.lines_["validation loss"].get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(display.lines_["validation loss"].get_ydata(), clf.validation_loss_curve_)
    chart = learning(clf)
    assert "nan" not in chart
    assert [group.count("<circle") for group in chart.split("<svg")[1].split("<g ")[1:]] == [5, 4]


@pytest.mark.parametrize("early_stopping", [False, True])
def test_the_best_epoch_is_that_of_validation(early_stopping):
    clf, X, y = fitted(1)
    clf = clone(clf).set_params(max_iter=2, early_stopping=early_stopping).fit(X, y, X_val=X, y_val=y)
    display = LearningCurvesDisplay.from_estimator(clf)
    assert display.best_iter == (clf.best_iter_ if early_stopping else None)
    assert ("best epoch" in learning(clf)) == early_stopping
    clf.partial_fit(X, y)  # validates nothing: its epoch is not the best one by validation
    clf.best_iter_ = clf.n_iter_
    assert LearningCurvesDisplay.from_estimator(clf).best_iter is None


def test_learning_curves_where_validation_came_later():
    _, axes = plt.subplots(1, 2)
    display = LearningCurvesDisplay([3.0, 2.0, 1.0], [2.5], validation_scores=[0.5]).plot(ax=axes)
    assert list(display.axes_) == list(axes)
    np.testing.assert_array_equal(display.lines_["validation loss"].get_xdata(), [3])
    only = LearningCurvesDisplay([1.0]).plot()
    assert len(only.axes_) == 1
    with pytest.raises(ValueError, match="expected 2 axes"):
        display.plot(ax=np.array([axes[0]]))


# -------------------------------------------------------------------------------------------------------- filters, maps


@pytest.mark.parametrize("channels", [1, 3])
def test_filters(channels):
    clf, *_ = fitted(channels)
    weight = clf.network_.params["0.weight"]
    display = FiltersDisplay.from_estimator(clf)
    drawn(display.figure_)
    shown = [panel for panel in display.axes_.flat if panel.axison]
    assert len(shown) == 6 == weight.shape[3]
    limit = np.abs(weight).max()
    for k, panel in enumerate(shown):
        if channels == 1:
            np.testing.assert_allclose(pixels(panel), weight[..., 0, k])
            assert panel.images[0].get_clim() == pytest.approx((-limit, limit))
        else:
            np.testing.assert_allclose(pixels(panel), 0.5 + weight[..., k] / (2 * limit))


def test_filters_of_many_channels():
    clf, *_ = fitted(1)
    weight = clf.network_.params["3.weight"]  # (3, 3, 6, 4)
    display = FiltersDisplay.from_estimator(clf, 3, max_filters=3, max_channels=5)
    assert display.axes_.shape == (3, 5)
    np.testing.assert_array_equal(pixels(display.axes_[2, 4]), weight[:, :, 4, 2])
    net = Network([Residual([Conv2D(1)]), Dense(2)], (4, 4, 1), random_state=0)
    np.testing.assert_array_equal(FiltersDisplay.from_estimator(net).weight, net.params["0.layers.0.weight"])
    with pytest.raises(ValueError, match=r"layer '1' is no convolution: expected one of 0\.layers\.0"):
        FiltersDisplay.from_estimator(net, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_feature_maps(channels):
    clf, X, _ = fitted(channels)
    display = FeatureMapsDisplay.from_estimator(clf, X[7], max_maps=4)
    drawn(display.figure_)
    n_layers = len(clf.network_.layers)
    assert display.axes_.shape == (1 + n_layers, 4)
    first = display.axes_[0, 0]
    np.testing.assert_allclose(pixels(first), X[7, :, :, 0] / 255 if channels == 1 else X[7] / 255)
    assert first.get_ylabel() == f"image\n8x8x{channels}"
    everything = activations(clf, X[7:8])
    for i in range(n_layers):
        row, values = display.axes_[1 + i], everything[str(i)][0]
        name = type(clf.network_.layers[i]).__name__
        assert row[0].get_ylabel() == f"{i} {name}\n" + "x".join(map(str, values.shape))
        if values.ndim == 3:
            np.testing.assert_allclose(pixels(row[3]), values[..., 3], rtol=1e-6)
        else:
            np.testing.assert_allclose([bar.get_height() for bar in row[0].patches], values, rtol=1e-6)
            assert row[0].get_position().width > display.axes_[1, 0].get_position().width
    assert display.axes_[1, 0].images[0].get_cmap().name != display.axes_[2, 0].images[0].get_cmap().name


def test_feature_maps_of_some_layers():
    net = Network([Residual([Conv2D(2)], skip=[Conv2D(2, 1)]), Dense(2)], (4, 4, 1), random_state=0)
    x = np.ones((1, 4, 4, 1))
    display = FeatureMapsDisplay.from_estimator(net, x, layers=["0.skip.0", -1], max_maps=2)
    assert [row[0].get_ylabel() for row in display.axes_[1:]] == ["0.skip.0 Conv2D\n4x4x2", "1 Dense\n2"]
    np.testing.assert_array_equal(pixels(display.axes_[1, 1]), activations(net, x, "0.skip.0")[0, ..., 1])
    with pytest.raises(ValueError, match="there is no layer 2"):
        FeatureMapsDisplay.from_estimator(net, x, layers=[2])
    with pytest.raises(ValueError, match=r"X must be one image of shape \(4, 4, 1\), got shape \(2, 4, 4, 1\)"):
        FeatureMapsDisplay.from_estimator(net, np.ones((2, 4, 4, 1)))


# ------------------------------------------------------------------------------------------------ saliency, predictions


@pytest.mark.parametrize("channels", [1, 3])
def test_saliency(channels):
    clf, X, _ = fitted(channels)
    display = SaliencyDisplay.from_estimator(clf, X[:2], target="top")
    drawn(display.figure_)
    assert display.axes_.shape == (2, 4)
    assert [panel.get_title() for panel in display.axes_[0, 1:]] == ["gradient", "Grad-CAM", "occlusion"]
    assert [row[0].get_ylabel() for row in display.axes_] == ["top", "top"]
    target = int(np.searchsorted(clf.classes_, "top"))
    for name, function in (("gradient", gradient_saliency), ("grad_cam", grad_cam), ("occlusion", occlusion)):
        np.testing.assert_allclose(display.maps[name], function(clf, X[:2], target), rtol=1e-5, atol=1e-6)
    for panel in display.axes_[:, 1:].flat:
        assert panel.images[1].get_array().shape == (8, 8)
    np.testing.assert_allclose(display.axes_[1, 1].images[1].get_array(), display.maps["gradient"][1])


def test_saliency_of_what_is_predicted():
    clf, X, _ = fitted(1)
    display = SaliencyDisplay.from_estimator(clf, X[:3], method="gradient")
    assert display.titles == clf.predict(X[:3]).tolist()
    over_views = copy(clf).set_params(tta="shift")
    noise = np.random.default_rng(0).integers(0, 256, (2000, 8, 8, 1), np.uint8)
    some = noise[over_views.predict(noise) != clf.predict(noise)][:3]
    assert len(some)
    shown = SaliencyDisplay.from_estimator(over_views, some, method="gradient")
    assert shown.titles == over_views.predict(some).tolist()
    net = SaliencyDisplay.from_estimator(clf.network_, clf.network_input(X[:3]), method="gradient")
    np.testing.assert_array_equal(net.maps["gradient"], display.maps["gradient"])
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        SaliencyDisplay.from_estimator(clf, X[:1], method="magic")
    with pytest.raises(ValueError, match=r"target has labels that are not among the classes .*'bottom'"):
        SaliencyDisplay.from_estimator(clf, X[:1], target="bottom")


def test_saliency_of_a_data_frame():
    clf, X, y = fitted(1)
    frame = pd.DataFrame(X.reshape(len(X), -1), columns=[f"pixel {i}" for i in range(64)])
    named = clone(clf).set_params(max_iter=1).fit(frame, y)
    display = SaliencyDisplay.from_estimator(named, frame.iloc[:3], method="gradient")
    assert display.titles == named.predict(frame.iloc[:3]).tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_predictions(channels):
    clf, X, y = fitted(channels)
    wrong_y = y.copy()
    wrong_y[1] = "left"  # it is "right"
    display = PredictionsDisplay.from_estimator(clf, X, wrong_y, max_images=4, top=2)
    drawn(display.figure_)
    proba = clf.predict_proba(X[:4])
    images = [panel for panel in display.axes_.flat if panel.images]
    bars = [panel for panel in display.axes_.flat if panel.patches and not panel.images]
    assert len(images) == len(bars) == 4
    for n, (above, below) in enumerate(zip(images, bars, strict=True)):
        np.testing.assert_allclose(pixels(above), X[n, ..., 0] / 255 if channels == 1 else X[n] / 255)
        best = np.argsort(-proba[n])[:2]
        np.testing.assert_allclose([bar.get_width() for bar in below.patches], proba[n, best])
        assert [text.get_text() for text in below.texts] == [f"{clf.classes_[k]} {proba[n, k]:.2f}" for k in best]
        right = clf.classes_[best[0]] == wrong_y[n]
        assert above.get_title() == (wrong_y[n] if right else f"is {wrong_y[n]}")


def test_the_most_confident_mistakes():
    proba = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    y = np.array(["b", "b", "a", "b"])
    np.testing.assert_array_equal(worst_mistakes(proba, np.array([1, 1, 0, 1])), [0, 2, 1])
    images = np.arange(4)[:, np.newaxis, np.newaxis] * np.ones((4, 2, 2))
    display = PredictionsDisplay.from_predictions(images, proba, y, classes=["a", "b"], mistakes=True, max_images=2)
    np.testing.assert_array_equal(display.images[:, 0, 0, 0], [0, 2])
    np.testing.assert_array_equal(display.y, ["b", "a"])
    with pytest.raises(ValueError, match="mistakes=True needs y"):
        PredictionsDisplay.from_predictions(images, proba, mistakes=True)
    with pytest.raises(ValueError, match="no mistakes"):
        PredictionsDisplay.from_predictions(images, proba, [0, 0, 1, 1], mistakes=True)
    with pytest.raises(ValueError, match=r"y has labels that are not among the classes \['a' 'b'\]: \['c'\]"):
        PredictionsDisplay.from_predictions(images, proba, list("abca"), classes=["a", "b"], mistakes=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_confusion(channels):
    clf, X, y = fitted(channels)
    display = ConfusionDisplay.from_estimator(clf, X, y)
    drawn(display.figure_)
    np.testing.assert_array_equal(display.confusion_matrix, confusion_matrix(y, clf.predict(X)))
    assert [text.get_text() for text in display.ax_.get_xticklabels()] == ["left", "right", "top"]
    assert display.im_.get_cmap().name == "cividis"
    again = ConfusionDisplay.from_predictions(y, clf.predict(X), normalize="true", cmap="viridis")
    np.testing.assert_allclose(again.confusion_matrix.sum(axis=1), 1)
    assert again.im_.get_cmap().name == "viridis"


# --------------------------------------------------------------------------------------------------------- architecture


def test_architecture():
    clf, *_ = fitted(3)
    display = ArchitectureDisplay.from_estimator(clf)
    drawn(display.figure_)
    texts = [text.get_text() for text in display.ax_.texts if text.get_text()]
    assert texts[:2] == ["8x8x3", "images"] and texts.count("Conv2D") == 2 and "Dropout" in texts
    assert len(display.ax_.patches) == 3 + 6 + 6 + 4 + 4 + 1 + 1  # sheets of each stack, and columns
    again = ArchitectureDisplay(summarize([Dense(2)], (4, 4, 1))).plot(ax=plt.subplots()[1])
    assert again.ax_.figure is again.figure_


# ----------------------------------------------------------------------------------------------------------- matplotlib


def test_one_axes_is_divided():
    clf, X, y = fitted(1)
    figure, axes = plt.subplots(1, 4, figsize=(16, 4))
    displays = [
        LearningCurvesDisplay.from_estimator(clf, ax=axes[0]),
        FiltersDisplay.from_estimator(clf, ax=axes[1]),
        FeatureMapsDisplay.from_estimator(clf, X[0], ax=axes[2]),
        PredictionsDisplay.from_estimator(clf, X, y, ax=axes[3]),
    ]
    drawn(figure)
    for outer, display in zip(axes, displays, strict=True):
        assert display.figure_ is figure and not outer.axison
        room = outer.get_position()
        for panel in np.ravel(display.axes_):
            place = panel.get_position()
            assert room.x0 - 1e-6 <= place.x0 and place.x1 <= room.x1 + 1e-6
    free = figure.add_axes((0, 0, 0.1, 0.1))
    with pytest.raises(ValueError, match="ax must be axes of a grid"):
        FiltersDisplay.from_estimator(clf, ax=free)


def test_without_matplotlib(monkeypatch):
    clf, X, y = fitted(1)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    for draw in (
        lambda: LearningCurvesDisplay.from_estimator(clf),
        lambda: FiltersDisplay.from_estimator(clf),
        lambda: FeatureMapsDisplay.from_estimator(clf, X[0]),
        lambda: SaliencyDisplay.from_estimator(clf, X[:1], method="gradient"),
        lambda: PredictionsDisplay.from_estimator(clf, X[:1]),
        lambda: ArchitectureDisplay.from_estimator(clf),
        lambda: ConfusionDisplay.from_estimator(clf, X, y),
    ):
        with pytest.raises(ImportError, match="pip install matplotlib"):
            draw()


def test_not_fitted():
    X = np.zeros((1, 8, 8))
    for draw in (
        lambda: LearningCurvesDisplay.from_estimator(CNNClassifier()),
        lambda: FiltersDisplay.from_estimator(CNNClassifier()),
        lambda: SaliencyDisplay.from_estimator(CNNClassifier(), X),
        lambda: PredictionsDisplay.from_estimator(CNNClassifier(), X),
        lambda: ArchitectureDisplay.from_estimator(CNNClassifier()),
    ):
        with pytest.raises(NotFittedError):
            draw()
