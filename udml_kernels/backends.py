"""Which backend serves a call, and why.

CPU tensors go to `cpu`, CUDA tensors to `cuda` or else `triton`, other accelerators to `triton`, and
whatever has no kernel here to `reference`. `use_backend` and UDML_KERNELS_BACKEND override that.
"""

import contextlib
import importlib.metadata
import os
import shutil
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

COLUMNS = ("cpu", "cuda", "triton")
NAMES = ("reference", *COLUMNS)
ISA_LEVELS = ("avx512", "avx2", "baseline")

_PACKAGE = Path(__file__).parent


class _Override(threading.local):
    backend: str | None = None


_override = _Override()
# None when the column can serve calls, else the reason why it cannot.
_unavailable: dict[str, str | None] = {}
isa_level: str | None = None
# UDML_KERNELS_BACKEND, as it was when the package was imported.
_forced: str | None = None
_triton_interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
_PREFERRED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
_HOME = {"cpu": "cpu", "cuda": "cuda"}
_OLDEST_TRITON = (3, 6)


def supported_isa_levels() -> tuple[str, ...]:
    """Levels this processor can run, best first."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": ISA_LEVELS, "AVX2": ISA_LEVELS[1:]}.get(capability, ISA_LEVELS[2:])


def _load_cpu() -> str | None:
    """Load the best built level that the processor runs; UDML_KERNELS_ISA forces one."""
    global isa_level
    supported, forced = supported_isa_levels(), os.environ.get("UDML_KERNELS_ISA")
    if forced is not None and forced not in supported:
        raise ValueError(f"UDML_KERNELS_ISA: expected one of {', '.join(supported)} on this processor, got {forced!r}")
    for level in (forced,) if forced else supported:
        path = _PACKAGE / f"_C_cpu_{level}.so"
        if path.exists():
            try:
                torch.ops.load_library(str(path))
            except OSError as error:
                return f"{path.name} failed to load: {error}"
            isa_level = level
            return None
    note = _PACKAGE / "_not_built_cpu.txt"
    return f"not built: {note.read_text().strip() if note.exists() else 'the package was not installed'}"


def _load_cuda() -> str | None:
    path = _PACKAGE / "_C_cuda.so"
    if not path.exists():
        return "not built"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} failed to load: {error}"
    return None if torch.cuda.is_available() else "no CUDA device"


def triton_is_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU: TRITON_INTERPRET=1 when this package was imported."""
    return _triton_interpreted


def has_gpu() -> bool:
    return torch.cuda.is_available() or torch.xpu.is_available()


def _triton_version() -> str | None:
    """Of whichever package brought Triton; None where none of these did."""
    for package in ("triton", "pytorch-triton-rocm", "pytorch-triton-xpu", "pytorch-triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return None


def _load_triton() -> str | None:
    """Triton itself is imported by the first call that needs it."""
    if find_spec("triton") is None:
        return "triton is not installed"
    version = _triton_version()
    if version is not None and tuple(map(int, version.split(".")[:2])) < _OLDEST_TRITON:
        return f"triton {version} is too old, {'.'.join(map(str, _OLDEST_TRITON))} or newer is needed"
    if triton_is_interpreted():
        return None
    if not has_gpu():
        return "no GPU (TRITON_INTERPRET=1 runs it on the CPU, in Triton's interpreter)"
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang", "cc")))):
        return "no C compiler, which Triton needs to launch kernels"
    return None


def load() -> None:
    """Load the compiled columns; called once, when the package is imported."""
    _unavailable["cpu"] = _load_cpu()
    _unavailable["cuda"] = _load_cuda()
    _unavailable["triton"] = _load_triton()
    global _forced
    _forced = os.environ.get("UDML_KERNELS_BACKEND")
    if _forced is not None and _forced not in NAMES:
        raise ValueError(f"UDML_KERNELS_BACKEND: expected one of {', '.join(NAMES)}, got {_forced!r}")


def why_unavailable(name: str) -> str | None:
    """The reason why a backend cannot serve calls here, or None when it can."""
    return _unavailable.get(name)


def available() -> tuple[str, ...]:
    """The backends that can serve calls here, `reference` first."""
    return tuple(name for name in NAMES if why_unavailable(name) is None)


def _require(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}, got {name!r}")
    if reason := why_unavailable(name):
        raise RuntimeError(f"backend {name!r} is not available: {reason}")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every call of this thread from one backend, for the length of the `with` block.

    Args:
        name: `reference`, `cpu`, `cuda` or `triton`.

    Raises:
        ValueError: for a name that is no backend.
        RuntimeError: when the backend cannot run here, with the reason.

    A function that `torch.compile` has already compiled keeps the backend it was traced with.
    """
    previous, _override.backend = _override.backend, _require(name)
    try:
        yield
    finally:
        _override.backend = previous


@torch.compiler.assume_constant_result
def _traced_override() -> str | None:
    return _override.backend


def select(device: torch.device) -> str:
    """The backend that serves tensors on `device`."""
    chosen = (_traced_override() if torch.compiler.is_compiling() else _override.backend) or _forced
    if chosen is None:
        preferred = _PREFERRED.get(device.type, ("triton",))
        return next((name for name in preferred if _unavailable.get(name) is None), "reference")
    _require(chosen)
    compiled = chosen == "triton" and device.type == "cpu" and not triton_is_interpreted()
    if compiled or _HOME.get(chosen, device.type) != device.type:
        raise ValueError(f"backend: {chosen!r} cannot serve tensors on {device}; move them or choose another")
    return chosen
