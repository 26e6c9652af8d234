"""Block sizes: a fixed configuration or, with UDML_KERNELS_AUTOTUNE=1, the fastest of several on the current GPU.

The first call of an op with a dtype and a size class (powers of 4) chooses the configuration for the process; neither
an import nor a call during CUDA graph capture does. The choice changes the order in which sums are added, and thus
their last bits, but never the noise.
"""

import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from . import _launch

T = TypeVar("T")


class Config(NamedTuple):
    """The elements of a tile and the warps of a program."""

    elements: int
    num_warps: int


# With 16 elements per thread, registers suffice for 8 programs per multiprocessor, and the fixed cost of a thread is
# about a tenth.
DEFAULT = Config(2048, 4)
CANDIDATES = (DEFAULT, Config(1024, 4), Config(2048, 8), Config(4096, 4), Config(4096, 8))

enabled: bool = os.environ.get("UDML_KERNELS_AUTOTUNE", "0") == "1"
_chosen: dict[tuple, Config] = {}


def _milliseconds(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(call, warmup=5, rep=20, return_mode="median")


def _may_measure(device: torch.device) -> bool:
    if not enabled or _launch.INTERPRETED or _launch.listener is not None:
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def tuned(op: str, dtype: torch.dtype, count: int, device: torch.device, call: Callable[[Config], T]) -> T:
    """Return call(configuration) with the configuration for an op on `count` elements of `dtype`."""
    key = (op, dtype, max(count, 1).bit_length() // 2, device)
    config = _chosen.get(key)
    if config is None:
        if not _may_measure(device):
            return call(DEFAULT)
        config = _chosen[key] = min(CANDIDATES, key=lambda c: _milliseconds(lambda: call(c)))
    return call(config)
