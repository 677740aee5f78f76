"""Compiled kernels, one sub-package per backend, all with the signatures of `contract`."""

from importlib import import_module
from types import ModuleType

BACKENDS = {"cpu": "fastcnn.kernels.cpu.backend", "reference": "fastcnn.kernels.reference"}


def get_backend(name: str) -> ModuleType:
    """The module with the kernels of backend `name` ("cpu" or "reference"), imported on first use.

    Raises
    ------
    ValueError
        If there is no backend of that name in this build.
    """
    if name not in BACKENDS:
        raise ValueError(f"no backend {name!r} in this version: expected one of {sorted(BACKENDS)}")
    return import_module(BACKENDS[name])
