"""Every kernel test runs on every backend."""

import re

import numpy as np
import pytest

from tests.gpu import backend_named, backend_params


@pytest.fixture(params=backend_params())
def backend(request):
    """A module with the kernels of `fastcnn.kernels.contract`; the GPU's where there is one, or its simulator."""
    return backend_named(request.param)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


# What the reference is compared with in these would be itself; it has tests of its own.
AGAINST_THE_REFERENCE = {
    "test_forward", "test_backward", "test_fused_block_is_the_reference", "test_fused_layers_of_networks", "test_dense",
    "test_max", "test_average", "test_normalise_and_pool", "test_softmax_cross_entropy", "test_updates", "test_muon",
}  # fmt: skip


def pytest_collection_modifyitems(items):
    def says_something(item):
        words = set(re.split(r"[\[\]-]", item.nodeid))
        return not (getattr(item, "originalname", "") in AGAINST_THE_REFERENCE and {"reference", "float64"} <= words)

    items[:] = filter(says_something, items)
