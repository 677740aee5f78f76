"""`fastcnn doctor`: what there is on this machine, and whether the kernels compute on it what they should."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib import import_module, metadata
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastcnn.engine.network import Network

__all__ = ["cpu_model", "doctor"]

_PACKAGES = ("numpy", "scipy", "scikit-learn", "numba", "llvmlite", "rich")
_FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512bf16", "neon", "sve")


def doctor(args: argparse.Namespace) -> int:
    """Print what each check found; 1 if one of them failed."""
    failed = []
    for name, check in _CHECKS.items():
        if check is None:
            print()
            continue
        try:
            text = check()
        except Exception as error:
            if args.debug or os.environ.get("FASTCNN_DEBUG"):
                raise
            failed.append(name)
            text = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())}"
        print(f"{name:<19}{text}", flush=True)
    print()
    if failed:
        print(f"something is wrong: {', '.join(failed)}")
        return 1
    print("everything works")
    return 0


# ------------------------------------------------------------------------------------------------------------ software


def _version() -> str:
    import fastcnn

    return f"{fastcnn.__version__}, in {os.path.dirname(os.path.abspath(fastcnn.__file__))}"


def _python() -> str:
    return f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"


def _packages() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)


def _pillow() -> str:
    try:
        return metadata.version("pillow")
    except metadata.PackageNotFoundError:
        return "not installed: picture files cannot be read (pip install pillow)"


def _extensions() -> str:
    for name in ("_batches", "_blas"):
        import_module(f"fastcnn.kernels.cpu.{name}")
    return "built"


# ------------------------------------------------------------------------------------------------------------- machine


def _cpu() -> str:
    import llvmlite.binding as llvm

    return f"{cpu_model()} (LLVM: {llvm.get_host_cpu_name()})"


def cpu_model() -> str:
    """What the system calls the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _features() -> str:
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return ", ".join(name.upper() for name in _FEATURES if features.get(name)) or "none that the kernels use"


def _micro_kernel() -> str:
    from fastcnn.kernels.cpu.microkernel import host_isa, panel_width

    isa = host_isa()
    vectors = panel_width(1) // isa.vector_bytes
    return f"{isa.name}: vectors of {isa.vector_bytes} bytes, tiles of {isa.max_rows} rows x {vectors} vectors"


def _threads() -> str:
    import numba

    from fastcnn.kernels.cpu.runtime import max_threads

    if numba.config.DISABLE_JIT:
        return "one: NUMBA_DISABLE_JIT is set, so that kernels run uncompiled and very slowly"
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{max_threads()} used by default; {allowed} of {os.cpu_count()} processors are open to this process"


def _compiled_code() -> str:
    from fastcnn.kernels.cpu.runtime import cache_dir

    path = cache_dir()
    if path is None:
        return "no folder can be written: every process compiles anew (set FASTCNN_CACHE_DIR to a writable one)"
    sizes = [entry.stat().st_size for entry in os.scandir(path) if entry.is_file()]
    chosen = os.environ.get("FASTCNN_CACHE_DIR")
    elsewhere = chosen and os.path.abspath(chosen) != os.path.abspath(path.parent)
    note = f"; FASTCNN_CACHE_DIR={chosen} cannot be used" if elsewhere else ""
    return f"{path} (writable, {len(sizes):,} files, {sum(sizes) / 1e6:.1f} MB){note}"


def _blas() -> str:
    import_module("scipy.linalg.blas")  # loads the library that the kernels call
    from threadpoolctl import threadpool_info

    found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return (
        ", ".join(
            dict.fromkeys(f"{pool['internal_api']} {pool['version']} ({pool['num_threads']} threads)" for pool in found)
        )
        or "of a kind whose threads cannot be limited"
    )


def _cuda() -> str:
    """A training step on the GPU, where there is one; without one nothing is wrong."""
    try:
        from fastcnn.kernels.cuda import driver
    except ImportError as error:
        return f"not installed ({' '.join(str(error).split())[:200]})"
    if reason := driver.why_unavailable():
        return f"not usable: {reason}"
    start = perf_counter()
    step = _training_step("cuda")
    seconds = perf_counter() - start
    within = _difference(step, _training_step("reference"))
    names = ", ".join(driver.device_names())
    return f"{names}: a training step is right (gradients within {within:.0e}), ready after {seconds:.1f} s"


# ---------------------------------------------------------------------------------------------------------- self-check


def _self_check() -> str:
    """A training step on the compiled kernels: as the reference does it, and the same bits for any threads."""
    start = perf_counter()
    loss, network = _training_step("cpu")
    seconds = perf_counter() - start
    error = _difference((loss, network), _training_step("reference"))
    _, serial = _training_step("cpu", 1)
    if any(serial.params[name].tobytes() != value.tobytes() for name, value in network.params.items()):
        raise ArithmeticError("one thread and several do not give the same bits")
    return (
        f"a training step is right (gradients within {error:.0e}, any number of threads), ready after {seconds:.1f} s"
    )


def _training_step(device: str, n_jobs: int | None = None) -> tuple[float, Network]:
    """The loss of a small network's first step, and the network after it."""
    import numpy as np

    from fastcnn.engine.network import Network
    from fastcnn.layers import BatchNorm, Conv2D, Dense, Dropout, MaxPool2D, ReLU

    layers = [Conv2D(8), ReLU(), MaxPool2D(), Conv2D(16), BatchNorm(), ReLU(), MaxPool2D()]
    layers += [Dropout(0.2), Dense(32), ReLU(), Dense(10)]
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(64, 12, 12, 3)), rng.integers(0, 10, 64)
    network = Network(layers, (12, 12, 3), device=device, n_jobs=n_jobs, random_state=0)
    return network.train_step(x, labels), network


def _difference(step: tuple[float, Network], reference: tuple[float, Network]) -> float:
    """The largest error of a gradient, relative to the largest gradient.

    Raises
    ------
    ArithmeticError
        If it, or that of the loss, is not rounding any more.
    """
    import numpy as np

    (loss, network), (expected_loss, expected) = step, reference
    grads = network.grads
    # The bias before BatchNorm has a gradient of 0 but for rounding: errors are measured by the largest of all.
    largest = max(float(np.abs(grad).max()) for grad in expected.grads.values())
    errors = [np.abs(grads[name] - grad).max() for name, grad in expected.grads.items()]
    error = float(np.max(errors)) / largest  # NumPy's: NaN is the largest of all
    if not (abs(loss - expected_loss) < 1e-4 and error < 1e-3):
        raise ArithmeticError(f"loss {loss:.6f}, expected {expected_loss:.6f}; gradients are off by {error:.1e}")
    return error


_CHECKS = {
    "fastcnn": _version,
    "Python": _python,
    "packages": _packages,
    "Pillow": _pillow,
    "Cython extensions": _extensions,
    "system": platform.platform,
    "": None,
    "CPU": _cpu,
    "CPU features": _features,
    "micro-kernel": _micro_kernel,
    "threads": _threads,
    "BLAS": _blas,
    "CUDA": _cuda,
    "compiled code": _compiled_code,
    " ": None,
    "self-check": _self_check,
}
