"""evidential_fusion and evidential_loss: kernels read evidence once and write each result once.

The fusion multiplies the views in order and needs neither logarithms nor exponentials:

    p_0 = 0,  p_m = p_{m-1} + x_m + p_{m-1} x_m,  x_m = e_m / K      gives  K p_M = K (prod_m (1 + x_m) - 1)

It has no cancellation, and for nonnegative evidence no partial product exceeds the last one. The kernels of the loss
are in _evidential_loss.py.

The numbers of classes and views are constants of a kernel. A model has one of each, and the compiler can then see the
alignment of rows whose size is not a multiple of 16 elements, e.g. 8 bytes for 34 classes.
"""

import math

import torch
import triton
import triton.language as tl

from .. import checks
from ._evidential_loss import _loss_backward_kernel, _loss_kernel
from ._launch import ceil_div, fast_math, launch, next_power_of_2, triton_dtype
from ._math import INFINITY
from ._rows import Rows, read, rows_of, write
from ._sums import sum_runs

_THREADS = 128


def _warps(device: torch.device) -> int:
    """Return the warps for _THREADS threads: an NVIDIA warp has 32 threads, an AMD one 64."""
    return 4 if fast_math(device) else 2


def _in_steps(rows: list[Rows]) -> tuple[list[Rows], int]:
    """Divide the row strides by `step`, a power of 2. Kernels use `row * step`, so the compiler knows this factor."""
    step = math.gcd(16, *(r.row_stride for r in rows))
    return [r._replace(row_stride=r.row_stride // step) for r in rows], step


@triton.jit
def _begin(rows, CLASSES: tl.constexpr, BLOCK: tl.constexpr):
    """Return (row, class, whether the row exists) of a program's part of the fused evidence, as one flat array."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    first = start // CLASSES
    place = (start - first * CLASSES).to(tl.int32) + tl.arange(0, BLOCK)
    below = place // CLASSES
    return first + below, place - below * CLASSES, below < tl.minimum(rows - first, BLOCK).to(tl.int32)


@triton.jit
def _present(mask, m: tl.constexpr, row, inside):
    return tl.load(mask[0] + row * mask[1] + m * mask[2], mask=inside, other=0) != 0


@triton.jit
def _scaled_evidence(evidence, mask, m: tl.constexpr, row, k, inside, CLASSES: tl.constexpr, C: tl.constexpr,
                     STEP: tl.constexpr, LAYOUT: tl.constexpr):  # fmt: skip
    """Return x_m = e_m / K, or 0 for an absent view."""
    first = tl.full((), m * CLASSES, tl.int64)
    x = read(evidence, row * STEP, first, k, inside, LAYOUT, C) * (1.0 / CLASSES)
    if mask is not None:
        x = tl.where(_present(mask, m, row, inside), x, 0.0)
    return x


@triton.jit
def _factor(x):
    """Return 1 + x, or NaN if that is negative, like its logarithm."""
    factor = x + 1.0
    return tl.where(factor < 0.0, float("nan"), factor)


@triton.jit(do_not_specialize=["rows"])
def _fusion_kernel(
    evidence, mask, out, rows, VIEWS: tl.constexpr, CLASSES: tl.constexpr, C: tl.constexpr, STEP: tl.constexpr,
    LAYOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, k, inside = _begin(rows, CLASSES, BLOCK)
    p = _scaled_evidence(evidence, mask, 0, row, k, inside, CLASSES, C, STEP, LAYOUT)
    product = _factor(p)
    for m in tl.static_range(1, VIEWS):
        x = _scaled_evidence(evidence, mask, m, row, k, inside, CLASSES, C, STEP, LAYOUT)
        product *= _factor(x)
        p = p * x + (p + x)
    # If a factor is infinite, p may be NaN (inf - inf). The product of the factors is still right.
    write(out, row, CLASSES, 0, k, tl.where(product < INFINITY, p, product) * CLASSES, inside)


@triton.jit(do_not_specialize=["rows"])
def _fusion_backward_kernel(
    grad, evidence, mask, out, rows, VIEWS: tl.constexpr, CLASSES: tl.constexpr, C: tl.constexpr,
    STEP: tl.constexpr, LAYOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """de/de_m is the product of the factors of the views before m and behind m."""
    row, k, inside = _begin(rows, CLASSES, BLOCK)
    g = read(grad, row * STEP, tl.full((), 0, tl.int64), k, inside, LAYOUT, C)
    one = tl.zeros_like(g) + 1.0
    factors = ()
    before = (one,)
    for m in tl.static_range(VIEWS):
        factors += (_factor(_scaled_evidence(evidence, mask, m, row, k, inside, CLASSES, C, STEP, LAYOUT)),)
        before += (before[m] * factors[m],)
    behind = one
    for i in tl.static_range(VIEWS - 1, -1, -1):
        factor = factors[i]
        others = before[i] * behind
        value = g * others
        if tl.max(others, 0) == INFINITY:
            # The product of the factors overflows, but times the gradient it may be finite: use float64.
            wide = g.to(tl.float64)
            for m in tl.static_range(VIEWS):
                if m != i:
                    wide *= factors[m].to(tl.float64)
            value = wide.to(C)
        # The result is NaN where the own factor is 0 or infinite, because the logarithm has no derivative there.
        value = tl.where((factor > 0.0) & (factor < INFINITY), value, float("nan"))
        if mask is not None:
            value = tl.where(_present(mask, i, row, inside), value, 0.0)
        write(out, row, VIEWS * CLASSES, i * CLASSES, k, value, inside)
        behind *= factor


def _fusion_settings(evidence, mask) -> tuple[tuple | None, dict, int]:
    """Return (the mask with its strides, constants, programs)."""
    rows, views, classes = evidence.shape
    # The backward kernel holds the factors of all views in registers, so with many views a thread has at most 4
    # elements.
    vector = min(16 // evidence.element_size(), 8 if views <= 8 else 4)
    constants = {
        "VIEWS": views, "CLASSES": classes, "C": triton_dtype(checks.compute_dtype(evidence.dtype)),
        "BLOCK": _THREADS * vector, "num_warps": _warps(evidence.device),
    }  # fmt: skip
    present = None if mask is None else (mask.view(torch.uint8), *mask.stride())
    return present, constants, ceil_div(rows * classes, _THREADS * vector)


def evidential_fusion(evidence, mask) -> torch.Tensor:
    rows, _, classes = evidence.shape
    out = torch.empty((rows, classes), dtype=evidence.dtype, device=evidence.device)
    present, constants, programs = _fusion_settings(evidence, mask)
    found, layout = rows_of(evidence)
    (evidence_rows,), step = _in_steps(found)
    launch(
        _fusion_kernel, out.device, programs, evidence_rows, present, out, rows, STEP=step, LAYOUT=layout, **constants,
    )  # fmt: skip
    return out


def evidential_fusion_backward(grad, evidence, mask) -> torch.Tensor:
    out = torch.empty(evidence.shape, dtype=evidence.dtype, device=evidence.device)
    present, constants, programs = _fusion_settings(evidence, mask)
    found, layout = rows_of(grad, evidence)
    (grad_rows, evidence_rows), step = _in_steps(found)
    launch(
        _fusion_backward_kernel, out.device, programs, grad_rows, evidence_rows, present, out, evidence.shape[0],
        STEP=step, LAYOUT=layout, **constants,
    )  # fmt: skip
    return out


def _loss_cut(classes: int, vector: int) -> tuple[int, int]:
    """Return (R, BLOCK) of tiles with `vector` elements per thread.

    A row has 5 to 8 tiles: few lanes are idle, and few threads repeat the work that each row needs once. A tile has at
    most 64 short rows; with more, registers spill. The sizes, and thus the results of a row, do not depend on the
    number of rows.
    """
    block = max(next_power_of_2(ceil_div(classes, 8)), min(next_power_of_2(classes), 8))
    block = min(block, _THREADS * vector)
    return min(_THREADS * vector // block, 64), block


# The order matches udml_kernels/ops/evidential.py.
_NONE, _MEAN, _SUM = range(3)


def _loss_settings(evidence, reduction) -> tuple[dict, Rows, int]:
    classes = evidence.shape[-1]
    found, layout = rows_of(evidence, row_dims=evidence.dim() - 1)
    (rows,), step = _in_steps(found)
    R, block = _loss_cut(classes, min(step, 16 // evidence.element_size()))
    constants = {
        "REDUCED": reduction != _NONE, "CLASSES": classes, "C": triton_dtype(checks.compute_dtype(evidence.dtype)),
        "STEP": step, "LAYOUT": layout, "R": R, "BLOCK": block, "num_warps": _warps(evidence.device),
    }  # fmt: skip
    return constants, rows, ceil_div(math.prod(evidence.shape[:-1]), R)


def evidential_loss(evidence, target, kl_weight, reduction) -> torch.Tensor:
    constants, evidence_rows, programs = _loss_settings(evidence, reduction)
    (target_rows,), row_layout = rows_of(target, row_dims=0)
    shape = target.shape if reduction == _NONE else (1, programs)
    loss = torch.empty(shape, dtype=checks.compute_dtype(evidence.dtype), device=evidence.device)
    launch(
        _loss_kernel, loss.device, programs, evidence_rows, target_rows, loss, target.numel(), kl_weight,
        math.lgamma(evidence.shape[-1]), ROW_LAYOUT=row_layout, **constants,
    )  # fmt: skip
    if reduction == _NONE:
        return loss
    return sum_runs(loss, (), 1 / max(target.numel(), 1) if reduction == _MEAN else 1.0)


def evidential_loss_backward(grad, evidence, target, kl_weight, reduction) -> torch.Tensor:
    out = torch.empty(evidence.shape, dtype=evidence.dtype, device=evidence.device)
    constants, evidence_rows, programs = _loss_settings(evidence, reduction)
    (grad_rows, target_rows), row_layout = rows_of(grad, target, row_dims=0)
    launch(
        _loss_backward_kernel, out.device, programs, grad_rows, evidence_rows, target_rows, out, target.numel(),
        1 / max(target.numel(), 1) if reduction == _MEAN else 1.0, kl_weight, ROW_LAYOUT=row_layout, **constants,
    )  # fmt: skip
    return out
