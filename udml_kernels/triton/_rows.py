"""Access to tensors in kernels: dim 0 counts rows (samples), and the elements of a row are numbered row-major.

On the host, `Rows` describes a tensor as (pointer, row stride, inner, outer stride, inner stride): element e of a row
lies at (e // inner) * outer_stride + (e % inner) * inner_stride. This covers the usual outputs of models, including
channels_last and stride 0, without a copy; tensors with more complex layouts are copied. In kernels, `pointers`
computes these addresses.

Triton compiles a kernel anew if a number in a tuple is 1, or divisible by 16, for the first time. Numbers that a kernel
does not use are therefore the same for all tensors.
"""

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ._launch import INTERPRETED, ceil_div, next_power_of_2

_INTERPRETED = tl.constexpr(INTERPRETED)

# The layouts of a kernel's inputs: all rows dense; strided; strided with rows of 2^31 elements or more.
DENSE, STRIDED, STRIDED_LONG = 0, 1, 2


class Rows(NamedTuple):
    values: Tensor
    row_stride: int
    inner: int
    outer_stride: int
    inner_stride: int


def _collapsed(sizes, strides) -> list[tuple[int, int]]:
    """Return (size, stride) of the fewest dimensions that cover the same addresses in the same order."""
    dims: list[tuple[int, int]] = []
    for size, stride in zip(sizes, strides, strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == size * stride:
            dims[-1] = (dims[-1][0] * size, stride)
        else:
            dims.append((size, stride))
    return dims


def _walk(t: Tensor, row_dims: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the dimensions that count rows and those within a row, both collapsed."""
    shape, stride = t.shape, t.stride()
    return _collapsed(shape[:row_dims], stride[:row_dims]), _collapsed(shape[row_dims:], stride[row_dims:])


def rows_of(*tensors: Tensor | None, row_dims: int = 1) -> tuple[list[Any], int]:
    """Describe each tensor as rows (None stays None), and return the layout that a kernel needs to read them all.

    Args:
        row_dims: the number of leading dimensions that count rows; 0: the tensor is one row.
    """
    found: list[Rows | None] = []
    layout = DENSE
    for t in tensors:
        if t is None:
            found.append(None)
            continue
        lead, dims = _walk(t, row_dims)
        if len(lead) > 1 or len(dims) > 2:
            t = t.contiguous()
            lead, dims = _walk(t, row_dims)
        size = math.prod(t.shape[row_dims:])
        row_stride = lead[0][1] if lead else size * (row_dims > 0)
        if not dims or (len(dims) == 1 and dims[0][1] == 1):
            found.append(Rows(t, row_stride, max(size, 1), 0, 1))
            continue
        outer_stride = dims[0][1] if len(dims) == 2 else 0
        # The inner size is a divisor in the kernels, even where no element is read.
        found.append(Rows(t, row_stride, max(dims[-1][0], 1), outer_stride, dims[-1][1]))
        layout = max(layout, STRIDED if size < 2**31 else STRIDED_LONG)
    if layout == DENSE:
        found = [None if r is None else Rows(r.values, r.row_stride, 1, 0, 1) for r in found]
    return found, layout


class Tiles(NamedTuple):
    """A division of (rows, size) into tiles of R rows x BLOCK elements, both powers of 2.

    `across` tiles cover a row. Program p processes tile p % across of the rows from p // across * R on.
    """

    R: int
    BLOCK: int
    across: int
    programs: int


def tiles_of(rows: int, size: int, elements: int = 2048) -> Tiles:
    """Return tiles of about `elements` elements: parts of a long row, or several short rows.

    The shape of a tile depends on the row size alone, so the order of its sums is the same for every batch size.
    """
    block = max(min(next_power_of_2(size), elements), 16)
    count = max(elements // block, 1)
    across = ceil_div(size, block)
    return Tiles(count, block, across, ceil_div(rows, count) * across)


@triton.jit
def row_indices(pid, across, R: tl.constexpr):
    """Return the rows of a program, (R, 1) int64."""
    return (pid // across).to(tl.int64) * R + tl.arange(0, R)[:, None]


@triton.jit
def tile_of(rows, size, across, R: tl.constexpr, BLOCK: tl.constexpr):
    """Return a program's rows (R, 1), its tile in them, the tile's first element, its lanes (1, BLOCK), and a mask."""
    pid = tl.program_id(0)
    row = row_indices(pid, across, R)
    start = (pid % across).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)[None, :]
    return row, pid % across, start, lane, (row < rows) & (lane < size - start)


@triton.jit
def pointers(x, row, start, lane, LAYOUT: tl.constexpr):
    """Return the addresses (R, BLOCK) of elements `start + lane` of rows `row`.

    Args:
        x: Rows.
        row: (R, 1) int64.
        start: int64 scalar, the tile's first element.
        lane: (1, BLOCK) int32.
    """
    base = x[0] + row * x[1]
    if LAYOUT == 0:
        return base + start + lane
    elif LAYOUT == 1:
        e = start.to(tl.int32) + lane
        outer = e // x[2]
        return base + (outer.to(tl.int64) * x[3] + (e - outer * x[2]).to(tl.int64) * x[4])
    else:
        e = start + lane
        outer = e // x[2]
        return base + (outer * x[3] + (e - outer * x[2]) * x[4])


@triton.jit
def boundary(start, locations, BLOCK: tl.constexpr):
    """Return the first of the at most two channels of a tile, and the lane at which the second one begins."""
    channel = start // locations
    return channel, tl.minimum((channel + 1) * locations - start, BLOCK).to(tl.int32)


@triton.jit
def widened(value, C: tl.constexpr):
    """Convert a loaded value to the arithmetic dtype."""
    if _INTERPRETED and value.dtype == tl.bfloat16:
        # The interpreter's own bfloat16 conversions neither round nor keep every NaN, so the code converts the bits.
        return (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True).to(C)
    else:
        return value.to(C)


@triton.jit
def narrowed(value, dtype: tl.constexpr):
    """Convert a result to its storage dtype, rounding to nearest even."""
    if _INTERPRETED and dtype == tl.bfloat16:
        single = value.to(tl.float32)
        bits = single.to(tl.uint32, bitcast=True)
        rounded = tl.where(single == single, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def read(x, row, start, lane, mask, LAYOUT: tl.constexpr, C: tl.constexpr):
    """Load elements in the arithmetic dtype C; masked elements are 0."""
    return widened(tl.load(pointers(x, row, start, lane, LAYOUT), mask=mask, other=0), C)


@triton.jit
def write(out, row, size, start, lane, value, mask):
    """Store elements of a contiguous result whose rows have `size` elements."""
    tl.store(out + row * size + start + lane, narrowed(value, out.dtype.element_ty), mask=mask)
