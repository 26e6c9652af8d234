"""Device times of the ops by replayed CUDA graphs, beside what a call costs the host; a line of JSON a measurement.

    python -m benchmarks.gpu.times OUT.jsonl [--seconds 310] [--only REGEX] [--compile] [--dry]

The first line has the bandwidth of a copy, and the time of a graph of one small kernel. In the others, times are
microseconds: `warm_us` of replays that follow one another, `cold_us` of one after the caches were overwritten,
`host_us` until a call without a graph is queued. `percent_of_copy` and `cold_percent` compare the work's bytes with
the copy.
"""

import argparse
import fnmatch
import gc
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Case
from benchmarks.catalogue import catalogue
from udml_kernels import backends, draw_seed
from udml_kernels.testing.works import Work
from udml_kernels.tools.steps import Step, fused_step

# What says most comes first; then the others, and last the calls that are nothing but overhead.
FIRST = (
    "reparameterize/tokens/*", "inject_noise/tokens/*", "weighted_fusion/large/*", "head_step/features/*",
    "reparameterize/map14/*", "weighted_fusion/nyud/*", "inject_noise/nyud/*", "head_step/cremad/*",
    "noise_regression/*", "modality_dropout/large/*", "evidential_fusion/large/*", "normal/tokens/*",
    "reparameterize/nyud/*", "inject_noise/image/*", "reparameterize/cremad/*", "inject_noise/cremad/*",
)  # fmt: skip
LAST = "*/tiny/*"
# The eager evidential fusion copies a number to the device, which no graph can hold.
_NO_GRAPH = "evidential"
_SAMPLES = 9


def ordered(cases: dict[str, Case]) -> dict[str, Case]:
    """The cases, what says most first."""

    def rank(name: str) -> int:
        if fnmatch.fnmatchcase(name, LAST):
            return len(FIRST) + 1
        return next((i for i, pattern in enumerate(FIRST) if fnmatch.fnmatchcase(name, pattern)), len(FIRST))

    return {name: cases[name] for name in sorted(cases, key=rank)}


def variants(work: Work, device: torch.device, compiled: bool) -> Iterator[tuple[str, Callable, Callable]]:
    """Name, the call to capture, and the call as a user makes it: a user draws a seed every step."""
    seed = draw_seed(device)
    names = [name for name in ("cuda", "triton") if backends.why_unavailable(name, device) is None]
    for name in names if device.type != "cpu" else ["cpu"]:
        yield name, _on_backend(name, Step(work, work.fused, device), seed), fused_step(work, device, name)
    for name, call in work.eager.items():
        step = Step(work, call, device)
        yield name, step, step
    if compiled:
        through = work.compiled or {f"compile {n}": torch.compile(c, dynamic=False) for n, c in work.eager.items()}
        for name, call in through.items():
            torch._dynamo.reset()
            step = Step(work, call, device)
            yield name, step, step


def _on_backend(name: str, step: Step, seed: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        with backends.use_backend(name):
            return step(seed)

    return call


def host_seconds(call: Callable[[], object]) -> float:
    """Until a call is queued, the best of three times twenty."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    found = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(20):
            call()
        found.append((time.perf_counter() - start) / 20)
        torch.cuda.synchronize()
    return min(found)


def graph_of(call: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    """A graph of a call, and its results, which must live as long."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    return graph, kept


def timed(run: Callable[[], object], count: int, before: Callable[[], object] | None = None) -> float:
    """Seconds of a run by events, the median of a few times `count`."""
    found = []
    for _ in range(_SAMPLES):
        if before:
            before()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        found.append(1e-3 * start.elapsed_time(end) / count)
    return statistics.median(found)


def launches(call: Callable[[], object]) -> list[tuple[str, float]]:
    """Name and microseconds of each kernel and copy of a call, by the profiler."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    events = (e for e in seen.events() if e.device_type == DeviceType.CUDA)
    return [(e.name[:60], round(e.device_time, 1)) for e in events]


def copied(device: torch.device) -> float:
    """Bytes per second of a copy of 1 GiB, reads and writes both counted."""
    # Random bits: some GPUs compress zeros when they move them.
    source = torch.randn(1 << 28, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), 5)


class Card:
    """What the works are compared with: a copy, and a graph of one small kernel. It also overwrites the caches."""

    def __init__(self, device: torch.device):
        self.copy = copied(device)
        self._flushed = torch.randn(1 << 26, device=device)
        small = torch.zeros(1, device=device)
        graph, self._kept = graph_of(lambda: small.add_(1))
        self.about = {
            "card": torch.cuda.get_device_name(device),
            "torch": torch.__version__,
            "copy_gb_s": 1e-9 * self.copy,
            "one_launch_us": 1e6 * timed(graph.replay, 100),
            "one_cold_launch_us": 1e6 * timed(graph.replay, 1, self.flush),
        }

    def flush(self) -> None:
        self._flushed.mul_(1.0)

    def measured(self, work: Work, call: Callable, user: Callable, graphs: bool) -> Iterator[dict[str, Any]]:
        """What was found out, one thing after another: a later one may fail."""
        yield {"host_us": 1e6 * host_seconds(user)}
        run, kept = call, None
        if graphs:
            graph, kept = graph_of(call)
            run = graph.replay
        warm, cold = timed(run, 10), timed(run, 1, self.flush)
        shares = {"percent_of_copy": warm, "cold_percent": cold}
        yield {"graph": graphs, "warm_us": 1e6 * warm, "cold_us": 1e6 * cold}
        yield {name: 100 * work.bytes / seconds / self.copy for name, seconds in shares.items()}
        del kept
        yield {"kernels": launches(call)}


def rows(name: str, work: Work, device: torch.device, card: Card | None, compiled: bool) -> Iterator[dict[str, Any]]:
    """A row a variant; without a card each is called once."""
    for variant, call, user in variants(work, device, compiled):
        row: dict[str, Any] = {"work": name, "variant": variant, "bytes": work.bytes}
        try:
            if card is None:
                call(), user()
            else:
                graphs = _NO_GRAPH not in name or variant in backends.KERNEL_BACKENDS
                for found in card.measured(work, call, user, graphs):
                    row |= found
        except Exception as failure:
            row["error"] = f"{type(failure).__name__}: {str(failure)[:200]}"
        yield row


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.times", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("out", type=Path, help="lines of JSON are appended to this file")
    parser.add_argument("--seconds", type=float, default=310, help="start no work after this time (default 310)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only works in whose id this is found")
    parser.add_argument("--compile", action="store_true", help="also the eager calls through torch.compile")
    parser.add_argument("--dry", action="store_true", help="on the CPU; each call once, without a time")
    options = parser.parse_args(arguments)
    started, chosen, failed = time.monotonic(), re.compile(options.only), 0
    device = torch.device("cpu" if options.dry else os.environ.get("BENCH_DEVICE", "cuda"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as out:

        def say(row: dict[str, Any]) -> None:
            line = json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
            print(line[:230], flush=True)
            out.write(line + "\n")
            out.flush()

        card = None if device.type == "cpu" else Card(device)
        if card:
            say(card.about)
        works = {name: case for name, case in ordered(catalogue()).items() if chosen.search(name)}
        for i, (name, case) in enumerate(works.items()):
            if time.monotonic() - started > options.seconds:
                print(f"{options.seconds:.0f} s are over: {len(works) - i} of {len(works)} works were not timed")
                break
            for row in rows(name, case.work(), device, card, options.compile):
                failed += "error" in row
                say(row)
            gc.collect()
            if card:
                torch.cuda.empty_cache()
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
