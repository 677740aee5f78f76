"""Line charts as SVG elements, whose colours are the page's."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import floor, isfinite, log10
from typing import NamedTuple

__all__ = ["Line", "line_chart"]

# In the units of the picture.
_WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 30, 36


class Line(NamedTuple):
    """One curve: a value for each of the last epochs, or NaN."""

    name: str
    values: Sequence[float]
    css: str  # class of its colour and dashes


def line_chart(title: str, lines: Sequence[Line], epochs: int, mark: int | None = None) -> str:
    """`lines` over the epochs 1 to `epochs`; `mark`: an epoch with a line of its own. "" if no value is known."""
    lines = [line for line in lines if _known(line)]
    if not lines:
        return ""
    values = [value for line in lines for value in _known(line)]
    ticks = _ticks(min(values), max(values))
    low, high = min(ticks[0], *values), max(ticks[-1], *values)

    def x(epoch: float) -> float:
        return _LEFT + ((epoch - 1) / (epochs - 1) if epochs > 1 else 0.5) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low or 1) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text class="chart-title" x="0" y="14">{escape(title)}</text>']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [
        f'<text class="tick" x="{x(epoch):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{epoch}</text>'
        for epoch in _epoch_ticks(epochs)
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">epoch</text>')
    if mark:
        parts.append(f'<line class="mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    for line in lines:
        first = epochs - len(line.values) + 1
        points = [f"{x(first + i):.1f},{y(value):.1f}" for i, value in enumerate(line.values) if isfinite(value)]
        dots = "".join('<circle cx="{}" cy="{}" r="2.6"/>'.format(*point.split(",")) for point in points)
        parts.append(f'<g class="{line.css}"><polyline points="{" ".join(points)}"/>{dots}</g>')
    keys = "".join(f'<span class="key {line.css}"><i></i>{escape(line.name)}</span>' for line in lines)
    keys += '<span class="key mark"><i></i>best epoch</span>' if mark else ""
    described = "; ".join(f"{line.name} from {_known(line)[0]:.4g} to {_known(line)[-1]:.4g}" for line in lines)
    return (
        f'<figure class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}, {epochs} epochs: {escape(described)}">{"".join(parts)}</svg>'
        f"<figcaption>{keys}</figcaption></figure>"
    )


def _known(line: Line) -> list[float]:
    return [value for value in line.values if isfinite(value)]


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers around the values."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** floor(log10(span / 4))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= 5)
    first, last = floor(low / step), -floor(-high / step)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _epoch_ticks(epochs: int) -> list[int]:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, epochs) if epochs / step <= 8)
    return sorted({1, *range(step, epochs + 1, step)} if step > 1 else {*range(1, epochs + 1)})
