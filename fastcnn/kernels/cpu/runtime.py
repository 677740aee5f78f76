"""How kernels are compiled and on how many threads they run: the one place with a policy on either.

Threads. A kernel is a serial, nogil function over a range of items, which the crew cuts up for its *lanes*
(threads). `lanes()` says how many a call may use now. Numba's own threading layers are not used: OpenMP's hangs
or kills a forked child, and workqueue's aborts the process when two Python threads enter it.

Compilation. `jit` is `numba.njit` with the flags all kernels share. The cache of compiled kernels (`objects.py`) lies
in a directory that can be written, named after the kernels' sources, the versions of the compiler and the host.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from threadpoolctl import ThreadpoolController

# NaN and infinity keep their meaning (no nnan, no ninf): a diverging fit must be seen.
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}

# For indices: Numba wraps negative ones around, and no loop with that check runs as vectors; an unsigned
# index has none.
U = np.uintp

_state = threading.local()


def max_threads(asked: int | None = None) -> int:
    """Threads a call may use: `asked` (None or -1: all), bounded by what Numba was given (joblib's loky workers
    lower it) and, in a task of Dask, by the threads of its worker. Not asked, a worker of a `multiprocessing` pool,
    which knows nothing of the others, takes one.
    """
    limit = int(numba.config.NUMBA_NUM_THREADS)
    given = _given_by_dask()
    if given is not None:
        limit = min(limit, given)
    elif asked is None and multiprocessing.current_process().daemon:
        return 1
    if asked is None:
        return limit
    if asked == -1:
        return limit
    if asked < 1:
        raise ValueError(f"n_jobs must be a positive int, -1 or None, got {asked}")
    return min(int(asked), limit)


def _given_by_dask() -> int | None:
    """The threads of the Dask worker whose task this thread runs; None outside of one."""
    worker = sys.modules.get("distributed.worker")  # a task runs where it is imported
    state = getattr(getattr(worker, "thread_state", None), "execution_state", None)
    return None if state is None else int(state["worker"].state.nthreads)


@contextmanager
def threads(asked: int | None) -> Iterator[int]:
    """Within the block, kernels called from this thread use up to `asked` threads."""
    before = getattr(_state, "lanes", None)
    _state.lanes = max_threads(asked)
    try:
        yield _state.lanes
    finally:
        _state.lanes = before


@lru_cache(maxsize=1)
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


_blas_lock = threading.Lock()  # the limit is the whole process's, and each user puts back what it found


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within the block BLAS runs on the calling thread alone: its sums must not depend on how many there are."""
    with _blas_lock, _thread_pools().limit(limits=1, user_api="blas"):
        yield


if hasattr(os, "register_at_fork"):  # a child finds it open, and BLAS without the limit
    os.register_at_fork(
        before=_blas_lock.acquire, after_in_parent=_blas_lock.release, after_in_child=_blas_lock.release
    )


def lanes() -> int:
    """How many threads a kernel called now from this thread may use (one outside any `threads` block)."""
    return getattr(_state, "lanes", None) or 1


def recording() -> Any:
    """The program that launches of this thread go into instead of running, or None."""
    return getattr(_state, "program", None)


@contextmanager
def recording_into(program: Any) -> Iterator[None]:
    """Within the block, launches of this thread go into `program`."""
    before = recording()
    _state.program = program
    try:
        yield
    finally:
        _state.program = before


def as_input(x: np.ndarray) -> np.ndarray:
    """`x` itself where it is contiguous and writable, else a copy that is: one compiled kernel serves every
    caller.
    """
    flags = x.flags
    if flags.c_contiguous and flags.writeable:
        return x
    if recording() is not None:
        raise ValueError("a program needs contiguous, writable arrays: it reads them where they lie")
    return np.array(x, order="C")


# ---------------------------------------------------------------------------------------------------------------- cache


def _sources_digest() -> str:
    host = llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    versions, c = (numba.__version__, llvmlite.__version__), numba.config
    chosen = os.environ.get("FASTCNN_ISA", ""), bool(c.BOUNDSCHECK)
    of_numba = str(c.OPT), c.CPU_NAME, c.CPU_FEATURES, c.ENABLE_AVX, c.LOOP_VECTORIZE, c.SLP_VECTORIZE, c.USING_SVML
    digest = hashlib.sha256(repr((host, versions, chosen, of_numba)).encode())
    here = Path(__file__).parent
    for path in [here.parent / "contract.py", *sorted(here.glob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _find_cache_dir() -> Path | None:
    chosen = os.environ.get("FASTCNN_CACHE_DIR") or os.environ.get("NUMBA_CACHE_DIR")
    candidates = [Path(chosen)] if chosen else []
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    candidates.append(Path(home) / "fastcnn")
    with suppress(OSError):  # where no directory at all can be written
        owner = os.getuid() if hasattr(os, "getuid") else "cache"
        candidates.append(Path(tempfile.gettempdir()) / f"fastcnn-{owner}")
    try:
        digest = _sources_digest()
    except OSError:  # a program without sources
        return None
    for candidate in candidates:
        path = candidate / digest
        try:
            for folder in (candidate, path):  # the mode is that of the last folder made
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=path):
                if _is_private(path):
                    return path
        except OSError:
            continue
    return None


def _is_private(path: Path) -> bool:
    """Whether nobody else can put a file into the directory `path`, or another directory into its place: it could feed
    us foreign machine code.
    """
    if not hasattr(os, "getuid"):
        return True
    parent, info = path.parent.lstat(), path.lstat()
    open_to_all = parent.st_mode & stat.S_IWOTH and not (stat.S_ISLNK(parent.st_mode) or parent.st_mode & stat.S_ISVTX)
    shared = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return parent.st_uid in (0, os.getuid()) and not open_to_all and info.st_uid == os.getuid() and not shared


_cache_dir: Path | None = None
_cache_known = False


def cache_dir() -> Path | None:
    """Where compiled kernels are kept between processes; None where no directory can be written."""
    global _cache_dir, _cache_known
    if not _cache_known:
        _cache_dir, _cache_known = _find_cache_dir(), True
    return _cache_dir


def jit(function: Callable[..., Any] | None = None, *, exact: bool = False, called: str = "kernels") -> Any:
    """A function for Numba to compile: nogil, with the shared fast-math flags (none if `exact`).

    `called` says from where: "kernels", in which it is inlined unless its flags are others, or by "address". Nobody
    needs the wrappers that Python would call; and without reference counts (`_nrt`) there is less to compile, and
    nothing can allocate.
    """
    if function is None:
        return lambda f: jit(f, exact=exact, called=called)
    inline = "always" if called == "kernels" and not exact else "never"
    return numba.njit(
        function, nogil=True, fastmath=set() if exact else FASTMATH, error_model="numpy", inline=inline,
        no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False,
    )  # fmt: skip
