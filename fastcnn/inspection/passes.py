"""What goes through a network: the output of each layer, and gradients with respect to it.

Both as in inference: dropout is off, and batch normalisation uses its running statistics. So a gradient is not
`Network.backward`'s, which is of training. The layers are run one at a time, each as a small network of its own,
because a plan keeps no more than what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np

from fastcnn.engine.network import Network
from fastcnn.engine.ops import Shape
from fastcnn.image_estimator import nameless
from fastcnn.layers import BatchNorm, Dropout, Layer, Residual, SpatialDropout

__all__ = ["activations", "gradients", "network_of", "places"]

Place = int | str

_OTHERWISE_IN_TRAINING = ("batchnorm", "dropout", "spatial_dropout")  # kinds of ops


def network_of(net: Any) -> Network:
    """`net` itself if it is a `Network`, or the one of a fitted classifier.

    Raises
    ------
    NotFittedError
        If it is a classifier that is not fitted.
    """
    if isinstance(net, Network):
        return net
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(net, "network_")
    net.network_.n_jobs = net.n_jobs  # may have changed since `fit`
    return net.network_


def network_input(net: Any, x: Any) -> np.ndarray:
    """`x` as the network takes it: images of a classifier are scaled as it scales them."""
    network = network_of(net)
    if isinstance(net, Network):
        x = np.asarray(x)
        if x.ndim == 0 or x.shape[1:] != network.input_shape:
            raise ValueError(f"x has shape {x.shape}, expected (n, {', '.join(map(str, network.input_shape))})")
        return x.astype(network.dtype, copy=False)
    return nameless(net).network_input(np.asarray(x))


def places(net: Any) -> dict[str, Shape]:
    """Where there is something to see: each layer's place, as in the names of parameters, and its output's shape.

    Layers in a `Residual` at 3 come as "3.layers.0", ... and "3.skip.0", ..., before "3" itself.
    """
    network = network_of(net)
    shapes: dict[str, Shape] = {}

    def walk(prefix: str, layers: Sequence[Layer], shape: Shape) -> Shape:
        for i, layer in enumerate(layers):
            if isinstance(layer, Residual):
                for part, chain in (("layers", layer.layers), ("skip", layer.skip)):
                    walk(f"{prefix}{i}.{part}.", chain, shape)
            shape = shapes[f"{prefix}{i}"] = layer.output_shape(shape)
        return shape

    walk("", network.layers, network.input_shape)
    return shapes


@overload
def activations(net: Any, x: Any, layer: Literal["all"] = "all") -> dict[str, np.ndarray]: ...
@overload
def activations(net: Any, x: Any, layer: int) -> np.ndarray: ...
@overload
def activations(net: Any, x: Any, layer: str) -> Any: ...


def activations(net: Any, x: Any, layer: Place = "all") -> Any:
    """What a layer gives for `x`, as in inference.

    Parameters
    ----------
    net : Network or fitted CNNClassifier
    x : array (n, ...) of the shape `input_shape`; of a classifier, images as `predict` takes them
    layer : int or str, default="all"
        Place in the list of layers, from 0, or from the end as -1. Within a `Residual` at 3 "3.layers.0" or
        "3.skip.0", as in the names of parameters. "all": a dict of every place.

    Returns
    -------
    array (n, ...) of the shape that the layer gives, or dict of str to such arrays, from the first layer to the last
        The last layer gives logits, not probabilities.

    Raises
    ------
    ValueError
        If there is no such layer, or `x` has another shape; the message names it.
    """
    wanted = _checked_place(net, layer)
    x = network_input(net, x)
    found: dict[str, np.ndarray] = {}
    for place, y in _Tape(network_of(net)).forward(x):
        found[place] = y
        if place == wanted:
            return y
    return found


@overload
def gradients(net: Any, x: Any, target: Any, layer: Literal["all"]) -> dict[str, np.ndarray]: ...
@overload
def gradients(net: Any, x: Any, target: Any = None, layer: int | None = None) -> np.ndarray: ...
@overload
def gradients(net: Any, x: Any, target: Any, layer: str) -> Any: ...


def gradients(net: Any, x: Any, target: Any = None, layer: Place | None = None) -> Any:
    """Gradient of one output, before the softmax, as in inference.

    Parameters
    ----------
    net : Network or fitted CNNClassifier
        A network that ends in a vector.
    x : array (n, ...) of the shape `input_shape`; of a classifier, images as `predict` takes them
    target : int, int array (n,) or None, default=None
        Which output; of a classifier a place in `classes_`. None: for each sample the one that is largest.
    layer : int, str or None, default=None
        With respect to what: the output of the layer at this place, as for `activations`; "all": a dict of every
        place, and of the input under "input". None: the network's input, which is scaled.

    Returns
    -------
    array (n, ...), of the shape of what the gradient is with respect to, or dict of str to such arrays

    Raises
    ------
    ValueError
        If there is no such layer or output, or `x` has another shape.
    """
    network = network_of(net)
    wanted = "input" if layer is None else _checked_place(net, layer)
    x = network_input(net, x)
    if len(network.output_shape) != 1:
        raise ValueError(f"gradients needs outputs of shape (n_outputs,), this network gives {network.output_shape}")
    tape = _Tape(network)
    *_, (_, logits) = tape.forward(x)
    dy = np.zeros_like(logits)
    dy[np.arange(len(x)), checked_target(target, logits)] = 1
    found = dict(tape.backward(dy))
    return found if wanted == "all" else found[wanted]


def checked_target(target: Any, logits: np.ndarray) -> np.ndarray:
    """`target` as one output for each of `logits`."""
    n, n_outputs = logits.shape
    if target is None:
        return logits.argmax(axis=1)
    chosen = np.asarray(target)
    if chosen.dtype.kind not in "iu" or chosen.shape not in ((), (n,)):
        raise ValueError(f"target must be an int or {n} ints, got shape {chosen.shape}, dtype {chosen.dtype}")
    if chosen.size and not (0 <= chosen.min() and chosen.max() < n_outputs):
        raise ValueError(f"target must be from 0 to {n_outputs - 1}, got {target!r}")
    return np.broadcast_to(chosen.astype(np.int64), (n,))


def _checked_place(net: Any, layer: Place) -> str:
    if layer == "all":
        return "all"
    known = places(net)
    n = len(network_of(net).layers)
    is_int = hasattr(layer, "__index__") and not isinstance(layer, bool)
    place = str(layer + n if is_int and layer < 0 else layer)  # type: ignore[operator]
    if place not in known:
        raise ValueError(f'there is no layer {layer!r}: expected "all", {-n} to {n - 1}, or one of {", ".join(known)}')
    return place


class _Tape:
    """A forward pass through all layers, and the way back."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._inputs: dict[str, np.ndarray] = {}  # of each layer, by place
        self._of_layer: dict[str, Network] = {}

    def forward(self, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Each layer's place and output."""
        yield from self._chain_forward("", self._network.layers, x)

    def backward(self, dy: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Each layer's place and the gradient of its output, from the last to the first; at last that of "input"."""
        dx = yield from self._chain_backward("", self._network.layers, dy)
        yield "input", dx

    def _chain_forward(self, prefix: str, layers: Sequence[Layer], x: np.ndarray) -> Any:
        for i, layer in enumerate(layers):
            place = f"{prefix}{i}"
            self._inputs[place] = x
            if isinstance(layer, Residual):
                y = yield from self._chain_forward(f"{place}.layers.", layer.layers, x)
                skip = yield from self._chain_forward(f"{place}.skip.", layer.skip, x)
                x = y + skip
            elif not isinstance(layer, (Dropout, SpatialDropout)):
                x = self._single(place, layer, x.shape[1:]).forward(x)
            yield place, x
        return x

    def _chain_backward(self, prefix: str, layers: Sequence[Layer], dy: np.ndarray) -> Any:
        for i, layer in reversed(list(enumerate(layers))):
            place = f"{prefix}{i}"
            yield place, dy
            x = self._inputs[place]
            if isinstance(layer, Residual):
                dx = yield from self._chain_backward(f"{place}.layers.", layer.layers, dy)
                skip = yield from self._chain_backward(f"{place}.skip.", layer.skip, dy)
                dy = dx + skip
            elif isinstance(layer, BatchNorm):
                gamma, variance = (self._network.params[f"{place}.{name}"] for name in ("weight", "running_var"))
                dy = dy * (gamma / np.sqrt(variance + layer.epsilon)).astype(dy.dtype)
            elif not isinstance(layer, (Dropout, SpatialDropout)):
                single = self._single(place, layer, x.shape[1:])
                if any(op.kind in _OTHERWISE_IN_TRAINING for op in single.ops):
                    raise ValueError(
                        f"layer {place!r} ({type(layer).__name__}) does something else in training: its gradient in "
                        "inference is known only of BatchNorm, Dropout and SpatialDropout as layers of their own"
                    )
                single.forward(x, training=True)
                dy = single.backward(dy)
        return dy

    def _single(self, place: str, layer: Layer, shape: Shape) -> Network:
        """`layer` as a network of its own."""
        if place not in self._of_layer:
            whole = self._network
            single = Network(
                [layer],
                shape,
                dtype=whole.dtype.name,
                device=whole.device,
                random_state=0,
                n_jobs=whole.n_jobs,
                fuse=whole.fuse,
                winograd=whole.winograd,
                precision=whole.precision,
            )
            names = (name.removeprefix("0.") for name in single.params)
            single.load_params({f"0.{name}": whole.params[f"{place}.{name}"] for name in names})
            self._of_layer[place] = single
        return self._of_layer[place]
