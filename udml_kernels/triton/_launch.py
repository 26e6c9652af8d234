"""Launching: on the tensors' device, in one dimension, through one function that `aot` can listen to."""

import contextlib
from collections.abc import Callable

import torch
import triton
from torch import Tensor

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
if INTERPRETED:
    from ._interpreter import hasten

    hasten()

# Called as listener(kernel, programs, args, constants) in the place of a launch.
listener: Callable | None = None


def launch(kernel, device: torch.device, programs: int, *args, num_warps: int = 4, **constants) -> None:
    """Run `programs` programs of a kernel; none where there is nothing to do."""
    if programs == 0:
        return
    if listener is not None:
        listener(kernel, programs, args, {**constants, "num_warps": num_warps})
        return
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](*args, num_warps=num_warps, **constants)


def fast_math(device: torch.device) -> bool:
    """Whether kernels for `device` may use NVIDIA's approximate instructions."""
    return listener.fast if listener is not None else device.type == "cuda" and torch.version.hip is None


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def ceil_div(n: int, d: int) -> int:
    return -(-n // d)


def triton_dtype(dtype: torch.dtype):
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def empty(shape, dtype: torch.dtype, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)
