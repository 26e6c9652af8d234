"""The final step of every reduction over several tiles: it adds partial sums in order and in float64."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch, next_power_of_2


@triton.jit(do_not_specialize=["count"])
def _sum_kernel(out, partial, count, factor: tl.float64, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    # This is not a range, because with NumPy 2.4 the interpreter cannot make one of a number argument.
    start = 0
    while start < count:
        index = start + lane
        total += tl.load(partial + row * count + index, mask=index < count, other=0).to(tl.float64)
        start += BLOCK
    tl.store(out + row, (tl.sum(total, 0) * factor).to(out.dtype.element_ty))


def sum_runs(partial: Tensor, shape, factor: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
    """Sum the last dimension of a contiguous (rows, count) tensor, multiply by `factor`, and return a tensor of
    `shape`.

    The result has the dtype of `partial` unless `dtype` is given. The order of a sum depends on `count` alone, so the
    result is the same in every run.
    """
    rows, count = partial.shape
    out = torch.empty(shape, dtype=dtype or partial.dtype, device=partial.device)
    block = min(next_power_of_2(count), 1024)
    launch(_sum_kernel, out.device, rows, out, partial, count, factor, BLOCK=block)
    return out
