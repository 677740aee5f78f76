"""The layers as SVG: well-formed, everything inside the picture, nothing on top of anything else."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from fastcnn.inspection import draw, summarize
from fastcnn.layers import Conv2D, Dense, Dropout, Flatten, GlobalAvgPool2D, MaxPool2D, ReLU

pytestmark = pytest.mark.small

SVG = "{http://www.w3.org/2000/svg}"
NETWORKS = {
    "usual": ([Conv2D(32), ReLU(), MaxPool2D(), Conv2D(64), ReLU(), MaxPool2D(), Dropout(), Dense(10)], (28, 28, 1)),
    "flat": ([Conv2D(4, (1, 3)), ReLU(), Dense(1)], (1, 30, 1)),
    "one value": ([Dense(2)], (1, 1, 1)),
    "large": ([Conv2D(512, 7, 4), GlobalAvgPool2D(), Dense(4096), Dense(1000)], (500, 300, 3)),
    "flattened": ([Flatten(), Dense(3)], (6, 6, 2)),
    "nothing": ([], (6, 6, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_drawing(name):
    layers, shape = NETWORKS[name]
    picture = ET.fromstring(draw(summarize(layers, shape)))
    width, height = float(picture.get("width")), float(picture.get("height"))
    end = 0.0
    for group in picture.iter(f"{SVG}g"):
        left = float(group.get("transform").removeprefix("translate(").split()[0])
        rects = group.findall(f"{SVG}rect")
        assert left >= end and rects
        for rect in rects:
            x, y, w, h = (float(rect.get(key)) for key in ("x", "y", "width", "height"))
            assert y >= 0 and y + h <= 160 and w >= 4 and h >= 4  # the texts begin below
            end = max(end, left + x + w)
    assert end <= width and all(float(text.get("y")) < height for text in picture.iter(f"{SVG}text"))


def test_what_is_drawn():
    layers, shape = NETWORKS["usual"]
    picture = ET.fromstring(draw(summarize(layers, shape, {2: "pooling 3x3 -> 2x2"})))
    titles = [title.text for title in picture.iter(f"{SVG}title")]
    assert titles == [
        "images: 28x28x1",
        "Conv2D(filters=32): 28x28x32, 320 parameters",
        "MaxPool2D(): 14x14x32 (pooling 3x3 -> 2x2)",
        "Conv2D(filters=64): 14x14x64, 18,496 parameters",
        "MaxPool2D(): 7x7x64",
        "Dense(units=10): 10, 31,370 parameters",
    ]
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert texts.count("ReLU") == 2 and texts.count("Dropout") == 1 and texts[0] == "28x28x1"
