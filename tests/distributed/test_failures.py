"""What dies while a model is trained: the bits are the same, or the error says what is lost."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from fastcnn import CNNClassifier
from fastcnn.distributed import DaskCNNClassifier

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

PARAMETERS = {
    "conv_channels": (8,), "dense_units": (16,), "batch_size": 16, "max_iter": 3, "learning_rate_init": 0.01,
    "sync_every": 20, "block_momentum": 0.3, "random_state": 0,
}  # fmt: skip
SECONDS = 60.0


@pytest.fixture(scope="module")
def data(digits):
    return da.from_array(digits[0], chunks=(900, 8, 8)), digits[1]


@pytest.fixture(scope="module")
def expected(cluster, data):
    return DaskCNNClassifier(client=cluster, **PARAMETERS).fit(*data)


def assert_same_bits(one, other):
    assert one.loss_curve_ == other.loss_curve_
    for name, value in one.network_.params.items():
        np.testing.assert_array_equal(other.network_.params[name], value, err_msg=name)


class During:
    """Does something to a worker that has a round's task; `done` says to which one."""

    done: dict = {}  # noqa: RUF012  a fit calls copies of its callbacks

    def __init__(self, action, address):
        self.action, self.address = action, address
        During.done = {}

    def on_epoch_begin(self, epoch):
        if epoch == 2:
            threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        with distributed.Client(self.address, set_as_default=False) as client:
            pids = client.run(os.getpid)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                for worker, keys in client.processing().items():
                    if any(str(key).startswith("fastcnn-train") for key in keys):
                        self.action(pids[worker])
                        During.done = {"worker": worker, "pid": pids[worker]}
                        return
                time.sleep(0.001)


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def hold_up(pid):
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1)
    os.kill(pid, signal.SIGCONT)


@pytest.mark.skipif(os.name != "posix", reason="no such signals")
@pytest.mark.parametrize(("n_workers", "action"), [(2, kill), (1, kill), (2, hold_up)])
def test_a_worker_dies_or_is_slow(start, expected, data, n_workers, action):
    with start(n_workers) as (local, client):
        client.wait_for_workers(n_workers, timeout=SECONDS)
        during = During(action, local.scheduler_address)
        clf = DaskCNNClassifier(client=client, callbacks=[during], **PARAMETERS).fit(*data)
        assert During.done
        if action is kill:
            client.wait_for_workers(n_workers, timeout=SECONDS)
            assert During.done["pid"] not in client.run(os.getpid).values()
        assert_same_bits(expected, clf)


class Grow:
    def __init__(self, local):
        self.local = local

    def __deepcopy__(self, memo):
        return self

    def on_epoch_begin(self, epoch):
        if epoch == 2:
            self.local.scale(2)

    def on_epoch_end(self, info):
        if info.epoch == 2:
            with distributed.Client(self.local, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=SECONDS)


def test_a_worker_is_added(start, expected, data):
    with start(1) as (local, client):
        clf = DaskCNNClassifier(client=client, callbacks=[Grow(local)], **PARAMETERS).fit(*data)
        assert len(client.nthreads()) == 2
        assert_same_bits(expected, clf)


class KillScheduler:
    def __init__(self, pid):
        self.pid = pid

    def on_epoch_begin(self, epoch):
        if epoch == 3:
            os.kill(self.pid, signal.SIGKILL)


@pytest.mark.skipif(os.name != "posix", reason="no such signals")
def test_the_scheduler_dies(alone, data, tmp_path):
    client, scheduler = alone
    path = tmp_path / "run.safetensors"
    clf = DaskCNNClassifier(client=client, callbacks=[KillScheduler(scheduler.pid)], checkpoint=path, **PARAMETERS)
    with pytest.raises(ConnectionError, match=r"the scheduler at tcp://.* is lost"):
        clf.fit(*data)
    assert not hasattr(clf, "classes_")
    assert CNNClassifier.load(path).n_iter_ == 2
