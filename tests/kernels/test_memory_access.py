"""No kernel reads or writes past its arrays: with bounds checked, and with arrays against forbidden pages.

Here some of the suite runs that way, and kernels that are wrong on purpose show that it would be noticed.
`make sanitize` runs all of it.
"""

import os
import signal
import subprocess
import sys

import numba
import pytest

pytestmark = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT) or sys.platform != "linux", reason="about compiled kernels, and Linux's pages"
)

WRONG = """
import numpy as np
from fastcnn.kernels.cpu import runtime
from fastcnn.kernels.cpu.launch import Kernel, address_for, call, empty, launch, unpack
from fastcnn.kernels.cpu.microkernel import ZERO, multiply_rows
from fastcnn.kernels.cpu.runtime import U
from fastcnn.kernels.cpu.vectors import load, store
from tests.kernels.guard_pages import guarded

@Kernel
def one_too_far(start, stop, lane, args):
    (x,) = unpack(args)
    for i in range(start, stop):
        x[U(i + 1)] = 1

@Kernel
def in_what_it_calls(start, stop, lane, args):
    x, address = unpack(args)
    call(address, start, stop, lane, (x,))

@Kernel
def half_a_vector_too_far(start, stop, lane, args):
    (x,) = unpack(args)
    store(x, U(stop - 2), load(x, U(start)))

def attempt(name, x, n_lanes):
    with runtime.threads(n_lanes):
        match name:
            case "in_what_it_calls":
                launch(in_what_it_calls, 100, 10**6, x, address_for(one_too_far, empty(np.float32)))
            case "micro-kernel":
                table, a, c = np.zeros(1, np.int64), np.ones(64, np.float32), np.zeros(64, np.float32)
                args = a, 0, table, c, 0, table, table, 1, 1, x, x.size - 1, 1, 0, 1, ZERO
                launch(multiply_rows, 1, 10**6, *args)
            case _:
                launch(globals()[name], 100, 10**6, x)
"""
NAMES = ["one_too_far", "in_what_it_calls", "half_a_vector_too_far"]


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", WRONG + code], env=os.environ | environment, capture_output=True, text=True, timeout=240
    )
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


def test_a_wrong_kernel_is_noticed_where_bounds_are_checked(tmp_path):
    code = f"""
for name in {NAMES}:
    for n_lanes in (1, 2):
        try:
            attempt(name, np.zeros(1000, np.float32)[:100], n_lanes)
            print("unnoticed")
        except IndexError as error:
            print(error)
"""
    cache = {"FASTCNN_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"}
    expected = [f"index out of bounds in the kernel {name}" for name in NAMES for _ in (1, 2)]
    for _ in range(2):  # compiled, then read from the cache
        assert python(code, **cache, NUMBA_BOUNDSCHECK="1")[:2] == (0, expected)
    assert python(code, NUMBA_NUM_THREADS="2", NUMBA_BOUNDSCHECK="0")[:2] == (0, ["unnoticed"] * 6)


@pytest.mark.parametrize("name", [*NAMES, "micro-kernel"])
def test_a_wrong_kernel_does_not_survive_a_forbidden_page(name):
    code = f"attempt({name!r}, guarded((100,), np.float32, 'end'), 1); print('unnoticed')"
    found, printed, _ = python(code, NUMBA_BOUNDSCHECK="0")
    assert found == -signal.SIGSEGV and not printed


@pytest.mark.parametrize("side", ["end", "start"])
def test_small_cases_against_forbidden_pages(side):
    files = [f"tests/kernels/test_{name}.py" for name in ("conv", "dense", "pool", "winograd", "norm")]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.kernels.guard_pages", "--guard", side),
            *("-m", "small", "-k", "float32 and (cpu or winograd)", "-p", "no:cacheprovider", *files),
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
