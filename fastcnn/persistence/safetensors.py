"""Arrays and text in one safetensors file.

The format (https://github.com/huggingface/safetensors#format) is 8 bytes of header size, a JSON header with the dtype,
shape and place of each tensor, then the tensors. Its free-text part is ``__metadata__``.

Files are not trusted: who reads one says which tensors there must be, and their names, dtypes, shapes and places and
the size of the file are compared with that before an array is allocated.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from math import prod
from typing import Any, BinaryIO

import numpy as np

from fastcnn.persistence.files import StrPath, replacing

__all__ = ["Expected", "parse_object", "read_header", "read_tensors", "shown", "write_tensors"]

Expected = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> (dtype, shape)

_MAX_HEADER = 1 << 24  # bytes; the header of a network of a thousand layers has some 200,000
DTYPES = {"float32": "F32", "float64": "F64"}


def write_tensors(path: StrPath, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write `tensors`, of the dtypes in `DTYPES`, to `path`: whole, or not at all.

    Raises
    ------
    ValueError
        If the header is larger than what is read back.
    OSError
        The file cannot be written; an old file stays as it was.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    arrays, end = [], 0
    for name, array in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
        arrays.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of their size
    if len(text) > _MAX_HEADER:
        raise ValueError(f"a header of {len(text):,} bytes, more than {_MAX_HEADER:,}")
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            file.write(array.reshape(-1).view(np.uint8).data)


def read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The JSON header and where the tensors start.

    Raises
    ------
    ValueError
        If there is none.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError("no safetensors file, or cut off")
    if length > _MAX_HEADER:
        raise ValueError(f"no safetensors file, or a header of more than {_MAX_HEADER:,} bytes")
    return parse_object(file.read(length)), 8 + length


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in `text`; ValueError if it is none."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("the header is not a JSON object")
    return values


def read_tensors(file: BinaryIO, entries: Mapping[str, Any], start: int, expected: Expected) -> dict[str, np.ndarray]:
    """The tensors, which are the `expected` ones.

    Parameters
    ----------
    file : binary file
    entries : mapping
        The header without its free text.
    start : int
        Where the tensors start.
    expected : mapping of name to (dtype, shape)

    Raises
    ------
    ValueError
        If they are not; nothing is allocated then.
    """
    places = _check_tensors(entries, expected, os.fstat(file.fileno()).st_size - start)
    return {name: _read_array(file, start + places[name], *expected[name]) for name in expected}


def _check_tensors(entries: Mapping[str, Any], expected: Expected, size: int) -> dict[str, int]:
    """Where each tensor starts, once they all are as expected and fill the `size` bytes without a gap."""
    if missing := sorted(set(expected) - set(entries)):
        raise ValueError(f"tensor {missing[0]!r} is missing")
    if unknown := sorted(set(entries) - set(expected)):
        raise ValueError(f"tensor {unknown[0]!r} does not belong to the layers")
    places: dict[str, int] = {}
    ends: list[tuple[int, int]] = []
    for name, (dtype, shape) in expected.items():
        entry = entries[name]
        start, n_bytes = entry["data_offsets"][0], prod(shape) * np.dtype(dtype).itemsize
        wanted = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, start + n_bytes]}
        if type(start) is not int or entry != wanted:
            raise ValueError(f"tensor {name!r} is {shown(entry)}, expected {shown(wanted)}")
        places[name] = start
        ends.append((start, start + n_bytes))
    reached = 0
    for start, end in sorted(ends):
        if start != reached:
            raise ValueError("the tensors overlap or leave gaps")
        reached = end
    if reached != size:
        raise ValueError(f"{size} bytes of tensors, expected {reached}: cut off, or something was added")
    return places


def shown(entry: Any) -> str:
    """A stored value on one line, shortened."""
    return re.sub(r"\s+", " ", repr(entry))[:200]


def _read_array(file: BinaryIO, start: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(shape, np.dtype(dtype).newbyteorder("<"))
    file.seek(start)
    if file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:  # type: ignore[attr-defined]
        raise ValueError("cut off")
    return array.astype(dtype, copy=False)
