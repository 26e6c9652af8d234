"""The weights of a tile of positions: w_m = total * softmax_m(x).

x_m is 1 / (s_m alpha_m tau) or, for the inverse forms, -ln(s_m alpha_m) / tau. s is the uncertainty, alpha the
dependency, tau the temperature. A position is a sample or, if the weights are per location, a location of a sample. In
kernels, values per modality are tiles of P positions x MP modalities; MP is M rounded up to a power of 2. A modality's
share is its softmax probability.

s alpha and its inverse may leave the range of float although the weights are ordinary numbers. They are stored as
mantissa and exponent (`_math.split`), and exponents are relative to the largest exponent of the position.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import ceil_div, empty, launch, next_power_of_2, triton_dtype
from ._math import exponential, logarithm, scalar, scale, split
from ._rows import Tiles, _collapsed
from ._sums import _sum_kernel

# The kind of logits, G in kernels: 1 / (s alpha tau), -log(s alpha), or -log(s alpha) / tau.
SOFTMAX, INVERSE, INVERSE_TEMPERED = (tl.constexpr(i) for i in range(3))

# This is below the exponent of any number.
_LOWEST = tl.constexpr(-10000)

# A difference of gradients of this size can overflow float32.
_HUGE_GRADIENT = tl.constexpr(2.0**125)

# The bytes per warp of a tile in the arithmetic dtype: 16 floats per thread.
_PER_WARP = 2048


@triton.jit
def positions(row_tile, location_tile, rows, locations, PLANES: tl.constexpr, P: tl.constexpr):
    """Return (row, location, mask), (P, 1) or (1, 1) each: P samples or, with PLANES, P locations of one sample."""
    lane = tl.arange(0, P)[:, None].to(tl.int64)
    if PLANES:
        row = tl.zeros((1, 1), tl.int64) + row_tile
        location = location_tile.to(tl.int64) * P + lane
        inside = location < locations
    else:
        row = row_tile.to(tl.int64) * P + lane
        location = tl.zeros((1, 1), tl.int64)
        inside = row < rows
    return row, location, inside


@triton.jit
def load_entries(values, at, other, M: tl.constexpr, MP: tl.constexpr):
    """Load (P, MP) values of a tensor that `entries_of` describes; masked ones are `other`."""
    lane = tl.arange(0, MP)[None, :]
    address = values[0] + at[0] * values[1] + at[1] * values[3] + lane.to(tl.int64) * values[2]
    return tl.load(address, mask=at[2] & (lane < M), other=other)


@triton.jit
def store_entries(out, at, locations, value, M: tl.constexpr, MP: tl.constexpr):
    """Store values to a contiguous (B, M) or (B, M, locations) result."""
    lane = tl.arange(0, MP)[None, :]
    tl.store(out + (at[0] * M + lane) * locations + at[1], value, mask=at[2] & (lane < M))


@triton.jit
def of_modality(values, m, MP: tl.constexpr):
    """Return one column (P,) of a (P, MP) tile. The sum adds zeros, which is exact in any order."""
    return tl.sum(tl.where(tl.arange(0, MP)[None, :] == m, values, 0), 1)


@triton.jit
def _split_positive(x):
    """Split x, or NaN unless x is positive: the weights are based on the logarithm of x."""
    return split(tl.where(x > 0.0, x, float("nan")))


@triton.jit
def _relative_share(inverse, power, present, inverse_temperature, G: tl.constexpr, C: tl.constexpr):
    """Return the shares relative to approximately the largest one. 1 / (s alpha) is inverse 2^power.

    For G = INVERSE a share is a ratio of the inverses: this is exact, while the logarithms of 1e-30 and 1e30 would lose
    seven bits.
    """
    highest = tl.max(tl.where(present, power, _LOWEST), 1)[:, None]
    share = scale(inverse, power - highest)
    if G != INVERSE:
        top = tl.max(tl.where(present, share, 0.0), 1)[:, None]
        mantissa, exponent = split(scalar(inverse_temperature, tl.float64))
        if G == SOFTMAX:
            logarithmic = share - top
            exponent = exponent + highest
        else:
            logarithmic = logarithm(inverse / top) + (power - highest).to(C) * 0.6931471805599453
        share = exponential(scale(logarithmic * mantissa.to(C), exponent))
    return tl.where(present, share, 0.0)


@triton.jit
def compute_weights(
    inputs, at, inverse_temperature, total, M: tl.constexpr, MP: tl.constexpr, G: tl.constexpr, TOTAL: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Return (weight, presence) of positions and the values that `weights_gradient` needs.

    Args:
        inputs: (uncertainty, dependency, mask), each as `entries_of` describes it.
        at: the `positions`.
        total: the sum of the weights if TOTAL; otherwise the sum is the number of modalities present.
    """
    present = tl.arange(0, MP)[None, :] < M
    if inputs[2][0] is None:
        present = present & at[2]
    else:
        present = load_entries(inputs[2], at, 0, M, MP) != 0
    s, s_exponent = _split_positive(load_entries(inputs[0], at, 1.0, M, MP))
    if inputs[1][0] is None:
        alpha, alpha_exponent = tl.full(s.shape, 1.0, C), tl.zeros_like(s_exponent)
    else:
        alpha, alpha_exponent = _split_positive(load_entries(inputs[1], at, 1.0, M, MP))
    over_s, over_alpha = 1.0 / s, 1.0 / alpha
    inverse = over_s * over_alpha
    power = tl.where(inverse == 0.0, _LOWEST, -(s_exponent + alpha_exponent))
    relative = _relative_share(inverse, power, present, inverse_temperature, G, C)
    # This adds the modalities in order. The order of tl.sum would depend on the tile's layout, and the weights must
    # not.
    summed = of_modality(relative, 0, MP)
    for m in tl.static_range(1, M):
        summed += of_modality(relative, m, MP)
    share = tl.where(present, relative / summed[:, None], 0.0)
    if TOTAL:
        weight = share * scalar(total, C)
    else:
        weight = share * tl.sum(present.to(tl.int32), 1)[:, None].to(C)
    return weight, present, share, inverse, power, over_s, s_exponent, over_alpha, alpha_exponent


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
    PLANES: tl.constexpr, PER_SAMPLE: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Compute dL/duncertainty from dL/dw, store it, and store sums of dL/ddependency over this program's positions.

    Args:
        computed: the result of `compute_weights`.
        weight_gradient: dL/dw, float64.
        sums: None, or the tensor of `dependency_sums`; PER_SAMPLE if the dependency is (B, M).
        tile, across: the index of this tile among its sample's locations, and the number of tiles.
    """
    weight, present, share, inverse, power, over_s, s_exponent, over_alpha, alpha_exponent = computed
    # All g_m are relative to the gradient of the largest share. g_m - sum_j p_j g_j is then exactly 0 if all g are
    # equal, and has only small terms if p_m is almost 1, like sum_j p_j (g_m - g_j).
    largest = tl.max(share, 1)[:, None]
    shift = tl.max(tl.where(present & (share == largest), weight_gradient, -float("inf")), 1)[:, None]
    relative = weight_gradient - tl.where(tl.abs(shift) < float("inf"), shift, 0.0)
    # If no other modality is present, the weight is constant, and its gradient is 0 even if the incoming gradient is
    # not finite.
    relative = tl.where(present & (tl.sum(present.to(tl.int32), 1)[:, None] > 1), relative, 0.0)
    # Divide huge gradients by 8 here, and add 3 to the exponent below.
    is_huge = tl.max(tl.abs(relative), 1)[:, None] >= _HUGE_GRADIENT
    relative = tl.where(is_huge, relative * 0.125, relative).to(C)
    mean = tl.sum(tl.where(present, share * relative, 0.0), 1)[:, None]
    weight_mantissa, weight_exponent = split(weight)
    difference_mantissa, difference_exponent = split(relative - mean)
    mantissa, exponent = split(scalar(inverse_temperature, tl.float64))
    log_gradient = weight_mantissa * difference_mantissa * -mantissa.to(C)
    exponent = weight_exponent + difference_exponent + exponent + tl.where(is_huge, 3, 0)
    if G == SOFTMAX:
        log_gradient *= inverse
        exponent += power
    uncertainty_gradient = scale(log_gradient * over_s, exponent - s_exponent)
    store_entries(grad_uncertainty, at, locations, tl.where(present, uncertainty_gradient, 0.0), M, MP)
    if sums is not None:
        dependency_gradient = tl.where(present, scale(log_gradient * over_alpha, exponent - alpha_exponent), 0.0)
        _store_sums(sums, dependency_gradient, at, tile, across, PLANES, PER_SAMPLE, M, MP)


class Weighting(NamedTuple):
    """The arguments of kernels that compute weights: inputs, numbers (1 / temperature, total), constants."""

    inputs: tuple
    numbers: tuple[float, float]
    constants: dict
    rows: int
    locations: int
    dependency: Tensor | None

    @property
    def planes(self) -> bool:
        """Whether weights are per location."""
        return self.locations != 1

    @property
    def per_sample(self) -> bool:
        """Whether every sample has its own dependency."""
        return self.dependency is not None and self.dependency.dim() == 2


def entries_of(values: Tensor | None) -> tuple:
    """Describe a tensor (M,), (B, M) or (B, M, *spatial) as (tensor, row stride, modality stride, location stride)."""
    if values is None or values.dim() == 1:
        return values, 0, 0 if values is None else values.stride(0), 0
    dims = _collapsed(values.shape[2:], values.stride()[2:])
    if len(dims) > 1:
        values = values.contiguous()
        dims = [(1, 1)]
    return values, values.stride(0), values.stride(1), dims[0][1] if dims else 0


def weighting_of(uncertainty, dependency, mask, g, temperature, total) -> Weighting:
    present = None if mask is None else mask.view(torch.uint8)
    inverse = INVERSE if temperature == 1 else INVERSE_TEMPERED
    modalities = uncertainty.shape[1]
    constants = {
        "M": modalities, "MP": next_power_of_2(modalities), "G": (inverse if g == 1 else SOFTMAX).value,
        "TOTAL": total is not None, "C": triton_dtype(uncertainty.dtype),
    }  # fmt: skip
    return Weighting(
        (entries_of(uncertainty), entries_of(dependency), entries_of(present)),
        (1 / temperature, 0.0 if total is None else total),
        constants,
        uncertainty.shape[0],
        math.prod(uncertainty.shape[2:]),
        dependency,
    )


def row_tiles(rows: int, size: int, longest: int, element_size: int = 4) -> tuple[Tiles, int]:
    """Return tiles of rows and the warps per program. They depend on the row size alone, as then does the order of
    sums.

    A warp processes one row or several short ones; many threads then share the computation of few weights.
    """
    each = _PER_WARP // element_size
    block = max(min(next_power_of_2(size), longest), 16)
    count = max(each // block, 1)
    across = max(ceil_div(size, block), 1)
    return Tiles(count, block, across, ceil_div(rows, count) * across), max(block // each, 1)


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
