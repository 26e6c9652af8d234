"""Versions, which backend serves what and why, and what was built."""

import argparse
import importlib.metadata
import os
import platform
from typing import Any

import torch

from .. import __version__, backends
from ..ops._op import OPS
from .advice import advice
from .table import table

HELP = "versions, backends and why each is or is not available, which op has kernels where, processor capability"

_SERVES = {
    "cpu": ("CPU tensors", ("cpu",)),
    "cuda": ("CUDA tensors", ("cuda", "triton")),
    "xpu": ("other accelerators", ("triton",)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def host() -> Any:
    """The compiled host module, or None where it was not built."""
    try:
        from udml_kernels import _host  # type: ignore[attr-defined]
    except ImportError:
        return None
    return _host


def environment() -> dict[str, str]:
    """The facts that a measurement depends on."""
    facts = {
        "udml-kernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "triton": version("triton"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "processor runs": ", ".join(backends.supported_isa_levels()),
        "level in use": backends.isa_level or "none",
        "threads": f"{torch.get_num_threads()} of {len(os.sched_getaffinity(0))} processors"
        if hasattr(os, "sched_getaffinity")
        else str(torch.get_num_threads()),
    }
    for name in ("UDML_KERNELS_BACKEND", "UDML_KERNELS_ISA"):
        if name in os.environ:
            facts[name] = os.environ[name]
    return facts


def version(package: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _serving() -> list[tuple[str, str, str]]:
    forced = os.environ.get("UDML_KERNELS_BACKEND")
    rows = []
    for device, (label, preferred) in _SERVES.items():
        if forced:
            rows.append((label, forced, "UDML_KERNELS_BACKEND says so"))
            continue
        place = torch.device(device)
        chosen = backends.select(place)
        passed_over = preferred if chosen == "reference" else preferred[: preferred.index(chosen)]
        reasons = [f"{name} is not usable: {backends.why_unavailable(name, place)}" for name in passed_over]
        rows.append((label, chosen, f"as {'; '.join(reasons)}" if reasons else "its own kernels are available"))
    return rows


def _why_missing(op: str, backend: str) -> str | None:
    try:
        return OPS[op].why_missing(backend)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _kernels() -> str:
    """Which op has kernels on which backend, with the backward ops counted to their forward ops; below it, the gaps."""
    ops = sorted(name for name in OPS if not name.endswith("_backward"))
    gaps: dict[str, list[tuple[str, str]]] = {backend: [] for backend in backends.KERNEL_BACKENDS}
    for backend, found in gaps.items():
        found.extend((op, reason) for op in ops if (reason := _why_missing(op, backend)))
    lacking = {(op, backend) for backend, found in gaps.items() for op, _ in found}
    rows = [[op, "yes", *("no" if (op, b) in lacking else "yes" for b in gaps)] for op in ops]
    reasons = []
    for backend, found in gaps.items():
        if len(found) == len(ops):
            reasons.append(f"{backend} has no op: {backends.why_unavailable(backend) or found[0][1]}")
        else:
            reasons.extend(f"{op} is not on {backend}: {reason}" for op, reason in found)
    return "\n".join([table([("", *backends.NAMES), *rows], indent="  "), *(f"  {reason}" for reason in reasons)])


def run(options: argparse.Namespace) -> int:
    print(table(list(environment().items())))
    # If there is a current CUDA device, this also checks whether the kernels run on it.
    reasons = {name: backends.why_unavailable(name, torch.device("cuda")) for name in backends.NAMES}
    rows = [(name, reason or "available") for name, reason in reasons.items()]
    print("\nbackends\n" + table(rows, indent="  "))
    print("\nserved by\n" + table(_serving(), indent="  "))
    print("\nkernels\n" + _kernels())
    facts = backends.cpu_facts | backends.cuda_facts
    print("\nbuild\n" + table(list(facts.items()) or [("nothing was built", "")], indent="  "))
    print("\nnext\n" + "\n".join(f"  {line}" for line in advice()))
    return 0
