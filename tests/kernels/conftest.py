"""Every kernel test runs on every backend."""

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
