"""How kernels are called: by address, over lanes.

A kernel is a serial function `kernel(start, stop, lane, args)` over a range of items; `args` points to a
tuple, which the kernel takes apart with `unpack(args)`. `launch(kernel, n, work, *args)` has the crew cut n
items into contiguous ranges for its lanes (threads); `lane` says whose scratch a range may use.

Why by address: Numba links the whole code of a callee into each caller and optimises it again, which for a
convolution under a `parallel=True` driver took over 20 s. Called through a pointer, each kernel is compiled
once. Kernels call each other the same way (`call`), where inlining would only multiply code.

Within `record` launches are kept, not run: a `Program` then runs all of them in one call, without Python in
between. So a small network's step costs what its kernels do.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

from fastcnn.kernels.cpu import crew
from fastcnn.kernels.cpu.objects import Code, Origin, machine_code, origin_of
from fastcnn.kernels.cpu.runtime import lanes, recording, recording_into
from fastcnn.kernels.cpu.together import compile_together

_POINTER = ir.IntType(8).as_pointer()


def _without_owners(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """`value` with its arrays' owners dropped: who calls keeps them alive, so lanes need not count
    references.
    """
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        for i, inner in enumerate(kind.types):
            part = _without_owners(context, builder, inner, builder.extract_value(value, i))
            value = builder.insert_value(value, part, i)
    return value


def _spill(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    slot = cgutils.alloca_once(builder, value.type)
    builder.store(_without_owners(context, builder, kind, value), slot)
    return builder.bitcast(slot, _POINTER)


@intrinsic
def call(typingctx, address, start, stop, lane, args):
    """Call the kernel at `address` with a tuple of arguments that lives on this caller's stack. If it fails, so does
    the caller.
    """
    signature = types.void(types.int64, types.int64, types.int64, types.int64, args)

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        pointer = _spill(context, builder, args, values[4])
        status = crew.call_pointer(builder, values[0], values[1:4], pointer)
        with cgutils.if_unlikely(builder, cgutils.is_not_null(builder, status)):
            builder.ret(status)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def unpack(typingctx, pointer):
    """The tuple of arguments that a kernel was called with."""
    if not isinstance(pointer, types.CPointer):
        return None

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        kind = context.get_value_type(sig.return_type)
        value = builder.load(builder.bitcast(values[0], kind.as_pointer()))
        return impl_ret_borrowed(context, builder, sig.return_type, value)

    return pointer.dtype(pointer), codegen


def _signature(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return types.int64, types.int64, types.int64, types.CPointer(numba.typeof(args))


def _described(value: Any) -> str:
    """The type of an argument, in words."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype.str}[{value.ndim}]"
    name = type(value).__name__
    if not isinstance(value, tuple):
        return name
    fields = getattr(value, "_fields", range(len(value)))  # kernels read them by these names
    return f"{name}({', '.join(f'{field}: {_described(part)}' for field, part in zip(fields, value, strict=True))})"


class Kernel:
    """A kernel `function(start, stop, lane, args)`, compiled for each tuple of argument types it meets."""

    exact = False
    pieces = crew.PIECES  # into which a lane's share of the items is cut

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        self.origin: Origin | None = None  # of a `family`
        self._addresses: dict[Any, int] = {}

    def address(self, args: tuple[Any, ...]) -> int:
        """Where the code for arguments of these types lies."""
        key = tuple([(arg.dtype, arg.ndim) if isinstance(arg, np.ndarray) else type(arg) for arg in args])
        address = self._addresses.get(key)
        if address is None:
            origin, program = self.origin or origin_of(self), recording()
            code = Code(self.function, _described(args), lambda: _signature(args), self.exact, origin)
            if isinstance(program, Wanted):
                program.code.append(code)
                return 0
            address = machine_code(code, program.compile if program is not None else None)
            self._addresses[key] = address
        return address


def family(make: Callable[..., Kernel]) -> Callable[..., Kernel]:
    """A function that makes a kernel of its arguments: the same one for the same arguments, by which other processes
    find it too.
    """

    @lru_cache(maxsize=64)
    @wraps(make)
    def member(*args: Any) -> Kernel:
        kernel = make(*args)
        kernel.origin = make.__module__, make.__name__, args
        return kernel

    return member


class RowKernel(Kernel):
    """A kernel that reads much for each range of rows: lanes get one range each."""

    pieces = 1


class ExactKernel(Kernel):
    """A kernel whose sums keep the order they are written in."""

    exact = True


class ColumnKernel(ExactKernel):
    """The same, over columns: lanes get one wide range each."""

    pieces = 1


SMALL = 1 << 14  # operations, a few microseconds: below that, sharing them costs more than it saves


_FORMATS: dict[type, str] = {bool: "?", int: "q", float: "d"}
_FORMATS |= {
    np.dtype(code).type: letter
    for code, letter in zip("b1 i1 u1 i2 u2 i4 u4 i8 u8 f4 f8".split(), "?bBhHiIqQfd", strict=True)
}


def _kind(value: Any) -> Any:
    """What the layout of `value` follows from."""
    if isinstance(value, np.ndarray):
        return value.ndim
    if isinstance(value, tuple):
        return tuple([_kind(part) for part in value])
    return type(value)


def _layout(kind: Any, start: int = 0) -> tuple[str, int, int]:
    """How Numba lays out a value of this kind at `start`: its format, its end, its alignment."""
    if isinstance(kind, int):  # an array: owners (two pointers), elements, bytes of one, data, shape, strides
        padding = -start % 8
        return f"{padding}x{5 + 2 * kind}q", start + padding + 8 * (5 + 2 * kind), 8
    if isinstance(kind, tuple):
        alignment = max((_layout(part)[2] for part in kind), default=1)
        padding = -start % alignment
        layout, end = f"{padding}x", start + padding
        for part in kind:
            inner, end, _ = _layout(part, end)
            layout += inner
        padding = -end % alignment
        return f"{layout}{padding}x", end + padding, alignment
    letter = _FORMATS[kind]
    size = struct.calcsize(letter)
    padding = -start % size
    return f"{padding}x{letter}", start + padding + size, size


@lru_cache(maxsize=1024)
def _structure(kinds: tuple[Any, ...]) -> struct.Struct:
    layout, end, _ = _layout(kinds)
    return struct.Struct(f"={layout}{-end % 8}x")


def _flatten(values: tuple[Any, ...], out: list[Any]) -> None:
    for value in values:
        if isinstance(value, np.ndarray):
            out += (0, 0, value.size, value.itemsize, value.__array_interface__["data"][0])
            out += value.shape
            out += value.strides
        elif isinstance(value, tuple):
            _flatten(value, out)
        else:
            out.append(value)


def _packed(args: tuple[Any, ...]) -> np.ndarray:
    """The tuple `args` in memory, as kernels read it."""
    numbers: list[Any] = []
    _flatten(args, numbers)
    return np.frombuffer(bytearray(_structure(_kind(args)).pack(*numbers)), np.int64)


Calls = Sequence[tuple[Callable[..., None], tuple[Any, ...]]]


class Wanted:
    """In a program's place, what code it asks for that this process has not."""

    def __init__(self) -> None:
        self.code: list[Code] = []

    def add(self, kernel: Kernel, n: int, work: int, args: tuple[Any, ...]) -> None:
        kernel.address(args)

    def add_host(self, function: Callable[[], None]) -> None:
        pass


class Program:
    """Launches in order, run by one call: what was kept within `record`. Kernels for `soon`, the calls that are
    recorded now and next, are compiled together when the first of them is missing.
    """

    def __init__(self, soon: Calls) -> None:
        self._soon = soon
        self._parts: list[Any] = []  # functions of the host, and rows of calls; in the end (address, count) of these
        self._kept: list[Any] = []  # arguments and rows, which must outlive the program

    def add(self, kernel: Kernel, n: int, work: int, args: tuple[Any, ...]) -> None:
        packed = _packed(args)
        self._kept.append((args, packed))
        if not self._parts or callable(self._parts[-1]):
            self._parts.append([])
        self._parts[-1].append(_row(kernel, packed, n, work, args))

    def add_host(self, function: Callable[[], None]) -> None:
        self._parts.append(function)

    def finish(self) -> Program:
        self._soon = ()
        for i, part in enumerate(self._parts):
            if not callable(part):
                rows = np.array(part, np.int64)
                self._kept.append(rows)
                self._parts[i] = rows.ctypes.data, len(rows)
        return self

    def compile(self) -> None:
        """Have all that is missing compiled, on as many cores as it will run on; once."""
        soon, self._soon = self._soon, ()
        if soon:
            wanted = Wanted()
            _go_through(soon, wanted)
            compile_together([*wanted.code, *crew.code()], lanes())

    def __call__(self) -> None:
        for part in self._parts:
            if callable(part):
                part()
            else:
                address, count = part
                crew.run(address, count, lanes(), SMALL)


def _go_through(calls: Calls, recorder: Any) -> None:
    with recording_into(recorder):
        for function, args in calls:
            function(*args)


def _row(kernel: Kernel, packed: np.ndarray, n: int, work: int, args: tuple[Any, ...]) -> tuple[int, ...]:
    return kernel.address(args), packed.ctypes.data, n, min(work, 1 << 62), kernel.pieces


def launch(kernel: Kernel, n: int, work: int, *args: Any) -> None:
    """Run `kernel` over the items 0..n, on as many lanes as the runtime gives, or on one if `work` (about how
    many operations) is small.

    Positions hold one type each: arrays may change dtype between calls, anything else may not.
    """
    if numba.config.DISABLE_JIT:
        kernel.function(0, n, 0, args)
        return
    program = recording()
    if program is not None:
        program.add(kernel, n, work, args)
        return
    packed = _packed(args)
    row = np.array(_row(kernel, packed, n, work, args), np.int64)
    crew.run(row.ctypes.data, 1, lanes(), SMALL)


def on_host(function: Callable[[], None]) -> None:
    """Run `function`, in its place between launches."""
    program = recording()
    if program is not None:
        program.add_host(function)
    else:
        function()


def record(calls: Calls, later: Calls = ()) -> Callable[[], None]:
    """A function that does all `calls`, (function, arguments), in order; arrays among the arguments are read
    and written where they lie now. `later` calls are recorded next.
    """
    if numba.config.DISABLE_JIT:

        def run_all() -> None:
            for function, args in calls:
                function(*args)

        return run_all
    program = Program([*calls, *later])
    _go_through(calls, program)
    return program.finish()


if numba.config.DISABLE_JIT:

    def call(address, start, stop, lane, args):
        """Without Numba a kernel's address is the kernel."""
        address(start, stop, lane, args)

    def unpack(pointer):
        """Without Numba the pointer is the tuple."""
        return pointer


def address_for(kernel: Kernel, *args: Any) -> Any:
    """What `call` takes for `kernel` with arguments of these types."""
    return kernel.function if numba.config.DISABLE_JIT else kernel.address(args)


def empty(dtype: Any) -> np.ndarray:
    """A flat array of nothing, as a sample of its type."""
    return np.empty(0, dtype)
