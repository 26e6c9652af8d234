"""Which backend serves a call, and why.

CPU tensors go to `cpu`, CUDA tensors to `cuda` or else `triton`, other accelerators to `triton`, and
whatever has no kernel here to `reference`. Each op is served by the first of these that has kernels of it.
`use_backend` and UDML_KERNELS_BACKEND override that.
"""

import contextlib
import ctypes
import importlib.metadata
import os
import shutil
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .ops._op import Op

KERNEL_BACKENDS = ("cpu", "cuda", "triton")
NAMES = ("reference", *KERNEL_BACKENDS)
ISA_LEVELS = ("avx512", "avx2", "baseline")

_PACKAGE = Path(__file__).parent
CUDA_LIBRARY = _PACKAGE / "_C_cuda.so"


class _Override(threading.local):
    backend: str | None = None


_override = _Override()
# None when the backend can serve calls, else the reason why it cannot.
_unavailable: dict[str, str | None] = {}
# The same for the CUDA devices queried so far, by index.
_refused: dict[int, str | None] = {}
isa_level: str | None = None
# What the libraries were built with and for; empty where none was loaded.
cpu_facts: dict[str, str] = {}
cuda_facts: dict[str, str] = {}
# UDML_KERNELS_BACKEND, as it was when the package was imported.
_forced: str | None = None
_triton_interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
_PREFERRED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
_HOME = {"cpu": "cpu", "cuda": "cuda"}
# Backends for every device but the CPU.
_SERVES_NO_CPU = set() if _triton_interpreted else {"triton"}
_CPU = torch.device("cpu")
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
            # A library that another build made, such as that of the sanitizers, may tell nothing.
            with contextlib.suppress(AttributeError):
                cpu_facts.update(_facts(path, "udml_cpu_facts"))
            isa_level = level
            return None
    return _why_not_built("cpu")


def _facts(library: Path, function: str) -> dict[str, str]:
    """What setup.py compiled into a library that is loaded: a line for each fact, its name and value apart by a tab."""
    tell = getattr(ctypes.CDLL(str(library)), function)
    tell.restype = ctypes.c_char_p
    return dict(line.split("\t", 1) for line in tell().decode().splitlines())


def _why_not_built(backend: str) -> str:
    note = _PACKAGE / f"_not_built_{backend}.txt"
    return f"not built: {note.read_text().strip() if note.exists() else 'the package was not installed'}"


def _load_cuda() -> str | None:
    """Load the library, even beside a torch without CUDA. This must not initialise CUDA: see `has_gpu`."""
    if torch.version.hip is not None:
        return "this torch is built for ROCm, whose GPUs are served by triton"
    if not CUDA_LIBRARY.exists():
        return _why_not_built("cuda")
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
        cuda_facts.update(_facts(CUDA_LIBRARY, "udml_cuda_facts"))
    except (OSError, AttributeError) as error:
        return f"{CUDA_LIBRARY.name} failed to load: {error}"
    if torch.version.cuda is None:
        return "no CUDA device: this torch is built without CUDA"
    return None if torch.cuda.device_count() else "no CUDA device"


def _code_for(codes: str, capability: tuple[int, int]) -> str | None:
    """The entry of `codes` that a device runs: machine code (sm_80 runs on 8.x from 8.0 on), or else PTX, which the
    driver compiles (compute_80 runs on everything from 8.0 on); None where there is neither."""
    ptx = None
    for code in codes.split():
        kind, number = code.split("_")
        built = divmod(int(number), 10)
        if built <= capability and kind == "sm" and built[0] == capability[0]:
            return code
        if built <= capability and kind == "compute":
            ptx = code
    return ptx


def _driver_version() -> tuple[int, int] | None:
    """The newest CUDA version that the driver runs; None where it cannot be queried."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)


def _ask_device(index: int) -> str | None:
    major, minor = torch.cuda.get_device_capability(index)
    code = _code_for(cuda_facts["cuda archs"], (major, minor))
    if code is None:
        built = cuda_facts["cuda archs"].replace(" ", ", ")
        return f"cuda:{index} has compute capability {major}.{minor}, the kernels were built for {built}"
    driver, toolkit = _driver_version(), cuda_facts["cuda"]
    # Machine code runs with every driver of the toolkit's major version; PTX needs a driver as new as the toolkit.
    needed = tuple(map(int, toolkit.split(".")[: 1 if code.startswith("sm") else 2]))
    if driver is not None and driver < needed:
        told = f"the kernels were built with CUDA {toolkit}, the driver runs {driver[0]}.{driver[1]} at most"
        return told if code.startswith("sm") else f"{told}; it cannot compile {code} for cuda:{index}"
    return None


@torch.compiler.assume_constant_result
def _refused_by(index: int | None) -> str | None:
    """Why a CUDA device cannot run the library's code.

    Each device is queried once, when it has a tensor: an import must not initialise CUDA, devices may differ, and where
    there is a CUDA tensor, CUDA is initialised anyway.
    """
    index = torch.cuda.current_device() if index is None else index
    if index not in _refused:
        _refused[index] = _ask_device(index)
    return _refused[index]


def triton_is_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU: TRITON_INTERPRET=1 when this package was imported."""
    return _triton_interpreted


def has_gpu() -> bool:
    """Whether there is a GPU. Devices are counted instead of calling `torch.cuda.is_available`, which initialises
    CUDA: a process forked later could not use CUDA again."""
    return torch.cuda.device_count() > 0 or torch.xpu.is_available()


def _triton_version() -> str | None:
    """The version of the installed package that provides Triton; None where none is installed."""
    for package in ("triton", "pytorch-triton-rocm", "pytorch-triton-xpu", "pytorch-triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return None


def _load_triton() -> str | None:
    """Why Triton cannot be used, or None. Triton itself is imported by the first call that needs it."""
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
    """Load the compiled kernels; called once, when the package is imported."""
    _unavailable["cpu"] = _load_cpu()
    _unavailable["cuda"] = _load_cuda()
    _unavailable["triton"] = _load_triton()
    global _forced
    _forced = os.environ.get("UDML_KERNELS_BACKEND")
    if _forced is not None and _forced not in NAMES:
        raise ValueError(f"UDML_KERNELS_BACKEND: expected one of {', '.join(NAMES)}, got {_forced!r}")


def why_unavailable(name: str, device: torch.device | None = None) -> str | None:
    """The reason why a backend cannot serve calls here, or tensors on `device`; None when it can."""
    reason = _unavailable.get(name)
    if reason is None and name == "cuda" and device is not None and device.type == "cuda":
        return _refused_by(device.index)
    return reason


def available() -> tuple[str, ...]:
    """The backends that can serve calls here, `reference` first."""
    return tuple(name for name in NAMES if why_unavailable(name) is None)


def _require(name: str, device: torch.device | None = None) -> str:
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}, got {name!r}")
    if reason := why_unavailable(name, device):
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


def select(device: torch.device, op: "Op | None" = None) -> str:
    """The backend that serves tensors on `device`; for one op, only a backend that has the op.

    Raises:
        ValueError, RuntimeError, NotImplementedError: when a backend was chosen that cannot serve the device, cannot
            run here, or lacks the op.
    """
    chosen = (_traced_override() if torch.compiler.is_compiling() else _override.backend) or _forced
    if chosen is None:
        # Comparing a device takes a small part of the time of reading its type.
        kind = "cpu" if device == _CPU else device.type
        for name in _PREFERRED.get(kind, ("triton",)):
            if why_unavailable(name, device) is None and (op is None or op.why_missing(name) is None):
                return name
        return "reference"
    _require(chosen, device)
    if (chosen in _SERVES_NO_CPU and device.type == "cpu") or _HOME.get(chosen, device.type) != device.type:
        raise ValueError(f"backend: {chosen!r} cannot serve tensors on {device}; move them or choose another")
    if op is not None and chosen != "reference" and (reason := op.why_missing(chosen)):
        raise NotImplementedError(
            f"{op.name}: backend {chosen!r} lacks this op: {reason}; choose another backend, or none: without "
            "use_backend and UDML_KERNELS_BACKEND, each op goes to a backend that has it"
        )
    return chosen
