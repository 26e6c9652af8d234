"""Time the fused ops against plain eager PyTorch and torch.compile of it, on the CPU or on a GPU.

All variants take turns in one process, on random float32 data. The outputs and gradients are compared with
the reference first: a wrong kernel is not timed, and the exit code is 1.
"""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .. import backends
from . import workloads
from .info import environment
from .memory import reparameterize_peak
from .steps import Step, compiles, differences, fused_step, other_backends
from .table import table
from .timing import Times, copy_bandwidth, interleaved
from .workloads import Work

HELP = "the op table: time against eager PyTorch and torch.compile, bandwidth, peak memory"
OPS = ("reparameterize", "inject_noise", "normal", "weighted_fusion", "noise_regression", "evidential_fusion")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", nargs="+", choices=OPS, default=list(OPS), metavar="OP", help=", ".join(OPS))
    parser.add_argument("--device", default="cpu", help="cpu (default), or a GPU that torch knows, such as cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and no torch.compile")
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")


@dataclass
class Row:
    """A line of the table.

    Attributes:
        targets: baseline (an eager name, or "compile" for the fastest compiled one) -> required speed-up.
        compiled: whether torch.compile of the baselines is timed too.
    """

    name: str
    work: Work
    targets: dict[str, float] = field(default_factory=dict)
    compiled: bool = True


def rows(ops: Sequence[str]) -> Iterator[Row]:
    """Generated one at a time, since the large ones would not fit in memory together."""
    half, image = torch.bfloat16, (64, 3, 128, 128)
    if "reparameterize" in ops:
        shape = [(64, 512, 14, 14)]
        name = "reparameterize 64x512x14x14"
        yield Row(f"{name} forward", workloads.reparameterize(shape), {"eager": 35, "compile": 30})
        both = workloads.reparameterize(shape, gradient=True)
        yield Row(f"{name} fwd+bwd", both, {"eager": 28, "compile": 15})
        yield Row(f"{name} bfloat16 forward", workloads.reparameterize(shape, dtype=half))
        yield Row(f"{name} bfloat16 fwd+bwd", workloads.reparameterize(shape, dtype=half, gradient=True))
    if "inject_noise" in ops:
        name = "inject_noise gaussian 64x3x128x128"
        yield Row(name, workloads.inject_noise([image]), {"eager": 5, "compile": 30})
        pipeline = "inject_noise uint8 -> clamp -> normalised float32"
        yield Row(pipeline, workloads.noisy_image(image), {"eager": 10, "compile": 30})
        yield Row(f"{name} bfloat16", workloads.inject_noise([image], dtype=half))
    if "normal" in ops:
        work = workloads.random("normal", (64, 1_562_500))
        yield Row("normal 64x1562500", work, {"torch.randn": 6}, compiled=False)
    if "weighted_fusion" in ops:
        for batch, targets in ((4096, {"eager": 4, "compile": 1.1}), (64, {"eager": 3.0, "compile": 2.0})):
            work = workloads.weighted_fusion([(batch, 512)] * 2, gradient=True)
            yield Row(f"weighted_fusion concat fwd+bwd B={batch} 2x512", work, targets)
    if "noise_regression" in ops:
        name = "noise_regression fwd+bwd M=2 B=64 512->256->1 dropout"
        work = workloads.noise_regression(64, 512, dropout=0.0, gradient=True)
        yield Row(f"{name} 0.0", work, {"eager": 1.6, "compile": 1.6})
        yield Row(f"{name} 0.1", workloads.noise_regression(64, 512, dropout=0.1, gradient=True))
    if "evidential_fusion" in ops:
        name = "evidential fusion + loss fwd+bwd B=4096 K=34 M=3"
        targets = {"eager pairwise": 10, "eager closed form": 4, "compile": 5}
        yield Row(name, workloads.evidential(4096, 3, 34, gradient=True), targets)


def _variants(work: Work, device: torch.device, compiled: bool) -> dict[str, Callable[[], object]]:
    variants: dict[str, Callable[[], object]] = {name: Step(work, call, device) for name, call in work.eager.items()}
    if compiled:
        for name, call in work.eager.items():
            step = Step(work, torch.compile(call, dynamic=False), device)
            if compiles(name, step, print):
                variants[name.replace("eager", "compile")] = step
    # Also the other backends that could serve the device.
    variants |= {f"fused, {b}": fused_step(work, device, b) for b in other_backends(device)}
    variants["fused"] = fused_step(work, device)
    return variants


def _baseline(name: str, times: dict[str, Times]) -> float | None:
    """The median of a baseline; a bare "eager" or "compile" means the fastest of that kind."""
    return min((t.median for key, t in times.items() if key == name or key.startswith(f"{name} ")), default=None)


def measure(row: Row, options: argparse.Namespace, copy: float | None) -> dict[str, Any]:
    device, work = torch.device(options.device), row.work
    wait = None if device.type == "cpu" else torch.accelerator.synchronize
    variants = _variants(work, device, row.compiled and not options.quick)
    times = interleaved(variants, budget=1.5 if options.quick else 8.0, wait=wait)
    fused = times["fused"]
    lines = [("", "median ms", "p20", "p80", "ns/element", "GB/s", "% of copy", "fused is faster by")]
    for name, t in times.items():
        rate = work.bytes / t.median / 1e9
        share = f"{100 * rate / copy:.0f}" if copy else "-"
        ratio = "" if name == "fused" else f"{t.median / fused.median:.2f}x"
        cells = (f"{1e3 * t.median:.3f}", f"{1e3 * t.p20:.3f}", f"{1e3 * t.p80:.3f}")
        lines.append((name, *cells, f"{1e9 * t.median / work.elements:.3f}", f"{rate:.2f}", share, ratio))
    print(table(lines, right=range(1, 8), indent="  "))
    verdicts = {}
    # The targets were set for two processors.
    for name, factor in row.targets.items() if device.type == "cpu" else ():
        baseline = _baseline(name, times)
        if baseline is None:
            print(f"  target {factor}x against {name}: not measured")
            continue
        reached = baseline / fused.median
        verdicts[name] = {"target": factor, "reached": reached}
        print(f"  target {factor}x against {name}: {reached:.2f}x, {'reached' if reached >= factor else 'NOT reached'}")
    return {
        "work": row.name,
        "elements": work.elements,
        "bytes": work.bytes,
        "times": {name: asdict(t) for name, t in times.items()},
        "targets": verdicts,
    }


def _peak_memory() -> dict[str, int] | None:
    eager, fused = reparameterize_peak("eager"), reparameterize_peak("fused")
    if eager is None or fused is None or eager <= 0:
        print("peak extra memory: not measured, this system has no resettable high-water mark")
        return None
    verdict = "reached" if fused <= 0.4 * eager else "NOT reached"
    print("reparameterize 64x512x14x14 fwd+bwd, peak extra memory (high-water mark of resident memory)")
    print(f"  eager {eager / 2**20:.1f} MiB, fused {fused / 2**20:.1f} MiB: {fused / eager:.2f} of eager's")
    print(f"  target at most 0.4: {verdict}")
    return {"eager": eager, "fused": fused}


def _half_against_float(results: Sequence[dict[str, Any]]) -> None:
    by_name = {r["work"]: r for r in results}
    for name, result in by_name.items():
        other = by_name.get(name.replace(" bfloat16", ""))
        if other is result or other is None:
            continue
        half, full = result["times"]["fused"]["median"], other["times"]["fused"]["median"]
        verdict = "reached" if half <= full else "NOT reached"
        print(f"{name}: {half / full:.2f} of float32's time per element, target at most 1: {verdict}")


def run(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    facts = environment()
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    print(table(list(facts.items())))
    if backends.select(device) == "reference":
        print(f"no kernels to time here: {backends.why_unavailable(device.type) or 'UDML_KERNELS_BACKEND=reference'}")
        return 2
    copy = copy_bandwidth(device, options.threads, 1 << 29)
    print(f"copy bandwidth    {f'{copy:.1f} GB/s' if copy else 'not measured, the host module was not built'}")
    results, failed = [], False
    for row in rows(options.op):
        print(f"\n{row.name}", flush=True)
        torch._dynamo.reset()
        found = differences(row.work, device)
        if found:
            failed = True
            print("  WRONG, not timed: " + "; ".join(found), flush=True)
            continue
        results.append(measure(row, options, copy))
    print()
    _half_against_float(results)
    memory = _peak_memory() if "reparameterize" in options.op and device.type == "cpu" else None
    if options.json:
        report = {"environment": facts, "copy_gb_s": copy, "results": results, "peak_extra_bytes": memory}
        with contextlib.closing(open(options.json, "w")) as file:
            json.dump(report, file, indent=1)
    return 1 if failed else 0
