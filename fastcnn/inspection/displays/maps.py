"""What filters look for, and what they find in an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from fastcnn.engine.network import Network
from fastcnn.inspection.displays.drawing import (
    SEQUENTIAL,
    as_images,
    axes_grid,
    show_image,
    show_signed,
    tile_shape,
    without_ticks,
)
from fastcnn.inspection.passes import activations, network_input, network_of, places
from fastcnn.inspection.summary import shape_text

__all__ = ["FeatureMapsDisplay", "FiltersDisplay", "convolutions"]


def convolutions(net: Any) -> dict[str, np.ndarray]:
    """The weights (R, S, C / groups, K) of all convolutions, by the layers' places."""
    params = network_of(net).params
    weights = ((name.removesuffix(".weight"), value) for name, value in params.items() if name.endswith(".weight"))
    return {place: value for place, value in weights if value.ndim == 4}


class FiltersDisplay:
    """The filters of a convolution.

    Of one input channel, or of three (red, green, blue), each filter is one picture. Otherwise there is a row for each
    filter, with a picture for each channel. Zero is grey in colour pictures, white in the others, where orange is below
    zero and violet above.

    Parameters
    ----------
    weight : array (R, S, C / groups, K)
    max_filters : int, default=32
        Filters that are shown, the first ones.
    max_channels : int, default=8
        Channels of each that are shown, the first ones.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : array of matplotlib Axes
    """

    def __init__(self, weight: np.ndarray, max_filters: int = 32, max_channels: int = 8) -> None:
        self.weight = np.asarray(weight)
        self.max_filters, self.max_channels = max_filters, max_channels

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        layer: int | str | None = None,
        *,
        max_filters: int = 32,
        max_channels: int = 8,
        ax: Any = None,
    ) -> Self:
        """Draw the filters of a network or fitted classifier.

        Parameters
        ----------
        estimator : fitted CNNClassifier or Network
        layer : int, str or None, default=None
            Place of a convolution, "3.layers.0" in a `Residual`. None: the first.
        max_filters, max_channels : int
        ax : Axes, array of Axes or None, default=None
            As for `plot`.

        Returns
        -------
        FiltersDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there is no convolution at this place.
        """
        found = convolutions(estimator)
        place = next(iter(found), "") if layer is None else str(layer)
        if place not in found:
            raise ValueError(f"layer {place!r} is no convolution: expected one of {', '.join(found) or 'none'}")
        return cls(found[place].copy(), max_filters, max_channels).plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw them.

        Parameters
        ----------
        ax : Axes, array of Axes or None, default=None
            None: a new figure. One Axes of a grid is divided; an array has one for each picture.

        Returns
        -------
        FiltersDisplay
            The display, drawn.
        """
        weight = self.weight[..., : self.max_filters]
        channels, n = weight.shape[2:]
        limit = float(np.abs(self.weight).max()) or 1.0
        if channels in (1, 3):
            rows, columns = tile_shape(n)
            pictures: list[Any] = [weight[..., k] for k in range(n)]
        else:
            rows, columns = n, min(channels, self.max_channels)
            pictures = [weight[:, :, c : c + 1, k] for k in range(n) for c in range(columns)]
        self.figure_, self.axes_ = axes_grid(ax, rows, columns, (0.8 * columns + 0.4, 0.8 * rows + 0.3))
        for panel in self.axes_.flat:
            panel.set_axis_off()
        for panel, picture in zip(self.axes_.flat, pictures, strict=False):
            panel.set_axis_on()
            if channels == 3:
                without_ticks(panel)
                panel.imshow(0.5 + picture / (2 * limit), vmin=0, vmax=1)
            else:
                show_signed(panel, picture[..., 0], limit)
        return self


class FeatureMapsDisplay:
    """One image on its way through the layers: a row for each, with some of its maps.

    Maps without negative values are drawn from dark (zero) to bright, others with white as zero; each layer has a scale
    of its own. What is a vector is drawn as bars.

    Parameters
    ----------
    image : array (H, W, C)
    maps : mapping of str to array
        Outputs of layers for this image, by what they are called.
    max_maps : int, default=8
        Maps of a layer that are shown, the first ones.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : array of matplotlib Axes (1 + len(maps), max_maps)
        The first row has the image.
    """

    def __init__(self, image: np.ndarray, maps: Mapping[str, np.ndarray], max_maps: int = 8) -> None:
        self.image, self.maps, self.max_maps = np.asarray(image), dict(maps), max_maps

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        layers: Sequence[int | str] | None = None,
        max_maps: int = 8,
        ax: Any = None,
    ) -> Self:
        """Draw what a network or fitted classifier makes of an image.

        Parameters
        ----------
        estimator : fitted CNNClassifier or Network
        X : array of one image, alone or as the only one of a batch
        layers : sequence of int or str, or None, default=None
            Places, as for `activations`. None: all layers of the list.
        max_maps : int
        ax : Axes, array of Axes or None, default=None
            As for `plot`.

        Returns
        -------
        FeatureMapsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If X is not one image, or there is no such layer.
        """
        network = network_of(estimator)
        shape = network.input_shape
        if len(shape) != 3 or np.size(X) != np.prod(shape):
            raise ValueError(f"X must be one image of shape {shape}, got shape {np.shape(X)}")
        images = as_images(np.reshape(X, (1, *shape)), shape)
        x = network_input(estimator, images)
        known = places(network)
        chosen = [str(i) for i in range(len(network.layers))] if layers is None else layers
        maps: dict[str, np.ndarray] = {}
        everything: dict[str, np.ndarray] = activations(network, x)
        for layer in chosen:
            place = str(layer + len(network.layers) if isinstance(layer, int) and layer < 0 else layer)
            if place not in known:
                raise ValueError(f"there is no layer {layer!r}: expected one of {', '.join(known)}")
            maps[f"{place} {kind_at(network, place)}\n{shape_text(known[place])}"] = everything[place][0]
        return cls(images[0], maps, max_maps).plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw it.

        Parameters
        ----------
        ax : Axes, array of Axes or None, default=None
            None: a new figure. One Axes of a grid is divided; an array has ``(1 + len(maps)) * max_maps``.

        Returns
        -------
        FeatureMapsDisplay
            The display, drawn.
        """
        rows = 1 + len(self.maps)
        self.figure_, self.axes_ = axes_grid(ax, rows, self.max_maps, (0.9 * self.max_maps + 1.4, 0.9 * rows))
        for panel in self.axes_.flat:
            panel.set_axis_off()
        first = self.axes_[0, 0]
        first.set_axis_on()
        show_image(first, self.image)
        _label(first, f"image\n{shape_text(self.image.shape)}")
        for row, (name, values) in zip(self.axes_[1:], self.maps.items(), strict=True):
            if values.ndim == 1:
                self._draw_vector(row, values)
            else:
                self._draw_maps(row, values)
            _label(row[0], name)
        return self

    def _draw_maps(self, row: Any, values: np.ndarray) -> None:
        signed, limit = values.min() < 0, float(np.abs(values).max()) or 1.0
        for panel, k in zip(row, range(values.shape[2]), strict=False):
            panel.set_axis_on()
            if signed:
                show_signed(panel, values[..., k], limit)
            else:
                without_ticks(panel)
                panel.imshow(values[..., k], cmap=SEQUENTIAL, vmin=0, vmax=limit)

    def _draw_vector(self, row: Any, values: np.ndarray) -> None:
        """As bars over the whole row, in the place of its first axes."""
        first = row[0]
        first.set_axis_on()
        if first.get_subplotspec() is not None and len(row) > 1:
            spec = first.get_subplotspec()
            grid = spec.get_gridspec()
            first.set_subplotspec(grid[spec.rowspan.start, spec.colspan.start : spec.colspan.start + len(row)])
        first.bar(range(len(values)), values, width=1.0, color="C0")
        first.set_xlim(-0.5, len(values) - 0.5)
        without_ticks(first)


def kind_at(network: Network, place: str) -> str:
    """What a layer is called, within a `Residual` too."""
    layers: Any = network.layers
    parts = place.split(".")
    layer = layers[int(parts[0])]
    for part, index in zip(parts[1::2], parts[2::2], strict=True):
        layer = getattr(layer, part)[int(index)]
    return type(layer).__name__


def _label(panel: Any, text: str) -> None:
    panel.set_ylabel(text, rotation=0, ha="right", va="center", fontsize="x-small")
