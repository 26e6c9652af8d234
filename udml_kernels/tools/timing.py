"""Variants of one workload, timed in turn in one process."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .info import host

_SAMPLE = 3e-3


@dataclass
class Times:
    """Seconds per call."""

    median: float
    p20: float
    p80: float
    fastest: float


class Rotation:
    """Calls that take turns, so that a slow phase of the machine affects all of them.

    Calls far shorter than a few milliseconds are timed several at a time.

    Args:
        variants: the calls by name; each is made twice here, to see how long it takes.
        wait: ends a sample: it returns when the device has finished its work. None: the calls wait themselves.
        before: called before every sample, outside of its time; a sample is then one call.

    Attributes:
        calls: number of calls per sample of each variant; a sample is their mean.
        samples: seconds per call, by variant.
        seconds: approximate duration of a sample of each variant.
    """

    def __init__(
        self,
        variants: dict[str, Callable[[], object]],
        wait: Callable[[], object] | None = None,
        before: Callable[[], object] | None = None,
    ):
        self.variants, self._before = variants, before
        self._wait = wait or (lambda: None)
        self.calls: dict[str, int] = {}
        self.samples: dict[str, list[float]] = {name: [] for name in variants}
        self.seconds: dict[str, float] = {}
        for name, call in variants.items():
            call()
            self._wait()
            start = time.perf_counter()
            call()
            self._wait()
            once = time.perf_counter() - start
            self.calls[name] = 1 if before else max(1, min(1000, round(_SAMPLE / once)))
            if before:
                before()
                once = time.perf_counter() - start
            self.seconds[name] = once * self.calls[name]

    def rounds(self, budget: float, fewest: int = 5, most: int = 200) -> int:
        """The number of rounds that fit into `budget` seconds, with a sample of each variant in a round."""
        return max(fewest, min(most, int(budget / sum(self.seconds.values()))))

    def sample(self, name: str) -> None:
        """Time one variant, once."""
        if self._before:
            self._before()
            self._wait()
        call, repeat = self.variants[name], range(self.calls[name])
        start = time.perf_counter()
        for _ in repeat:
            call()
        self._wait()
        self.samples[name].append((time.perf_counter() - start) / len(repeat))

    def times(self) -> dict[str, Times]:
        """Summary of the samples so far, by variant."""
        return {name: _summary(values) for name, values in self.samples.items()}


def interleaved(
    variants: dict[str, Callable[[], object]],
    budget: float,
    fewest: int = 5,
    most: int = 200,
    wait: Callable[[], object] | None = None,
) -> dict[str, Times]:
    """Times of each variant, measured round-robin for about `budget` seconds; arguments as in `Rotation`."""
    rotation = Rotation(variants, wait)
    with uncollected():
        for _ in range(rotation.rounds(budget, fewest, most)):
            for name in variants:
                rotation.sample(name)
    return rotation.times()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Disable Python's garbage collector inside the `with` block."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _summary(values: list[float]) -> Times:
    if len(values) == 1:
        return Times(*values * 4)
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Times(statistics.median(values), fifths[0], fifths[3], min(values))


def copy_bandwidth(device: torch.device, threads: int, size: int) -> float | None:
    """1e9 bytes per second of a copy, reads and writes both counted: of `size` bytes on the CPU, of 1 GiB elsewhere.

    None on a CPU whose host module was not built.
    """
    if device.type == "cpu":
        module = host()
        return module.copy_bandwidth(size, threads, 5) if module else None
    # Random bits: some GPUs compress zeros when they move them.
    source = torch.empty(1 << 28, dtype=torch.int32, device=device).random_()
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, budget=1.0, wait=torch.accelerator.synchronize)
    return 2e-9 * source.nbytes / times["copy"].median
