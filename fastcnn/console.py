"""How commands print."""

from __future__ import annotations

import os
import textwrap
import unicodedata
from collections.abc import Sequence

__all__ = ["count", "megabytes", "print_table", "printable", "say"]


def printable(text: str) -> str:
    """`text` without what commands a terminal: names in files may be a stranger's."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


def say(name: str, text: str) -> None:
    """A line, or indented ones, about what is called `name`."""
    indented = textwrap.wrap(text, 100, subsequent_indent=" " * 15, break_long_words=False, break_on_hyphens=False)
    print(f"{name:<15}" + "\n".join(map(printable, indented)), flush=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> None:
    """`align` has ``<`` or ``>`` for each column."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [f"{printable(cell):{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)]
        print("  ".join(cells).rstrip())


def count(n: int, noun: str) -> str:
    """So many of them."""
    return f"{n:,} {noun}" + "s" * (n != 1)


def megabytes(path: str) -> str:
    """The size of a file."""
    return f"{os.path.getsize(path) / 1e6:.2f} MB"
