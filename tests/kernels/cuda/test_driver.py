"""Memory, launches and errors of the GPU, and that the CPU goes on working after each of them."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from fastcnn import Network
from fastcnn.kernels import choose_device, get_backend
from fastcnn.layers import Conv2D, Dense, ReLU
from tests.gpu import unavailable

pytestmark = [pytest.mark.cuda, pytest.mark.small]

if unavailable():
    pytest.skip(f"no GPU and no simulator: {unavailable()}", allow_module_level=True)

from fastcnn.kernels.cuda import arrays, driver
from fastcnn.kernels.cuda.elementwise import activation_forward
from fastcnn.kernels.cuda.program import record


class CudaAPIError(Exception):
    """As the driver's own, by its name."""


def net(**parameters):
    return Network([Conv2D(2), ReLU(), Dense(3)], (4, 4, 1), random_state=0, **parameters)


X, LABELS = np.linspace(-1, 1, 5 * 16, dtype=np.float32).reshape(5, 4, 4, 1), np.arange(5) % 3


def assert_the_cpu_works():
    assert np.isfinite(net(device="cpu").train_step(X, LABELS))


def test_an_array_is_as_numpys():
    values = np.arange(24, dtype=np.float32)
    array = arrays.place(values)
    assert arrays.place(array) is array
    np.testing.assert_array_equal(array, values)
    table = array.reshape(4, -1)
    assert (table.shape, table.size, table.nbytes, table.ndim, len(table)) == ((4, 6), 24, 96, 2, 4)
    np.testing.assert_array_equal(table[1:3], values[6:18].reshape(2, 6))
    np.testing.assert_array_equal(table[-1], values[18:])
    np.testing.assert_array_equal(array[8:].view(np.uint8), values[8:].view(np.uint8))
    table[1:2] = [[1, 2, 3, 4, 5, 6]]
    np.testing.assert_array_equal(array[6:12], np.arange(1, 7))  # the same memory
    twin = copy.deepcopy(array)
    array[...] = 0.5
    assert (np.asarray(array) == 0.5).all() and np.asarray(twin)[0] == 0
    array[...] = twin
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array)), np.asarray(twin))
    assert array.quads and not array[1:].quads and array[4:].quads
    with pytest.raises(ValueError, match=r"cannot reshape \(24,\)"):
        array.reshape(5, 5)
    with pytest.raises(TypeError, match="without a step"):
        array[::2]


def test_others_see_an_array_without_a_copy():
    array = arrays.place(np.arange(6, dtype=np.float64).reshape(2, 3))
    seen = array.__cuda_array_interface__
    assert seen["shape"] == (2, 3) and seen["typestr"] == "<f8" and seen["data"] == (array.address, False)


def test_a_program_runs_its_launches_again():
    x, y = arrays.place(np.array([-1.0, 2.0])), arrays.place(np.zeros(2))
    program = record([(activation_forward, (x, (1, 0.0), y)), (activation_forward, (y, (0, 0.0), y))])
    assert len(program.calls) == 2
    np.testing.assert_array_equal(y, [0, 0])  # nothing has run
    for value in (2.0, 3.0, 4.0):
        x[...] = [-1, value]
        program()
        np.testing.assert_array_equal(y, [0, value])


def test_the_workspace_grows_and_old_ones_stay():
    small = arrays.workspace(10, np.float32)
    assert arrays.workspace(5, np.float32) is small
    large = arrays.workspace(3 * small.size, np.float32)
    assert large.size >= 3 * small.size and arrays.workspace(10, np.float32) is large


def test_a_grid_of_nothing_is_not_launched():
    driver.launch(None, (0, 3), 1)


# ------------------------------------------------------------------------------------------------------------ errors


def refused(monkeypatch, available, error, count=1):
    monkeypatch.setattr(driver, "SIMULATED", False)
    monkeypatch.setattr(driver.cuda, "is_available", lambda: available)
    monkeypatch.setattr(driver.cuda, "cuda_error", lambda: error)
    monkeypatch.setattr(driver.cuda, "gpus", [None] * count, raising=False)
    with pytest.raises(RuntimeError) as caught:
        net(device="cuda")
    assert "device='cuda' cannot be used" in str(caught.value)
    assert_the_cpu_works()
    return str(caught.value)


def test_no_driver(monkeypatch):
    assert "no NVIDIA driver was found" in refused(monkeypatch, False, "CUDA driver library cannot be found.\nEnsure")


def test_no_gpu(monkeypatch):
    assert "the driver finds no GPU" in refused(monkeypatch, False, "CUDA_ERROR_NO_DEVICE (100)")


def test_an_old_driver(monkeypatch):
    error = "[CUDA_ERROR_SYSTEM_DRIVER_MISMATCH] Call to cuInit results in it"
    assert "driver is too old" in refused(monkeypatch, False, error)
    monkeypatch.setattr(driver, "_versions", lambda: ((12, 4), (13, 0)))
    text = refused(monkeypatch, True, None)
    assert "it knows CUDA 12.4" in text and "numba-cuda[cu12]" in text


def test_a_numpy_that_is_too_new(monkeypatch):
    def fail(name):
        raise AttributeError("module 'numpy' has no attribute 'row_stack'")

    monkeypatch.setattr(driver, "_versions", lambda: (None, None))
    monkeypatch.setattr(driver, "import_module", fail)
    text = refused(monkeypatch, True, None)
    assert "row_stack" in text and "numpy<2.5" in text


def test_a_gpu_that_the_compiler_does_not_know(monkeypatch):
    monkeypatch.setattr(driver, "_versions", lambda: (None, None))
    compiler = SimpleNamespace(get_supported_ccs=lambda: [(9, 0), (7, 5)])
    monkeypatch.setattr(driver, "import_module", lambda name: compiler)
    card = SimpleNamespace(compute_capability=(7, 0))
    monkeypatch.setattr(driver.cuda, "get_current_device", lambda: card)
    text = refused(monkeypatch, True, None)
    assert "compute capability 7.0" in text and "oldest is 7.5" in text
    card.compute_capability = (7, 5)
    assert driver.why_unavailable() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_of_a_process_that_used_the_gpu(monkeypatch):
    monkeypatch.setattr(driver, "SIMULATED", False)
    monkeypatch.setattr(driver, "_started", True)
    monkeypatch.setattr(driver, "_forked", False)
    with driver.threads(None):  # another thread of the parent may be amid a step
        driver._after_fork_in_child()
    assert "forked" in driver.why_unavailable()
    taken = threading.Thread(target=lambda: driver.threads(None).__enter__())
    taken.start()
    taken.join(10)
    assert not taken.is_alive()
    driver._after_fork_in_child()


def test_no_compiler(monkeypatch):
    assert "NVVM" in refused(monkeypatch, False, None)


def test_a_driver_that_fails_otherwise(monkeypatch):
    monkeypatch.setattr(driver, "SIMULATED", False)

    def fail():
        raise OSError("libcuda is broken")

    monkeypatch.setattr(driver.cuda, "is_available", fail)
    assert "libcuda is broken" in driver.why_unavailable()


def test_without_numba_cuda_the_error_says_what_to_install():
    program = """
        import sys
        sys.modules["numba.cuda"] = None
        from fastcnn import Network
        from fastcnn.kernels import choose_device
        from fastcnn.layers import Dense
        try:
            Network([Dense(2)], (3,), device="cuda")
        except ImportError as error:
            print(error)
        print(choose_device("auto"), Network([Dense(2)], (3,), device="auto").forward([[1, 2, 3]]).shape)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)
    assert "pip install 'numba-cuda[cu13]' 'numpy<2.5'" in run.stdout, run.stderr
    assert run.stdout.splitlines()[-1] == "cpu (1, 2)"


def test_auto_takes_the_gpu():
    assert choose_device("auto") == net(device="auto").device == "cuda"


def full(monkeypatch, limit, error):
    allocate = driver.cuda.device_array

    def limited(n, *args, **kwargs):
        if n > limit:
            raise error
        return allocate(n, *args, **kwargs)

    monkeypatch.setattr(driver.cuda, "device_array", limited)
    monkeypatch.setattr(arrays, "free_memory", lambda: limit)


@pytest.mark.parametrize("error", [CudaAPIError(2, "CUDA_ERROR_OUT_OF_MEMORY"), MemoryError()])
def test_full_memory_says_how_much_was_asked_for_and_what_would_fit(monkeypatch, error):
    network = net(device="cuda")
    large = np.zeros((5000, 4, 4, 1), np.float32)
    full(monkeypatch, 2**20, error)
    with pytest.raises(
        MemoryError, match=r"no room for [\d.]+ MiB more; 1 MiB are free.*batch of 5000.*try batch_size=\d+"
    ):
        network.train_step(large, np.zeros(5000, np.int64))
    assert np.isfinite(network.train_step(X, LABELS))  # what fits still runs
    assert_the_cpu_works()


def test_a_kernel_that_fails_is_named(monkeypatch):
    network = net(device="cuda")
    network.train_step(X, LABELS)

    def fail(self, where):
        raise CudaAPIError(700, "CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(driver.Call, "__call__", fail)
    with pytest.raises(driver.KernelError, match=r"conv_forward.*ILLEGAL_ADDRESS.*device='cpu' still works"):
        network.train_step(X, LABELS)
    assert_the_cpu_works()


def test_a_mistake_of_ours_stays_what_it_is(monkeypatch):
    network = net(device="cuda")

    def fail(self, where):
        raise ZeroDivisionError

    monkeypatch.setattr(driver.Call, "__call__", fail)
    with pytest.raises(ZeroDivisionError):
        network.forward(X)


def test_one_thread_feeds_the_gpu():
    backend = get_backend("cuda")
    assert backend.max_threads(None) == backend.max_threads(7) == 1
    with pytest.raises(ValueError, match="n_jobs"):
        backend.max_threads(0)
