"""Compile the Triton kernels for a GPU that need not be present: the launchers run, and their launches are recorded."""

import contextlib
import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ..triton import _launch
from .machine_code import Code, disassembled, of_amdgcn, of_sass

# kernel name, programs, threads per program, its machine code
Compiled = tuple[str, int, int, Code]


_compiled_for: str | None = None


class Driver:
    """The parts of a GPU driver's interface that Triton needs in order to compile."""

    def __init__(self, target: GPUTarget):
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def target_of(name: str) -> GPUTarget:
    return GPUTarget("cuda", int(name[3:]), 32) if name.startswith("sm_") else GPUTarget("hip", name, 64)


class _Listener:
    def __init__(self, target: GPUTarget):
        self.fast = target.backend == "cuda"
        self._target = target
        self.heard: list[Compiled] = []

    def __call__(self, kernel, programs: int, args: tuple, constants: dict) -> None:
        compiled = kernel.run(*args, grid=(programs,), warmup=True, **constants)
        if self.fast:
            tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
            code = of_sass(*disassembled(compiled.asm["cubin"], tools))
        else:
            code = of_amdgcn(compiled.asm["amdgcn"])
        code.shared = max(code.shared, compiled.metadata.shared)
        self.heard.append((kernel.__name__, programs, constants["num_warps"] * self._target.warp_size, code))


@contextlib.contextmanager
def compiling_for(target_name: str) -> Iterator[Callable]:
    """Yields a function: work -> (results, the kernels that it launches, compiled). The results hold no values.

    Only once per process: Triton keeps the target as its driver, and its cache is keyed by the arguments alone.
    """
    global _compiled_for
    if _compiled_for is not None:
        raise RuntimeError(f"this process has compiled for {_compiled_for}; {target_name} needs another one")
    if _launch.INTERPRETED:
        raise RuntimeError("Triton interprets in this process (TRITON_INTERPRET=1), so it cannot compile")
    _compiled_for = target_name
    listener = _Listener(target_of(target_name))
    driver.set_active(Driver(target_of(target_name)))
    _launch.listener = listener

    def compiled(work) -> tuple[object, list[Compiled]]:
        listener.heard = []
        module = importlib.import_module(f"..triton.{work.file}", __package__)
        return getattr(module, work.op)(*work.args), listener.heard

    # A separate cache, so that other processes that compile at the same time do not interfere.
    with tempfile.TemporaryDirectory() as folder:
        triton.knobs.cache.dir = folder
        try:
            yield compiled
        finally:
            _launch.listener = None
