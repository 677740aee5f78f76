"""Machine code of kernels: compiled by Numba once, kept as object files, and loaded by later processes without it.

Numba has a cache of its own. To read from it, it first sets up its types and targets, which takes longer than
training on a small data set, and some tens of MB. An object file needs LLVM's loader alone.

A file holds the SHA-256 of the rest, the name of its function, and the object. Its name is made of all that the code
follows from, within a directory named after the kernels' sources and the host (`runtime.cache_dir`). Kernels call
nothing but each other, by address, and a few functions of the C library (exp, log, memset).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

import llvmlite.binding as llvm

from fastcnn.kernels.cpu import runtime

_lock = threading.RLock()
_names: dict[int, str] = {}


Origin = tuple[str, str, "tuple[Any, ...] | None"]  # module, name, and the arguments if it is a function's result


class Code:
    """A `function` for the argument types `signature()`, which `kinds` describes, and where its object file lies.

    By its `origin` another process finds the kernel or entry whose function it is; None if it cannot.
    """

    def __init__(
        self, function: Callable[..., Any], kinds: str, signature: Callable[[], Any], exact: bool = False,
        origin: Origin | None = None,
    ) -> None:  # fmt: skip
        self.function, self.kinds, self.signature, self._exact = function, kinds, signature, exact
        self.origin = origin
        directory = runtime.cache_dir()
        self.path = directory / f"{function.__name__}-{_digest(function, kinds)}.o" if directory else None

    @classmethod
    def at(cls, origin: Origin, kinds: str, signature: Any, path: Path) -> Code:
        """The code with this origin, of another process that has it in the file `path`."""
        module, name, arguments = origin
        found = getattr(import_module(module), name)
        owner = found if arguments is None else found(*arguments)
        code = cls(owner.function, kinds, lambda: signature, owner.exact, origin)
        if code.path != path:
            raise ValueError(f"{code.path} is not {path}: settings or sources differ")
        return code

    def read(self) -> tuple[str, bytes] | None:
        """The name of the function and its object file; None where it is not stored."""
        return _read(self.path) if self.path else None

    def compile(self) -> tuple[str, bytes]:
        """The same, newly compiled, and stored if that can be."""
        with _lock:
            found = _compile(self.function, self.signature(), self._exact)
            if self.path:
                _write(self.path, *found)
            return found


def machine_code(code: Code, beforehand: Callable[[], None] | None = None) -> int:
    """The address of `code`, in Numba's own convention: int32 f(result *, failure **, arguments...).

    If it is not stored, `beforehand` is called first: it may compile this and more.
    """
    found = code.read()
    if found is None and beforehand:
        beforehand()
    with _lock:
        name, object_file = found or code.read() or code.compile()
        engine = _engine()
        engine.add_object_file(llvm.ObjectFileRef.from_data(object_file))
        engine.finalize_object()
        address = int(engine.get_function_address(name))
        _names[address] = code.function.__name__
        return address


def origin_of(owner: Any) -> Origin | None:
    """Of a kernel or entry that is known in its module by its function's name."""
    module, name = owner.function.__module__, owner.function.__name__
    return (module, name, None) if getattr(sys.modules.get(module), name, None) is owner else None


def name_of(address: int) -> str:
    """The function whose code lies at `address`."""
    return _names[address]


def _digest(function: Callable[..., Any], kinds: str) -> str:
    """What the code of a function follows from, beside the sources of this package."""
    code, cells = function.__code__, [cell.cell_contents for cell in function.__closure__ or ()]
    constants = [value for value in code.co_consts if not isinstance(value, CodeType)]
    parts = (function.__module__, function.__qualname__, code.co_code, constants, code.co_names, cells, kinds)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _compile(function: Callable[..., Any], signature: Any, exact: bool) -> tuple[str, bytes]:
    compiled = runtime.jit(function, exact=exact, called="address")
    compiled.compile(signature)
    result = compiled.overloads[signature]
    try:
        _, _, (code, _) = result.library.serialize_using_object_code()
    except RuntimeError as error:
        if "no compiled object" not in str(error):
            raise
        # Ctrl-C fell into the function by which LLVM hands the object over: ctypes drops what is raised there.
        raise KeyboardInterrupt from error
    return result.fndesc.llvm_func_name, code


def _read(path: Path) -> tuple[str, bytes] | None:
    """None where there is no such file, or not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, rest = content[:32], content[32:]
    if hashlib.sha256(rest).digest() != digest:
        return None
    name, _, code = rest.partition(b"\n")
    return name.decode(), code


def _write(path: Path, name: str, code: bytes) -> None:
    """Whole or not at all; a full disk only means that the next process compiles again."""
    rest = name.encode() + b"\n" + code
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(hashlib.sha256(rest).digest() + rest)
                file.close()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise


def _before_fork() -> None:
    """Wait until no other thread compiles: Numba's and LLVM's own locks would stay locked in the child."""
    _lock.acquire()


def _after_fork_in_parent() -> None:
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # others may wait for the old one, which do not exist there


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@lru_cache(maxsize=1)
def _engine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


class Entry:
    """A function of integers (int64) and their result, compiled when Python first calls it; it runs without the GIL."""

    exact = False

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._call: Any = None

    def __call__(self, *args: int) -> int:
        if self._call is None:
            self.prepare()
        result, failure = ctypes.c_int64(), ctypes.c_void_p()
        self._call(ctypes.byref(result), ctypes.byref(failure), *args)
        return result.value

    def code(self) -> Code:
        n = self.function.__code__.co_argcount

        def signature() -> Any:
            from numba import types

            return (types.int64,) * n

        return Code(self.function, f"int64 x {n}", signature, self.exact, origin_of(self))

    def prepare(self) -> None:
        arguments = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * self.function.__code__.co_argcount
        self._call = ctypes.CFUNCTYPE(ctypes.c_int32, *arguments)(machine_code(self.code()))
