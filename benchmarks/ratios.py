"""Ratios of times with their intervals, the test for changes beyond the noise, and their output."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

FASTER, SLOWER, NOISE = "faster", "slower", "within noise"
_STYLES = {FASTER: "green", SLOWER: "red", NOISE: "dim"}
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

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

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


def paired(base: Sequence[Sequence[float]], head: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """base / head, from times taken in pairs, with a 95 % interval.

    The value is the median over all pairs. The interval is a two-stage bootstrap: processes are drawn with
    replacement, then rounds within each. Effects specific to a process, such as its memory's placement, are in all of
    its rounds, and vary only between processes.

    Args:
        base, head: seconds, (processes, rounds).
        seed: seed of the bootstrap.
    """
    ratios = np.log(np.asarray(base, float)) - np.log(np.asarray(head, float))
    processes, rounds = ratios.shape
    generator = np.random.default_rng(seed)
    process = generator.integers(processes, size=(_RESAMPLES, processes, 1))
    drawn = ratios[process, generator.integers(rounds, size=(_RESAMPLES, processes, rounds))]
    low, high = np.quantile(np.median(drawn, axis=(1, 2)), (0.025, 0.975))
    value = float(np.median(ratios))
    # Where all pairs are alike, rounding may put the median itself outside.
    return Estimate(*(math.exp(x) for x in (value, min(low, value), max(high, value))))


def verdict(ratio: Estimate, floor: float = 1.0) -> str:
    """For old over new: "faster" or "slower" if the interval excludes 1 and the change exceeds the factor `floor`."""
    if ratio.low > 1 and ratio.value > floor:
        return FASTER
    if ratio.high < 1 and ratio.value < 1 / floor:
        return SLOWER
    return NOISE


def duration(seconds: float) -> str:
    """A time in a suitable unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def console() -> Console:
    """A console that, where the output is not a terminal, is plain and as wide as needed."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=240)


def show(out: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column names the work, the last one holds the verdict."""
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(*row, style=_STYLES.get(row[-1]))
    out.print(table)


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def write_csv(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one line per row, after a line with the names of the columns."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["id"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
