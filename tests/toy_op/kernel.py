import math

import triton
import triton.language as tl

from ._launch import empty, launch, triton_dtype
from ._rows import read, rows_of, tile_of, tiles_of, write


@triton.jit
def _square_kernel(
    x, factor, out, rows, size, across, slope: tl.constexpr, C: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """x * factor, where a second tensor is given: slope * x * factor."""
    row, _, start, lane, exists = tile_of(rows, size, across, R, BLOCK)
    product = read(x, row, start, lane, exists, LAYOUT, C) * read(factor, row, start, lane, exists, LAYOUT, C)
    write(out, row, size, start, lane, slope * product, exists)


def _multiplied(x, factor, slope):
    out, size = empty(x.shape, x.dtype, x), math.prod(x.shape[1:])
    tiles = tiles_of(x.shape[0], size)
    (left, right), layout = rows_of(x, factor)
    launch(
        _square_kernel, x.device, tiles.programs, left, right, out, x.shape[0], size, tiles.across, slope=slope,
        C=triton_dtype(x.dtype), LAYOUT=layout, R=tiles.R, BLOCK=tiles.BLOCK,
    )  # fmt: skip
    return out


def square(x):
    return _multiplied(x, x, 1)


def square_backward(grad, x):
    return _multiplied(x, grad, 2)
