"""Measure one work: first check that it is right, then time all variants in turn, then count memory and launches."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from udml_kernels.tools.steps import differences, other_backends, variants
from udml_kernels.tools.timing import Rotation, uncollected

from . import machine, memory
from .case import Case
from .record import Measured, Overhead, Result, Variant

# Bytes of the buffer that evicts the caches: three times a last level of 32 MiB. A GPU's has three times its own.
_EVICTION = 96 << 20
_OFTEN = 4
# Above this many elements peak memory, which grows with them, is not measured.
_MEASURABLE = 1 << 25


@dataclass
class Suite:
    """A run.

    Attributes:
        quick: a fifth of the time for each work, no torch.compile and no memory: for trying something out.
        say: prints a line.
        partial: a file with the works so far, written after each, in case a run does not reach its end.
    """

    device: torch.device
    threads: int
    quick: bool = False
    say: Callable[[str], None] = print
    partial: Path | None = None
    works: list[Measured] = field(default_factory=list)
    overhead: list[Overhead] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.set_num_threads(self.threads)
        self.started = time.monotonic()
        self.environment = machine.facts(self.device, self.threads)
        self.copy_gb_s = machine.copy_gb_s(self.device, self.threads)
        self.flops_g = machine.flops_g(self.device, self.threads)
        self.wait = None if self.device.type == "cpu" else torch.accelerator.synchronize
        self.meter = memory.meter()
        self._eviction: torch.Tensor | None = None

    def run(self, case: Case, benchmark: Any) -> Measured:
        """Measure a case and add it to the works."""
        measured = self.measure(case, benchmark)
        self.works.append(measured)
        self._keep()
        return measured

    def run_overhead(self, case: Case, benchmark: Any) -> Measured:
        """Measure a case so small that its kernel's time is negligible, and record the cost of a call."""
        measured = self.measure(case, benchmark)
        self.overhead += [
            Overhead(case.op, case.direction, name, variant.median) for name, variant in measured.variants.items()
        ]
        self._keep()
        return measured

    def _keep(self) -> None:
        if self.partial is not None:
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            self.result().save(self.partial)

    def measure(self, case: Case, benchmark: Any) -> Measured:
        """Measure a case: pytest-benchmark times the fused variant; the others are timed between its rounds."""
        started, threads = time.monotonic(), case.threads or self.threads
        torch.set_num_threads(threads)
        torch._dynamo.reset()
        work = case.work()
        others = other_backends(self.device)
        measured = Measured(
            case.id, case.op, case.shape, work.dims, case.dtype, case.direction, case.cache, threads,
            str(self.device), work.elements, work.bytes, sweep=case.sweep,
        )  # fmt: skip
        measured.wrong = differences(work, self.device, others)
        if not measured.wrong:
            baselines = [kind for kind in case.baselines if kind != "compile" or not self.quick]
            found = variants(work, self.device, baselines, self.say)
            calls = {name: call for name, (_, call) in found.items()}
            timed = self._time(case, calls, benchmark)
            for name, t in timed.times().items():
                count, repeats = len(timed.samples[name]), timed.calls[name]
                measured.variants[name] = Variant(found[name][0], t.median, t.p20, t.p80, count, repeats)
            self._observe(case, calls, measured)
        torch.set_num_threads(self.threads)
        self.say(f"{summary(measured, self._empty().copy_share)}  [{time.monotonic() - started:.1f} s]")
        return measured

    def result(self) -> Result:
        """All measurements, with the goals and the slopes that follow from them."""
        from .goals import evaluate
        from .scaling import slopes

        result = self._empty()
        result.works, result.overhead = self.works, self.overhead
        result.slopes = slopes(result)
        result.goals = evaluate(result)
        return result

    def _empty(self) -> Result:
        cache = machine.cache_bytes(self.device)
        return Result(self.environment, self.copy_gb_s, flops_g=self.flops_g, cache_bytes=cache)

    def _time(self, case: Case, calls: dict, benchmark: Any) -> Rotation:
        rotation = Rotation(calls, self.wait, self._evict if case.cache == "cold" else None)
        fewest = 5 if sum(rotation.seconds.values()) < 1 else 3
        rounds = rotation.rounds(case.budget / (5 if self.quick else 1), fewest)
        baselines = [name for name in calls if name != "fused"]
        # Where the baselines are slow, the fused variant gets several samples for each sample of theirs.
        slow = sum(rotation.seconds[name] for name in baselines)
        often = max(1, min(_OFTEN, int(slow / rotation.seconds["fused"] / 4)))
        turns = itertools.count()

        def others() -> None:
            if next(turns) % often == 0:
                for name in baselines:
                    rotation.sample(name)

        benchmark.extra_info["calls"] = rotation.calls["fused"]
        with uncollected():
            benchmark.pedantic(rotation.sample, args=("fused",), setup=others, rounds=rounds * often)
        return rotation

    def _observe(self, case: Case, calls: dict[str, Callable[[], object]], measured: Measured) -> None:
        """Measure memory and launches, which would disturb the times."""
        if self.device.type == "cuda":
            for name, v in measured.variants.items():
                v.peak_extra_bytes = memory.peak_of(calls[name], self.device)
                v.launches, v.device_seconds = on_device(calls[name])
            return
        plain = case.cache == "warm" and case.sweep is None and case.threads is None
        if plain and not self.quick and measured.elements <= _MEASURABLE:
            for name, peak in self.meter.ask("peaks", id=case.id, threads=self.threads).items():
                if name in measured.variants:
                    measured.variants[name].peak_extra_bytes = peak

    def _evict(self) -> None:
        """Stream through a buffer that is too large for any cache."""
        if self._eviction is None:
            size = max(_EVICTION, 3 * (machine.cache_bytes(self.device) or 0))
            self._eviction = torch.rand(size // 4, device=self.device)
        self._eviction.add_(1)


def on_device(call: Callable[[], object]) -> tuple[int, float]:
    """The number of kernels that one call launches on the GPU, and the seconds it spends on them and on copies."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    times = 5
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(times):
            call()
        torch.accelerator.synchronize()
    events = [event for event in seen.events() if event.device_type == DeviceType.CUDA]
    kernels = sum(not event.name.startswith(("Memcpy", "Memset")) for event in events)
    microseconds = sum(event.time_range.elapsed_us() for event in events)
    return round(kernels / times), 1e-6 * microseconds / times


def summary(work: Measured, copy_share: Callable[[Measured], float | None]) -> str:
    """One line about a work."""
    if work.wrong:
        return f"{work.id}  WRONG, not timed: {'; '.join(work.wrong)}"
    fused = work.variants["fused"]
    parts = [f"{1e3 * fused.median:.3f} ms", f"{work.ns_per_element():.3g} ns/element"]
    if fused.device_seconds is not None:
        parts.insert(1, f"{1e3 * fused.device_seconds:.3f} on the device")
    if (share := copy_share(work)) is not None:
        parts.append(f"{100 * share:.0f}% of copy")
    parts += [f"{v.median / fused.median:.2f}x {name}" for name, v in work.variants.items() if name != "fused"]
    return f"{work.id}  {', '.join(parts)}"
