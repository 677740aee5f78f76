"""Settings for the whole suite."""

import os

import pytest
from hypothesis import settings

# No deadline: the first example compiles kernels. In CI the same examples each time: red then means a change.
settings.register_profile("local", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items):
    """In the simulator of a GPU, double precision only where a test needs it: it is the same code."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        items[:] = [item for item in items if "[cuda-float64" not in item.nodeid]
        for item in items:  # a thread of the simulator does not know NumPy's error state
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
