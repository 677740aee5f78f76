"""The layers of a network drawn as SVG: what goes from layer to layer, as stacks of maps and as columns."""

from __future__ import annotations

from html import escape
from math import log2, prod, sqrt

from fastcnn.engine.ops import Shape
from fastcnn.inspection.summary import LayerSummary, Summary, shape_text

__all__ = ["draw"]

# In pixels.
_MAP = 72  # longer side of the largest map
_SHEETS, _STEP = 6, 4  # maps of a stack that are drawn, and how far one lies behind another
_COLUMN = 12  # width of what a dense layer gives
_GAP = 26  # between two stages
_LETTER, _LINE = 6.2, 13  # of the text
_MIDDLE = 80  # height of the stages' middle
_FILL = {"images": "#8c8c8c", "Conv2D": "#4c78a8", "MaxPool2D": "#72b7b2", "AvgPool2D": "#72b7b2"}
_DENSE = "#f58518"


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
    stages: list[tuple[LayerSummary, list[str]]] = []
    for layer in summary.layers:
        same_shape = bool(stages) and layer.output_shape == stages[-1][0].output_shape
        if same_shape and not layer.multiply_adds:
            stages[-1][1].append(_kind(layer))
        else:
            stages.append((layer, [_kind(layer)]))
    largest = max(max(layer.output_shape[:-1], default=1) for layer, _ in stages)

    parts: list[str] = []
    x, lowest = 8.0, 0.0
    for layer, names in stages:
        picture, width = _picture(layer, largest)
        texts = [shape_text(layer.output_shape), *names]
        room = max(width, _LETTER * max(map(len, texts)))
        place = f"translate({x + (room - width) / 2:.1f} 0)"
        parts.append(f'<g transform="{place}"><title>{_title(layer)}</title>{picture}</g>')
        for number, text in enumerate(texts):
            weight = ' font-weight="bold"' if number == 1 else ""
            y = 2 * _MIDDLE + number * _LINE
            parts.append(f'<text x="{x + room / 2:.1f}" y="{y}" text-anchor="middle"{weight}>{escape(text)}</text>')
            lowest = max(lowest, y)
        x += room + _GAP
        arrow = f"M{x - _GAP + 6:.1f} {_MIDDLE}h{_GAP - 12}m-4 -3l4 3l-4 3"
        parts.append(f'<path d="{arrow}" fill="none" stroke="currentColor"/>')
    parts.pop()  # nothing comes after the last
    width, height = round(x - _GAP + 8), round(lowest + 8)
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


def _picture(layer: LayerSummary, largest: int) -> tuple[str, float]:
    """A layer's output as SVG, and its width."""
    shape: Shape = layer.output_shape
    color = _FILL.get(_kind(layer), _DENSE if len(shape) == 1 else _FILL["Conv2D"])
    style = f'fill="{color}" fill-opacity="0.55" stroke="currentColor" stroke-width="0.7"'
    if len(shape) == 1:
        height = min(12.0 + 11 * log2(prod(shape) + 1), 1.6 * _MIDDLE)
        top = _MIDDLE - height / 2
        return f'<rect x="0" y="{top:.1f}" width="{_COLUMN}" height="{height:.1f}" {style}/>', _COLUMN
    # The root keeps small maps visible beside large ones.
    high, wide = (max(4.0, _MAP * sqrt(side / largest)) for side in shape[:2])
    sheets = min(_SHEETS, shape[2])
    shift = _STEP * (sheets - 1)
    top = _MIDDLE - (high + shift) / 2
    rects = (
        f'<rect x="{_STEP * i}" y="{top + shift - _STEP * i:.1f}" width="{wide:.1f}" height="{high:.1f}" {style}/>'
        for i in reversed(range(sheets))
    )
    return "".join(rects), wide + shift
