"""The flat vectors of parameters and gradients."""

import numpy as np
import pytest

from fastcnn.engine.network import Network
from fastcnn.engine.parameters import Parameters
from fastcnn.kernels import get_backend
from fastcnn.layers import BatchNorm, Conv2D, Dense, Flatten, ReLU, Residual, Tanh
from fastcnn.training.optimizers import SGD

pytestmark = pytest.mark.small

LAYERS = [Conv2D(4), Residual([Conv2D(4, groups=4), Conv2D(4, 1)]), BatchNorm(), Flatten(), Dense(6), ReLU(), Dense(3)]


def parameters(dtype="float32"):
    return Parameters(LAYERS, (5, 5, 2), np.dtype(dtype), get_backend("reference"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_come_first_each_at_a_cache_line(dtype):
    p = parameters(dtype)
    per_line = 64 // p.dtype.itemsize
    first = p.flat.ctypes.data
    starts = {name: (p.values[name].ctypes.data - first) // p.dtype.itemsize for name in p.grads}
    assert all(start % per_line == 0 for start in starts.values())
    for name, start in starts.items():
        assert (start < p.n_decay) == (p.values[name].ndim > 1)
    assert p.n_trained == sum(view.size for view in p.grads.values())
    assert {name for name in p.values if name not in p.grads} == {"2.running_mean", "2.running_var"}
    assert not p.flat.any() and not p.flat_grads.any()


def test_parts_are_views():
    p = parameters()
    p.flat[...] = np.arange(p.flat.size)
    p.values["4.weight"][...] = -1
    assert (p.flat == -1).sum() == p.values["4.weight"].size
    parts = {name: np.array(view) for name, view in p.views(p.flat).items()}
    flat = p.flattened("m", parts)
    for name, view in p.views(flat).items():
        np.testing.assert_array_equal(view, parts[name])


def test_flattened_refuses_other_parts():
    p = parameters()
    parts = p.views(p.flat)
    with pytest.raises(ValueError, match=r"m has .* expected"):
        p.flattened("m", {name: part for name, part in parts.items() if name != "0.bias"})
    with pytest.raises(ValueError, match=r"m of 0.bias has shape \(3,\), expected \(4,\)"):
        p.flattened("m", parts | {"0.bias": np.zeros(3)})


def test_hidden_weights_are_the_optimizers_matrices():
    """One column for each filter or unit; not depthwise ones, not the last layer's."""
    bound = []

    class Spy(SGD):
        def bind(self, n_params, n_decay, dtype, matrices=(), place=np.asarray):
            super().bind(n_params, n_decay, dtype, matrices, place)
            bound.extend(matrices)

    net = Network(LAYERS, (5, 5, 2), random_state=0, optimizer=Spy(1.0, momentum=0.0))
    assert [(m.rows, m.columns) for m in bound] == [(18, 4), (4, 4), (100, 6)]
    weights = [net.params[name] for name in ("0.weight", "1.layers.1.weight", "4.weight")]
    flat = net._parameters.flat
    for (start, rows, columns), weight in zip(bound, weights, strict=True):
        part = flat[start : start + rows * columns].reshape(rows, columns)
        np.testing.assert_array_equal(part, weight.reshape(rows, -1))


def test_initial_weights_go_by_what_follows_the_sum():
    """Whatever chains there are on the skip beside it."""
    inner = Residual([Conv2D(64)])
    for skip in ([Conv2D(64)], [Conv2D(64), inner], [Conv2D(64), Residual([inner], [Conv2D(64)])]):
        layers = [Residual([Conv2D(64)], [*skip, Tanh()]), ReLU(), Dense(3)]
        net = Network(layers, (8, 8, 4), dtype="float64", device="reference", random_state=0)
        he = 2 / (9 * 4)  # before ReLU
        assert net.params["0.layers.0.weight"].var() == pytest.approx(he, rel=0.1)
        if len(skip) == 1:
            assert net.params["0.skip.0.weight"].var() == pytest.approx(2 / (9 * (4 + 64)), rel=0.1)
