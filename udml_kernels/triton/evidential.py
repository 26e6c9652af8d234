"""evidential_fusion and evidential_loss: kernels read evidence once and write each result once.

The fusion multiplies the views in order and needs neither logarithms nor exponentials:

    p_0 = 0,  p_m = p_{m-1} + x_m + p_{m-1} x_m,  x_m = e_m / K      gives  K p_M = K (prod_m (1 + x_m) - 1)

It has no cancellation, and for nonnegative evidence no partial product exceeds the last one. For the loss, a program
processes all classes of a row in tiles.

The numbers of classes and views are constants of a kernel. A model has one of each, and the compiler can then see the
alignment of rows whose size is not a multiple of 16 elements, e.g. 8 bytes for 34 classes.
"""

import math

import torch
import triton
import triton.language as tl

from .. import checks
from ._gamma import _reciprocal, digamma, dirichlet_slope, dirichlet_term, trigamma
from ._launch import ceil_div, fast_math, launch, next_power_of_2, triton_dtype
from ._math import INFINITY, scalar
from ._rows import Rows, pointers, read, row_indices, rows_of, write
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


@triton.jit
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


@triton.jit
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


@triton.jit
def _of_row(x, row, rows, LAYOUT: tl.constexpr):
    """Return one value per row, (R, 1). The tensor is described as a single row whose elements are the values."""
    zero = tl.full((), 0, tl.int64)
    if LAYOUT == 1:
        place = row.to(tl.int32)
    else:
        place = row
    return tl.load(pointers(x, 0, zero, place, LAYOUT), mask=row < rows, other=0)


@triton.jit
def _true_class(evidence, target, row, rows, CLASSES: tl.constexpr, C: tl.constexpr, STEP: tl.constexpr,
                LAYOUT: tl.constexpr, ROW_LAYOUT: tl.constexpr):  # fmt: skip
    """Return the true class of each row (-1 if there is none) and its evidence, (R, 1)."""
    label = _of_row(target, row, rows, ROW_LAYOUT)
    label = tl.where((row < rows) & (label >= 0) & (label < CLASSES), label, -1).to(tl.int32)
    return label, read(evidence, row * STEP, tl.full((), 0, tl.int64), label, label >= 0, LAYOUT, C)


# The sum of evidence may overflow float32. Scaling it down loses only evidence that is negligible beside the 1 of each
# parameter.
_SCALE_DOWN = tl.constexpr(2.0**-32)


@triton.jit
def _row_sum(lanes):
    """Return the sum of each row, (R, 1), in float64, because the order of the additions depends on the layout."""
    return tl.sum(lanes.to(tl.float64), 1)[:, None]


@triton.jit
def _wrong_evidence_of_tile(evidence, row, rows, label, start, lane, CLASSES: tl.constexpr, C: tl.constexpr,
                            STEP: tl.constexpr, LAYOUT: tl.constexpr):  # fmt: skip
    """Load a tile of evidence with 0 for the true class. Subtracting that from the sum later could cancel."""
    k = start.to(tl.int32) + lane
    e = read(evidence, row * STEP, start, lane, (row < rows) & (k < CLASSES), LAYOUT, C)
    return tl.where(k == label, 0.0, e)


@triton.jit
def _parameters(wrong_evidence, true_evidence, CLASSES: tl.constexpr):
    """Return (0 1 2 3, (R, 4) float64: strength, true parameter, strength with 1 as true parameter, 1)."""
    which = tl.arange(0, 4)[None, :]
    x = tl.where(which == 1, 1.0, wrong_evidence + CLASSES) + tl.where(which < 2, true_evidence.to(tl.float64), 0.0)
    # The gather only copies values. After it, the compiler keeps each sum of a row on one thread; without it, on every
    # thread that contributed to the sum.
    return which, tl.gather(tl.where(which == 3, 1.0, x), which + tl.zeros_like(wrong_evidence).to(tl.int32), 1)


@triton.jit
def _excess_ratio(wrong_evidence, true_evidence, CLASSES: tl.constexpr):
    """Return whether the true parameter is large, and strength / true parameter - 1, (R, 1) each."""
    parameter = true_evidence.to(tl.float64) + 1.0
    others = wrong_evidence + (CLASSES - 1)
    excess_ratio = tl.where(
        parameter < INFINITY, others * _reciprocal(parameter), tl.where(others < INFINITY, 0.0, float("nan"))
    )
    return parameter >= 8.0, excess_ratio


@triton.jit
def _strength_term(x, C: tl.constexpr):
    """r of a strength that may exceed the range of C. For large x, r(x) is about -ln(x) / 2: 2^64 is split off."""
    is_large = x > 1e30
    term = dirichlet_term(tl.where(is_large, x * 2.0**-64, x).to(C)).to(tl.float64)
    # This is a product, because tl.where would convert the constant to float32.
    return term - is_large.to(tl.float64) * 22.180709777918249


@triton.jit
def _loss_kernel(
    evidence, target, loss, rows, kl_weight: tl.float64, log_gamma: tl.float64, REDUCED: tl.constexpr,
    CLASSES: tl.constexpr, C: tl.constexpr, STEP: tl.constexpr, LAYOUT: tl.constexpr, ROW_LAYOUT: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = row_indices(tl.program_id(0), 1, R)
    label, true_evidence = _true_class(evidence, target, row, rows, CLASSES, C, STEP, LAYOUT, ROW_LAYOUT)
    lane = tl.arange(0, BLOCK)[None, :]
    start = tl.full((), 0, tl.int64)
    evidence_sums = tl.zeros((R, BLOCK), C)
    terms = tl.zeros((R, BLOCK), C)
    for _ in range((CLASSES + BLOCK - 1) // BLOCK):
        e = _wrong_evidence_of_tile(evidence, row, rows, label, start, lane, CLASSES, C, STEP, LAYOUT)
        evidence_sums += e * _SCALE_DOWN
        terms += dirichlet_term(e + 1.0)
        start += BLOCK
    wrong_evidence = _row_sum(evidence_sums) * (1.0 / _SCALE_DOWN)
    kl_terms = _row_sum(terms) - _strength_term(wrong_evidence + CLASSES, C) - log_gamma - (CLASSES - 1)
    # psi of the strength, of the true parameter and of the strength with 1 as true parameter. If the true parameter is
    # large, the logarithms of the first two differ by ln(1 + excess_ratio): the first then uses this logarithm, and the
    # second uses none.
    which, x = _parameters(wrong_evidence, true_evidence, CLASSES)
    is_large, excess_ratio = _excess_ratio(wrong_evidence, true_evidence, CLASSES)
    argument = tl.where(which == 0, excess_ratio + 1.0, 1.0)
    psi = digamma(x, is_large & (which < 2), argument)
    lost = excess_ratio - ((excess_ratio + 1.0) - 1.0)
    psi += tl.where(is_large & (which == 0) & (excess_ratio < INFINITY), lost * _reciprocal(argument), 0.0)
    weight = scalar(kl_weight, tl.float64)
    factor = tl.where(which == 0, 1.0, tl.where(which == 1, -1.0, weight * (CLASSES - 1)))
    value = tl.sum(tl.where(which < 3, psi * factor, 0.0), 1)[:, None]
    value = tl.where(label >= 0, value + kl_terms * weight, float("nan"))
    if REDUCED:
        tl.store(loss + tl.program_id(0), tl.sum(tl.sum(tl.where(row < rows, value, 0.0), 1), 0).to(C))
    else:
        tl.store(loss + row, value.to(C), mask=row < rows)


@triton.jit
def _loss_backward_kernel(
    grad, evidence, target, out, rows, row_scale: tl.float64, kl_weight: tl.float64, REDUCED: tl.constexpr,
    CLASSES: tl.constexpr, C: tl.constexpr, STEP: tl.constexpr, LAYOUT: tl.constexpr, ROW_LAYOUT: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = row_indices(tl.program_id(0), 1, R)
    label, true_evidence = _true_class(evidence, target, row, rows, CLASSES, C, STEP, LAYOUT, ROW_LAYOUT)
    lane = tl.arange(0, BLOCK)[None, :]
    start = tl.full((), 0, tl.int64)
    evidence_sums = tl.zeros((R, BLOCK), C)
    for _ in range((CLASSES + BLOCK - 1) // BLOCK):
        evidence_sums += (
            _wrong_evidence_of_tile(evidence, row, rows, label, start, lane, CLASSES, C, STEP, LAYOUT) * _SCALE_DOWN
        )
        start += BLOCK
    wrong_evidence = _row_sum(evidence_sums) * (1.0 / _SCALE_DOWN)
    which, x = _parameters(wrong_evidence, true_evidence, CLASSES)
    slopes, slopes_less_reciprocal, one_minus_slopes = trigamma(x)
    is_large, excess_ratio = _excess_ratio(wrong_evidence, true_evidence, CLASSES)
    common = tl.sum(tl.where(which == 0, slopes, 0.0), 1)[:, None].to(C)
    # If the evidence for two classes is infinite, the loss is NaN, and so is this derivative.
    common = tl.where(excess_ratio == excess_ratio, common, float("nan"))
    # psi'(strength) - psi'(true parameter). For a large true parameter the terms omit 1 / x; the difference of these is
    # a product.
    difference_terms = tl.where(is_large, slopes_less_reciprocal, slopes)
    true_slope = tl.sum(tl.where(which == 0, difference_terms, tl.where(which == 1, -difference_terms, 0.0)), 1)[
        :, None
    ]
    true_slope -= tl.where(
        is_large, excess_ratio * _reciprocal(wrong_evidence + true_evidence.to(tl.float64) + CLASSES), 0.0
    )
    true_slope = true_slope.to(C)
    # The offset that dirichlet_slope subtracts for every class, and 1 - offset.
    kl_slope = tl.sum(tl.where(which == 2, slopes, 0.0), 1)[:, None]
    one_minus_offset = tl.sum(tl.where(which == 2, one_minus_slopes, 0.0), 1)[:, None] + kl_slope * (CLASSES - 1)
    offset = tl.where(wrong_evidence + CLASSES < 8.0, wrong_evidence * kl_slope, 1.0 - one_minus_offset).to(C)
    one_minus_offset = one_minus_offset.to(C)
    if REDUCED:
        g = tl.load(grad[0]) * scalar(row_scale, C)
    else:
        g = _of_row(grad, row, rows, ROW_LAYOUT)
    g = tl.where(label >= 0, g, float("nan"))

    # This reads the row again, from the cache.
    start = tl.full((), 0, tl.int64)
    for _ in range((CLASSES + BLOCK - 1) // BLOCK):
        k = start.to(tl.int32) + lane
        inside = (row < rows) & (k < CLASSES)
        e = read(evidence, row * STEP, start, lane, inside, LAYOUT, C)
        slope = dirichlet_slope(e, offset, one_minus_offset) * scalar(kl_weight, C) + common
        write(out, row, CLASSES, start, lane, tl.where(k == label, true_slope, slope) * g, inside)
        start += BLOCK


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
