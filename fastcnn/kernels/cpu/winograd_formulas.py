"""The formulas of Winograd's algorithm for 3x3 and 5x5 windows.

F(m x m, r x r) computes an m x m tile of outputs from an n x n tile of inputs, n = m + r - 1, with n * n
multiplications instead of r * r * m * m (Lavin and Gray 2016, "Fast algorithms for convolutional neural
networks"):

    Y = A' [ (G g G') * (B' d B) ] A

Its gradients are the transposes: dM = A dY A', dd = B dV B', dg = G' dU G. Every formula below is one matrix
times a vector, written with + - * only, so the same line makes LLVM instructions over vectors of channels or
NumPy arrays; `both_ways` applies it to the columns and then the rows of a tile.

A and G take polynomials at n points: 0, some pairs +-p and, where n is even, infinity. The pairs, of those whose
squares are exact in binary, lose least (by search; Barabasz et al. 2020, "Error analysis and improving the accuracy
of Winograd convolution", on the choice of points): F(4x4, 3x3) has a mean error of twice the direct sum's, half of
what the usual 0, +-1, +-2 and infinity give, F(5x5, 3x3) one of four times, F(7x7, 3x3) of twenty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from numpy.polynomial.polynomial import polyfromroots, polyval

PAIRS = {4: (1.0,), 6: (11 / 16, 3 / 2), 7: (9 / 16, 5 / 4, 4.0), 9: (7 / 16, 7 / 8, 3 / 2, 4.0)}  # n -> p

Tile = Sequence[Any]


class Points(NamedTuple):
    """What the formulas for tiles of n inputs take from their points; polynomials in x^2, lowest power first."""

    pairs: tuple[float, ...]
    whole: tuple[float, ...]  # the product of (x^2 - p^2) over all pairs
    others: tuple[tuple[float, ...], ...]  # by pair: over the other ones
    scales: tuple[float, ...]  # by point: of weights


@lru_cache(maxsize=8)
def points_of(n: int) -> Points:
    """Of the points for n inputs."""
    squares = [p * p for p in PAIRS[n]]
    whole = polyfromroots(squares)
    others = [polyfromroots([s for s in squares if s != own]) for own in squares]
    scales = [1 / whole[0]]
    for own, rest in zip(squares, others, strict=True):
        scales += [1 / (2 * own * polyval(own, rest))] * 2
    if n % 2 == 0:
        scales.append(1.0)
    return Points(PAIRS[n], _floats(whole), tuple(map(_floats, others)), _floats(scales))


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _weighted(values: Tile, weights: Sequence[float]) -> Any:
    """The sum of values times weights."""
    total = values[-1] * weights[-1]
    for value, weight in zip(values[-2::-1], weights[-2::-1], strict=True):
        total = total + value * weight
    return total


def input_tile(d: Tile) -> Tile:
    """B' d: n inputs to n points; a point's row holds the product of (x - q) over all other points q."""
    n, t = len(d), points_of(len(d))
    last = 2 * len(t.pairs)
    points = [_weighted(d[0 : last + 1 : 2], t.whole)]
    for p, others in zip(t.pairs, t.others, strict=True):
        even, odd = _weighted(d[2 : last + 1 : 2], others), _weighted(d[1:last:2], others)
        points += [even + odd * p, even - odd * p]
    return [*points, _weighted(d[1::2], t.whole)] if n % 2 == 0 else points


def input_gradient_tile(v: Tile) -> Tile:
    """B v: the transpose of `input_tile`."""
    n, t = len(v), points_of(len(v))
    sums, differences = _by_pair(v)
    inputs = []
    for k in range(n):
        # What `t.whole` has, at 0 or infinity, and the pairs' other points: none of them at the first and last input.
        ends = [v[0]] if k % 2 == 0 else [v[n - 1]] if n % 2 == 0 else []
        values, weights = list(ends), [t.whole[k // 2]] * len(ends)
        if 0 < k < 2 * len(t.pairs) + 1:
            power = (k - 1) // 2
            values += differences if k % 2 else sums
            weights += [others[power] * (p if k % 2 else 1.0) for p, others in zip(t.pairs, t.others, strict=True)]
        inputs.append(_weighted(values, weights))
    return inputs


def _by_pair(points: Tile) -> tuple[list[Any], list[Any]]:
    """Sums and differences of what is at +p and -p."""
    pairs = range(1, 2 * len(PAIRS[len(points)]), 2)
    return [points[i] + points[i + 1] for i in pairs], [points[i] - points[i + 1] for i in pairs]


def _at_points(values: Tile, n: int) -> Tile:
    """A y: the polynomial with these coefficients at the n points; infinity has the highest one."""
    points = [values[0]]
    for p in PAIRS[n]:
        powers = [p**k for k in range(len(values))]
        even, odd = _weighted(values[::2], powers[::2]), _weighted(values[1::2], powers[1::2])
        points += [even + odd, even - odd]
    return [*points, values[-1]] if n % 2 == 0 else points


def _to_coefficients(points: Tile, count: int) -> Tile:
    """A' m: the transpose of `_at_points`."""
    n = len(points)
    sums, differences = _by_pair(points)
    coefficients = []
    for k in range(count):
        powers = [p**k for p in PAIRS[n]]
        total = _weighted(differences if k % 2 else sums, powers)
        if k == 0:
            total = total + points[0]
        coefficients.append(total + points[n - 1] if n % 2 == 0 and k == count - 1 else total)
    return coefficients


def weight_tile(g: Tile, n: int) -> Tile:
    """G g: r weights to n points."""
    return [value * scale for value, scale in zip(_at_points(g, n), points_of(n).scales, strict=True)]


def weight_gradient_tile(u: Tile, window: int) -> Tile:
    """G' u: the transpose of `weight_tile`."""
    return _to_coefficients([value * scale for value, scale in zip(u, points_of(len(u)).scales, strict=True)], window)


Formula = Callable[[Tile], Tile]
NAMES = ("input", "input gradient", "output gradient", "weight", "weight gradient")


def formula_of(name: str, m: int, r: int) -> tuple[Formula, int]:
    """A formula of F(m x m, r x r), and the rows of the tile that it takes."""
    n = m + r - 1
    formulas: dict[str, tuple[Formula, int]] = {
        "input": (input_tile, n),
        "input gradient": (input_gradient_tile, n),
        "output": (partial(_to_coefficients, count=m), n),
        "output gradient": (partial(_at_points, n=n), m),
        "weight": (partial(weight_tile, n=n), r),
        "weight gradient": (partial(weight_gradient_tile, window=r), n),
    }
    return formulas[name]


def both_ways(formula: Formula, load: Callable[[int, int], Any], size: int) -> Tile:
    """`formula` over the columns, then the rows, of a tile whose (i, j) is `load(i, j)`."""
    columns = [formula([load(i, j) for i in range(size)]) for j in range(size)]
    return [formula(row) for row in zip(*columns, strict=True)]
