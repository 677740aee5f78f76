"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["StrPath", "remove_partial", "replacing", "target_of"]

StrPath = str | os.PathLike[str]


def target_of(path: StrPath) -> Path:
    """Where a file of that name is, or would be.

    Raises
    ------
    FileNotFoundError
        If the path ends like that of a folder, and there is none.
    """
    target, named = Path(os.path.realpath(path)), os.fspath(path)
    if named.endswith(tuple(filter(None, (os.sep, os.altsep)))) and not target.is_dir():
        raise FileNotFoundError(f"{named}: no such folder")
    return target


@contextmanager
def replacing(path: StrPath) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when it is complete and on the disk."""
    target = target_of(path)
    if target.exists() and not (target.is_file() or target.is_dir()):  # a folder is refused by the system
        raise OSError(f"{os.fspath(path)}: a device or a pipe, which a file would replace")
    partial = target.with_name(f"{_hidden(target)}{uuid.uuid4().hex}")
    try:
        with open(partial, "xb") as file:
            with suppress(OSError):  # a file that only its owner may read stays so
                shutil.copymode(target, partial)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    _sync_folder(target.parent)


def remove_partial(path: StrPath) -> None:
    """Remove what processes left behind that were killed while they wrote `path`. No other may be writing it now."""
    target = Path(os.path.realpath(path))
    with suppress(OSError):
        for name in os.listdir(target.parent):
            rest = name.removeprefix(_hidden(target))
            if rest != name and re.fullmatch("[0-9a-f]{32}", rest):
                target.with_name(name).unlink(missing_ok=True)


def _hidden(target: Path) -> str:
    return f".{os.fsdecode(os.fsencode(target.name)[:200])}."  # with what follows, at most 255 bytes


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk too, where folders can be synchronised."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
