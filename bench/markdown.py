"""How `bench/RESULTS.md` writes figures and tables."""

from __future__ import annotations

import statistics


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def quartiles(values: list[float]) -> tuple[float, float]:
    """The lower and the upper one; of a single value, that value."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def middle(values: list[float], form: str = ".2f") -> str:
    """The median and the quartiles."""
    low, high = quartiles(values)
    return f"**{statistics.median(values):{form}}** ({low:{form}} to {high:{form}})"
