"""The gradient of the weights of `_weighting`, and the sums that give the dependency's gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import empty, launch, next_power_of_2
from ._math import scalar, scale, split
from ._sums import _sum_kernel
from ._weighting import SOFTMAX, Weighting, of_modality, store_entries

# A difference of gradients of this size can overflow float32.
_HUGE_GRADIENT = tl.constexpr(2.0**125)


@triton.jit
def _store_sums(sums, dependency_gradient, at, tile, across, PLANES: tl.constexpr, PER_SAMPLE: tl.constexpr,
                M: tl.constexpr, MP: tl.constexpr):  # fmt: skip
    """Store sums over this program's positions, in double, because over the batch these terms largely cancel."""
    lane = tl.arange(0, MP)[None, :]
    if PER_SAMPLE and not PLANES:
        tl.store(sums + at[0] * M + lane, dependency_gradient, mask=at[2] & (lane < M))
    else:
        summed = tl.sum(dependency_gradient.to(tl.float64), 0)[None, :].to(sums.dtype.element_ty)
        if PER_SAMPLE:
            tl.store(sums + (at[0] * M + lane) * across + tile, summed, mask=lane < M)
        else:
            tl.store(sums + lane.to(tl.int64) * tl.num_programs(0) + tl.program_id(0), summed, mask=lane < M)


@triton.jit
def weights_gradient(
    computed, weight_gradient, grad_uncertainty, sums, at, locations, tile, across, inverse_temperature,
    PLANES: tl.constexpr, PER_SAMPLE: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, G: tl.constexpr,
    REFERENCE: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Compute dL/duncertainty from dL/dw, store it, and store sums of dL/ddependency over this program's positions.

    Args:
        computed: the result of `compute_weights`.
        weight_gradient: dL/dw, float64.
        sums: None, or the tensor of `dependency_sums`; PER_SAMPLE if the dependency is (B, M).
        tile, across: the index of this tile among its sample's locations, and the number of tiles.
    """
    weight, present, share, inverse, power, s_slope, s_exponent, alpha_slope, alpha_exponent = computed
    # All g_m are relative to the gradient of the largest share. g_m - sum_j p_j g_j is then exactly 0 if all g are
    # equal, and has only small terms if p_m is almost 1, like sum_j p_j (g_m - g_j).
    largest = tl.max(share, 1)[:, None]
    shift = tl.max(tl.where(present & (share == largest), weight_gradient, -float("inf")), 1)[:, None]
    relative = weight_gradient - tl.where(tl.abs(shift) < float("inf"), shift, 0.0)
    # If no other modality and no reference is present, the weight is constant, and its gradient is 0 even if the
    # incoming gradient is not finite.
    relative = tl.where(present & (tl.sum(present.to(tl.int32), 1)[:, None] > 1), relative, 0.0)
    # Divide huge gradients by 8 here, and add 3 to the exponent below.
    is_huge = tl.max(tl.abs(relative), 1)[:, None] >= _HUGE_GRADIENT
    relative = tl.where(is_huge, relative * 0.125, relative).to(C)
    mean = tl.sum(tl.where(present, share * relative, 0.0), 1)[:, None]
    weight_mantissa, weight_exponent = split(weight)
    difference = relative - mean
    if REFERENCE:
        # For a single modality and the reference, the difference is infinite if the incoming gradient is.
        is_single = tl.sum(present.to(tl.int32), 1)[:, None] == 2
        difference = tl.where(is_single & (tl.abs(relative) == float("inf")), relative, difference)
    difference_mantissa, difference_exponent = split(difference)
    mantissa, exponent = split(scalar(inverse_temperature, tl.float64))
    log_gradient = weight_mantissa * difference_mantissa * -mantissa.to(C)
    exponent = weight_exponent + difference_exponent + exponent + tl.where(is_huge, 3, 0)
    if G == SOFTMAX:
        log_gradient *= inverse
        exponent += power
    uncertainty_gradient = scale(log_gradient * s_slope, exponent + s_exponent)
    store_entries(grad_uncertainty, at, locations, tl.where(present, uncertainty_gradient, 0.0), M, MP)
    if sums is not None:
        dependency_gradient = tl.where(present, scale(log_gradient * alpha_slope, exponent + alpha_exponent), 0.0)
        if REFERENCE:
            # The reference's dependency is the mean, so its gradient belongs to all modalities present.
            of_mean = of_modality(dependency_gradient, M, MP)[:, None]
            dependency_gradient = tl.where(present, dependency_gradient + of_mean, 0.0)
        _store_sums(sums, dependency_gradient, at, tile, across, PLANES, PER_SAMPLE, M, MP)


def dependency_sums(weighting: Weighting, like: Tensor, wanted: bool, across: int, programs: int) -> Tensor | None:
    """Allocate the partial sums of the dependency's gradient, (values, sums per value), if it is wanted."""
    if not wanted:
        return None
    assert weighting.dependency is not None
    count = across if weighting.per_sample else programs
    return empty((weighting.dependency.numel(), count), like.dtype if count == 1 else torch.float64, like)


def finish_dependency_gradient(weighting: Weighting, like: Tensor, sums: Tensor | None) -> Tensor:
    if sums is None:
        return empty(0, like.dtype, like)
    assert weighting.dependency is not None
    values, count = sums.shape
    if count == 1:
        return sums.view(weighting.dependency.shape)
    out = empty(weighting.dependency.shape, like.dtype, like)
    block = min(next_power_of_2(count), 1024)
    launch(_sum_kernel, out.device, values, out, sums, count, 1.0, BLOCK=block)
    return out
