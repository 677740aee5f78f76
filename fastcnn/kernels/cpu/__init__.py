"""The CPU backend: Numba kernels (imported through `backend`) and Cython extensions. Importing this package
alone is cheap.
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """The extensions; where they are not built, what to do."""
    if name not in ("_batches", "_blas"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error}: this is fastcnn's source folder, where the parts in C are not built. Start Python in another "
            "folder, or install with pip install -e ."
        ) from error
