"""A network as a table: each layer's output, parameters and work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from math import prod
from typing import Any, NamedTuple

import numpy as np

from fastcnn.engine.fusion import fuse_ops
from fastcnn.engine.ops import ConvGeometry, Group, Op, Shape
from fastcnn.engine.parameters import RUNNING_STATISTICS
from fastcnn.kernels import contract
from fastcnn.layers import Layer

__all__ = ["LayerSummary", "Summary", "bytes_text", "shape_text", "short_name", "summarize"]

_ALIGN = "><>>>><<"  # of the columns
_NOTHING = {"flatten", "dropout", "spatial_dropout", "fork", "swap"}  # ops without work in inference


class LayerSummary(NamedTuple):
    """One line of a `Summary`.

    Parameters
    ----------
    place : int or None
        In the list of layers; None for the input.
    name : str
        The layer, with those of its fields that are not at their defaults.
    output_shape : tuple of int
        Of one image.
    n_params : int
        Trained parameters; running statistics do not count.
    multiply_adds : int
        Of convolutions and dense layers, for one image, forward.
    note : str
        What differs from what was asked for.
    memory : int, default=0
        Bytes of its output for one image; 0 where a kernel keeps that in registers.
    kernel : str, default=""
        The ops that one kernel computes in inference, and how; of the layers after the first "with N".
    """

    place: int | None
    name: str
    output_shape: Shape
    n_params: int
    multiply_adds: int
    note: str
    memory: int = 0
    kernel: str = ""


@dataclass(frozen=True)
class Summary:
    """What `CNNClassifier.summary` gives: shown as a table in a terminal and in a notebook.

    Parameters
    ----------
    layers : tuple of LayerSummary
        The input, then each layer.
    """

    layers: tuple[LayerSummary, ...]

    @property
    def n_params(self) -> int:
        """Trained parameters of all layers."""
        return sum(layer.n_params for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all layers for one image, forward. A training step takes about three times as many."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def memory(self) -> int:
        """Bytes of all outputs that are stored for one image in inference."""
        return sum(layer.memory for layer in self.layers)

    def __str__(self) -> str:
        header, *rows = self._cells()
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = []
        for row in (header, *rows):
            cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, _ALIGN, widths, strict=False)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    __repr__ = __str__

    def __rich__(self) -> Any:
        """The table of the package rich, for its consoles."""
        from rich.table import Table
        from rich.text import Text

        header, *rows = self._cells()
        table = Table()
        for name, side in zip(header, _ALIGN, strict=False):
            table.add_column(name, justify="left" if side == "<" else "right", overflow="fold")
        for number, row in enumerate(rows):
            table.add_row(*map(Text, row), end_section=number == len(rows) - 2)
        return table

    def _repr_html_(self) -> str:
        header, *rows = self._cells()
        align = ["left" if side == "<" else "right" for side in _ALIGN]

        def line(tag: str, row: Sequence[str]) -> str:
            cells = (
                f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>'
                for cell, side in zip(row, align, strict=False)
            )
            return f"<tr>{''.join(cells)}</tr>"

        body = "".join(line("td", row) for row in rows)
        return f"<table><thead>{line('th', header)}</thead><tbody>{body}</tbody></table>"

    def _cells(self) -> list[tuple[str, ...]]:
        table: list[tuple[str, ...]] = [
            ("", "layer", "output", "parameters", "multiply-adds", "memory", "kernel", "note")
        ]
        for layer in self.layers:
            place = "" if layer.place is None else str(layer.place)
            counts = (f"{n:,}" if n else "" for n in (layer.n_params, layer.multiply_adds))
            memory = bytes_text(layer.memory) if layer.memory else ""
            table.append((place, layer.name, shape_text(layer.output_shape), *counts, memory, layer.kernel, layer.note))
        table.append(("", "all", "", f"{self.n_params:,}", f"{self.multiply_adds:,}", bytes_text(self.memory), "", ""))
        if not any(layer.note for layer in self.layers):
            table = [row[:-1] for row in table]
        return table


def summarize(
    layers: Sequence[Layer],
    image_shape: Shape,
    notes: Mapping[int, str] | None = None,
    *,
    dtype: str = "float32",
    kernels: Sequence[tuple[Group, str]] | None = None,
) -> Summary:
    """The table of layers.

    Parameters
    ----------
    layers : sequence of Layer
        With the last dense one.
    image_shape : (H, W, C)
        What goes in.
    notes : mapping of int to str, default=None
        What to say of a layer, by its place.
    dtype : "float32" or "float64", default="float32"
        Of what is stored.
    kernels : sequence of (Group, str) or None, default=None
        What `Network.kernels` gives. None: what is known without a backend: what runs together, but not by which
        algorithm.

    Returns
    -------
    Summary
        Shows itself as text, and in notebooks as HTML.
    """
    if kernels is None:
        kernels = [(group, "") for group in _groups(layers, image_shape)]
    size, of_place, stored = np.dtype(dtype).itemsize, *_kernels_of_places(kernels)
    shape = image_shape
    rows = [LayerSummary(None, "images", shape, 0, 0, "", prod(shape) * size)]
    for place, layer in enumerate(layers):
        sizes = layer.param_shapes(shape).items()
        n_params = sum(prod(size) for name, size in sizes if not name.endswith(RUNNING_STATISTICS))
        multiply_adds = sum(map(_multiply_adds, layer.lower(shape)))
        shape = layer.output_shape(shape)
        note = (notes or {}).get(place, "")
        memory = prod(shape) * size if place in stored else 0
        kernel = of_place.get(place, "")
        rows.append(LayerSummary(place, short_name(layer), shape, n_params, multiply_adds, note, memory, kernel))
    return Summary(tuple(rows))


def _groups(layers: Sequence[Layer], shape: Shape) -> tuple[Group, ...]:
    ops: list[Op] = []
    for place, layer in enumerate(layers):
        ops += [op.at(place) for op in layer.lower(shape)]
        shape = layer.output_shape(shape)
    return fuse_ops(ops, lambda kernel: hasattr(contract, kernel), "inference")


def _kernels_of_places(kernels: Sequence[tuple[Group, str]]) -> tuple[dict[int, str], set[int]]:
    """What computes each layer of the list, and the layers whose output is stored."""
    found: dict[int, list[str]] = {}
    stored: set[int] = set()
    for group, how in kernels:
        if group.head.kind in _NOTHING:
            continue
        first, last = (int(op.layer.partition(".")[0]) for op in (group.ops[0], group.ops[-1]))
        found.setdefault(first, []).append(group.label + f", {how}" * (how not in ("", "direct")))
        for place in range(first + 1, last + 1):
            found[place] = [f"with {first}"]
        stored.add(last)
    named = {place: of[0] if len(of) == 1 else f"{len(of)} kernels" for place, of in found.items()}
    return named, stored


def _multiply_adds(op: Op) -> int:
    g = op.geometry
    if isinstance(g, ConvGeometry):
        return prod(op.out_shape) * g.r * g.s * (g.c // g.groups)
    return prod(op.in_shape) * prod(op.out_shape) if op.kind == "dense" else 0


def short_name(layer: Layer) -> str:
    """A layer with those fields only that are not at their defaults."""
    values = [(f, getattr(layer, f.name)) for f in fields(layer)]  # type: ignore[arg-type]
    shown = ", ".join(f"{f.name}={_shown(value)}" for f, value in values if value != f.default)
    return f"{type(layer).__name__}({shown})"


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and any(isinstance(item, Layer) for item in value):
        return f"[{', '.join(map(short_name, value))}]"
    return repr(value)


def bytes_text(n: int) -> str:
    """As in 12.3 kB."""
    return f"{n / 1e6:,.1f} MB" if n >= 1e6 else f"{n / 1e3:,.1f} kB" if n >= 1e3 else f"{n} B"


def shape_text(shape: Sequence[int]) -> str:
    """As in 28x28x1."""
    return "x".join(map(str, shape))
