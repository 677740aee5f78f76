"""The network as a table."""

from __future__ import annotations

import pytest

from fastcnn.inspection import summarize
from fastcnn.layers import AvgPool2D, BatchNorm, Conv2D, Dense, Dropout, GlobalAvgPool2D

pytestmark = pytest.mark.small

LAYERS = [Conv2D(6, 3, use_bias=False), BatchNorm(), Conv2D(6, (5, 1), 2, groups=6), AvgPool2D(2), Dropout(), Dense(4)]


def test_numbers():
    summary = summarize(LAYERS, (8, 10, 2), {2: "smaller"})
    assert [layer.output_shape for layer in summary.layers] == [
        (8, 10, 2), (8, 10, 6), (8, 10, 6), (4, 5, 6), (2, 2, 6), (2, 2, 6), (4,),
    ]  # fmt: skip
    assert [layer.n_params for layer in summary.layers] == [0, 108, 12, 36, 0, 0, 100]
    assert [layer.multiply_adds for layer in summary.layers] == [0, 80 * 108, 0, 20 * 30, 0, 0, 96]
    assert (summary.n_params, summary.multiply_adds) == (256, 80 * 108 + 600 + 96)
    assert [layer.note for layer in summary.layers] == ["", "", "", "smaller", "", "", ""]


def test_text():
    lines = [line.split() for line in str(summarize(LAYERS, (8, 10, 2), {2: "smaller"})).splitlines()]
    assert lines[0] == ["layer", "output", "parameters", "multiply-adds"]
    assert lines[1] == ["images", "8x10x2"]
    assert lines[2] == ["0", "Conv2D(filters=6,", "use_bias=False)", "8x10x6", "108", "8,640"]
    assert lines[4][-1] == "smaller"
    assert lines[-1] == ["all", "256", "9,336"]


def test_html():
    html = summarize([GlobalAvgPool2D(), Dense(3)], (4, 4, 1), {0: "a < b"})._repr_html_()
    assert html.count("<tr>") == 5 and "a &lt; b" in html and "Dense(units=3)" in html
