"""Variants of one piece of work, timed in turn in one process."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

_SAMPLE = 3e-3


@dataclass
class Times:
    """Seconds a call."""

    median: float
    p20: float
    p80: float


def interleaved(
    variants: dict[str, Callable[[], object]],
    budget: float,
    fewest: int = 5,
    most: int = 200,
    wait: Callable[[], object] | None = None,
):
    """Times of each variant, measured round-robin for about `budget` seconds.

    A slow phase of the machine then falls on all of them. Calls far shorter than a few milliseconds are
    timed several at once. `wait` ends a sample: it returns when the device has done what it was asked.
    """
    wait = wait or (lambda: None)
    inner = {}
    spent = 0.0
    for name, call in variants.items():
        call()
        wait()
        start = time.perf_counter()
        call()
        wait()
        once = time.perf_counter() - start
        inner[name] = max(1, min(1000, round(_SAMPLE / once)))
        spent += once * inner[name]
    rounds = max(fewest, min(most, int(budget / spent)))
    samples: dict[str, list[float]] = {name: [] for name in variants}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in variants.items():
                repeat = range(inner[name])
                start = time.perf_counter()
                for _ in repeat:
                    call()
                wait()
                samples[name].append((time.perf_counter() - start) / len(repeat))
    finally:
        if collecting:
            gc.enable()
    return {name: _summary(values) for name, values in samples.items()}


def _summary(values: list[float]) -> Times:
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Times(statistics.median(values), fifths[0], fifths[3])
