"""The report as a file: what is in it, what cannot get into it, and how large it may be."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zlib
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from fastcnn import CNNClassifier
from fastcnn.inspection import activations, grad_cam, write_report
from fastcnn.inspection.report.charts import Line, line_chart
from fastcnn.inspection.report.evidence import choose_images, look_at, walk
from fastcnn.inspection.report.png import DIVERGING, colored, data_uri, encode_png
from fastcnn.inspection.report.sections import confusion
from fastcnn.layers import BatchNorm, Conv2D, Dense, MaxPool2D, Residual, SiLU
from tests.inspection.networks import fitted


class Page(HTMLParser):
    """Elements, their attributes, and the text in each kind of them."""

    EMPTY = frozenset("meta link img br hr input".split())

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def written(tmp_path, clf, X, y, **options):
    n = write_report(tmp_path / "page.html", clf, X, y, **options)
    text = (tmp_path / "page.html").read_text("utf-8")
    page = Page(text)
    assert not page.open
    values = json.loads(re.search(r'<script type="application/json" id="values">(.*?)</script>', text, re.S)[1])
    return n, text, page, values


# ------------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.small
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (5, 7, 1), (4, 3, 3), (4, 3, 4), (300, 2)])
def test_png_is_what_pillow_reads(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    read = np.asarray(Image.open(io.BytesIO(encode_png(pixels))))
    np.testing.assert_array_equal(read, pixels[..., 0] if shape[2:] == (1,) else pixels)
    prefix, _, content = data_uri(pixels).partition(",")
    assert prefix == "data:image/png;base64" and base64.b64decode(content) == encode_png(pixels)


@pytest.mark.small
def test_colors():
    found = colored(np.array([-2.0, 0.0, 2.0, 9.0]), 2.0)
    assert ["#" + bytes(color).hex() for color in found.tolist()] == [DIVERGING[i] for i in (0, 5, 10, 10)]
    assert (colored(np.zeros(1), 0.0) == colored(np.zeros(1), 1.0)).all()


@pytest.mark.small
def test_line_chart():
    chart = line_chart("Loss & more", [Line("a<b", [3.0, 2.0, 1.0], "x"), Line("late", [1.5], "y")], 3, mark=2)
    Page(chart)
    lines = re.findall(r'<polyline points="([^"]*)"', chart)
    (first, second) = ([tuple(map(float, point.split(","))) for point in line.split()] for line in lines)
    assert len(first) == 3 and second[0][0] == first[2][0]  # the last epoch
    assert first[0][1] < first[1][1] < first[2][1] and first[1][1] < second[0][1] < first[2][1]
    assert "Loss &amp; more" in chart and "a&lt;b from 3 to 1" in chart and "a<b" not in chart
    assert "<polyline" in line_chart("flat", [Line("a", [2.0], "x")], 1)
    nothing = Line("unknown", [float("nan")] * 2, "y")
    assert line_chart("none", [nothing], 2) == ""
    assert line_chart("one", [Line("a", [2.0], "x"), nothing], 2) == line_chart("one", [Line("a", [2.0], "x")], 2)


# ------------------------------------------------------------------------------------------------------------- evidence


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_counted(channels):
    clf, X, y = fitted(channels)
    evidence = look_at(clf, X.reshape(len(X), -1), y)
    predicted = clf.predict(X)
    assert evidence.accuracy == clf.score(X, y)
    np.testing.assert_array_equal(evidence.confusion, confusion_matrix(y, predicted))
    expected = precision_recall_fscore_support(y, predicted, zero_division=0)
    found = [(score.precision, score.recall, score.f1, score.n_images) for score in evidence.scores]
    np.testing.assert_allclose(np.array(found).T, expected)
    assert evidence.images.shape == X.shape
    with pytest.raises(ValueError, match="the class 'bottom', which the model does not know"):
        look_at(clf, X[:1], ["bottom"])
    with pytest.raises(ValueError, match="got 2 and 1"):
        look_at(clf, X[:2], y[:1])


def test_which_images_are_chosen():
    clf, X, y = fitted(1)
    wrong = y.copy()
    wrong[:6] = np.roll(y[:6], 1)
    evidence = look_at(clf, X, wrong)
    right, mistakes = choose_images(evidence, 12)
    assert len(mistakes) == min(4, len(evidence.mistakes)) and not set(right) & set(mistakes)
    assert len(right) + len(mistakes) == 12
    assert (evidence.predicted[right] == evidence.y[right]).all()
    assert (evidence.predicted[mistakes] != evidence.y[mistakes]).all()
    confident = evidence.proba[mistakes].max(axis=1)
    assert (np.diff(confident) <= 0).all()
    right, mistakes = choose_images(evidence, 1)
    assert len(right) + len(mistakes) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_the_bytes_of_a_walk_are_the_activations(channels):
    clf, X, y = fitted(channels)
    chosen = [4, 11, 30]
    evidence = look_at(clf, X, y)
    walked = walk(clf, evidence, chosen, 4)
    values = walked.values
    everything = activations(clf, X[chosen])
    assert [step["kind"] for step in values["steps"]] == ["Conv2D", "ReLU", "MaxPool2D"] * 2 + ["Dense", "ReLU"]
    for k, image in enumerate(values["images"]):
        packed = np.frombuffer(zlib.decompress(base64.b64decode(image["bytes"])), np.uint8)
        np.testing.assert_array_equal(packed[: X[0].size], X[chosen[k]].ravel())
        at = X[0].size
        for step in values["steps"]:
            size = step["height"] * step["width"] * len(step["channels"])
            found = packed[at : at + size].astype(float).reshape(len(step["channels"]), step["height"], step["width"])
            found = (found - 128) / 127 * step["limit"] if step["signed"] else found / 255 * step["limit"]
            expected = everything[str(step["place"])][k]
            assert list(expected.shape) == step["shape"]
            expected = expected[..., step["channels"]].transpose(2, 0, 1) if expected.ndim == 3 else expected
            np.testing.assert_allclose(found.ravel(), expected.ravel(), atol=0.51 * step["limit"] / 127)
            at += size
        rows, columns = values["cam"]
        cam = packed[at : at + rows * columns].reshape(rows, columns)
        expected = grad_cam(clf, X[chosen[k] : chosen[k] + 1], evidence.predicted[chosen[k]])[0]
        np.testing.assert_allclose(cam / 255, expected / (expected.max() or 1), atol=0.002)
        assert len(packed) == at + 2 * rows * columns
        assert image["proba"] == pytest.approx(evidence.proba[chosen[k]], rel=1e-3, abs=1e-6)
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(walked.pictures[k].partition(",")[2])))),
            X[chosen[k]].squeeze(),
        )


LAYERS = {
    "strided": [Conv2D(4, 3, stride=2, padding=2, dilation=2, use_bias=False), BatchNorm(), SiLU(), MaxPool2D()],
    "grouped": [Conv2D(6, (2, 3), groups=3, activation="leaky_relu")],
    "residual": [Residual([Conv2D(3), SiLU()])],
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_convolution_worked_out_by_the_page_s_numbers(name):
    rng = np.random.default_rng(0)
    X, y = rng.normal(2, 3, (30, 9, 8, 3)), np.arange(30) % 2
    clf = CNNClassifier(layers=LAYERS[name], max_iter=1, random_state=0, dtype="float64").fit(X, y)
    values = walk(clf, look_at(clf, X, y), [5], 8).values
    conv, pixels, scaling = values["convolution"], values["pixels"], values["scaling"]
    packed = np.frombuffer(zlib.decompress(base64.b64decode(values["images"][0]["bytes"])), np.uint8)
    image = pixels["low"] + pixels["step"] * packed[: X[0].size].reshape(9, 8, 3)
    np.testing.assert_allclose(image, X[5], atol=0.51 * pixels["step"])
    x = (image - scaling["offset"]) / scaling["scale"]
    expected = activations(clf.network_, x[np.newaxis], conv["place"])[0]
    for filter_ in range(len(conv["weight"])):
        first = filter_ // conv["per_group"] * conv["channels"]
        weight = np.reshape(conv["weight"][filter_], (*conv["window"], conv["channels"]))
        for i, j in ((0, 0), (1, 2), (conv["output"][0] - 1, conv["output"][1] - 1)):
            value = conv["bias"][filter_]
            for r in range(conv["window"][0]):
                for s in range(conv["window"][1]):
                    row = i * conv["stride"][0] - conv["padding"][0] + r * conv["dilation"][0]
                    column = j * conv["stride"][1] - conv["padding"][1] + s * conv["dilation"][1]
                    if 0 <= row < 9 and 0 <= column < 8:
                        value += x[row, column, first : first + conv["channels"]] @ weight[r, s]
            if name == "grouped":  # the activation is the layer's own
                value = value if value > 0 else conv["after"][0]["alpha"] * value
            assert value == pytest.approx(expected[i, j, filter_], rel=1e-3, abs=1e-3)
    if name == "strided":
        norm, silu = conv["after"]
        assert norm["kind"] == "BatchNorm" and silu["kind"] == "silu"
        normed = activations(clf.network_, x[np.newaxis], 1)[0]
        np.testing.assert_allclose(expected * norm["scale"] + norm["shift"], normed, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize("channels", [1, 3])
def test_the_page(tmp_path, channels):
    clf, X, y = fitted(channels)
    n, text, page, values = written(tmp_path, clf, X, y, n_images=7, data="bars", model="m.safetensors")
    assert n == len(values["images"]) == 7
    radios = [attrs for tag, attrs in page.elements if attrs.get("role") == "radio"]
    assert [radio["aria-checked"] for radio in radios] == ["true"] + ["false"] * 6
    cells = [int(cell) for cell in re.findall(r'<td class="(?:hit|miss)[^>]*>([\d,]+)</td>', text)]
    np.testing.assert_array_equal(np.reshape(cells, (3, 3)), confusion_matrix(y, clf.predict(X)))
    assert f"{clf.network_.n_params:,}" in text and "m.safetensors" in text and "bars: 120 images" in text
    assert "conv_channels" in text and "(6, 4)" in text
    described = {attrs.get("aria-label", "") for tag, attrs in page.elements if tag == "svg"}
    assert any(name.startswith("Loss, 3 epochs: training from") for name in described)
    for tag, attrs in page.elements:
        if tag == "img":
            assert "alt" in attrs


def test_nothing_is_loaded_and_no_other_script_can_run(tmp_path):
    clf, X, y = fitted(1)
    _, text, page, _ = written(tmp_path, clf, X, y, n_images=3)
    for tag, attrs in page.elements:
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                assert value.startswith(("data:", "#"))
        assert tag not in ("iframe", "object", "embed", "base", "form")
    assert (
        "url(" not in text
        and "@import" not in text
        and "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    )
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"'><b>&amp;${title}</b>\u2028\ud800"]


def test_hostile_names(tmp_path):
    _, X, y = fitted(1)
    names = np.array(HOSTILE, dtype=object)[np.unique(y, return_inverse=True)[1]]
    clf = CNNClassifier(conv_channels=4, dense_units=4, max_iter=1, random_state=0).fit(X, names)
    n, text, page, values = written(
        tmp_path, clf, X, names, n_images=9, title="<script>1</script>", data="</title><b>", model='"><i>.safetensors'
    )
    assert n == 9
    assert sorted(values["classes"]) == sorted(HOSTILE)
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert not [attrs for tag, attrs in page.elements if attrs.get("src") == "x" or "onerror" in attrs]
    for name in HOSTILE[:2]:
        assert name not in text
    title = "".join(page.texts["title"])
    assert title.startswith("<script>1</script>")


def test_the_size_is_kept(tmp_path):
    clf, X, y = fitted(3)
    whole = write_report(tmp_path / "whole.html", clf, X, y, n_images=40)
    size = (tmp_path / "whole.html").stat().st_size
    write_report(tmp_path / "page.html", clf, X, y, n_images=1)
    alone = (tmp_path / "page.html").stat().st_size
    assert whole == 40 and alone < size < 3_000_000
    limit = (alone + size) // 2
    n = write_report(tmp_path / "less.html", clf, X, y, n_images=40, max_bytes=limit)
    assert 1 <= n < 40 and (tmp_path / "less.html").stat().st_size <= limit
    with pytest.raises(ValueError, match="bytes with one image, more than 1,000"):
        write_report(tmp_path / "none.html", clf, X, y, max_bytes=1000)
    assert not (tmp_path / "none.html").exists()
    with pytest.raises(ValueError, match="n_images must be 1 or more, got 0"):
        write_report(tmp_path / "none.html", clf, X, y, n_images=0)


def test_other_networks(tmp_path):
    """Dense layers only, floats, two channels, more classes than a matrix shows, no mistakes, no training."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 5, 4, 2)), np.arange(50) % 25
    clf = CNNClassifier(layers=[Dense(300, activation="tanh")], max_iter=1, random_state=0, scale=None).fit(X, y)
    clf._history.loss_curve.clear()
    clf._note_history()
    n, text, _, values = written(tmp_path, clf, X, y, n_images=4)
    assert n == 4 and values["convolution"] is None and values["cam"] is None
    assert "The 20 classes, of 25" in text and "has no convolutions" in text and "was not trained here" in text
    again = CNNClassifier(layers=[Conv2D(2, 11, padding=5)], max_iter=1, random_state=0).fit(X, y)
    _, text, _, values = written(tmp_path, again, X[:3], again.predict(X[:3]), n_images=4)
    assert values["convolution"]["window"] == [11, 11] and "There are none." in text


def test_shares_of_a_matrix_with_some_of_the_classes_are_of_all_images():
    """Class 0 is taken for 1 once, and three times for classes that are not shown."""
    matrix = np.zeros((24, 24), int)
    matrix[0, [1, 21, 22, 23]] = 1
    matrix[range(1, 19), range(2, 20)] = 5
    names = [f"class {k}" for k in range(24)]
    html = confusion(SimpleNamespace(names=names, confusion=matrix))
    assert "class 0 taken for class 1: 1, 25.0%" in html and "class 22" not in html


def test_large_maps_are_averaged(tmp_path):
    X, y = np.random.default_rng(0).integers(0, 256, (4, 100, 60, 1)).astype(np.uint8), [0, 1, 0, 1]
    clf = CNNClassifier(conv_channels=(8,), dense_units=4, max_iter=1, batch_size=2, random_state=0).fit(X, y)
    values = walk(clf, look_at(clf, X, y), [0], 8).values
    first = values["steps"][0]
    assert (first["height"], first["width"]) == (33, 20) and first["shape"] == [100, 60, 8]
    packed = np.frombuffer(zlib.decompress(base64.b64decode(values["images"][0]["bytes"])), np.uint8)
    found = (packed[6000 : 6000 + 660].astype(float) - 128) / 127 * first["limit"]
    maps = activations(clf, X[:1], 0)[0, :99, :60, first["channels"][0]]
    np.testing.assert_allclose(
        found, maps.reshape(33, 3, 20, 3).mean(axis=(1, 3)).ravel(), atol=0.51 * first["limit"] / 127
    )


def test_maps_of_few_rows_keep_them(tmp_path):
    X, y = np.random.default_rng(0).integers(0, 256, (4, 1, 120, 1)).astype(np.uint8), [0, 1, 0, 1]
    clf = CNNClassifier(layers=[Conv2D(3), MaxPool2D((1, 2))], max_iter=1, random_state=0).fit(X, y)
    _, _, _, values = written(tmp_path, clf, X, y)
    assert [(step["height"], step["width"]) for step in values["steps"]] == [(1, 40), (1, 30)]
