"""The network as a table."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from fastcnn import Network
from fastcnn.inspection import summarize
from fastcnn.layers import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    MaxPool2D,
    ReLU,
    Residual,
)  # fmt: skip
from tests.inspection.networks import CHAINS, network

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


@pytest.mark.parametrize("name", CHAINS)
def test_parameters_are_those_that_the_network_trains(name):
    net = network(name, 1)
    assert summarize(net.layers, (6, 6, 1)).n_params == net.n_params


def test_text():
    lines = [line.split() for line in str(summarize(LAYERS, (8, 10, 2), {2: "smaller"})).splitlines()]
    assert lines[0] == ["layer", "output", "parameters", "multiply-adds", "memory", "kernel", "note"]
    assert lines[1] == ["images", "8x10x2", "640", "B"]
    assert lines[2] == ["0", "Conv2D(filters=6,", "use_bias=False)", "8x10x6", "108", "8,640", "conv2d+batchnorm"]
    assert lines[3] == ["1", "BatchNorm()", "8x10x6", "12", "1.9", "kB", "with", "0"]
    assert lines[4][-1] == "smaller"
    assert lines[-1] == ["all", "256", "9,336", "3.2", "kB"]
    assert "note" not in str(summarize(LAYERS, (8, 10, 2)))


def test_layers_within_layers_are_short_too():
    residual = Residual([Conv2D(4), ReLU()], skip=[Conv2D(4, 1)])
    name = summarize([residual], (4, 4, 1)).layers[1].name
    assert name == "Residual(layers=[Conv2D(filters=4), ReLU()], skip=[Conv2D(filters=4, kernel_size=1)])"


def test_memory_and_kernels():
    layers = [Conv2D(4), ReLU(), MaxPool2D(), Dropout(), Residual([Conv2D(4), ReLU()]), ReLU(), Flatten(), Dense(3)]
    rows = summarize(layers, (8, 8, 1), dtype="float64").layers
    assert [row.kernel for row in rows] == [
        "", "conv2d+bias+relu+maxpool2d", "with 0", "with 0", "", "2 kernels", "with 4", "", "dense+bias",
    ]  # fmt: skip
    assert [row.memory for row in rows] == [512, 0, 0, 512, 0, 512, 512, 0, 24]
    net = Network(layers, (8, 8, 1), fuse=False)
    of_each = summarize(layers, (8, 8, 1), kernels=net.kernels()).layers
    assert [row.kernel for row in of_each][1:4] == ["2 kernels", "relu", "maxpool2d"]


def test_the_algorithm_is_the_plan_s():
    net = Network([Conv2D(64), Dense(2)], (32, 32, 64))
    (conv, how), *_ = net.kernels(8)
    net.forward(np.zeros((8, 32, 32, 64)))
    assert how == net.plan.forward_steps[0].how and "winograd" in how
    row = summarize(net.layers, (32, 32, 64), kernels=net.kernels()).layers[1]
    assert row.kernel.startswith(f"{conv.label}, winograd")
    assert Network([Conv2D(64)], (32, 32, 64), winograd=False).kernels()[0][1] == "direct"


def test_rich():
    console = Console(file=io.StringIO(), width=140)
    console.print(summarize([Dense(3)], (4, 4, 1), {0: "[bold]not markup[/bold]"}))
    shown = console.file.getvalue()
    assert "[bold]not markup[/bold]" in shown and "dense+bias" in shown and "51" in shown


def test_html():
    html = summarize([GlobalAvgPool2D(), Dense(3)], (4, 4, 1), {0: "a < b"})._repr_html_()
    assert html.count("<tr>") == 5 and "a &lt; b" in html and "Dense(units=3)" in html
