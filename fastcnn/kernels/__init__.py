"""Compiled kernels, one sub-package per backend, all with the signatures of `contract`."""

import os
import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

BACKENDS = {
    "cpu": "fastcnn.kernels.cpu.backend",
    "cuda": "fastcnn.kernels.cuda.backend",
    "reference": "fastcnn.kernels.reference",
}


def get_backend(name: str) -> ModuleType:
    """The module with the kernels of backend `name` ("cpu", "cuda" or "reference"), imported on first use.

    Raises
    ------
    ValueError
        If there is no backend of that name.
    ImportError
        If "cuda" is asked for and numba-cuda is not installed.
    RuntimeError
        If "cuda" is asked for and there is no GPU, no driver, or one that is too old.
    """
    if name not in BACKENDS:
        raise ValueError(f"no backend {name!r} in this version: expected one of {sorted(BACKENDS)}")
    backend = import_module(BACKENDS[name])
    if name == "cuda":
        backend.require_device()
    return backend


def choose_device(name: str) -> str:
    """`name`, or for "auto" the backend to take: "cuda" where it works, else "cpu"."""
    return _best_device() if name == "auto" else name


@cache
def _best_device() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            get_backend("cuda")
        except Exception:  # "auto" must not fail, however CUDA is broken here
            return "cpu"
    return "cuda"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_best_device.cache_clear)  # a child cannot use the GPU of its parent
