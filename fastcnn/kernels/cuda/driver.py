"""The one door to the GPU: numba-cuda or its simulator, compilation, launches, errors.

No other module imports anything of CUDA, so that a successor of numba-cuda changes this file alone. Everything
runs in one stream, in the order in which it was asked for, but for the branches of a `fork` in a graph.
"""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from itertools import groupby
from math import prod
from typing import Any

import numpy as np

INSTALL = "pip install 'numba-cuda[cu13]' 'numpy<2.5'"  # the extra "cuda"

try:
    from numba import config, cuda, types
except ImportError as error:  # numba-cuda without its bindings raises it too
    raise ImportError(f"device='cuda' needs numba-cuda ({error}): {INSTALL}") from error

__all__ = [
    "MOST_BLOCKS",
    "SIMULATED",
    "THREADS",
    "Call",
    "DeviceMemoryError",
    "Kernel",
    "KernelError",
    "address_of",
    "branch",
    "capture",
    "copy_from_device",
    "copy_on_device",
    "copy_to_device",
    "cuda",
    "device_function",
    "device_names",
    "event",
    "fork",
    "free_memory",
    "has_room",
    "has_tensor_cores",
    "intrinsic",
    "is_out_of_memory",
    "kernel",
    "launch",
    "linear",
    "max_threads",
    "of_driver",
    "passed",
    "pinned",
    "recording",
    "reported",
    "require_device",
    "run",
    "stream",
    "synchronize",
    "threads",
    "types",
    "uploads",
    "why_unavailable",
]

SIMULATED = bool(config.ENABLE_CUDASIM)
intrinsic: Any = None if SIMULATED else import_module("numba.cuda.extending").intrinsic
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # small layers of small batches are no mistake

THREADS = 8 if SIMULATED else 256  # of a block where nothing else says how many
MOST_BLOCKS = 2 if SIMULATED else 4096

_BRANCHES = 16  # of a graph that run at once
_local = threading.local()  # what this thread records
_gpu = threading.RLock()  # one thread at a time: the workspace and the stream are everybody's
_started = False  # whether CUDA was started in this process
_forked = False  # from a process that had started it, so that this one cannot


# ---------------------------------------------------------------------------------------------------------- errors


class DeviceMemoryError(MemoryError):
    """The GPU's memory is full.

    Attributes
    ----------
    asked, free : int
        Bytes.
    """

    def __init__(self, asked: int, free: int | None) -> None:
        left = "" if free is None else f"; {free / 2**20:,.0f} MiB are free"
        super().__init__(f"the GPU has no room for {asked / 2**20:,.1f} MiB more{left}")
        self.asked, self.free = asked, free


class KernelError(RuntimeError):
    """A kernel or a copy failed on the GPU, which this process then cannot use any more."""

    def __init__(self, what: str, error: BaseException) -> None:
        super().__init__(
            f"{what} failed on the GPU ({_one_line(error)}). What is on the GPU may be lost to this process; "
            "device='cpu' still works"
        )


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def require_device() -> None:
    """Return if there is a GPU that kernels can run on (or the simulator).

    Raises
    ------
    RuntimeError
        It says what is missing: the driver, a newer driver, a GPU or the compiler's libraries.
    """
    if reason := why_unavailable():
        raise RuntimeError(f"device='cuda' cannot be used: {reason}")


def why_unavailable() -> str | None:
    """What is missing, or None."""
    global _started
    if SIMULATED:
        return None
    if _forked:
        return "this process was forked from one that had started CUDA: start it anew (joblib's loky does, or spawn)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            available = cuda.is_available()
            _started = _started or bool(available)
            error = cuda.cuda_error()
            count = len(cuda.gpus) if available else 0
        except Exception as failure:  # a driver may fail in many ways
            available, error, count = False, failure, 0
    if available and count:
        return _too_old() or _too_new() or _out_of_reach()
    if error is None:
        return f"the compiler's libraries (NVVM) were not found: {INSTALL}"
    text = _one_line(error)
    if "NO_DEVICE" in text:
        return f"the driver finds no GPU ({text})"
    if "INSUFFICIENT_DRIVER" in text or "SYSTEM_DRIVER_MISMATCH" in text or "insufficient" in text:
        return f"the NVIDIA driver is too old for the installed CUDA libraries ({text}): update it"
    return f"no NVIDIA driver was found ({text})"


def _too_old() -> str | None:
    """What is wrong if the driver is of an older generation than the compiler: it cannot load its code."""
    driver, runtime = _versions()
    if driver and runtime and driver[0] < runtime[0]:
        return (
            f"the NVIDIA driver is too old: it knows CUDA {driver[0]}.{driver[1]}, the installed libraries are "
            f"of CUDA {runtime[0]}.{runtime[1]}: update it, or install numba-cuda[cu{driver[0]}]"
        )
    return None


def _too_new() -> str | None:
    """What is wrong if numba-cuda uses what this NumPy has no more (0.30 and NumPy 2.5): nothing would compile."""
    try:
        import_module("numba.cuda.np.arrayobj")
    except AttributeError as error:
        return f"the installed numba-cuda does not work with NumPy {np.__version__} ({error}): pip install 'numpy<2.5'"
    return None


def _out_of_reach() -> str | None:
    """What is wrong if the compiler makes no code for so old a GPU."""
    try:
        oldest = min(import_module("numba.cuda.cudadrv.nvrtc").get_supported_ccs())
        found = tuple(cuda.get_current_device().compute_capability)
    except Exception:  # without the question answered, the first kernel will tell
        return None
    if found < tuple(oldest):
        return (
            f"the GPU has compute capability {found[0]}.{found[1]}, the installed compiler's oldest is "
            f"{oldest[0]}.{oldest[1]}: an older one, as of numba-cuda[cu12], may know it"
        )
    return None


def _versions() -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """CUDA's version as the driver knows it, and as the compiler has it; None where it is not told."""
    try:
        from cuda.bindings import driver as api

        status, number = api.cuDriverGetVersion()
        known = None if int(status) else (number // 1000, number % 1000 // 10)
        return known, tuple(cuda.runtime.get_version())
    except Exception:  # without the question answered, the first kernel will tell
        return None, None


def device_names() -> list[str]:
    """The GPUs' names."""
    if SIMULATED:
        return ["simulator"]
    names = [device.name for device in cuda.gpus]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def free_memory() -> int | None:
    """Bytes of the GPU that nobody uses; None where that is not known."""
    try:
        return int(cuda.current_context().get_memory_info().free)
    except Exception:
        return None


def has_room(n_bytes: int) -> bool:
    """Whether so much would leave half of what is free for others; where that is not known, yes."""
    free = free_memory()
    return free is None or 2 * n_bytes <= free


@cache
def has_tensor_cores() -> bool:
    """Whether the GPU has those that take TF32 and bfloat16, and copies into shared memory that nobody waits for:
    compute capability 8.0 or newer. Without a GPU, for one that has them.
    """
    try:
        return SIMULATED or tuple(cuda.get_current_device().compute_capability) >= (8, 0)
    except Exception:  # of many classes: there is no GPU, and code is compiled to be looked at
        return True


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Errors of the driver as `KernelError`; the driver has many classes of its own."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError | KernelError) or not of_driver(error):
            raise
        raise KernelError(what, error) from error


def of_driver(error: BaseException) -> bool:
    """Whether CUDA or the compiler raised it; they have many classes."""
    name = type(error).__name__
    return name.startswith(("Cuda", "CUDA", "CCSupport", "Nvvm", "Nvrtc", "Linker", "nvJitLink"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU's memory was full."""
    return isinstance(error, MemoryError) or "OUT_OF_MEMORY" in str(error) or "OUT_OF_MEMORY" in repr(error)


# ----------------------------------------------------------------------------------------------------- compilation

# What a letter in a kernel's signature stands for. R: vector of the real dtype; r: one number of it; A: vector of the
# dtype that is passed; B L U D: vectors of uint8, int64, uint64 and float64; i: int64; G: a geometry.
_VECTORS = {"B": np.uint8, "L": np.int64, "U": np.uint64, "D": np.float64}
GEOMETRY_SIZE = 17  # numbers of a ConvGeometry that kernels read; a PoolGeometry is filled up with zeros


class Kernel:
    """A function that runs on the GPU, compiled when it is first launched.

    Attributes
    ----------
    signature : str
        One letter for each argument.
    name : str
    registers : int or None
        The most that a thread may have, so that more blocks find room on a multiprocessor.
    """

    def __init__(self, function: Callable[..., None], signature: str, name: str, registers: int | None = None) -> None:
        self.function, self.signature, self.name = function, signature.replace(" ", ""), name
        self.registers = registers
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def types(self, real: Any, passed: Sequence[Any] = ()) -> tuple[Any, ...]:
        """The types of the arguments for numbers of dtype `real`; `passed`: dtypes for the letters A."""
        rest = iter(passed)

        def type_of(letter: str) -> Any:
            if letter in "RA" or letter in _VECTORS:
                dtype = real if letter == "R" else next(rest) if letter == "A" else _VECTORS[letter]
                return types.Array(_scalar(dtype), 1, "C")
            if letter == "G":
                return types.UniTuple(types.int64, GEOMETRY_SIZE)
            return _scalar(real) if letter == "r" else types.int64

        return tuple(type_of(letter) for letter in self.signature)

    def compiled(self, real: Any, passed: tuple[Any, ...]) -> Any:
        """The kernel for these dtypes, ready to be launched."""
        key = real, passed
        if key not in self._compiled:
            # Without link-time optimisation: what is compiled here is what the tests look at.
            options = {} if SIMULATED else {"lto": False, "max_registers": self.registers}
            with _gpu, reported(f"compiling {self.name}"):
                signature = types.void(*self.types(real, passed))
                self._compiled[key] = cuda.jit([signature], **options)(self.function)
        return self._compiled[key]


def kernel(
    signature: str, name: str | None = None, registers: int | None = None
) -> Callable[[Callable[..., None]], Kernel]:
    """Make a function a `Kernel`."""

    def make(function: Callable[..., None]) -> Kernel:
        return Kernel(function, signature, name or function.__name__, registers)

    return make


def device_function(function: Callable[..., Any]) -> Any:
    """A function that kernels call, inlined wherever they do."""
    return function if SIMULATED else cuda.jit(device=True, forceinline=True)(function)


def _scalar(dtype: Any) -> Any:
    return getattr(types, np.dtype(dtype).name)


# ---------------------------------------------------------------------------------------------------------- launches


class Call:
    """A kernel with its arguments and launch shape, and the `fork` and the `branch` that it was made in, or None."""

    __slots__ = ("args", "branch", "compiled", "fork", "kept", "name", "where")

    def __init__(self, kernel: Kernel, grid: Any, block: Any, args: Sequence[Any]) -> None:
        arrays = [(letter, arg) for letter, arg in zip(kernel.signature, args, strict=True) if letter in "RA"]
        real = next((arg.dtype for letter, arg in arrays if letter == "R"), np.dtype(np.float64))
        self.compiled = kernel.compiled(real, tuple(arg.dtype for letter, arg in arrays if letter == "A"))
        self.args = [_argument(letter, arg, real) for letter, arg in zip(kernel.signature, args, strict=True)]
        self.name, self.where = kernel.name, (grid, block)
        self.fork, self.branch = getattr(_local, "fork", None), getattr(_local, "branch", None)
        self.kept = args  # the memory must outlive the launch

    def __call__(self, where: Any) -> None:
        """Launch it in the stream `where`."""
        self.compiled[(*self.where, where)](*self.args)


def _argument(letter: str, value: Any, real: np.dtype[Any]) -> Any:
    if letter == "r":
        return real.type(value)
    if letter == "i":
        return int(value)
    if letter == "G":
        numbers = tuple(int(number) for number in value)[:GEOMETRY_SIZE]
        return numbers + (0,) * (GEOMETRY_SIZE - len(numbers))
    return value.flat


def linear(kernel: Kernel, n: int, *args: Any) -> None:
    """Launch `kernel`, whose threads go through 0..n with steps of the whole grid (`elements`)."""
    launch(kernel, min(-(-n // THREADS), MOST_BLOCKS), THREADS, *args)


def launch(kernel: Kernel, grid: Any, block: Any, *args: Any) -> None:
    """Run `kernel` in the stream, or keep the call where a program is recorded."""
    if prod(grid if isinstance(grid, tuple) else (grid,)) == 0:
        return
    call = Call(kernel, grid, block, args)
    kept = getattr(_local, "calls", None)
    if kept is None:
        run([call])
    else:
        kept.append(call)


@contextmanager
def recording() -> Iterator[list[Call]]:
    """Within the block launches are kept in a list instead of run."""
    before = getattr(_local, "calls", None)
    calls: list[Call] = []
    _local.calls = calls
    try:
        yield calls
    finally:
        _local.calls = before


@contextmanager
def fork() -> Iterator[None]:
    """The `branch`es of this block run side by side in a graph, and what comes after the block waits for them all."""
    with _kept("fork"):
        yield


@contextmanager
def branch() -> Iterator[None]:
    """What is launched within the block does not touch what the other branches of the `fork` write (so it takes no
    `workspace`). Without a graph they run one after the other.
    """
    with _kept("branch"):
        yield


@contextmanager
def _kept(name: str) -> Iterator[None]:
    """Within the block this thread's `name` is an object of its own."""
    before = getattr(_local, name, None)
    setattr(_local, name, object())
    try:
        yield
    finally:
        setattr(_local, name, before)


class Graph:
    """Launches as the driver keeps them, run by one call."""

    def __init__(self, executable: Any) -> None:
        self._executable, self._stream = executable, int(stream())

    def launch(self) -> None:
        """Run them in the stream."""
        from cuda.bindings import driver as api

        status = api.cuGraphLaunch(self._executable, self._stream)[0]
        if int(status):
            raise KernelError("a graph of kernels", RuntimeError(str(status)))

    def close(self) -> None:
        """Give its memory back."""
        from cuda.bindings import driver as api

        api.cuGraphExecDestroy(self._executable)


def capture(calls: Sequence[Call]) -> Graph:
    """`calls`, which have run before, as a graph; nothing of them runs.

    Raises
    ------
    Exception
        Of many classes, where the driver or numba-cuda cannot do it.
    """
    from cuda.bindings import driver as api

    def checked(result: tuple[Any, ...]) -> Any:
        if int(result[0]):
            raise RuntimeError(str(result[0]))
        return result[1] if len(result) > 1 else None

    # In streams of their own: what other threads copy or wait for meanwhile must not fall into the graph.
    trunk, *sides = captures()
    with _gpu, cuda.defer_cleanup():
        mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        checked(api.cuStreamBeginCapture(int(trunk), mode))
        try:
            _launch_in(trunk, sides, calls)
        except BaseException:
            status, graph = api.cuStreamEndCapture(int(trunk))
            if not int(status):
                api.cuGraphDestroy(graph)
            raise
        graph = checked(api.cuStreamEndCapture(int(trunk)))
        try:
            return Graph(checked(api.cuGraphInstantiate(graph, 0)))
        finally:
            api.cuGraphDestroy(graph)


def _launch_in(trunk: Any, sides: Sequence[Any], calls: Sequence[Call]) -> None:
    """In the stream `trunk`, and branches in streams beside it."""
    for fork, group in groupby(calls, lambda call: call.fork):
        if fork is None:
            for call in group:
                call(trunk)
            continue
        branches = [list(branch) for _, branch in groupby(group, lambda call: call.branch)]
        used = sides[: len(branches)]
        _tell(trunk, used)
        for i, launches in enumerate(branches):
            for call in launches:
                call(used[i % len(used)])
        for side in used:
            _tell(side, [trunk])


def _tell(stream: Any, others: Sequence[Any]) -> None:
    """The `others` wait for all that was launched in `stream`."""
    there = cuda.event(timing=False)
    there.record(stream)
    for other in others:
        there.wait(other)


def run(calls: Sequence[Call]) -> None:
    """Launch `calls` in their order."""
    name = ""
    try:
        for call in calls:
            name = call.name
            call(stream())
    except Exception as error:
        if not of_driver(error):
            raise
        raise KernelError(name, error) from error


# ------------------------------------------------------------------------------------------------------------- copies

# By the driver's own functions: numba-cuda's take some hundred microseconds each, the time of a small training step.


def address_of(memory: Any) -> int:
    """Where an array of numba-cuda begins."""
    return int(memory.ctypes.data if SIMULATED else memory.__cuda_array_interface__["data"][0])


def copy_to_device(address: int, host: np.ndarray) -> None:
    """The numbers of a contiguous array to `address`, in the stream; `host` may be written afterwards, if it is not in
    page-locked memory.
    """
    _copy("cuMemcpyHtoDAsync", address, host.__array_interface__["data"][0], host.nbytes)


def copy_from_device(host: np.ndarray, address: int) -> None:
    """Fill a contiguous array from `address`, once all is done that was asked for in the stream."""
    _copy("cuMemcpyDtoHAsync", host.__array_interface__["data"][0], address, host.nbytes)
    if not SIMULATED:
        from cuda.bindings import driver as api

        _check("a kernel", api.cuStreamSynchronize(int(stream())))


def copy_on_device(target: int, source: int, n_bytes: int) -> None:
    """From one address to another, in the stream."""
    _copy("cuMemcpyDtoDAsync", target, source, n_bytes)


def _copy(name: str, target: int, source: int, n_bytes: int) -> None:
    if SIMULATED:  # whose memory is the host's
        ctypes.memmove(target, source, n_bytes)
        return
    from cuda.bindings import driver as api

    if not hasattr(_local, "context"):
        _local.context = cuda.current_context()  # this thread's
    _check("a copy", getattr(api, name)(target, source, n_bytes, int(stream())))


def _check(what: str, result: tuple[Any, ...]) -> None:
    if int(result[0]):
        raise KernelError(what, RuntimeError(str(result[0])))


@cache
def stream() -> Any:
    """The one stream."""
    return cuda.stream()


@cache
def captures() -> list[Any]:
    """The streams in which graphs are captured, which do nothing else: the trunk, and those of branches."""
    return [_stream_of_its_own() for _ in range(1 + _BRANCHES)]


def _stream_of_its_own() -> Any:
    """A stream that the default one does not wait for: what other libraries launch in that one while a graph is
    captured would be an error, of theirs and of the capture.
    """
    from cuda.bindings import driver as api

    cuda.current_context()
    status, handle = api.cuStreamCreate(int(api.CUstream_flags.CU_STREAM_NON_BLOCKING))
    _check("making a stream", (status,))
    return cuda.external_stream(int(handle))


@cache
def uploads() -> Any:
    """The stream of copies to the GPU beside what it computes."""
    return cuda.stream()


def event() -> Any:
    """What one stream tells another, or a thread, when it gets there."""
    return cuda.event()


def passed() -> Callable[[], None]:
    """A function that waits for what was asked for in the stream so far, and for nothing that comes later."""
    with reported("a copy or a kernel"):
        there = event()
        there.record(stream())

    def wait() -> None:
        with reported("a copy or a kernel"):
            there.synchronize()

    return wait


def pinned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array on the host that the GPU can read by itself; an ordinary one where the system gives no such memory."""
    try:
        return cuda.pinned_array(shape, dtype)
    except Exception as error:
        if not (of_driver(error) or isinstance(error, MemoryError)):
            raise
        return np.empty(shape, dtype)


def synchronize() -> None:
    """Wait until the GPU has done all it was asked for.

    Raises
    ------
    KernelError
        If something of it failed.
    """
    with reported("a kernel"):
        stream().synchronize()


def max_threads(asked: int | None = None) -> int:
    """One: a single Python thread feeds the GPU."""
    if asked is not None and asked != -1 and asked < 1:
        raise ValueError(f"n_jobs must be a positive int, -1 or None, got {asked}")
    return 1


@contextmanager
def threads(asked: int | None) -> Iterator[int]:
    """Within the block this Python thread alone uses the GPU."""
    with _gpu:
        yield 1


def _after_fork_in_child() -> None:
    global _gpu, _forked
    _gpu, _forked = threading.RLock(), _started  # the thread that held the lock does not exist here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
