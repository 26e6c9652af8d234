"""modality_dropout does not read dropped modalities. modality_dependency reads the logits once."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import checks
from ._launch import empty, launch, triton_dtype
from ._math import scalar
from ._rows import pointers, read, row_indices, rows_of, tile_of, tiles_of, write
from ._sums import sum_runs
from ._weighting import row_tiles
from .random import noise_of, uniform_of, words

# The kernel copies features bit by bit, as integers.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _drawn(noise, stream, p, p_step, row, rows, M: tl.constexpr, KEEP_ONE: tl.constexpr):
    """Return a tuple of masks (R, 1): the modalities that each row keeps. It uses float32 for every dtype."""
    kept = ()
    any_kept = tl.zeros(row.shape, tl.int1)
    closest = tl.zeros(row.shape, tl.int32)
    best = tl.zeros(row.shape, tl.float32)
    for m in tl.static_range(M):
        if m % 4 == 0:
            drawn = words(noise, stream, row, rows, tl.full((1, 1), m // 4, tl.uint32))
        margin = uniform_of(drawn[m % 4], tl.float32) - tl.load(p + m * p_step)
        keep = margin >= 0.0
        any_kept = any_kept | keep
        # Find the first of the largest margins or the first NaN, like torch.argmax.
        closer = (margin > best) | ((margin != margin) & (best == best))
        if m == 0:
            best = margin
        else:
            closest = tl.where(closer, m, closest)
            best = tl.where(closer, margin, best)
        kept += (keep,)
    if KEEP_ONE:
        free = kept
        kept = ()
        for m in tl.static_range(M):
            kept += (free[m] | ((closest == m) & (any_kept == 0)),)
    return kept


@triton.jit(do_not_specialize=["p_step", "stream", "rows"], do_not_specialize_on_alignment=["across"])
def _dropout_kernel(
    features, outs, sizes, mask, p, p_step, noise, stream: tl.uint32, rows, across, M: tl.constexpr,
    KEEP_ONE: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row = row_indices(pid, across, R)
    start = (pid % across).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)[None, :]
    kept = _drawn(noise, stream, p, p_step, row, rows, M, KEEP_ONE)
    for m in tl.static_range(M):
        exists = (row < rows) & (lane < sizes[m] - start)
        value = tl.load(pointers(features[m], row, start, lane, LAYOUT), mask=exists & kept[m], other=0)
        tl.store(outs[m] + row * sizes[m] + start + lane, value, mask=exists)
        tl.store(mask + row * M + m, kept[m].to(tl.uint8), mask=(row < rows) & (start == 0))


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["across"])
def _dependency_kernel(
    logits, partial, rows, size, across, C: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr
):
    row, tile, start, lane, exists = tile_of(rows, size, across, R, BLOCK)
    value = read(logits, row, start, lane, exists, LAYOUT, C)
    tl.store(partial + row * across + tile, tl.sum(tl.abs(value), 1)[:, None], mask=row < rows)


@triton.jit(do_not_specialize=["grad_step", "rows"], do_not_specialize_on_alignment=["across"])
def _dependency_backward_kernel(
    grad, grad_step, logits, out, rows, size, across, count: tl.float64, C: tl.constexpr, LAYOUT: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, _, start, lane, exists = tile_of(rows, size, across, R, BLOCK)
    x = read(logits, row, start, lane, exists, LAYOUT, C)
    slope = tl.load(grad + row * grad_step, mask=row < rows, other=0) / scalar(count, C)
    # Like torch.sign, this is 0 for 0 and for NaN.
    sign = tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0))
    write(out, row, size, start, lane, sign * slope, exists)


def modality_dropout(features, p, keep_one, seed, stream, sample_ids) -> tuple[list[Tensor], Tensor]:
    first = features[0]
    rows, sizes = first.shape[0], tuple(math.prod(f.shape[1:]) for f in features)
    outs = [empty(f.shape, f.dtype, f) for f in features]
    mask = empty((rows, len(features)), torch.bool, first)
    bits = _BITS[first.element_size()]
    sources, layout = rows_of(*(f.view(bits) for f in features))
    tiles, warps = row_tiles(rows, max(sizes), 2048)
    launch(
        _dropout_kernel, first.device, tiles.programs, tuple(sources),
        tuple(t.view(bits) for t in outs), sizes, mask.view(torch.uint8), p, p.stride(0),
        noise_of(seed, sample_ids), stream, rows, tiles.across, M=len(features), KEEP_ONE=keep_one, LAYOUT=layout,
        R=tiles.R, BLOCK=tiles.BLOCK, num_warps=warps,
    )  # fmt: skip
    return outs, mask


def modality_dependency(logits: Tensor) -> Tensor:
    modalities, batch, classes = logits.shape
    tiles = tiles_of(modalities, batch * classes)
    dtype = checks.compute_dtype(logits.dtype)
    partial = empty((modalities, tiles.across), dtype, logits)
    (rows,), layout = rows_of(logits)
    launch(
        _dependency_kernel, logits.device, tiles.programs, rows, partial, modalities, batch * classes, tiles.across,
        C=triton_dtype(dtype), LAYOUT=layout, R=tiles.R, BLOCK=tiles.BLOCK,
    )  # fmt: skip
    return sum_runs(partial, (modalities,), 1 / max(batch, 1))


def modality_dependency_backward(grad: Tensor, logits: Tensor) -> Tensor:
    out = empty(logits.shape, logits.dtype, logits)
    modalities, batch, classes = logits.shape
    tiles = tiles_of(modalities, batch * classes)
    (rows,), layout = rows_of(logits)
    launch(
        _dependency_backward_kernel, out.device, tiles.programs, grad, grad.stride(0), rows, out, modalities,
        batch * classes, tiles.across, float(max(batch, 1)), C=triton_dtype(grad.dtype), LAYOUT=layout, R=tiles.R,
        BLOCK=tiles.BLOCK,
    )  # fmt: skip
    return out
