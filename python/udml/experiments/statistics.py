"""Intervals over seeds, and measures of how well a prediction follows the truth."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

# By hand, as the package does not depend on scipy, which has the t distribution and Spearman's correlation.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean of n values and the half width of its t-interval, NaN for a single value."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


def t_probability(t: float, df: int) -> float:
    """P(|T| <= t) of Student's t distribution with an integer number of degrees of freedom.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(df))
    odd = df % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(df // 2):
        total += term
        n = 2 * k + 1 + odd
        term *= n / (n + 1) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def t_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = confidence.

    Raises:
        ValueError: for fewer than one degree of freedom, or a confidence outside (0, 1).
    """
    if df < 1 or not 0 < confidence < 1:
        raise ValueError(f"df, confidence: expected at least 1 and a number in (0, 1), got {df} and {confidence}")
    low, high = 0.0, 1.0
    while t_probability(high, df) < confidence:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, df) < confidence else (low, middle)
    return high


def interval(values: Sequence[float]) -> Interval:
    """The t-interval of the mean. Raises ValueError for no values."""
    x = np.asarray(list(values), np.float64)
    n = len(x)
    if n == 0:
        raise ValueError("values: expected at least one, got none")
    if n == 1:
        return Interval(float(x[0]), math.nan, 1)
    half = t_quantile(n - 1) * x.std(ddof=1) / math.sqrt(n)
    return Interval(float(x.mean()), float(half), n)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Interval:
    """The interval of a - b over the seeds that both have. Raises ValueError if they have none in common."""
    common = sorted(set(a) & set(b))
    if not common:
        raise ValueError(f"a, b: expected seeds in common, got {sorted(a)} and {sorted(b)}")
    return interval([a[seed] - b[seed] for seed in common])


def ranks(values: ArrayLike) -> np.ndarray:
    """Ranks from 1; equal values share their mean rank."""
    _, place, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[place.ravel()]


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """The rank correlation; NaN if either argument is constant."""
    a, b = (r - r.mean() for r in (ranks(x), ranks(y)))
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else math.nan


def slope(x: ArrayLike, y: ArrayLike) -> float:
    """The slope of the least-squares line of y on x."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a = a - a.mean()
    return float(a @ b / (a @ a))
