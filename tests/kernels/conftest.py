"""Every kernel test runs on every backend."""

import numpy as np
import pytest

from fastcnn.kernels import BACKENDS, get_backend


@pytest.fixture(params=sorted(BACKENDS))
def backend(request):
    """A module with the kernels of `fastcnn.kernels.contract`."""
    return get_backend(request.param)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)
