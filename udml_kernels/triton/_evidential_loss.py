"""The kernels of evidential_loss. A program processes all classes of a row in tiles."""

import triton
import triton.language as tl

from ._gamma import _reciprocal, digamma, dirichlet_slope, dirichlet_term, trigamma
from ._math import INFINITY, scalar
from ._rows import pointers, read, row_indices, write


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


@triton.jit(do_not_specialize=["rows"])
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


@triton.jit(do_not_specialize=["rows"])
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
    # Where the evidence for another class is infinite, so is the loss, and this derivative is NaN.
    true_slope = tl.where(excess_ratio < INFINITY, true_slope, float("nan")).to(C)
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
