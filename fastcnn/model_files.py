"""A classifier in files, and classifiers from files and weights of other programs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from fastcnn.engine.network import Network
from fastcnn.layers import Dense, Layer
from fastcnn.persistence import (
    MAX_PARAMETERS,
    Chain,
    Checkpoint,
    SavedModel,
    Training,
    keras_params,
    read_model,
    read_onnx,
    torch_params,
    write_model,
    write_onnx,
)
from fastcnn.training.loop import History, Progress
from fastcnn.training.views import views_of

__all__ = ["ModelFiles"]


class ModelFiles:
    """The part of `CNNClassifier` that knows files."""

    network_: Network
    classes_: np.ndarray
    image_shape_: tuple[int, int, int]
    channel_offset_: np.ndarray
    channel_scale_: np.ndarray
    tta: Any
    _history: History

    def _to_save(self) -> SavedModel:
        raise NotImplementedError

    @classmethod
    def _of_saved(cls, saved: SavedModel) -> Self:
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str], include_training_state: bool = False) -> None:
        """Write the fitted classifier to a safetensors file: whole, or not at all.

        Parameters
        ----------
        path : path-like
        include_training_state : bool, default=False
            Whether the optimiser's moments and steps and the state of dropout go along, so that after `load`
            `partial_fit` goes on with the same bits as it would here. `fit` with ``warm_start=True`` starts these
            afresh, so that it does so in any case. The file is three times as large (twice with ``solver="sgd"``).

        Raises
        ------
        TypeError
            If a parameter or a label cannot be stored.
        OSError
            If the file cannot be written; an old file stays as it was.

        Warns
        -----
        UserWarning
            If `callbacks` or a `scoring` function is set: a file holds no code, they come back as None.
        """
        check_is_fitted(self)
        saved, left_out = self._saved(include_training_state)
        for name in left_out:
            warnings.warn(f"{name} cannot be stored in a file: it will be None", UserWarning, stacklevel=2)
        write_model(path, saved)

    def _saved(self, with_state: bool) -> tuple[SavedModel, list[str]]:
        """What a file holds, and which parameters it cannot hold."""
        saved = self._to_save()
        left_out = [name for name, value in saved.parameters.items() if not _is_value(name, value)]
        saved.parameters |= dict.fromkeys(left_out)
        if with_state:
            saved.training = Training(self.network_.optimizer.unbound(), self.network_.training_state())
        return saved, left_out

    @classmethod
    def load(cls, path: str | os.PathLike[str], max_parameters: int = MAX_PARAMETERS) -> Self:
        """The classifier that `save` wrote to `path`, or a checkpoint at its last epoch. It predicts the same bits.

        Training can go on from it: see `save` for what the optimiser then knows. A file chooses no other file to write
        to: the parameter `checkpoint` comes back only from the checkpoint that it names.

        Parameters
        ----------
        path : path-like
        max_parameters : int, default=2**26
            A network with more parameters is refused, before memory is allocated for it; so is one whose layers make
            more values of an image than that, or than 2**26.

        Returns
        -------
        CNNClassifier
            Fitted.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is not such a file, or damaged; the message says what is wrong.
        """
        saved = read_model(path, max_parameters)
        named = saved.parameters.get("checkpoint")
        if isinstance(named, str) and os.path.realpath(named) != os.path.realpath(path):
            saved.parameters["checkpoint"] = None
        try:
            return cls._of_saved(saved)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    def _keep(self, checkpoint: Checkpoint, progress: Progress) -> None:
        """Write the checkpoint of a fit that is at `progress`."""
        saved, _ = self._saved(with_state=True)
        checkpoint.save(saved, progress)

    def _resume(self, checkpoint: Checkpoint) -> Progress | None:
        """What there is in the checkpoint of the fit that has just set up a network."""
        saved = checkpoint.saved
        if saved is None or saved.run is None or saved.training is None:
            return None
        self.channel_offset_, self.channel_scale_ = saved.offset, saved.scale
        self.network_.load_training_state(saved.training.state)
        self._history = saved.history
        return saved.run.progress

    def to_onnx(
        self,
        path: str | os.PathLike[str],
        opset: int | None = None,
        fold_batch_norm: bool = True,
        input_dtype: str = "float32",
    ) -> None:
        """Write the fitted classifier as an ONNX graph, for other programs to run: from images to labels.

        The graph takes "images" (n, H, W, C), channels last and not scaled, as `predict` does, and gives "label" and
        "probabilities", (n, n_classes) of float32, the mean over the views that the estimator's `tta` says. Under
        "classes" and "image_shape" the file's metadata have these as JSON.

        Parameters
        ----------
        path : path-like
        opset : int or None, default=None
            Version of the operator set, from 13 to 23. None: 17.
        fold_batch_norm : bool, default=True
            Whether batch normalisation becomes part of the weights before it.
        input_dtype : {"float32", "uint8"}, default="float32"
            Of the images that the graph takes.

        Raises
        ------
        ImportError
            Without the package onnx (``pip install onnx``).
        ValueError
            If `opset` or `input_dtype` is not one of these.
        TypeError
            If the classes are neither numbers nor strings.
        OSError
            If the file cannot be written; an old file stays as it was.
        """
        check_is_fitted(self)
        chain = Chain(
            ops=self.network_.ops,
            params=self.network_.params,
            image_shape=self.image_shape_,
            offset=self.channel_offset_,
            scale=self.channel_scale_,
            classes=self.classes_,
            views=views_of(self.tta),
        )
        write_onnx(path, chain, opset, fold_batch_norm, input_dtype)

    @classmethod
    def from_onnx(cls, path: str | os.PathLike[str]) -> Self:
        """A fitted classifier from an ONNX file whose graph layers can express, by whatever program it was written.

        The graph takes images, channels first or last, and ends in logits or their softmax. Scaling of its input
        becomes the classifier's; images here are (n, H, W, C) in any case. Classes are 0, 1, ... unless `to_onnx`
        wrote the file.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        CNNClassifier
            Fitted.

        Raises
        ------
        ImportError
            Without the package onnx (``pip install onnx``).
        OSError
            If the file cannot be read.
        ValueError
            If it is not such a file; the message names the operator that no layer can express.
        """
        return cls._of_saved(read_onnx(path))

    @classmethod
    def from_torch_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        layers: Sequence[Layer],
        image_shape: tuple[int, int, int],
        *,
        classes: Any = None,
        offset: Any = 0.0,
        scale: Any = 1.0,
        **parameters: Any,
    ) -> Self:
        """A fitted classifier with the weights of an equal network of PyTorch.

        Convolutions' weights (K, C, R, S) become (R, S, C, K), dense ones (out, in) become (in, out), their inputs in
        the order height, width, channels where PyTorch flattened channels, height, width.

        Parameters
        ----------
        state_dict : mapping of str to array or tensor
            ``model.state_dict()``, of a model that ends in logits. Names do not matter, the order does, which is
            that of `layers`.
        layers : sequence of layers
            All but the last dense one, which is added, as for the parameter `layers`. Batch normalisation of PyTorch
            has ``epsilon=1e-5`` by default; its padding is ``Conv2D(..., padding=1)`` and the like.
        image_shape : (H, W, C)
        classes : array-like of shape (n_classes,) or None, default=None
            Sorted. None: 0, 1, ...
        offset, scale : float or array-like of shape (C,), default=0 and 1
            The network was trained on ``(image - offset) / scale``.
        **parameters
            Other parameters of the classifier.

        Returns
        -------
        CNNClassifier
            Fitted.

        Raises
        ------
        ValueError
            If arrays are missing or left over, or a shape is not that of the layers; the message names them.
        """
        saved = _of_weights(layers, image_shape, torch_params, state_dict, classes, offset, scale, parameters)
        return cls._of_saved(saved)

    @classmethod
    def from_keras_weights(
        cls,
        weights: Sequence[Any],
        layers: Sequence[Layer],
        image_shape: tuple[int, int, int],
        *,
        classes: Any = None,
        offset: Any = 0.0,
        scale: Any = 1.0,
        **parameters: Any,
    ) -> Self:
        """A fitted classifier with the weights of an equal network of Keras, channels last.

        Parameters
        ----------
        weights : sequence of array
            ``model.get_weights()``, of a model that ends in logits or in a dense layer with softmax. Those of a
            `DepthwiseConv2D` go to ``Conv2D(..., groups=C)``.
        layers : sequence of layers
        image_shape : (H, W, C)
        classes : array-like of shape (n_classes,) or None, default=None
        offset, scale : float or array-like of shape (C,), default=0 and 1
        **parameters
            As for `from_torch_state_dict`.

        Returns
        -------
        CNNClassifier
            Fitted.

        Raises
        ------
        ValueError
            If arrays are missing or left over, or a shape is not that of the layers; the message names them.
        """
        saved = _of_weights(layers, image_shape, keras_params, weights, classes, offset, scale, parameters)
        return cls._of_saved(saved)


def _is_value(name: str, value: Any) -> bool:
    """Whether a file can hold it: code it cannot."""
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)["bit_generator"] == "MT19937"
    return value is None or not (name == "callbacks" or callable(value))


def _of_weights(
    layers: Sequence[Layer],
    image_shape: tuple[int, int, int],
    convert: Any,
    weights: Any,
    classes: Any,
    offset: Any,
    scale: Any,
    parameters: dict[str, Any],
) -> SavedModel:
    shape = tuple(int(n) for n in image_shape)
    if len(shape) != 3:
        raise ValueError(f"image_shape must be (H, W, C), got {image_shape!r}")
    params, n_classes = convert(layers, shape, weights)
    known = np.arange(n_classes) if classes is None else np.asarray(classes)
    if known.shape != (n_classes,) or not np.array_equal(np.unique(known), known):
        raise ValueError(f"classes must be {n_classes} sorted, different labels, got {classes!r}")
    channels = [np.broadcast_to(np.asarray(v, np.float64), shape[2:]).copy() for v in (offset, scale)]
    if not (np.isfinite(channels).all() and channels[1].all()):
        raise ValueError("offset and scale must be finite, and scale not 0")
    return SavedModel(
        parameters={**parameters, "layers": list(layers)},
        layers=[*layers, Dense(n_classes)],
        image_shape=shape,
        dtype=parameters.get("dtype", "float32"),
        classes=known,
        offset=channels[0],
        scale=channels[1],
        params=params,
    )
