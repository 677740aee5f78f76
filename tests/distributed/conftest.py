"""Clusters for these tests; none of them may hang."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from fastcnn.datasets import load_digits_images

pytest.importorskip("distributed")
SECONDS = 300  # for the slowest of machines


def pytest_collection_modifyitems(items):
    for item in items:
        if "distributed" in item.path.parts:
            item.add_marker(pytest.mark.timeout(SECONDS))


@contextmanager
def started(n_workers, threads_per_worker=1, **settings):
    """A cluster of this machine and a client that nobody else finds."""
    from distributed import Client, LocalCluster

    settings |= {"n_workers": n_workers, "threads_per_worker": threads_per_worker}
    with (
        LocalCluster(dashboard_address=":0", **settings) as local,  # with None, two clusters would take one port
        Client(local, set_as_default=False) as client,
    ):
        yield local, client


@pytest.fixture(scope="session")
def digits():
    return load_digits_images()


@pytest.fixture(scope="session")
def cluster():
    """Two processes with one thread each."""
    with started(2) as (_, client):
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture
def client(cluster):
    with cluster.as_current():
        yield cluster


@pytest.fixture
def threads():
    """One worker of two threads, in this process."""
    with started(1, threads_per_worker=2, processes=False) as (_, client):
        yield client


@pytest.fixture
def start():
    """What starts other clusters."""
    return started


@pytest.fixture
def alone(tmp_path):
    """A scheduler and a worker as programs of their own: the client, and the scheduler's process."""
    from distributed import Client

    file = str(tmp_path / "scheduler.json")
    command = [sys.executable, "-W", "ignore", "-m"]
    settings = {"env": os.environ | {"PYTHONWARNINGS": "ignore"}, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*command, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
         "--scheduler-file", file], **settings
    )  # fmt: skip
    worker = subprocess.Popen(
        [*command, "distributed.cli.dask_worker", "--scheduler-file", file, "--no-dashboard", "--no-nanny",
         "--nthreads", "1", "--death-timeout", "30"], **settings
    )  # fmt: skip
    client = Client(scheduler_file=file, timeout=60, set_as_default=False)
    try:
        client.wait_for_workers(1, timeout=60)
        yield client, scheduler
    finally:
        client.close(timeout=5)
        for process in (worker, scheduler):
            process.kill()
            process.wait()
