"""How time grows along a sweep: the slope of a line fitted to the logarithms, which is 1 for linear growth."""

import statistics
from math import log

from .record import Result, Slope

# Axes along which a work grows in proportion.
GROWING = ("B", "D", "M")


def slopes(result: Result) -> list[Slope]:
    """The slopes of every series along a growing axis, for every variant that all works of the series have."""
    series: dict[tuple[str, str], list] = {}
    for work in result.works:
        if work.sweep and work.sweep.axis in GROWING and work.variants:
            series.setdefault((work.sweep.series, work.sweep.axis), []).append(work)
    found = []
    for (name, axis), works in series.items():
        if len(works) < 2:
            continue
        for variant in works[0].variants:
            if all(variant in work.variants for work in works):
                sizes = [log(float(work.sweep.value)) for work in works]
                times = [log(work.variants[variant].median) for work in works]
                found.append(Slope(name, axis, variant, statistics.linear_regression(sizes, times).slope))
    return found
