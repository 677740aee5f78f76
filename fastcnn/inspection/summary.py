"""A network as a table: each layer's output, parameters and work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from math import prod
from typing import NamedTuple

from fastcnn.engine.ops import ConvGeometry, Op, Shape
from fastcnn.layers import Layer

__all__ = ["LayerSummary", "Summary", "shape_text", "short_name", "summarize"]


class LayerSummary(NamedTuple):
    """One line of a `Summary`."""

    place: int | None  # in the list of layers; None for the input
    name: str
    output_shape: Shape  # of one image
    n_params: int  # trained parameters; running statistics do not count
    multiply_adds: int  # of convolutions and dense layers, for one image, forward
    note: str  # what differs from what was asked for


@dataclass(frozen=True)
class Summary:
    """What `CNNClassifier.summary` gives: shown as a table in a terminal and in a notebook.

    Attributes
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

    def __str__(self) -> str:
        header, *rows = self._cells()
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = []
        for row in (header, *rows):
            cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, "><>>><", widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header, *rows = self._cells()
        align = ("right", "left", "right", "right", "right", "left")

        def line(tag: str, row: Sequence[str]) -> str:
            cells = (
                f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>'
                for cell, side in zip(row, align, strict=True)
            )
            return f"<tr>{''.join(cells)}</tr>"

        body = "".join(line("td", row) for row in rows)
        return f"<table><thead>{line('th', header)}</thead><tbody>{body}</tbody></table>"

    def _cells(self) -> list[tuple[str, ...]]:
        table: list[tuple[str, ...]] = [("", "layer", "output", "parameters", "multiply-adds", "")]
        for layer in self.layers:
            place = "" if layer.place is None else str(layer.place)
            counts = (f"{n:,}" if n else "" for n in (layer.n_params, layer.multiply_adds))
            table.append((place, layer.name, shape_text(layer.output_shape), *counts, layer.note))
        table.append(("", "all", "", f"{self.n_params:,}", f"{self.multiply_adds:,}", ""))
        return table


def summarize(layers: Sequence[Layer], image_shape: Shape, notes: Mapping[int, str] | None = None) -> Summary:
    """The table of `layers` over images of `image_shape` (H, W, C); `notes` by the layers' places."""
    shape = image_shape
    rows = [LayerSummary(None, "images", shape, 0, 0, "")]
    for place, layer in enumerate(layers):
        sizes = layer.param_shapes(shape).items()
        n_params = sum(prod(size) for name, size in sizes if not name.startswith("running_"))
        multiply_adds = sum(map(_multiply_adds, layer.lower(shape)))
        shape = layer.output_shape(shape)
        note = (notes or {}).get(place, "")
        rows.append(LayerSummary(place, short_name(layer), shape, n_params, multiply_adds, note))
    return Summary(tuple(rows))


def _multiply_adds(op: Op) -> int:
    g = op.geometry
    if isinstance(g, ConvGeometry):
        return prod(op.out_shape) * g.r * g.s * (g.c // g.groups)
    return prod(op.in_shape) * prod(op.out_shape) if op.kind == "dense" else 0


def short_name(layer: Layer) -> str:
    """A layer with those fields only that are not at their defaults."""
    values = [(f, getattr(layer, f.name)) for f in fields(layer)]  # type: ignore[arg-type]
    shown = ", ".join(f"{f.name}={value!r}" for f, value in values if value != f.default)
    return f"{type(layer).__name__}({shown})"


def shape_text(shape: Sequence[int]) -> str:
    """As in 28x28x1."""
    return "x".join(map(str, shape))
