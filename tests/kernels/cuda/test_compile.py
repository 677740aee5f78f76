"""Every kernel compiles to PTX without a GPU, for the generations of cards that it is meant for.

The normal suite compiles a part of it, FASTCNN_COMPILE_ALL=1 everything (in some ten minutes).

Without a GPU this is the nearest to one: types, shared memory, registers. Assembled by `ptxas`, where that is
installed, no product may spill registers.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from tests.gpu import SIMULATED

ALL = pytest.mark.skipif("FASTCNN_COMPILE_ALL" not in os.environ, reason="10 minutes: FASTCNN_COMPILE_ALL=1 runs it")
CAPABILITIES = pytest.mark.parametrize(
    "capability",
    [pytest.param((8, 0), marks=ALL), (9, 0)],
    ids=["sm_80", "sm_90"],
)

if SIMULATED:
    pytest.skip("the simulator does not compile", allow_module_level=True)
if not all(importlib.util.find_spec(name) for name in ("numba_cuda", "cuda")):
    pytest.skip("numba-cuda is not installed", allow_module_level=True)

from numba import cuda
from numba.cuda.cudadrv import nvvm

from fastcnn.kernels.contract import PRECISIONS
from fastcnn.kernels.cuda import batches, elementwise, losses, norm, norm_pool, optimizers, pool, product, sums, tiles

if not nvvm.is_available():
    pytest.skip("NVVM, the compiler, is not installed", allow_module_level=True)

USUAL = (tiles.TILES[2], tiles.TENSOR_TILES[0])
TILES = [*tiles.TILES, *(t._replace(cores=p) for t in tiles.TENSOR_TILES for p in PRECISIONS)]
FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")


def simple_kernels(real):
    """All but the products."""
    return [
        sums.parts_kernel(real), sums.many_parts_kernel(real), sums.column_kernel(real),
        pool.max_forward_kernel(real),
        pool.max_backward_kernel(real), pool.window_backward_kernel(real, 1), pool.window_backward_kernel(real, 4),
        pool.average_forward_kernel(real), pool.average_backward_kernel(real),
        elementwise.bias_kernel, *elementwise.activation_kernels(real), *elementwise.dropout_kernels(real),
        *norm.norm_kernels(real), *norm.norm_kernels(real, 4), *norm_pool.norm_pool_kernels(real, 1, 1),
        *norm_pool.norm_pool_kernels(real, 4, 4), *losses.loss_kernels(real),
        *optimizers.step_kernels(real),
        *batches.batch_kernels(real), *optimizers.muon_kernels(real), optimizers.square_parts, optimizers.add_squares,
    ]  # fmt: skip


def products(tile, real, width):
    return [
        product.forward_kernel(tile, real, width, width, 4, 1),
        product.forward_kernel(tile, real, width, width, 1, 0),
        product.input_kernel(tile, real, width, width, False),
        product.input_kernel(tile, real, width, width, True),
        product.weight_kernel(tile, real, width, width),
    ]


@pytest.fixture(autouse=True)
def no_gpu_is_asked(monkeypatch):
    """Device functions ask the current GPU for its generation, and there is none; what they become is the same."""
    from numba.cuda import dispatcher

    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0)))


def sound_ptx(kernel, real, capability, passed=np.uint8):
    """The kernel's PTX, after a look at it."""
    ptx, _ = cuda.compile_ptx(kernel.function, kernel.types(real, (passed,)), cc=capability, lineinfo=False)
    major, minor = capability
    assert f".target sm_{major}{minor}" in ptx and ".entry" in ptx
    # Single precision must not be computed in double; Muon's norm, sums of squares and of losses are double on purpose.
    if real == FLOAT32 and kernel.name not in ("scaled", "square_parts", "add_squares", "tally"):
        assert ".f64" not in ptx, f"{kernel.name} computes in double precision"
    return ptx


@CAPABILITIES
@pytest.mark.parametrize("real", [FLOAT32, pytest.param(FLOAT64, marks=ALL)], ids=str)
def test_simple_kernels(real, capability):
    for kernel in simple_kernels(real):
        sound_ptx(kernel, real, capability)
        if "A" in kernel.signature and real == FLOAT32:
            sound_ptx(kernel, real, capability, np.int32)


@pytest.mark.skipif(not shutil.which("ptxas"), reason="NVIDIA's assembler is not installed")
def test_blocks_of_1024_threads_have_registers_enough(tmp_path):
    kernel = sums.many_parts_kernel(FLOAT32)
    report = assemble(sound_ptx(kernel, FLOAT32, (9, 0)), (9, 0), tmp_path, kernel.registers)
    assert sums.WIDTH * sums.MANY_LINES * int(re.search(r"Used (\d+) registers", report)[1]) <= 65_536, report


@pytest.mark.skipif(not shutil.which("ptxas"), reason="NVIDIA's assembler is not installed")
def test_normalisation_does_not_spill(tmp_path):
    for by_sign in (False, True):
        for kernel in norm.norm_kernels(FLOAT32, 4, by_sign):
            report = assemble(sound_ptx(kernel, FLOAT32, (9, 0)), (9, 0), tmp_path, kernel.registers)
            spilt = int(re.search(r"(\d+) bytes spill stores", report)[1])
            assert spilt <= 8, report


@CAPABILITIES
@pytest.mark.parametrize("width", [4, 1])
@pytest.mark.parametrize(
    "tile",
    [pytest.param(tile, marks=[] if tile in USUAL else [ALL]) for tile in TILES],
    ids=lambda tile: f"{tile.rows}x{tile.columns}{tile.cores}",
)
def test_products(tile, width, capability, tmp_path):
    for kernel in products(tile, FLOAT32, width):
        ptx = sound_ptx(kernel, FLOAT32, capability)
        assert width == 1 or not tile.cores or re.search(r"cp\.async.*\], 16,", ptx), "not read in quads"
        assert ("mma.sync" in ptx) == bool(tile.cores)
        # The largest are taken where quads can be read only: number by number their sums do not stay in registers.
        if shutil.which("ptxas") and (width == 4 or tile.per_rows * tile.per_columns < 64):
            report = assemble(ptx, capability, tmp_path, kernel.registers)
            assert "0 bytes stack frame, 0 bytes spill stores" in report, report


@ALL
@pytest.mark.parametrize("code", range(6))
@pytest.mark.parametrize("window", [1, 2, 4])
def test_every_activation_in_a_product(window, code):
    sound_ptx(product.forward_kernel(tiles.TILES[2], FLOAT32, 1, 4, window, code), FLOAT32, (9, 0))


def assemble(ptx, capability, folder, registers=None):
    """What ptxas reports of registers and spills; its release may be older than the compiler's."""
    told = subprocess.run(["ptxas", "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"release (\d+)\.(\d+)", told)
    newest = {12: 8, 13: 9}[int(version[1])], int(version[2])
    path = folder / "kernel.ptx"
    path.write_text(re.sub(r"\.version \d+\.\d+", f".version {newest[0]}.{newest[1]}", ptx, count=1))
    command = ["ptxas", "-v", f"-arch=sm_{capability[0]}{capability[1]}", str(path), "-o", str(folder / "kernel.cubin")]
    command += ["-maxrregcount", str(registers)] if registers else []
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr
