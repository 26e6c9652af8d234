"""How time grows along a sweep: the slope of a line through the logarithms, 1 for linear."""

import statistics
from math import log

from .record import Result, Slope

# Along these a work grows in proportion.
GROWING = ("B", "D", "M")


def slopes(result: Result) -> list[Slope]:
    """Of every series along a growing axis and every variant that all its works have."""
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
