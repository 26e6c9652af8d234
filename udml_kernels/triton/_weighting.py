"""The weights of a tile of positions: w_m = total * softmax_m(x).

x_m is 1 / (s_m alpha_m tau) or, for the inverse forms, -ln(s_m alpha_m) / tau. s is the uncertainty, alpha the
dependency, tau the temperature. A position is a sample or, if the weights are per location, a location of a sample. In
kernels, values per modality are tiles of P positions x MP modalities; MP is M rounded up to a power of 2. A modality's
share is its softmax probability.

With a reference, column M of these tiles is one more entry of the softmax: its uncertainty is a number, its dependency
the mean of those of the n modalities present. It counts n times, and its weight is not used. MP is then at least M + 1.

s alpha and its inverse may leave the range of float although the weights are ordinary numbers. They are stored as
mantissa and exponent (`_math.split`), and exponents are relative to the largest exponent of the position.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import ceil_div, next_power_of_2, triton_dtype
from ._math import exponential, logarithm, scalar, scale, split
from ._rows import Tiles, _collapsed

# The kind of logits, G in kernels: 1 / (s alpha tau), -log(s alpha), or -log(s alpha) / tau.
SOFTMAX, INVERSE, INVERSE_TEMPERED = (tl.constexpr(i) for i in range(3))

# This is below the exponent of any number.
_LOWEST = tl.constexpr(-10000)

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
def _split_variance(d, floor, FLOOR: tl.constexpr):
    """Split s, which is d or, with FLOOR, d^2 + floor^2."""
    if FLOOR:
        a, a_exponent = split(d)
        f, f_exponent = split(scalar(floor, tl.float64))
        # split gives a 0 the exponent 0, which may be larger than that of the other square.
        a_exponent = tl.where(a == 0.0, _LOWEST, 2 * a_exponent)
        f_exponent = tl.where(f == 0.0, _LOWEST, 2 * f_exponent)
        common = tl.maximum(a_exponent, f_exponent)
        summed = scale(a * a, a_exponent - common) + scale((f * f).to(d.dtype), f_exponent - common)
        s, exponent = _split_positive(summed)
        return s, exponent + common
    else:
        return _split_positive(d)


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
def _sum_modalities(values, M: tl.constexpr, MP: tl.constexpr):
    """Add columns 0 to M - 1 in order. The order of tl.sum would depend on the tile's layout, and weights must not."""
    summed = of_modality(values, 0, MP)
    for m in tl.static_range(1, M):
        summed += of_modality(values, m, MP)
    return summed[:, None]


@triton.jit
def _load_uncertainty(inputs, at, floor, reference, M: tl.constexpr, MP: tl.constexpr, FLOOR: tl.constexpr,
                      REFERENCE: tl.constexpr):  # fmt: skip
    """Return s and the derivative of ln(s), as (mantissa, exponent) each."""
    d = load_entries(inputs[0], at, 1.0, M, MP)
    s, exponent = _split_variance(d, floor, FLOOR)
    if REFERENCE:
        mantissa, power = _split_variance(scalar(reference, tl.float64), floor, FLOOR)
        is_reference = tl.arange(0, MP)[None, :] == M
        s, exponent = tl.where(is_reference, mantissa.to(s.dtype), s), tl.where(is_reference, power, exponent)
    slope, slope_exponent = 1.0 / s, -exponent
    if FLOOR:
        a, a_exponent = split(d)
        slope, slope_exponent = slope * (a + a), slope_exponent + a_exponent
    return s, exponent, slope, slope_exponent


@triton.jit
def _load_dependency(inputs, at, present, count, M: tl.constexpr, MP: tl.constexpr, REFERENCE: tl.constexpr):
    """Return alpha and the derivative of ln(alpha), as (mantissa, exponent) each.

    The reference has the mean of alpha. Its derivative is the one with respect to a term of the mean.
    """
    alpha = load_entries(inputs[1], at, 1.0, M, MP)
    mantissa, exponent = _split_positive(alpha)
    slope = 1.0 / mantissa
    if REFERENCE:
        # A sum of large numbers could overflow float32.
        summed = _sum_modalities(tl.where(present, alpha, 0.0).to(tl.float64), M, MP)
        mean, mean_exponent = _split_positive(summed / count)
        is_reference = tl.arange(0, MP)[None, :] == M
        mantissa = tl.where(is_reference, mean.to(alpha.dtype), mantissa)
        slope = tl.where(is_reference, (1.0 / (mean * count)).to(alpha.dtype), slope)
        exponent = tl.where(is_reference, mean_exponent, exponent)
    return mantissa, exponent, slope, -exponent


@triton.jit
def compute_weights(
    inputs, at, inverse_temperature, total, floor, reference, M: tl.constexpr, MP: tl.constexpr, G: tl.constexpr,
    TOTAL: tl.constexpr, FLOOR: tl.constexpr, REFERENCE: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Return (weight, presence) of positions and the values that `weights_gradient` needs.

    Args:
        inputs: (uncertainty, dependency, mask), each as `entries_of` describes it.
        at: the `positions`.
        total: the sum of the weights if TOTAL; otherwise the sum is the number of modalities present.
        floor: if FLOOR, the uncertainty is d, and s = d^2 + floor^2.
        reference: the uncertainty of the reference if REFERENCE.
    """
    present = tl.arange(0, MP)[None, :] < M
    if inputs[2][0] is None:
        present = present & at[2]
    else:
        present = load_entries(inputs[2], at, 0, M, MP) != 0
    count = tl.sum(present.to(tl.int32), 1)[:, None]
    s, s_exponent, s_slope, s_slope_exponent = _load_uncertainty(inputs, at, floor, reference, M, MP, FLOOR, REFERENCE)
    if inputs[1][0] is None:
        alpha, alpha_exponent = tl.full(s.shape, 1.0, C), tl.zeros_like(s_exponent)
        alpha_slope, alpha_slope_exponent = alpha, alpha_exponent
    else:
        alpha, alpha_exponent, alpha_slope, alpha_slope_exponent = _load_dependency(
            inputs, at, present, count, M, MP, REFERENCE
        )
    if REFERENCE:
        is_reference = tl.arange(0, MP)[None, :] == M
        present = present | (is_reference & (count > 0))
    inverse = 1.0 / s * (1.0 / alpha)
    power = tl.where(inverse == 0.0, _LOWEST, -(s_exponent + alpha_exponent))
    relative = _relative_share(inverse, power, present, inverse_temperature, G, C)
    if REFERENCE:
        relative = tl.where(is_reference, relative * count.to(C), relative)
        summed = _sum_modalities(relative, M + 1, MP)
    else:
        summed = _sum_modalities(relative, M, MP)
    share = tl.where(present, relative / summed, 0.0)
    if TOTAL:
        weight = share * scalar(total, C)
    else:
        weight = share * count.to(C)
    return weight, present, share, inverse, power, s_slope, s_slope_exponent, alpha_slope, alpha_slope_exponent


class Weighting(NamedTuple):
    """The arguments of kernels that compute weights.

    The numbers are (1 / temperature, total, floor, reference), and 0 for one that is None.
    """

    inputs: tuple
    numbers: tuple[float, float, float, float]
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


def weighting_of(uncertainty, dependency, mask, g, temperature, total, floor, reference) -> Weighting:
    present = None if mask is None else mask.view(torch.uint8)
    inverse = INVERSE if temperature == 1 else INVERSE_TEMPERED
    modalities = uncertainty.shape[1]
    constants = {
        "M": modalities, "MP": next_power_of_2(modalities + (reference is not None)),
        "G": (inverse if g == 1 else SOFTMAX).value, "TOTAL": total is not None, "FLOOR": floor is not None,
        "REFERENCE": reference is not None, "C": triton_dtype(uncertainty.dtype),
    }  # fmt: skip
    return Weighting(
        (entries_of(uncertainty), entries_of(dependency), entries_of(present)),
        (1 / temperature, *(0.0 if number is None else number for number in (total, floor, reference))),
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
