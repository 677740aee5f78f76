"""Every network of the benchmarks can be built, and its shapes are those that the other sides are built from."""

import pytest

from bench.networks import CLASSES, NETWORKS, fastcnn_layers
from fastcnn import Network


@pytest.mark.parametrize("name", NETWORKS)
def test_fastcnn_has_the_shapes_of_the_spec(name):
    spec = NETWORKS[name]
    net = Network(fastcnn_layers(spec), spec.input_shape, random_state=0)
    assert net.output_shape == (CLASSES,)
    shapes = [layer.output_shape(shape) for layer, shape in zip(net.layers, spec.shapes, strict=False)]
    assert shapes == spec.shapes[1:]
