"""Arrays in the GPU's memory."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import numpy as np

from fastcnn.kernels.cuda.driver import (
    SIMULATED,
    DeviceMemoryError,
    KernelError,
    address_of,
    copy_from_device,
    copy_on_device,
    copy_to_device,
    cuda,
    event,
    free_memory,
    is_out_of_memory,
    of_driver,
    pinned,
    reported,
    require_device,
    stream,
    threads,
    uploads,
)

__all__ = ["DeviceArray", "StagedArray", "empty", "none", "place", "staged", "width_of", "workspace"]


class DeviceArray:
    """A C-contiguous array in the GPU's memory, with what the engine needs of an array.

    A slice of a vector, `view`, `reshape` and ``a[...] = values`` are as NumPy's; ``np.asarray(a)`` is a copy on the
    host, once all that writes to the array is done. Copies and pickles are arrays of their own with the same values.
    CuPy, PyTorch and others see it without a copy (`__cuda_array_interface__`).
    """

    __slots__ = ("_address", "_flat", "_memory", "_offset", "dtype", "shape")

    def __init__(self, memory: Any, offset: int, shape: tuple[int, ...], dtype: Any) -> None:
        self._memory, self._offset, self.shape, self.dtype = memory, offset, shape, np.dtype(dtype)
        self._flat: Any = None
        self._address: int | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def flat(self) -> Any:
        """As kernels take it: numba-cuda's array of one dimension."""
        if not self.size:
            return none(self.dtype).flat
        if self._flat is None:
            part = self._memory[self._offset : self._offset + self.nbytes]
            self._flat = part.view(self.dtype)
        return self._flat

    @property
    def address(self) -> int:
        """Where it begins in the GPU's memory."""
        if self._address is None:
            self._address = address_of(self._memory) + self._offset
        return self._address

    @property
    def quads(self) -> bool:
        """Whether it lies so that four numbers may be read at once."""
        at = self._offset if SIMULATED else self.address
        return at % (4 * self.dtype.itemsize) == 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> DeviceArray:
        if isinstance(key, int) and self.ndim > 1:
            row = prod(self.shape[1:]) * self.itemsize
            return DeviceArray(self._memory, self._offset + range(len(self))[key] * row, self.shape[1:], self.dtype)
        if not isinstance(key, slice) or key.step not in (None, 1):
            raise TypeError(f"an array on the GPU takes slices without a step, got {key!r}; np.asarray(a) is its copy")
        start, stop, _ = key.indices(len(self))
        row = prod(self.shape[1:]) * self.itemsize
        shape = (max(stop - start, 0), *self.shape[1:])
        return DeviceArray(self._memory, self._offset + start * row, shape, self.dtype)

    def view(self, dtype: Any) -> DeviceArray:
        """A vector's memory as numbers of another dtype."""
        return DeviceArray(self._memory, self._offset, (self.nbytes // np.dtype(dtype).itemsize,), dtype)

    def reshape(self, *shape: Any) -> DeviceArray:
        """The same memory under another shape; one length may be -1."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        if -1 in wanted:
            known = prod(n for n in wanted if n != -1)
            wanted = tuple(self.size // max(known, 1) if n == -1 else n for n in wanted)
        if prod(wanted) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {wanted}")
        return DeviceArray(self._memory, self._offset, tuple(wanted), self.dtype)

    def __setitem__(self, key: Any, values: Any) -> None:
        target = self if key is Ellipsis else self[key]
        if not target.size:
            return
        with reported("a copy to the GPU"):
            if isinstance(values, DeviceArray) or hasattr(values, "__cuda_array_interface__"):
                source = place(values)
                if source.dtype == self.dtype and source.shape == target.shape:
                    copy_on_device(target.address, source.address, target.nbytes)
                    return
                values = source
            host = np.asarray(values, self.dtype)
            if host.shape != target.shape or not host.flags.c_contiguous:
                host = np.ascontiguousarray(np.broadcast_to(host, target.shape))
            copy_to_device(target.address, host)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        host = np.empty(self.shape, self.dtype)
        if self.size:
            copy_from_device(host, self.address)
        return host if dtype is None else host.astype(dtype, copy=False)

    def copy(self) -> DeviceArray:
        """The same values in memory of their own."""
        twin = empty(self.nbytes).view(self.dtype).reshape(self.shape)
        twin[...] = self
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (np.asarray(self),)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        address = self.address if self.size else 0
        return {
            "shape": self.shape, "typestr": self.dtype.str, "data": (address, False), "strides": None, "version": 3,
            "stream": None if SIMULATED else int(stream()),
        }  # fmt: skip


class StagedArray(DeviceArray):
    """An array with a twin on the host, whose values are copied to it beside what the GPU computes.

    `settle`, write into `host`, `upload`; `place` gives the array to kernels, which then wait for the copy.

    Attributes
    ----------
    host : ndarray
        The twin, in memory that the GPU reads by itself.
    """

    __slots__ = ("_arrived", "host")

    def __init__(self, memory: Any, offset: int, host: np.ndarray, arrived: Any) -> None:
        super().__init__(memory, offset, host.shape, host.dtype)
        self.host, self._arrived = host, arrived

    def __getitem__(self, key: Any) -> StagedArray:
        part = super().__getitem__(key)
        return StagedArray(part._memory, part._offset, self.host[key], self._arrived)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.arrived().__array__(dtype, copy)

    def settle(self) -> None:
        """Wait until the last copy is done: the twin may then be written."""
        with reported("a copy to the GPU"):
            self._arrived.synchronize()

    def upload(self) -> None:
        """Begin to copy the twin's values."""
        if self.size:
            with reported("a copy to the GPU"):
                self.flat.copy_to_device(self.host.reshape(-1), stream=uploads())
                self._arrived.record(uploads())

    def arrived(self) -> DeviceArray:
        """The array, for what is launched from now on: the GPU waits for the copy, this thread does not."""
        with reported("a copy to the GPU"):
            self._arrived.wait(stream())
        return DeviceArray(self._memory, self._offset, self.shape, self.dtype)


def staged(shape: tuple[int, ...], dtype: Any) -> StagedArray:
    """A `StagedArray`, its values undefined.

    Raises
    ------
    DeviceMemoryError
        If the GPU has no room.
    """
    host = pinned(shape, dtype)
    memory = empty(host.nbytes)
    stream().synchronize()  # memory is handed out in the order of that stream; the copies have another one
    return StagedArray(memory._memory, memory._offset, host, event())


def empty(n_bytes: int) -> DeviceArray:
    """`n_bytes` (uint8) of the GPU's memory, from a multiple of 256 bytes on.

    Raises
    ------
    DeviceMemoryError
        If there is no room.
    """
    try:
        memory = cuda.device_array(max(n_bytes, 16), np.uint8, stream=stream())
    except Exception as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError(n_bytes, free_memory()) from error
        if not of_driver(error):
            raise
        raise KernelError("taking memory", error) from error
    return DeviceArray(memory, 0, (n_bytes,), np.uint8)


def place(values: Any) -> DeviceArray:
    """`values` as an array that kernels can read: what is on the GPU already stays where it is, else a copy."""
    if isinstance(values, StagedArray):
        return values.arrived()
    if isinstance(values, DeviceArray):
        return values
    if hasattr(values, "__cuda_array_interface__"):
        return _seen(values)
    host = np.asarray(values)
    array = empty(host.nbytes).view(host.dtype).reshape(host.shape)
    array[...] = host
    return array


def _restored(values: np.ndarray) -> DeviceArray:
    """From a pickle, perhaps in another process."""
    require_device()
    return place(values)


def _seen(values: Any) -> DeviceArray:
    """An array of CuPy, PyTorch or numba-cuda, without a copy; it must be C-contiguous."""
    interface = values.__cuda_array_interface__
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    strides, step = interface.get("strides"), dtype.itemsize
    for n, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if n > 1 and stride != step:
            raise ValueError("an array on the GPU must be C-contiguous")
        step *= n
    if interface["data"][0]:
        synchronize_others()
    flat = cuda.as_cuda_array(values, sync=False).reshape(prod(shape)).view(np.uint8)
    return DeviceArray(flat, 0, shape, dtype)


def synchronize_others() -> None:
    """Wait for what other libraries have asked the GPU for, in streams of theirs."""
    with threads(None):  # nobody records a graph meanwhile
        cuda.synchronize()


@cache
def none(dtype: Any) -> DeviceArray:
    """What a kernel gets in place of an array that is not there; it has one element."""
    return empty(np.dtype(dtype).itemsize).view(dtype)


def width_of(channels: int, *arrays: DeviceArray) -> int:
    """How many numbers can be read at once: 4 where channels are whole quads and arrays begin at one, else 1."""
    return 4 if channels % 4 == 0 and all(array.quads for array in arrays) else 1


_workspaces: dict[Any, DeviceArray] = {}


def workspace(size: int, dtype: Any) -> DeviceArray:
    """Memory for what one kernel hands to the next; the next call may get the same. Not for a `branch`."""
    have = _workspaces.get(np.dtype(dtype))
    if have is None or have.size < size:
        grown = max(size, 2 * (0 if have is None else have.size), 1024)
        have = _workspaces[np.dtype(dtype)] = empty(grown * np.dtype(dtype).itemsize).view(dtype)
    return have
