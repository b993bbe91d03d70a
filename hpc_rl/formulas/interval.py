"""The mean of a few independent results, and how far it may be from the truth (Student 1908, "The probable error of a
mean")."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin, sqrt, tan


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None, float | None]:
    """(mean, low, high) of at least one value: x̄ ± t s/√n, t at n − 1 degrees of freedom; None where n is 1."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return mean, None, None
    deviation = sqrt(sum((x - mean) ** 2 for x in values) / (n - 1))
    half = t_quantile(level, n - 1) * deviation / sqrt(n)
    return mean, mean - half, mean + half


def t_quantile(level: float, freedom: int) -> float:
    """t with P(|T| ≤ t) = ``level`` for Student's T with ``freedom`` >= 1 degrees of freedom."""
    low, high = 0.0, pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return sqrt(freedom) * tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| ≤ √ν tan θ), exact for whole ν (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    odd, square = freedom % 2, cos(angle) ** 2
    term = cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
