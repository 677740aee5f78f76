"""Figures of matplotlib as files, once for light pages and once for dark ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

_WIDTH = 8.6  # inches, of the text column; letters in wider figures would be small
_INK, _INK_ON_DARK = "#1f2329", "#dfe3e8"
_SERIES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]  # Okabe and Ito, for all eyes


class Picture(NamedTuple):
    """A figure in two files, and what it shows, in words."""

    light: str
    dark: str
    alt: str


def use_style() -> None:
    """Figures made from now on suit the pages."""
    import matplotlib
    from cycler import cycler

    matplotlib.use("Agg")
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "patch.edgecolor")
    matplotlib.rcParams.update(dict.fromkeys(inked, _INK))
    matplotlib.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=_SERIES),
            "axes.titlesize": 10,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "legend.facecolor": "none",
            "legend.frameon": False,
            "font.size": 9,
            "image.interpolation": "none",
            "savefig.facecolor": "none",
            "svg.hashsalt": "fastcnn",  # the same figure is the same file
        }
    )


def save_figures(folder: Path, stem: str) -> list[Picture]:
    """Write all open figures to `folder` and close them."""
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number in plt.get_fignums():
        figure = plt.figure(number)
        width, height = figure.get_size_inches()
        if width > _WIDTH:
            figure.set_size_inches(_WIDTH, height * (_WIDTH / width) ** 0.5)
        light, dark = (folder / f"{stem}-{number}{theme}.svg" for theme in ("", "-dark"))
        figure.savefig(light, metadata={"Date": None}, bbox_inches="tight")
        svg = light.read_text("utf-8")
        dark.write_text(svg.replace(_INK, _INK_ON_DARK).replace("#000000", _INK_ON_DARK), "utf-8")
        pictures.append(Picture(str(light), str(dark), _describe(figure)))
        plt.close(figure)
    return pictures


def _describe(figure: Any) -> str:
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    words = figure.get_label() or "; ".join(dict.fromkeys(title.replace("\n", " ") for title in titles if title))
    return words or ", ".join(axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()) or "figure"
