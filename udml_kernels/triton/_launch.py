"""Kernel launches on the device of the tensors with one-dimensional grids. `aot` can intercept them for a dry run."""

import contextlib
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)


class Listener(Protocol):
    """The dry-run launch hook: `launch` calls it instead of the kernel. `fast`: it compiles for an NVIDIA GPU."""

    fast: bool

    def __call__(self, kernel, programs: int, args: tuple, constants: dict) -> None: ...


listener: Listener | None = None


def launch(kernel, device: torch.device, programs: int, *args, num_warps: int = 4, **constants) -> None:
    """Run a kernel with `programs` programs, or do nothing if there are none."""
    if programs == 0:
        return
    if listener is not None:
        listener(kernel, programs, args, {**constants, "num_warps": num_warps})
        return
    with contextlib.nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index):
        kernel[(programs,)](*args, num_warps=num_warps, **constants)


def fast_math(device: torch.device) -> bool:
    """Whether kernels for `device` may use NVIDIA's approximate instructions."""
    if listener is not None:
        return listener.fast
    return device.type == "cuda" and torch.version.hip is None and not INTERPRETED


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def ceil_div(n: int, d: int) -> int:
    return -(-n // d)


def triton_dtype(dtype: torch.dtype):
    """The arithmetic dtype of kernels for inputs of `dtype`."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def empty(shape, dtype: torch.dtype, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)
