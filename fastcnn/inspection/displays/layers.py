"""The layers, drawn."""

from __future__ import annotations

from typing import Any, Self

from fastcnn.engine.network import Network
from fastcnn.inspection.diagram import COLORS, GAP, LETTER, LINE, MIDDLE, color_key, sheets, stages
from fastcnn.inspection.displays.drawing import one_axes
from fastcnn.inspection.summary import Summary, shape_text, summarize

__all__ = ["ArchitectureDisplay"]


class ArchitectureDisplay:
    """What goes from layer to layer: stacks of maps and columns of values, with their sizes.

    Parameters
    ----------
    summary : Summary
        What ``clf.summary()`` gives.

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    """

    def __init__(self, summary: Summary) -> None:
        self.summary = summary

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> Self:
        """Draw the layers of a network or fitted classifier.

        Parameters
        ----------
        estimator : fitted CNNClassifier or Network
        ax : Axes or None, default=None

        Returns
        -------
        ArchitectureDisplay
            The display, drawn.
        """
        is_network = isinstance(estimator, Network)
        summary = summarize(estimator.layers, estimator.input_shape) if is_network else estimator.summary()
        return cls(summary).plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw them, from left to right.

        Parameters
        ----------
        ax : Axes or None, default=None
            None: a new figure.

        Returns
        -------
        ArchitectureDisplay
            The display, drawn.
        """
        drawn = stages(self.summary)
        rooms = []
        for stage in drawn:
            texts = [shape_text(stage.layer.output_shape), *stage.names]
            rooms.append(max(stage.width, LETTER * max(map(len, texts))))
        width, height = sum(rooms) + GAP * (len(rooms) - 1), 2 * MIDDLE + LINE * max(len(s.names) + 1 for s in drawn)
        self.figure_, self.ax_ = one_axes(ax, (width / 85, height / 85))
        from matplotlib.patches import Rectangle

        x = 0.0
        for number, (stage, room) in enumerate(zip(drawn, rooms, strict=True)):
            left = x + (room - stage.width) / 2
            for place, (dx, y, w, h) in enumerate(sheets(stage)):
                color = COLORS[color_key(stage.layer)]
                self.ax_.add_patch(
                    Rectangle(
                        (left + dx, y), w, h, facecolor=color, edgecolor="k", linewidth=0.5, alpha=0.7, zorder=place
                    )
                )
            for line, text in enumerate([shape_text(stage.layer.output_shape), *stage.names]):
                weight = "bold" if line == 1 else "normal"
                y = 2 * MIDDLE + line * LINE
                self.ax_.text(x + room / 2, y, text, ha="center", va="top", fontsize=7, fontweight=weight)
            x += room + GAP
            if number + 1 < len(drawn):
                arrow = {"arrowstyle": "->", "linewidth": 0.8}
                self.ax_.annotate("", (x - 5, MIDDLE), (x - GAP + 5, MIDDLE), arrowprops=arrow)
        self.ax_.set(xlim=(-4, width + 4), ylim=(height, 0), aspect="equal")
        self.ax_.set_axis_off()
        return self
