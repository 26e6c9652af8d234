"""Time the fused ops against plain eager PyTorch and torch.compile of it, on the CPU or on a GPU.

All variants take turns in one process, on random float32 data. The outputs and gradients are compared with
the reference first: a wrong kernel is not timed, and the exit code is 1.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain

import torch

from .. import backends
from ..testing.ops import evidential_fusion, inject_noise, noise_regression, random, reparameterize, weighted_fusion
from ..testing.works import Work
from .info import environment
from .steps import differences, variants
from .table import table
from .timing import Times, copy_bandwidth, interleaved

HELP = "the op table: time against eager PyTorch and torch.compile, bandwidth"
OPS = ("reparameterize", "inject_noise", "normal", "weighted_fusion", "noise_regression", "evidential_fusion")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", nargs="+", choices=OPS, default=list(OPS), metavar="OP", help=", ".join(OPS))
    parser.add_argument("--device", default="cpu", help="cpu (default), or a GPU that torch knows, such as cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and no torch.compile")
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")


def works(op: str) -> Iterator[tuple[str, Work]]:
    """Names and works, made one at a time, since the large ones would not fit in memory together."""
    half, image, map14 = torch.bfloat16, (64, 3, 128, 128), [(64, 512, 14, 14)]
    if op == "reparameterize":
        for dtype, suffix in ((torch.float32, ""), (half, " bfloat16")):
            name = f"reparameterize 64x512x14x14{suffix}"
            yield f"{name} forward", reparameterize.work(map14, dtype=dtype)
            yield f"{name} fwd+bwd", reparameterize.work(map14, dtype=dtype, gradient=True)
    elif op == "inject_noise":
        yield "inject_noise gaussian 64x3x128x128", inject_noise.work([image])
        yield "inject_noise uint8 -> clamp -> normalised float32", inject_noise.image_work(image)
        yield "inject_noise gaussian 64x3x128x128 bfloat16", inject_noise.work([image], dtype=half)
    elif op == "normal":
        yield "normal 64x1562500", random.work("normal", (64, 1_562_500))
    elif op == "weighted_fusion":
        for batch in (4096, 64):
            name = f"weighted_fusion concat fwd+bwd B={batch} 2x512"
            yield name, weighted_fusion.work([(batch, 512)] * 2, gradient=True)
    elif op == "noise_regression":
        for p in (0.0, 0.1):
            name = f"noise_regression fwd+bwd M=2 B=64 512->256->1 dropout {p}"
            yield name, noise_regression.work(64, 512, dropout=p, gradient=True)
    else:
        yield "evidential fusion + loss fwd+bwd B=4096 K=34 M=3", evidential_fusion.work(4096, 3, 34, gradient=True)


def measure(work: Work, device: torch.device, quick: bool, copy: float | None) -> dict[str, Times]:
    """Time all variants in turn and print a line for each."""
    # A single call of torch.randn is not worth compiling.
    baselines = ["eager"] if quick or "torch.randn" in work.eager else ["eager", "compile"]
    calls = {name: call for name, (_, call) in variants(work, device, baselines, print).items()}
    wait = None if device.type == "cpu" else torch.accelerator.synchronize
    times = interleaved(calls, budget=1.5 if quick else 8.0, wait=wait)
    lines = [("", "median ms", "p20", "p80", "ns/element", "GB/s", "% of copy", "fused is faster by")]
    for name, t in times.items():
        rate = work.bytes / t.median / 1e9
        share = f"{100 * rate / copy:.0f}" if copy else "-"
        ratio = "" if name == "fused" else f"{t.median / times['fused'].median:.2f}x"
        cells = (f"{1e3 * t.median:.3f}", f"{1e3 * t.p20:.3f}", f"{1e3 * t.p80:.3f}")
        lines.append((name, *cells, f"{1e9 * t.median / work.elements:.3f}", f"{rate:.2f}", share, ratio))
    print(table(lines, right=range(1, 8), indent="  "))
    return times


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
    told = f"{copy:.1f} GB/s" if copy else "not measured: wheels are without udml_kernels._host"
    print(f"copy bandwidth    {told}")
    results, failed = [], False
    for name, work in chain.from_iterable(map(works, options.op)):
        print(f"\n{name}", flush=True)
        torch._dynamo.reset()
        if found := differences(work, device):
            failed = True
            print("  WRONG, not timed: " + "; ".join(found), flush=True)
            continue
        times = {variant: asdict(t) for variant, t in measure(work, device, options.quick, copy).items()}
        results.append({"work": name, "elements": work.elements, "bytes": work.bytes, "times": times})
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"environment": facts, "copy_gb_s": copy, "results": results}, file, indent=1)
    return 1 if failed else 0
