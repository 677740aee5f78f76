"""Settings for the whole suite."""

import os

import pytest
from hypothesis import settings

from tests.gpu import SIMULATED

# No deadline: the first example compiles kernels. In CI the same examples each time: red then means a change.
settings.register_profile("local", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session", autouse=SIMULATED)
def one_core_for_the_simulator():
    """Its threads take turns, and on several cores each waits for another's end of turn."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        os.sched_setaffinity(0, {cores[worker % len(cores)]})


def pytest_collection_modifyitems(items):
    """In the simulator of a GPU, double precision only where a test needs it: it is the same code."""
    if SIMULATED:
        items[:] = [item for item in items if "[cuda-float64" not in item.nodeid]
        for item in items:  # a thread of the simulator does not know NumPy's error state
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
