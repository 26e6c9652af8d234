"""Ratios of times with their intervals, the test for changes beyond the noise, and what both commands write."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .record import write_csv

FASTER, SLOWER, NOISE = "faster", "slower", "within noise"
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A positive number, a time or a ratio of times, and the interval in which it lies."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.value <= self.high < math.inf:
            raise ValueError(f"estimate: expected 0 < low <= value <= high, got {self.low}, {self.value}, {self.high}")

    @property
    def extent(self) -> float:
        """The factor by which the far end of the interval differs from 1, at least 1."""
        return max(self.high, 1 / self.low, 1.0)


def quotient(a: Estimate, b: Estimate) -> Estimate:
    """a / b of independent estimates: the distances of the intervals' ends, in logarithms, are added in quadrature."""
    value = a.value / b.value
    down = math.hypot(math.log(a.value / a.low), math.log(b.high / b.value))
    up = math.hypot(math.log(a.high / a.value), math.log(b.value / b.low))
    return Estimate(value, value * math.exp(-down), value * math.exp(up))


def paired(base: Sequence[Sequence[float]], head: Sequence[Sequence[float]]) -> Estimate:
    """base / head, from times taken in pairs, with a 95 % interval.

    The value is the median over all pairs. The interval is a two-stage bootstrap: processes are drawn with
    replacement, then rounds within each. Effects specific to a process, such as its memory's placement, are in all of
    its rounds, and vary only between processes.

    Args:
        base, head: seconds, (processes, rounds).
    """
    ratios = np.log(np.asarray(base, float)) - np.log(np.asarray(head, float))
    processes, rounds = ratios.shape
    generator = np.random.default_rng(0)
    process = generator.integers(processes, size=(_RESAMPLES, processes, 1))
    drawn = ratios[process, generator.integers(rounds, size=(_RESAMPLES, processes, rounds))]
    low, high = np.quantile(np.median(drawn, axis=(1, 2)), (0.025, 0.975))
    value = float(np.median(ratios))
    # Where all pairs are alike, rounding may put the median itself outside.
    return Estimate(*(math.exp(x) for x in (value, min(low, value), max(high, value))))


def verdict(ratio: Estimate, least_change: float = 1.0) -> str:
    """For old over new: "faster" or "slower" if the interval excludes 1 and the factor exceeds `least_change`."""
    if ratio.low > 1 and ratio.value > least_change:
        return FASTER
    if ratio.high < 1 and ratio.value < 1 / least_change:
        return SLOWER
    return NOISE


def interval(row: dict[str, Any]) -> str:
    """The ratio of a row, with its interval."""
    return f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def duration(seconds: float) -> str:
    """A time in a suitable unit, with three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if float(f"{seconds:.3g}") >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that both comparing commands share."""
    parser.add_argument("--fail-below", type=_limit, metavar="RATIO", help="exit 1 if a work is surely below this")
    parser.add_argument("--json", type=_file, metavar="FILE", help="also write the ratios to this file")
    parser.add_argument("--csv", type=_file, metavar="FILE", help="also write the ratios to this file, a row per work")


def _limit(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a ratio above 0, got {text}")
    return value


def _file(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, got {text}")
    return path


def write(options: argparse.Namespace, rows: Sequence[dict[str, Any]], report: dict[str, Any]) -> bool:
    """Write the files that were asked for.

    Returns:
        Whether, with --fail-below, a work is slower with the whole interval of its ratio below that; it is named.
    """
    if options.json:
        options.json.write_text(json.dumps({**report, "works": rows}, indent=1) + "\n")
    if options.csv:
        write_csv(options.csv, rows)
    limit = options.fail_below or 0
    slow = [row["id"] for row in rows if row["verdict"] == SLOWER and row["high"] < limit]
    for id in slow:
        print(f"below {limit}: {id}", file=sys.stderr)
    return bool(slow)
