"""The layers of a network drawn as SVG: what goes from layer to layer, as stacks of maps and as columns."""

from __future__ import annotations

from html import escape
from math import log2, prod, sqrt
from typing import NamedTuple

from fastcnn.inspection.summary import LayerSummary, Summary, shape_text

__all__ = ["draw"]

# In pixels.
_MAP = 72  # longer side of the largest map
_SHEETS, _STEP = 6, 4  # maps of a stack that are drawn, and how far one lies behind another
_COLUMN = 12  # width of what a dense layer gives
GAP = 26  # between two stages
LETTER, LINE = 6.2, 13  # of the text
MIDDLE = 80  # height of the stages' middle
COLORS = {"images": "#8c8c8c", "maps": "#4c78a8", "pooling": "#72b7b2", "values": "#f58518"}

Box = tuple[float, float, float, float]  # x, y, width, height


class Stage(NamedTuple):
    """A layer that changes the shape, and the layers after it that do not."""

    layer: LayerSummary
    names: list[str]
    size: tuple[float, float]  # of a sheet, height and width; of a column
    n_sheets: int

    @property
    def width(self) -> float:
        return self.size[1] + _STEP * (self.n_sheets - 1)


def stages(summary: Summary) -> list[Stage]:
    """The pictures of a drawing, from the images to the last layer."""
    found: list[tuple[LayerSummary, list[str]]] = []
    for layer in summary.layers:
        same_shape = bool(found) and layer.output_shape == found[-1][0].output_shape
        if same_shape and not layer.multiply_adds:
            found[-1][1].append(_kind(layer))
        else:
            found.append((layer, [_kind(layer)]))
    largest = max(max(layer.output_shape[:-1], default=1) for layer, _ in found)
    drawn = []
    for layer, names in found:
        shape = layer.output_shape
        if len(shape) == 1:
            drawn.append(Stage(layer, names, (min(12.0 + 11 * log2(prod(shape) + 1), 1.6 * MIDDLE), _COLUMN), 1))
        else:
            # The root keeps small maps visible beside large ones.
            high, wide = (max(4.0, _MAP * sqrt(side / largest)) for side in shape[:2])
            drawn.append(Stage(layer, names, (high, wide), min(_SHEETS, shape[2])))
    return drawn


def sheets(stage: Stage) -> list[Box]:
    """The rectangles of a stage, from the one that lies behind to the one in front."""
    high, wide = stage.size
    shift = _STEP * (stage.n_sheets - 1)
    top = MIDDLE - (high + shift) / 2
    return [(_STEP * i, top + shift - _STEP * i, wide, high) for i in reversed(range(stage.n_sheets))]


def color_key(layer: LayerSummary) -> str:
    """Which of `COLORS` a layer's output has."""
    kind = _kind(layer)
    if kind == "images":
        return kind
    if len(layer.output_shape) == 1:
        return "values"
    return "pooling" if "Pool" in kind else "maps"


def draw(summary: Summary) -> str:
    """The network of `summary` as an SVG element, from the images on the left to the last layer on the right.

    Each layer that changes the shape is a picture of its output; what only changes values (activations,
    dropout, batch normalisation) is written below.

    Parameters
    ----------
    summary : Summary
        Of `summarize` or `CNNClassifier.summary`.

    Returns
    -------
    str
        SVG, in colours that suit light and dark pages.
    """
    parts: list[str] = []
    x, lowest = 8.0, 0.0
    for stage in stages(summary):
        texts = [shape_text(stage.layer.output_shape), *stage.names]
        room = max(stage.width, LETTER * max(map(len, texts)))
        place = f"translate({x + (room - stage.width) / 2:.1f} 0)"
        style = f'fill="{COLORS[color_key(stage.layer)]}" fill-opacity="0.55" stroke="currentColor" stroke-width="0.7"'
        picture = "".join(
            f'<rect x="{left:g}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}" {style}/>'
            for left, top, wide, high in sheets(stage)
        )
        parts.append(f'<g transform="{place}"><title>{_title(stage.layer)}</title>{picture}</g>')
        for number, text in enumerate(texts):
            weight = ' font-weight="bold"' if number == 1 else ""
            y = 2 * MIDDLE + number * LINE
            parts.append(f'<text x="{x + room / 2:.1f}" y="{y}" text-anchor="middle"{weight}>{escape(text)}</text>')
            lowest = max(lowest, y)
        x += room + GAP
        arrow = f"M{x - GAP + 6:.1f} {MIDDLE}h{GAP - 12}m-4 -3l4 3l-4 3"
        parts.append(f'<path d="{arrow}" fill="none" stroke="currentColor"/>')
    parts.pop()  # nothing comes after the last
    width, height = round(x - GAP + 8), round(lowest + 8)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="layers of the network" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="10" '
        f'fill="currentColor">{"".join(parts)}</svg>'
    )


def _kind(layer: LayerSummary) -> str:
    return layer.name.partition("(")[0]


def _title(layer: LayerSummary) -> str:
    counted = f", {layer.n_params:,} parameters" if layer.n_params else ""
    return escape(f"{layer.name}: {shape_text(layer.output_shape)}{counted}" + f" ({layer.note})" * bool(layer.note))
