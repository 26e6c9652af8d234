"""Time the fused ops against plain eager PyTorch and torch.compile of it, on the CPU or on a GPU.

All variants run in one process, in turn, on random float32 data. The outputs and gradients are compared with
the reference first: a wrong kernel gets no time, and exit code 1.
"""

import argparse
import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from .. import backends, draw_seed
from .info import environment, host
from .memory import peak_extra_bytes
from .table import table
from .timing import Times, interleaved
from .tolerances import compare
from .workloads import OPS, Call, Work, workloads

HELP = "the op table: time against eager PyTorch and torch.compile, bandwidth, peak memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", nargs="+", choices=OPS, default=list(OPS), metavar="OP", help=", ".join(OPS))
    parser.add_argument("--device", default="cpu", help="cpu (default), or a GPU that torch knows, such as cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and no torch.compile")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _converted(value: Any, dtype: torch.dtype | None, device: torch.device) -> Any:
    """A copy of an input on a device, its floating tensors in another dtype if one is given."""
    if isinstance(value, list):
        return [_converted(item, dtype, device) for item in value]
    if isinstance(value, Tensor):
        return value.detach().to(device, dtype if value.is_floating_point() else None)
    return value


class Step:
    """One call, with its backward if the work has one."""

    def __init__(self, work: Work, call: Call, device: torch.device, dtype: torch.dtype | None = None):
        self.call, self.inputs = call, [_converted(value, dtype, device) for value in work.inputs]
        self.leaves = [t.requires_grad_() for i in work.leaves for t in _tensors(self.inputs[i])]
        self.incoming: list[Tensor] | None = None

    def __call__(self, *seed: Tensor) -> list[Tensor]:
        """The floating outputs, then the gradients."""
        outputs = list(_tensors(self.call(*self.inputs, *seed)))
        if not self.leaves:
            return outputs
        if self.incoming is None:
            generator = torch.Generator().manual_seed(1)
            self.incoming = [
                torch.randn(o.shape, generator=generator, device="cpu").to(o.device, o.dtype) for o in outputs
            ]
        return [*outputs, *torch.autograd.grad(outputs, self.leaves, self.incoming)]


def wrong(work: Work, device: torch.device) -> list[str]:
    """What differs from the reference: of the fused call, and of the baselines that have no randomness."""
    seed, found = draw_seed(device), []
    dtype = next((t.dtype for t in _tensors(work.inputs) if t.is_floating_point()), torch.float32)
    if work.sampled:
        results = [work.fused(seed)[[0, 63]]]
        same, exact = ([work.sampled(seed, dtype)] for dtype in (torch.float32, torch.float64))
    else:
        results = Step(work, work.fused, device)(seed)
        with backends.use_backend("reference"):
            same = Step(work, work.fused, device)(seed)
            exact = Step(work, work.fused, device, torch.float64)(seed)
    candidates = {"fused": results}
    if work.exact:
        candidates |= {name: Step(work, call, device)() for name, call in work.eager.items()}
    for name, values in candidates.items():
        for i, (value, s, e) in enumerate(zip(values, same, exact, strict=True)):
            error, allowed = compare(value.detach(), s.detach(), e.detach(), dtype)
            if error > allowed:
                found.append(f"{name}, result {i}: error {error:.2e}, allowed {allowed:.2e}")
    return found


def _fused(work: Work, device: torch.device, backend: str | None = None) -> Callable[[], object]:
    """A user draws a seed every step, so its cost counts."""
    step = Step(work, work.fused, device)
    if backend is None:
        return lambda: step(draw_seed(device))

    def chosen() -> object:
        with backends.use_backend(backend):
            return step(draw_seed(device))

    return chosen


def _variants(work: Work, device: torch.device, compiled: bool) -> dict[str, Callable[[], object]]:
    variants: dict[str, Callable[[], object]] = {name: Step(work, call, device) for name, call in work.eager.items()}
    if compiled and work.compiled:
        for name, call in work.eager.items():
            step = Step(work, torch.compile(call, dynamic=False), device)
            try:
                # Inductor warns about torch's own code.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    step()
            except Exception as failure:
                print(f"  torch.compile of {name} failed: {type(failure).__name__}: {str(failure).splitlines()[0]}")
                continue
            variants[name.replace("eager", "compile")] = step
    # Beside the backend that serves the device, the others that could.
    if device.type != "cpu":
        others = {"cuda", "triton"} - {backends.select(device)}
        variants |= {
            f"fused, {b}": _fused(work, device, b) for b in others if backends.why_unavailable(b, device) is None
        }
    variants["fused"] = _fused(work, device)
    return variants


def _baseline(name: str, times: dict[str, Times]) -> float | None:
    """The median of a baseline; a bare "eager" or "compile" means the fastest of that kind."""
    return min((t.median for key, t in times.items() if key == name or key.startswith(f"{name} ")), default=None)


def measure(work: Work, options: argparse.Namespace, copy: float | None) -> dict[str, Any]:
    device = torch.device(options.device)
    wait = None if device.type == "cpu" else torch.accelerator.synchronize
    times = interleaved(_variants(work, device, not options.quick), budget=1.5 if options.quick else 8.0, wait=wait)
    fused = times["fused"]
    rows = [("", "median ms", "p20", "p80", "ns/element", "GB/s", "% of copy", "fused is faster by")]
    for name, t in times.items():
        rate = work.bytes / t.median / 1e9
        share = f"{100 * rate / copy:.0f}" if copy else "-"
        ratio = "" if name == "fused" else f"{t.median / fused.median:.2f}x"
        cells = (f"{1e3 * t.median:.3f}", f"{1e3 * t.p20:.3f}", f"{1e3 * t.p80:.3f}")
        rows.append((name, *cells, f"{1e9 * t.median / work.elements:.3f}", f"{rate:.2f}", share, ratio))
    print(table(rows, right=range(1, 8), indent="  "))
    verdicts = {}
    # They were set for two processors.
    for name, factor in work.targets.items() if device.type == "cpu" else ():
        baseline = _baseline(name, times)
        if baseline is None:
            print(f"  target {factor}x against {name}: not measured")
            continue
        reached = baseline / fused.median
        verdicts[name] = {"target": factor, "reached": reached}
        print(f"  target {factor}x against {name}: {reached:.2f}x, {'reached' if reached >= factor else 'NOT reached'}")
    return {
        "work": work.name,
        "elements": work.elements,
        "bytes": work.bytes,
        "times": {name: asdict(t) for name, t in times.items()},
        "targets": verdicts,
    }


def _peak_memory() -> dict[str, int] | None:
    eager, fused = peak_extra_bytes("eager"), peak_extra_bytes("fused")
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


def _copy_bandwidth(options: argparse.Namespace) -> float | None:
    """GB/s, reads and writes counted."""
    device = torch.device(options.device)
    if device.type == "cpu":
        module = host()
        return module.copy_bandwidth(1 << 29, options.threads, 5) if module else None
    source = torch.zeros(1 << 28, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, budget=1.0, wait=torch.accelerator.synchronize)
    return 2 * source.nbytes / times["copy"].median / 1e9


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
    copy = _copy_bandwidth(options)
    print(f"copy bandwidth    {f'{copy:.1f} GB/s' if copy else 'not measured, the host module was not built'}")
    results, failed = [], False
    for work in workloads(options.op):
        print(f"\n{work.name}", flush=True)
        torch._dynamo.reset()
        try:
            # What a baseline draws lies there too.
            with device:
                differences = wrong(work, device)
        except Exception as failure:
            differences = [f"{type(failure).__name__}: {str(failure).splitlines()[0]}"]
        if differences:
            failed = True
            print("  WRONG, not timed: " + "; ".join(differences), flush=True)
            continue
        with device:
            results.append(measure(work, options, copy))
    print()
    _half_against_float(results)
    memory = _peak_memory() if "reparameterize" in options.op and device.type == "cpu" else None
    if options.json:
        report = {"environment": facts, "copy_gb_s": copy, "results": results, "peak_extra_bytes": memory}
        with contextlib.closing(open(options.json, "w")) as file:
            json.dump(report, file, indent=1)
    return 1 if failed else 0
