"""The GPU in tests: a real one, or numba-cuda's simulator where NUMBA_ENABLE_CUDASIM is set."""

import functools
import os
import sys
import threading

import numpy as np
import pytest

from fastcnn.kernels import BACKENDS, get_backend


def _mend_the_simulator():
    """Shared arrays are made once, and threads wait for each other without a busy loop.

    As it is, two threads that ask for a shared array at the same moment may get one each; and the loop that looks for
    waiting threads takes most of the time that they need.
    """
    from numba.cuda.np.numpy_support import as_dtype
    from numba.cuda.simulator import kernel, kernelapi
    from numba.cuda.types import Type

    lock = threading.Lock()

    def array(self, shape, dtype, alignment=None):
        frame = sys._getframe(1)
        place = frame.f_code, frame.f_lineno
        with lock:
            if place not in self._allocations:
                self._allocations[place] = np.empty(shape, as_dtype(dtype) if isinstance(dtype, Type) else dtype)
            return self._allocations[place]

    def run(self, grid_point, *args):
        points = list(np.ndindex(*self._block_dim))
        barrier = threading.Barrier(len(points), timeout=30)
        errors = []

        def work():
            try:
                self._f(*args)
            except threading.BrokenBarrierError:
                pass
            except BaseException as error:
                errors.append(error)
                barrier.abort()

        threads = [kernel.BlockThread(work, self, grid_point, point, False) for point in points]
        for thread in threads:
            thread.syncthreads = barrier.wait
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        assert not barrier.broken, "not all threads of a block came to a syncthreads()"

    kernelapi.FakeCUDAShared.array = array
    kernel.BlockManager.run = run


GUARD = 64  # numbers on either side of what a kernel gets
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
if SIMULATED:
    _mend_the_simulator()


@functools.cache
def unavailable():
    """Why there is neither, or None."""
    try:
        get_backend("cuda")
    except (ImportError, RuntimeError) as error:
        return str(error)
    return None


def backend_params():
    """All backends that there are here, as pytest parameters; the GPU's marked."""
    names = sorted(name for name in BACKENDS if name != "cuda" or not unavailable())
    return [pytest.param(name, marks=[pytest.mark.cuda] if name == "cuda" else []) for name in names]


def backend_named(name):
    return GuardedBackend(get_backend(name)) if name == "cuda" else get_backend(name)


class GuardedBackend:
    """The GPU's kernels for tests that have NumPy arrays: they are copied there and back, between guards.

    A kernel that writes outside of an array, or into one that it only reads, is found out.
    """

    def __init__(self, module):
        self.__name__, self._module = module.__name__, module

    def __getattr__(self, name):
        function = getattr(self._module, name)
        if name.endswith(("_scratch", "_algorithm")) or name in ("threads", "max_threads", "empty", "place", "record"):
            return function

        @functools.wraps(function)
        def call(*args):
            with self._module.threads(None):
                placed = [_Guarded(self._module, arg) if isinstance(arg, np.ndarray) else arg for arg in args]
                function(*(arg.inner if isinstance(arg, _Guarded) else arg for arg in placed))
                for arg in placed:
                    if isinstance(arg, _Guarded):
                        arg.back()

        return call


class _Guarded:
    def __init__(self, module, array):
        self.array = array
        size, item = array.size, array.itemsize
        whole = np.full(size + 2 * GUARD, 173, array.dtype)
        whole[GUARD : GUARD + size] = array.reshape(-1)
        self.whole = module.place(whole)
        self.inner = self.whole[GUARD : GUARD + size].reshape(array.shape)
        assert item * GUARD % 16 == 0 or item == 1

    def back(self):
        whole = np.asarray(self.whole)
        assert (whole[:GUARD] == 173).all() and (whole[-GUARD:] == 173).all(), "a kernel wrote outside of an array"
        result = whole[GUARD:-GUARD].reshape(self.array.shape)
        if self.array.flags.writeable:
            self.array[...] = result
        else:
            np.testing.assert_array_equal(result, self.array)
