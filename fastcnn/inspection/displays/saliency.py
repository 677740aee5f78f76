"""Where a network looks, drawn over the images."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from scipy.ndimage import zoom

from fastcnn.engine.network import Network
from fastcnn.image_estimator import nameless
from fastcnn.inspection.displays.drawing import SEQUENTIAL, as_images, as_picture, axes_grid, show_image, without_ticks
from fastcnn.inspection.passes import checked_target, network_input, network_of
from fastcnn.inspection.saliency import grad_cam, gradient_saliency, occlusion
from fastcnn.labels import places

__all__ = ["SaliencyDisplay"]

_METHODS = {"gradient": gradient_saliency, "grad_cam": grad_cam, "occlusion": occlusion}


class SaliencyDisplay:
    """Images, and beside each how much a prediction depends on its parts.

    Parameters
    ----------
    images : array (n, H, W, C)
    maps : mapping of str to array (n, P, Q)
        By method: "gradient", "grad_cam", "occlusion". Smaller maps are enlarged to the image.
    titles : sequence of str or None, default=None
        Of the images.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : array of matplotlib Axes (n, 1 + len(maps))
        The images, and then a column for each method.
    """

    def __init__(self, images: Any, maps: Any, titles: Any = None) -> None:
        self.images, self.titles = np.asarray(images), titles
        self.maps = {method: np.asarray(values) for method, values in maps.items()}

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        target: Any = None,
        method: str | tuple[str, ...] = ("gradient", "grad_cam", "occlusion"),
        ax: Any = None,
    ) -> Self:
        """Draw where a network or fitted classifier looks.

        Parameters
        ----------
        estimator : fitted CNNClassifier or Network
        X : array of images, as `predict` takes them (of a Network: its input)
        target : label, array of labels or None, default=None
            Of a Network: which output. None: for each image what is predicted.
        method : str or tuple of str
            "gradient" (`gradient_saliency`), "grad_cam", "occlusion".
        ax : Axes, array of Axes or None, default=None
            As for `plot`.

        Returns
        -------
        SaliencyDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there is no such method or class.
        """
        methods = (method,) if isinstance(method, str) else tuple(method)
        if unknown := [name for name in methods if name not in _METHODS]:
            raise ValueError(f"unknown method {unknown[0]!r}: expected some of {sorted(_METHODS)}")
        network = network_of(estimator)
        x = network_input(estimator, X)
        images = as_images(X, network.input_shape)  # type: ignore[arg-type]
        classes = np.arange(network.output_shape[0]) if isinstance(estimator, Network) else estimator.classes_
        if target is not None:
            target = places(np.asarray(target), classes, "target")
        elif not isinstance(estimator, Network):
            target = nameless(estimator).predict_proba(np.asarray(X)).argmax(axis=1)
        chosen = checked_target(target, network.forward(x))
        maps = {name: _METHODS[name](network, x, chosen) for name in methods}
        return cls(images, maps, [str(classes[k]) for k in chosen]).plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw them, a row for each image.

        Parameters
        ----------
        ax : Axes, array of Axes or None, default=None
            None: a new figure. One Axes of a grid is divided; an array has ``n * (1 + len(maps))``.

        Returns
        -------
        SaliencyDisplay
            The display, drawn.
        """
        rows, columns = len(self.images), 1 + len(self.maps)
        self.figure_, self.axes_ = axes_grid(ax, rows, columns, (1.5 * columns, 1.5 * rows + 0.3))
        for n, row in enumerate(self.axes_):
            show_image(row[0], self.images[n])
            if self.titles is not None:
                row[0].set_ylabel(self.titles[n])
            for panel, (method, maps) in zip(row[1:], self.maps.items(), strict=True):
                picture = as_picture(self.images[n])
                without_ticks(panel)
                panel.imshow(picture if picture.ndim == 2 else picture.mean(axis=2), cmap="gray", vmin=0, vmax=1)
                panel.imshow(enlarged(maps[n], picture.shape[:2]), cmap=SEQUENTIAL, alpha=0.7)
                if n == 0:
                    panel.set_title({"grad_cam": "Grad-CAM"}.get(method, method), fontsize="medium")
        return self


def enlarged(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map (P, Q) as (H, W), linear between the pixels' middles."""
    factors = [new / old for new, old in zip(shape, values.shape, strict=True)]
    return zoom(values, factors, order=1, mode="nearest", grid_mode=True)
