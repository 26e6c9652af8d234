"""What to do next, where something is missing."""

from pathlib import Path

import torch

from .. import backends
from .console import program

_BUILD = "pip install torch setuptools, then in a checkout: pip install --no-build-isolation -e ."


def _cpu() -> str | None:
    reason = backends.why_unavailable("cpu")
    if reason is None:
        return None
    if "no C++ compiler" in reason:
        return "CPU kernels: install g++ (Debian: apt install g++), then in a checkout: pip install -e ."
    if "build on Linux only" in reason:
        return "CPU kernels: they need Linux; here the reference serves every op"
    return f"CPU kernels: install a wheel, which has them, or {_BUILD}"


def _gpu() -> str | None:
    """At most one step, the first that is needed; None without a GPU, or where its kernels are there."""
    if not backends.has_gpu():
        if torch.version.cuda is None and Path("/proc/driver/nvidia/version").exists():
            return "GPU: this torch is built without CUDA; pytorch.org has the one for your driver"
        return None
    if backends.why_unavailable("cuda") is None or backends.why_unavailable("triton") is None:
        return None
    if "triton is" in (backends.why_unavailable("triton") or ""):
        return "GPU kernels: pip install 'udml-kernels[triton]'"
    if torch.version.cuda is not None:
        return "GPU kernels: install nvcc, or in a checkout: make setup-cuda, which takes it from pip"
    return f"GPU kernels: Triton cannot serve, as there is {backends.why_unavailable('triton')}"


def advice() -> list[str]:
    """Lines that say what to do; with all in place, how to check it."""
    missing = [line for line in (_cpu(), _gpu()) if line is not None]
    if not backends.has_gpu() and not missing:
        missing = ["there is no GPU, so nothing else is needed"]
    if len(backends.available()) > 1:
        missing.append(
            f"{program('udml_kernels')} check compares every op and gradient with the reference on this machine"
        )
    return missing
