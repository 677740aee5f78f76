"""Drawings for the page on how a CNN works. Numbers and maps are handed in: nothing is drawn that was not computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

_MARK = "#d55e00"


class Svg(str):
    """SVG that shows itself."""

    def _repr_html_(self) -> str:
        return self


def numbers(ax: Any, values: np.ndarray, title: str = "", marked: tuple[slice, slice] | None = None) -> None:
    """A matrix as cells with numbers, shaded by value; `marked` rows and columns have a frame."""
    values = np.asarray(values, float) + 0.0  # not -0
    high = max(np.abs(np.nan_to_num(values)).max(), 1e-9)
    ax.imshow(values, cmap="PuOr", vmin=-high, vmax=high, alpha=0.75)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = "white" if abs(value) > 0.75 * high else "#111111"  # also on dark pages
            ax.text(column, row, f"{value:.3g}", ha="center", va="center", color=ink, fontsize=8)
    if marked:
        rows, columns = marked
        corner = (columns.start - 0.5, rows.start - 0.5)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        ax.add_patch(Rectangle(corner, *size, fill=False, edgecolor=_MARK, linewidth=2.5, clip_on=False))
    ax.set_xticks(np.arange(-0.5, values.shape[1]), [])
    ax.set_yticks(np.arange(-0.5, values.shape[0]), [])
    ax.tick_params(length=0)
    ax.grid(color="gray", linewidth=0.4)
    ax.spines[:].set(visible=True, color="gray", linewidth=0.4)
    ax.set_title(title)


def sliding(image: np.ndarray, kernel: np.ndarray, output: np.ndarray, positions: Sequence[tuple[int, int]]) -> None:
    """The window at some positions: the pixels under it, the products, and the output so far."""
    r, s = kernel.shape
    figure, axes = plt.subplots(len(positions), 4, figsize=(7, 1.9 * len(positions)))
    figure.set_label("a window of 3x3 weights slides over a 5x5 image; each position gives one number of the output")
    for line, (i, j) in zip(axes, positions, strict=True):
        under = (slice(i, i + r), slice(j, j + s))
        so_far = np.where(np.arange(output.size).reshape(output.shape) <= i * output.shape[1] + j, output, np.nan)
        first = (i, j) == positions[0]
        numbers(line[0], image, "image" * first, under)
        numbers(line[1], kernel, "× weights" * first)
        products = image[under] * kernel
        numbers(line[2], products, "= products" * first)
        line[2].set_xlabel(f"sum {products.sum():g}")
        numbers(line[3], so_far, "output" * first, (slice(i, i + 1), slice(j, j + 1)))


def maps(images: Sequence[np.ndarray], titles: Sequence[str], columns: int = 4, size: float = 1.8) -> Any:
    """Pictures side by side: what is negative is orange, what is positive violet, or grey where nothing is negative."""
    rows = -(-len(images) // columns)
    height, width = images[0].shape[:2]
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, rows * (size * height / width + 0.3)))
    for ax in np.ravel(axes):
        ax.axis("off")
    for ax, image, title in zip(np.ravel(axes), images, titles, strict=False):
        if image.min() < 0:
            high = np.abs(image).max()
            ax.imshow(image, cmap="PuOr", vmin=-high, vmax=high)
        else:
            ax.imshow(image, cmap="gray")
        ax.set_title(title)
    return figure


def grid(images: np.ndarray, columns: int = 8, size: float = 0.8, label: str = "") -> Any:
    """Many small maps of one scale, (count, H, W)."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, size * rows), squeeze=False)
    figure.set_label(label)
    low, high = min(images.min(), 0), images.max()
    bounds = {"cmap": "gray", "vmin": low, "vmax": high}
    if low < 0:
        high = max(high, -low)
        bounds = {"cmap": "PuOr", "vmin": -high, "vmax": high}
    for ax in axes.flat:
        ax.axis("off")
    for ax, image in zip(axes.flat, images, strict=False):
        ax.imshow(image, **bounds)
    return figure
