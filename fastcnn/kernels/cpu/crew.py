"""Threads that run kernels together: a crew of its own, made for many short launches one after another.

The caller leads as lane 0; each other lane is a Python thread inside compiled code, without the GIL. A program
is a table of calls. Each call's items are cut into pieces, a few for each lane: a lane takes its own, then what
others have not begun, and goes on to the next call when all pieces are done. So nobody waits for a lane that the
system has not given a core: the caller alone would finish everything. (OpenMP gives each thread its share and
waits. With another process on one of two cores, that made training eight times slower than one thread.)

Between programs a lane spins for a while, then sleeps until it is woken. What lanes share lies on the *board*,
and in counters that carry the number of the run (`epoch`): a lane that comes late finds nothing to take.
"""

from __future__ import annotations

import os
import platform
import threading
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastcnn.kernels.cpu.caches import LINE
from fastcnn.kernels.cpu.denormals import flush, restore
from fastcnn.kernels.cpu.objects import Code, Entry, name_of
from fastcnn.kernels.cpu.runtime import jit

llvm.initialize_native_asmparser()  # for `pause`

PIECES = 4  # for each lane, of a call's items
SPINS = 20_000  # pauses before a lane sleeps: about 0.3 milliseconds, longer than what lies between two steps
PATIENCE = 2_000  # pauses before a waiting lane offers its core to others
EPOCHS = 1 << 31

# The board, in lines of the cache: shared words lie on lines of their own.
_EPOCH, _CALLS, _COUNT, _COUNTERS, _LANES, _SMALL, _FAILED, _ASLEEP = range(8)
ROW = 5  # words of a call: kernel, arguments, items, work, pieces for each lane

_WORD = ir.IntType(64)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _WORD.as_pointer())


@intrinsic
def _load(typingctx, address):
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0]), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _store(typingctx, address, value):
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _pointer(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _add(typingctx, address, value):
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _swap(typingctx, address, old, new):
    """Put `new` where `old` is; whether it was."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        result = builder.cmpxchg(_pointer(builder, args[0]), args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


def call_pointer(builder: Any, address: Any, numbers: Any, pointer: Any) -> Any:
    """Emit the call of the kernel at `address` with (start, stop, lane) and its arguments' pointer; its status (int32).

    Numba's convention has two more, for a result and what has failed. Kernels have no result; the status is 0 unless
    bounds are checked (NUMBA_BOUNDSCHECK=1) and an index was wrong.
    """
    kind = ir.FunctionType(ir.IntType(32), [cgutils.voidptr_t] * 2 + [_WORD] * 3 + [cgutils.voidptr_t])
    unused = [builder.bitcast(cgutils.alloca_once(builder, _WORD), cgutils.voidptr_t) for _ in range(2)]
    return builder.call(builder.inttoptr(address, kind.as_pointer()), [*unused, *numbers, pointer])


@intrinsic
def _call_at(typingctx, address, start, stop, lane, pointer):
    """Call a kernel; its status."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        status = call_pointer(builder, args[0], args[1:4], builder.inttoptr(args[4], cgutils.voidptr_t))
        return builder.sext(status, _WORD)

    return types.int64(*[types.int64] * 5), codegen


_PAUSE = {"x86_64": "pause", "AMD64": "pause", "aarch64": "yield", "arm64": "yield"}.get(platform.machine(), "")


@intrinsic
def _pause(typingctx):
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.asm(ir.FunctionType(ir.VoidType(), []), _PAUSE, "~{memory}", (), True)
        return context.get_dummy_value()

    return types.void(), codegen


if os.name == "posix":
    _sched_yield = types.ExternalFunction("sched_yield", types.int32())

    @jit
    def _offer_core():
        _sched_yield()

else:

    @jit
    def _offer_core():
        pass


@jit
def _pieces(n, work, small, lanes, each):
    """Into how many pieces n items are cut: one, where there is little to do."""
    return min(n, lanes * each) if work >= small else min(n, 1)


@jit
def _take(counter, epoch):
    """One of the pieces left, -1 if there is none or the run is over."""
    while True:
        value = _load(counter)
        left = value & 0xFFFFFFFF
        if value >> 32 != epoch or left == 0:
            return -1
        if _swap(counter, value, value - 1):
            return left - 1


@jit
def _take_part(board, epoch, calls, count, counters, lanes, small, lane):
    """Go through a program as one of its lanes."""
    for i in range(count):
        own = counters + i * (lanes + 1) * LINE
        undone = own + lanes * LINE
        for shift in range(lanes):
            owner = (lane + shift) % lanes
            while True:
                left = _take(own + owner * LINE, epoch)
                if left < 0:
                    break
                # Only now: with a piece in hand, the run waits for this lane, and its table stays.
                row = calls + i * ROW * 8
                n = _load(row + 16)
                total = _pieces(n, _load(row + 24), small, lanes, _load(row + 32))
                piece = total * (owner + 1) // lanes - 1 - left
                if _call_at(_load(row), n * piece // total, n * (piece + 1) // total, lane, _load(row + 8)):
                    _store(board + _FAILED * LINE, _load(row))
                _add(undone, -1)
        waited = 0
        while _load(undone) > 0:
            if lane > 0 and _load(board + _EPOCH * LINE) != epoch:
                return
            waited += 1
            if waited > PATIENCE:
                _offer_core()
            _pause()


@Entry
def _lead(board, epoch, calls, count, counters, lanes, small):
    """Run a program as lane 0, for the others to join; the address of a kernel that failed, or 0."""
    _store(board + _EPOCH * LINE, -1)
    for i in range(count):
        row, own = calls + i * ROW * 8, counters + i * (lanes + 1) * LINE
        total = _pieces(_load(row + 16), _load(row + 24), small, lanes, _load(row + 32))
        for owner in range(lanes):
            share = total * (owner + 1) // lanes - total * owner // lanes
            _store(own + owner * LINE, (epoch << 32) + share)
        _store(own + lanes * LINE, total)
    _store(board + _CALLS * LINE, calls)
    _store(board + _COUNT * LINE, count)
    _store(board + _COUNTERS * LINE, counters)
    _store(board + _LANES * LINE, lanes)
    _store(board + _SMALL * LINE, small)
    _store(board + _FAILED * LINE, 0)
    _store(board + _EPOCH * LINE, epoch)
    before = flush()
    _take_part(board, epoch, calls, count, counters, lanes, small, 0)
    restore(before)
    return _load(board + _FAILED * LINE)


@Entry
def _run_alone(calls, count):
    failed = 0
    before = flush()
    for i in range(count):
        row = calls + i * ROW * 8
        if _call_at(_load(row), 0, _load(row + 16), 0, _load(row + 8)):
            failed = _load(row)
    restore(before)
    return failed


@Entry
def _serve(board, lane, seen):
    """Take part in every program that comes, until none has come for a while; returns the last one's epoch."""
    idle = 0
    before = flush()
    while idle < SPINS:
        epoch = _load(board + _EPOCH * LINE)
        if epoch == seen or epoch < 0:
            idle += 1
            _pause()
            continue
        calls, count = _load(board + _CALLS * LINE), _load(board + _COUNT * LINE)
        counters, lanes = _load(board + _COUNTERS * LINE), _load(board + _LANES * LINE)
        small = _load(board + _SMALL * LINE)
        if _load(board + _EPOCH * LINE) == epoch:  # else the next one is being written
            if lane < lanes:
                _take_part(board, epoch, calls, count, counters, lanes, small, lane)
            seen, idle = epoch, 0
    restore(before)
    return seen


@Entry
def _fall_asleep(board, lane, seen):
    """Whether the lane must now wait to be woken: not if a program has come meanwhile."""
    _store(board + (_ASLEEP + lane) * LINE, 1)
    return 1 if _load(board + _EPOCH * LINE) == seen else 0


@Entry
def _wake_up(board, lane):
    _store(board + (_ASLEEP + lane) * LINE, 0)


@Entry
def _is_asleep(board, lane):
    return _load(board + (_ASLEEP + lane) * LINE)


class Crew:
    """The process's lanes beside its callers.

    A KeyboardInterrupt may come between any two calls here. It leaves at worst lanes that are woken once for nothing,
    or sleep for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: dict[object, None] = {}  # callers that run a program now
        self._alarms: list[Any] = [None]  # a lock for each lane but 0, held while it need not wake
        self._epoch = 0  # of the last program; from 1 to EPOCHS - 1, and round again
        self._board, self._counters = Lines(0), Lines(0)
        self._kept: list[Lines] = []  # counters of before: a late lane may still look at them

    def run(self, address: int, count: int, lanes: int, small: int) -> None:
        """Run the program of `count` calls (rows of ROW int64) at `address` on up to `lanes` lanes, less one for
        each other caller, so that together they keep no more cores busy than one would; on one lane, if another
        caller has them.
        """
        caller = object()
        try:
            self._inside[caller] = None
            failed = self._run(address, count, lanes - len(self._inside) + 1, small)
        finally:
            self._inside.pop(caller, None)
        if failed:
            raise IndexError(f"index out of bounds in the kernel {name_of(failed)}")

    def _run(self, address: int, count: int, lanes: int, small: int) -> int:
        if lanes < 2 or self._lock.locked():
            return _run_alone(address, count)
        with self._lock:  # not acquire(): an interrupt right after it would keep the lock for ever
            if lanes > len(self._alarms):
                self._hire(lanes)
                lanes = min(lanes, len(self._alarms))
            if count * (lanes + 1) > self._counters.count:
                self._kept.append(self._counters)
                self._counters = Lines(2 * count * (lanes + 1))
            board = self._board.address
            for lane in range(1, lanes):
                alarm = self._alarms[lane]
                if _is_asleep(board, lane) and alarm.locked():  # else it is being woken
                    alarm.release()
            self._epoch = self._epoch % (EPOCHS - 1) + 1
            return _lead(board, self._epoch, address, count, self._counters.address, lanes, small)

    def _hire(self, lanes: int) -> None:
        """Have `lanes` lanes, or as many as there is memory for."""
        if self._board.count == 0:
            # Compiled here, under one lock: lanes that start together must not all compile.
            for entry in (_serve, _fall_asleep, _wake_up):
                entry.prepare()
            self._board = Lines(_ASLEEP + 1024)
        for lane in range(len(self._alarms), min(lanes, 1024)):
            alarm = threading.Lock()
            alarm.acquire()
            arguments = (self._board, lane, alarm)
            try:
                self._alarms.append(alarm)
                threading.Thread(target=_live, args=arguments, name=f"fastcnn-{lane}", daemon=True).start()
            except RuntimeError:  # the system gives no more threads
                self._alarms.pop()
                return
            except BaseException:  # nobody knows whether the thread is there: others are hired, round another board
                self._kept.append(self._counters)
                self._board, self._counters, self._alarms = Lines(0), Lines(0), [None]
                raise


class Lines:
    """`count` cache lines of zeros, at a line's start."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._memory = np.zeros((count + 1) * LINE, np.uint8)
        self.address = -(-self._memory.ctypes.data // LINE) * LINE


def _live(board: Lines, lane: int, alarm: Any) -> None:
    """A lane's life: serve, sleep, be woken."""
    address, seen = board.address, 0
    while True:
        seen = _serve(address, lane, seen)
        if _fall_asleep(address, lane, seen):
            alarm.acquire()
        _wake_up(address, lane)


_crew = Crew()


def code() -> list[Code]:
    """All that programs on several lanes need beside their kernels."""
    return [entry.code() for entry in (_lead, _serve, _fall_asleep, _wake_up, _is_asleep)]


def run(address: int, count: int, lanes: int, small: int) -> None:
    """Run a program on the process's crew."""
    _crew.run(address, count, lanes, small)


def _after_fork_in_child() -> None:
    global _crew
    _crew = Crew()  # threads do not survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
