"""evidential_fusion and evidential_loss: evidence read once, each result written once.

The fusion multiplies the views in the order they have, and needs neither logarithms nor exponentials:

    p_0 = 0,  p_m = p_{m-1} + x_m + p_{m-1} x_m,  x_m = e_m / K      gives  K p_M = K (prod_m (1 + x_m) - 1)

Nothing cancels in it, and no partial product of evidence that is not negative exceeds the last one. The loss has all
classes of a row in one program, which walks over them in tiles.

The number of classes, like that of views, is a constant of a kernel: a model has one, and addresses of rows that are
no multiple of 16 elements apart can be seen to be aligned, e.g. those of 34 classes by 8 bytes.
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
    """Those of _THREADS: NVIDIA's have 32, AMD's 64."""
    return 4 if fast_math(device) else 2


def _in_steps(rows: list[Rows]) -> tuple[list[Rows], int]:
    """Rows whose strides count steps of `step` elements, a power of 2: kernels, given `row * step`, know its factor."""
    step = math.gcd(16, *(r.row_stride for r in rows))
    return [r._replace(row_stride=r.row_stride // step) for r in rows], step


@triton.jit
def _begin(rows, CLASSES: tl.constexpr, BLOCK: tl.constexpr):
    """(row, class, whether there is such a row) of a program's part of the fused evidence, all rows in one."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    first = start // CLASSES
    place = (start - first * CLASSES).to(tl.int32) + tl.arange(0, BLOCK)
    below = place // CLASSES
    return first + below, place - below * CLASSES, below < tl.minimum(rows - first, BLOCK).to(tl.int32)


@triton.jit
def _present(mask, m: tl.constexpr, row, inside):
    return tl.load(mask[0] + row * mask[1] + m * mask[2], mask=inside, other=0) != 0


@triton.jit
def _share(evidence, mask, m: tl.constexpr, row, k, inside, CLASSES: tl.constexpr, C: tl.constexpr,
           STEP: tl.constexpr, LAYOUT: tl.constexpr):  # fmt: skip
    """x_m = e_m / K, 0 of an absent view."""
    first = tl.full((), m * CLASSES, tl.int64)
    x = read(evidence, row * STEP, first, k, inside, LAYOUT, C) * (1.0 / CLASSES)
    if mask is not None:
        x = tl.where(_present(mask, m, row, inside), x, 0.0)
    return x


@triton.jit
def _factor(x):
    """1 + x, NaN below 0 as its logarithm is."""
    factor = x + 1.0
    return tl.where(factor < 0.0, float("nan"), factor)


@triton.jit
def _fusion_kernel(
    evidence, mask, out, rows, VIEWS: tl.constexpr, CLASSES: tl.constexpr, C: tl.constexpr, STEP: tl.constexpr,
    LAYOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, k, inside = _begin(rows, CLASSES, BLOCK)
    p = _share(evidence, mask, 0, row, k, inside, CLASSES, C, STEP, LAYOUT)
    product = _factor(p)
    for m in tl.static_range(1, VIEWS):
        x = _share(evidence, mask, m, row, k, inside, CLASSES, C, STEP, LAYOUT)
        product *= _factor(x)
        p = p * x + (p + x)
    # Where a factor is infinite p may be inf - inf, while the product is right.
    write(out, row, CLASSES, 0, k, tl.where(product < INFINITY, p, product) * CLASSES, inside)


@triton.jit
def _fusion_backward_kernel(
    grad, evidence, mask, out, rows, VIEWS: tl.constexpr, CLASSES: tl.constexpr, C: tl.constexpr,
    STEP: tl.constexpr, LAYOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """de/de_m is the product of the other views' factors: of those before m, and of those behind."""
    row, k, inside = _begin(rows, CLASSES, BLOCK)
    g = read(grad, row * STEP, tl.full((), 0, tl.int64), k, inside, LAYOUT, C)
    one = tl.zeros_like(g) + 1.0
    factors = ()
    before = (one,)
    for m in tl.static_range(VIEWS):
        factors += (_factor(_share(evidence, mask, m, row, k, inside, CLASSES, C, STEP, LAYOUT)),)
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
        # The logarithm of 0 and of infinity has no slope: NaN, as the reference finds.
        value = tl.where((factor > 0.0) & (factor < INFINITY), value, float("nan"))
        if mask is not None:
            value = tl.where(_present(mask, i, row, inside), value, 0.0)
        write(out, row, VIEWS * CLASSES, i * CLASSES, k, value, inside)
        behind *= factor


def _fusion_settings(evidence, mask) -> tuple[tuple | None, dict, int]:
    """(the mask with its strides, constants, programs)"""
    rows, views, classes = evidence.shape
    # Backward has all views' factors in registers: of many views a thread gets 4 elements at most.
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
    """(R, 1): the element of each row, of a tensor that has one; its layout is that of a single row of `rows`."""
    zero = tl.full((), 0, tl.int64)
    if LAYOUT == 1:
        place = row.to(tl.int32)
    else:
        place = row
    return tl.load(pointers(x, 0, zero, place, LAYOUT), mask=row < rows, other=0)


@triton.jit
def _true_class(evidence, target, row, rows, CLASSES: tl.constexpr, C: tl.constexpr, STEP: tl.constexpr,
                LAYOUT: tl.constexpr, ROW_LAYOUT: tl.constexpr):  # fmt: skip
    """(R, 1): the class, -1 where there is none, and its evidence."""
    label = _of_row(target, row, rows, ROW_LAYOUT)
    label = tl.where((row < rows) & (label >= 0) & (label < CLASSES), label, -1).to(tl.int32)
    return label, read(evidence, row * STEP, tl.full((), 0, tl.int64), label, label >= 0, LAYOUT, C)


# The sum of evidence may be no float32 number. It is exact all the same, but for what is nothing beside the parameters'
# ones.
_SHRUNK = tl.constexpr(2.0**-32)


@triton.jit
def _total(lanes):
    """(R, 1): the sum of each row of lanes; in float64, as the order of the additions is the layout's."""
    return tl.sum(lanes.to(tl.float64), 1)[:, None]


@triton.jit
def _wrong(evidence, row, rows, label, start, lane, CLASSES: tl.constexpr, C: tl.constexpr, STEP: tl.constexpr,
           LAYOUT: tl.constexpr):  # fmt: skip
    """Evidence for the classes of a tile, 0 of the true one: that may dwarf the rest, and is not to be subtracted."""
    k = start.to(tl.int32) + lane
    e = read(evidence, row * STEP, start, lane, (row < rows) & (k < CLASSES), LAYOUT, C)
    return tl.where(k == label, 0.0, e)


@triton.jit
def _parameters(wrong, true, CLASSES: tl.constexpr):
    """(0 1 2 3, (R, 4) float64: strength, true parameter, strength without it, 1)."""
    which = tl.arange(0, 4)[None, :]
    x = tl.where(which == 1, 1.0, wrong + CLASSES) + tl.where(which < 2, true.to(tl.float64), 0.0)
    # A gather of what is there already: behind it the compiler does not keep a row's sums, as it would, on every
    # thread that had a part in them, but each on one.
    return which, tl.gather(tl.where(which == 3, 1.0, x), which + tl.zeros_like(wrong).to(tl.int32), 1)


@triton.jit
def _ratio(wrong, true, CLASSES: tl.constexpr):
    """(R, 1) each: whether the true parameter is large, and by which part of it the strength exceeds it."""
    parameter = true.to(tl.float64) + 1.0
    others = wrong + (CLASSES - 1)
    ratio = tl.where(
        parameter < INFINITY, others * _reciprocal(parameter), tl.where(others < INFINITY, 0.0, float("nan"))
    )
    return parameter >= 8.0, ratio


@triton.jit
def _strength_term(x, C: tl.constexpr):
    """r of a strength, which need be no number of C: large ones go like -ln(x) / 2, and 2^64 of them is taken out."""
    large = x > 1e30
    term = dirichlet_term(tl.where(large, x * 2.0**-64, x).to(C)).to(tl.float64)
    # As a product: tl.where would make a float32 number of the constant.
    return term - large.to(tl.float64) * 22.180709777918249


@triton.jit
def _loss_kernel(
    evidence, target, loss, rows, kl_weight: tl.float64, log_gamma: tl.float64, REDUCED: tl.constexpr,
    CLASSES: tl.constexpr, C: tl.constexpr, STEP: tl.constexpr, LAYOUT: tl.constexpr, ROW_LAYOUT: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = row_indices(tl.program_id(0), 1, R)
    label, true = _true_class(evidence, target, row, rows, CLASSES, C, STEP, LAYOUT, ROW_LAYOUT)
    lane = tl.arange(0, BLOCK)[None, :]
    start = tl.full((), 0, tl.int64)
    lanes = tl.zeros((R, BLOCK), C)
    terms = tl.zeros((R, BLOCK), C)
    for _ in range((CLASSES + BLOCK - 1) // BLOCK):
        e = _wrong(evidence, row, rows, label, start, lane, CLASSES, C, STEP, LAYOUT)
        lanes += e * _SHRUNK
        terms += dirichlet_term(e + 1.0)
        start += BLOCK
    wrong = _total(lanes) * (1.0 / _SHRUNK)
    rest = _total(terms) - _strength_term(wrong + CLASSES, C) - log_gamma - (CLASSES - 1)
    # psi of the strength, of the true parameter and of the strength without it. Of large ones the first two differ by
    # ln(1 + x), which is the first one's logarithm then; the second has none.
    which, x = _parameters(wrong, true, CLASSES)
    large, ratio = _ratio(wrong, true, CLASSES)
    argument = tl.where(which == 0, ratio + 1.0, 1.0)
    psi = digamma(x, large & (which < 2), argument)
    lost = ratio - ((ratio + 1.0) - 1.0)
    psi += tl.where(large & (which == 0) & (ratio < INFINITY), lost * _reciprocal(argument), 0.0)
    weight = scalar(kl_weight, tl.float64)
    factor = tl.where(which == 0, 1.0, tl.where(which == 1, -1.0, weight * (CLASSES - 1)))
    value = tl.sum(tl.where(which < 3, psi * factor, 0.0), 1)[:, None]
    value = tl.where(label >= 0, value + rest * weight, float("nan"))
    if REDUCED:
        tl.store(loss + tl.program_id(0), tl.sum(tl.sum(tl.where(row < rows, value, 0.0), 1), 0).to(C))
    else:
        tl.store(loss + row, value.to(C), mask=row < rows)


@triton.jit
def _loss_backward_kernel(
    grad, evidence, target, out, rows, share: tl.float64, kl_weight: tl.float64, REDUCED: tl.constexpr,
    CLASSES: tl.constexpr, C: tl.constexpr, STEP: tl.constexpr, LAYOUT: tl.constexpr, ROW_LAYOUT: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = row_indices(tl.program_id(0), 1, R)
    label, true = _true_class(evidence, target, row, rows, CLASSES, C, STEP, LAYOUT, ROW_LAYOUT)
    lane = tl.arange(0, BLOCK)[None, :]
    start = tl.full((), 0, tl.int64)
    lanes = tl.zeros((R, BLOCK), C)
    for _ in range((CLASSES + BLOCK - 1) // BLOCK):
        lanes += _wrong(evidence, row, rows, label, start, lane, CLASSES, C, STEP, LAYOUT) * _SHRUNK
        start += BLOCK
    wrong = _total(lanes) * (1.0 / _SHRUNK)
    which, x = _parameters(wrong, true, CLASSES)
    slopes, less, from_1 = trigamma(x)
    large, ratio = _ratio(wrong, true, CLASSES)
    of_all = tl.sum(tl.where(which == 0, slopes, 0.0), 1)[:, None].to(C)
    # Where two kinds of evidence are infinite the loss is NaN, and so is its slope.
    of_all = tl.where(ratio == ratio, of_all, float("nan"))
    # psi' of the strength less that of the true parameter; of large ones without 1 / x, whose difference is a product.
    differing = tl.where(large, less, slopes)
    of_true = tl.sum(tl.where(which == 0, differing, tl.where(which == 1, -differing, 0.0)), 1)[:, None]
    of_true -= tl.where(large, ratio * _reciprocal(wrong + true.to(tl.float64) + CLASSES), 0.0)
    of_true = of_true.to(C)
    # What every class's slope is reduced by, and 1 less that.
    of_wrong = tl.sum(tl.where(which == 2, slopes, 0.0), 1)[:, None]
    rest = tl.sum(tl.where(which == 2, from_1, 0.0), 1)[:, None] + of_wrong * (CLASSES - 1)
    divergence = tl.where(wrong + CLASSES < 8.0, wrong * of_wrong, 1.0 - rest).to(C)
    rest = rest.to(C)
    if REDUCED:
        g = tl.load(grad[0]) * scalar(share, C)
    else:
        g = _of_row(grad, row, rows, ROW_LAYOUT)
    g = tl.where(label >= 0, g, float("nan"))

    # The row again, from the cache.
    start = tl.full((), 0, tl.int64)
    for _ in range((CLASSES + BLOCK - 1) // BLOCK):
        k = start.to(tl.int32) + lane
        inside = (row < rows) & (k < CLASSES)
        e = read(evidence, row * STEP, start, lane, inside, LAYOUT, C)
        slope = dirichlet_slope(e, divergence, rest) * scalar(kl_weight, C) + of_all
        write(out, row, CLASSES, start, lane, tl.where(k == label, of_true, slope) * g, inside)
        start += BLOCK


def _loss_cut(classes: int, vector: int) -> tuple[int, int]:
    """(R, BLOCK) of tiles of `vector` elements a thread.

    A row is 5 to 8 tiles: few lanes are idle, and few threads repeat what is done once a row. Of short rows 64 at most:
    with more, registers spill. The cut does not depend on the number of rows, nor then does a row's result.
    """
    block = max(next_power_of_2(ceil_div(classes, 8)), min(next_power_of_2(classes), 8))
    block = min(block, _THREADS * vector)
    return min(_THREADS * vector // block, 64), block


# In the order of udml_kernels/ops/evidential.py.
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
