"""What the displays have in common: matplotlib when it is needed, grids of axes, images as it shows them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["as_images", "as_picture", "axes_grid", "one_axes", "show_signed", "tile_shape", "without_ticks"]

# Readable by every eye, in print too.
SEQUENTIAL, DIVERGING = "cividis", "PuOr"


def pyplot() -> Any:
    """`matplotlib.pyplot`; ImportError says how to get it."""
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    return plt


def one_axes(ax: Any, figsize: tuple[float, float]) -> tuple[Any, Any]:
    """A figure and its axes: `ax`, or new ones."""
    plt = pyplot()
    if ax is None:
        _, ax = plt.subplots(figsize=figsize, layout="constrained")
    return ax.figure, ax


def axes_grid(ax: Any, rows: int, columns: int, figsize: tuple[float, float]) -> tuple[Any, np.ndarray]:
    """A figure and `rows` x `columns` axes: new ones, the place of the one axes `ax` divided, or those of the array.

    Raises
    ------
    ValueError
        If `ax` is an array of another number of axes.
    """
    plt = pyplot()
    if ax is None:
        figure, axes = plt.subplots(rows, columns, figsize=figsize, squeeze=False, layout="constrained")
        return figure, axes
    if hasattr(ax, "figure"):
        ax.set_axis_off()
        inner = ax.get_subplotspec().subgridspec(rows, columns) if ax.get_subplotspec() else None
        if inner is None:
            raise ValueError("ax must be axes of a grid (of plt.subplots), or an array of axes")
        return ax.figure, inner.subplots(squeeze=False)
    axes = np.asarray(ax, dtype=object)
    if axes.size != rows * columns:
        raise ValueError(f"expected {rows * columns} axes ({rows} x {columns}), got {axes.size}")
    return axes.flat[0].figure, axes.reshape(rows, columns)


def tile_shape(n: int) -> tuple[int, int]:
    """Rows and columns for `n` pictures, rather wide than high."""
    columns = max(1, min(n, round(np.sqrt(1.6 * n))))
    return -(-n // columns), columns


def without_ticks(ax: Any) -> None:
    ax.set_xticks([])
    ax.set_yticks([])


def as_images(X: Any, image_shape: tuple[int, int, int]) -> np.ndarray:
    """X in any of its forms as (n, H, W, C)."""
    X = np.asarray(X)
    return X.reshape(len(X), *image_shape)


def as_picture(image: np.ndarray) -> np.ndarray:
    """An image (H, W, C) as `imshow` takes it: (H, W), or (H, W, 3) from 0 to 1.

    uint8 is shown as it is; floats from their smallest to their largest value. Of two channels, or of more than three,
    the mean is shown.
    """
    pixels = np.asarray(image, np.float64)
    low, high = (0.0, 255.0) if np.asarray(image).dtype == np.uint8 else (float(pixels.min()), float(pixels.max()))
    pixels = np.clip((pixels - low) / (high - low if high > low else 1.0), 0, 1)
    return pixels if pixels.shape[2] == 3 else pixels.mean(axis=2)


def show_image(ax: Any, image: np.ndarray) -> Any:
    """`image` (H, W, C) without ticks."""
    without_ticks(ax)
    return ax.imshow(as_picture(image), cmap="gray", vmin=0, vmax=1)


def show_signed(ax: Any, values: np.ndarray, limit: float) -> Any:
    """Numbers from -`limit` to `limit` with zero in the middle of the colours, without ticks."""
    without_ticks(ax)
    return ax.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit)
