"""The CUDA backend for CPU tensors: the host code of `_C_cuda.so`, with its launches executed by the interpreter."""

import functools
import os

import torch

from udml_kernels import backends
from udml_kernels.ops import _op
from udml_kernels.tools import aot_cuda

from . import build, machine

TARGETS = (80, 90)
TARGET = int(os.environ.get("UDML_TEST_TARGET", "80"))
# Grids are planned for a small GPU: so blocks loop, as they do on a large one with large tensors.
MULTIPROCESSORS = 1
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


@functools.cache
def _load_kernels() -> None:
    machine.load_files(build.cuda_ptx(TARGET))
    base = aot_cuda.base()
    for offset, symbol in aot_cuda.symbols().items():
        if symbol.startswith("_ZN4udml") and "kernel" in symbol:
            machine.library().ptx_symbol(base + offset, symbol.encode())
    aot_cuda.hook_library().udml_cuda_hook(machine.library().ptx_launch_hook, MULTIPROCESSORS)


def _executed(overload):
    def call(*args):
        _load_kernels()
        return overload.redispatch(_KEYS, *args)

    return call


@functools.cache
def install() -> None:
    """Serve the ops of the backend `cuda` for CPU tensors, in this process."""
    if reason := aot_cuda.why_not():
        raise RuntimeError(reason)
    # From here on the interpreter knows of every tensor.
    machine.library()
    global _library
    # torch forgets the kernels of a Library that is collected.
    _library = torch.library.Library("udml_kernels", "IMPL")
    for name, op in _op.OPS.items():
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"udml_kernels::{name}.cuda", "CUDA"):
            _library.impl(f"{name}.cuda", _executed(op.overloads["cuda"]), "CPU")
    backends._unavailable["cuda"] = None
    backends._HOME.pop("cuda", None)
