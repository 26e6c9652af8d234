"""reparameterize reads mu and logvar once and writes z once. The same pass averages std and sums the KL divergence.

A row is C channels of L locations. Its shape alone determines its division into tiles (`_cut`):

    POOL 0  L is 1: nothing to average
    POOL 1  channels are short: a tile has CB whole channels and averages them
    POOL 2  channels are long: a tile lies in at most two channels; `_finish_kernel` adds its two sums
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import checks
from ._launch import ceil_div, fast_math, launch, next_power_of_2, triton_dtype
from ._math import INFINITY, exponential_of_half, logarithm, scalar, scale, split, split_quotient
from ._rows import boundary, pointers, read, row_indices, rows_of, tiles_of, widened, write
from ._sums import sum_runs
from ._tuning import DEFAULT, Config, tuned
from .random import noise_of, normals_of, tile_words

# csrc/scaled.h explains these constants. _SQUARE_SCALE is 2^(2 _SQUARE_SHIFT).
_SQUARE_SHIFT = tl.constexpr(48)
_SQUARE_SCALE, _HALF_SQUARE_SCALE = tl.constexpr(2.0**96), tl.constexpr(2.0**95)


class Cut(NamedTuple):
    """The division of rows into tiles. `step` is the distance between the starts of the `across` tiles of a row."""

    pool: int
    R: int
    BLOCK: int
    CB: int
    step: int
    across: int
    programs: int


def _cut(rows: int, channels: int, locations: int, elements: int = DEFAULT.elements) -> Cut:
    size = channels * locations
    if locations <= 1:
        tiles = tiles_of(rows, size, elements)
        return Cut(0, tiles.R, tiles.BLOCK, 1, tiles.BLOCK, tiles.across, tiles.programs)
    if locations <= elements // 4:
        # A tile begins at a multiple of 4 elements, because random numbers come in groups of four; if possible of 8,
        # i.e. 16 bytes.
        count = min(elements // locations, ceil_div(channels, 8) * 8)
        unit = 8 if count * locations >= 8 * math.lcm(8, locations) // 8 else 4
        count -= count % (math.lcm(unit, locations) // locations)
        across = ceil_div(channels, count)
        return Cut(1, 1, next_power_of_2(count * locations), count, count * locations, across, rows * across)
    block = min(next_power_of_2(locations + 1) // 2, elements)
    across = ceil_div(size, block)
    return Cut(2, 1, block, 1, block, across, rows * across)


@triton.jit
def _clipped(logvar, std_max, logvar_max, CLIP: tl.constexpr, FAST: tl.constexpr):
    """Return the clamped logvar and std. The comparisons propagate NaN."""
    if CLIP:
        logvar = tl.where(logvar > logvar_max, logvar_max, logvar)
        std = exponential_of_half(logvar, FAST)
        return logvar, tl.where(std > std_max, std_max, std)
    else:
        return logvar, exponential_of_half(logvar, FAST)


@triton.jit
def _square_scale(prior_variance):
    """Return the factors for sums of squares of std and mu: (scale_down, factor).

    std and mu are multiplied by scale_down before they are squared, and the squares by factor * _SQUARE_SCALE, which
    also divides them by the prior variance.
    """
    mantissa, exponent = split(prior_variance)
    half = exponent >> 1
    scale_down = scale(tl.zeros_like(prior_variance) + 1.0, -half - _SQUARE_SHIFT)
    return scale_down, 1.0 / (mantissa * (exponent - half - half + 1).to(prior_variance.dtype))


@triton.jit
def _begin(across, size, R: tl.constexpr, STEP: tl.constexpr):
    """Return the program's rows (R, 1), its tile, the tile's first element, and the number of the tile's elements."""
    pid = tl.program_id(0)
    tile = pid % across
    start = tile.to(tl.int64) * STEP
    return row_indices(pid, across, R), tile, start, tl.minimum(size - start, STEP).to(tl.int32)


@triton.jit
def _forward_kernel(
    mu, logvar, z, pooled, partial, std_sums, prior, prior_step, noise, rows, size, channels, locations, across,
    std_max: tl.float64, logvar_max: tl.float64, LOCATIONS: tl.constexpr, POOL: tl.constexpr, CB: tl.constexpr,
    CLIP: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr,
    STEP: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, tile, start, count = _begin(across, size, R, STEP)
    lane = tl.arange(0, BLOCK)[None, :]
    inside = row < rows
    mask = inside & (lane < count)
    mu_value = read(mu, row, start, lane, mask, LAYOUT, C)
    logvar_value = read(logvar, row, start, lane, mask, LAYOUT, C)
    logvar_value, std = _clipped(logvar_value, scalar(std_max, C), scalar(logvar_max, C), CLIP, FAST)
    if noise[0] is None:
        z_value = mu_value
    else:
        w0, w1, w2, w3 = tile_words(noise, row, rows, start, BLOCK)
        z_value = mu_value + std * normals_of(w0, w1, w2, w3, BLOCK, C, FAST)
    write(z, row, size, start, lane, z_value, mask)

    prior_variance = tl.load(prior + row * prior_step, mask=inside, other=1)
    offset = logarithm(prior_variance) * 0.5 - 0.5
    scale_down, factor = _square_scale(prior_variance)
    scaled_std, scaled_mu = std * scale_down, mu_value * scale_down
    # Half of the squares, because the whole may overflow.
    squares = (scaled_std * scaled_std + scaled_mu * scaled_mu) * (factor * _HALF_SQUARE_SCALE)
    divergence = tl.sum(tl.where(mask, squares + (offset - logvar_value * 0.5), 0.0), 1)[:, None]
    tl.store(partial + row * across + tile, divergence, mask=inside)

    if POOL == 0:
        tl.store(pooled + row * size + start + lane, std, mask=mask)
    elif POOL == 1:
        row_of_program = tl.program_id(0).to(tl.int64) // across
        if CB * LOCATIONS == BLOCK:
            means = tl.sum(tl.reshape(std, (COLUMNS, BLOCK // COLUMNS)), 1) / LOCATIONS
        else:
            # The gather through shared memory puts each channel in a column, so that a thread adds elements of one
            # channel only.
            place = tl.arange(0, PADDED)[:, None]
            column = tl.minimum(tl.arange(0, COLUMNS), CB - 1)[None, :]
            index = column * LOCATIONS + tl.minimum(place, LOCATIONS - 1)
            flat = tl.gather(tl.reshape(std, (BLOCK,)), tl.reshape(index, (PADDED * COLUMNS,)), 0)
            grouped = tl.where(place < LOCATIONS, tl.reshape(flat, (PADDED, COLUMNS)), 0.0)
            means = tl.sum(grouped, 0) / LOCATIONS
        place = tl.arange(0, COLUMNS)
        channel = tile * CB + place
        destination = pooled + row_of_program * channels + channel
        tl.store(destination, means, mask=(place < CB) & (channel < channels))
    else:
        _, second = boundary(start, locations, BLOCK)
        destination = std_sums + (row * across + tile) * 2
        tl.store(destination, tl.sum(tl.where(lane < tl.minimum(second, count), std, 0.0), 1)[:, None])
        tail = tl.zeros((R, 1), C)
        if second < count:
            tail = tl.sum(tl.where((lane >= second) & (lane < count), std, 0.0), 1)[:, None]
        tl.store(destination + 1, tail)


@triton.jit
def _finish_kernel(
    partial, std_sums, kl, pooled, channels, locations, step, across, inverse_locations: tl.float64, BLOCK: tl.constexpr
):
    """Add the sums of the tiles in order. Program (row, k) computes channel k or, at k = channels, the row's KL."""
    pid = tl.program_id(0)
    row = (pid // (channels + 1)).to(tl.int64)
    channel = (pid % (channels + 1)).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    if channel == channels:
        tile = tl.full((), 0, tl.int64)
        while tile < across:
            total += tl.load(partial + row * across + tile + lane, mask=lane < across - tile, other=0).to(tl.float64)
            tile += BLOCK
        tl.store(kl + row, tl.sum(total, 0).to(kl.dtype.element_ty))
    else:
        tile = channel * locations // step
        last = ((channel + 1) * locations - 1) // step
        while tile <= last:
            index = tile + lane
            # A tile's second sum belongs to the channel after the one in which the tile begins.
            second = (index * step) // locations < channel
            destination = std_sums + (row * across + index) * 2 + second.to(tl.int64)
            total += tl.load(destination, mask=index <= last, other=0).to(tl.float64)
            tile += BLOCK
        tl.store(pooled + row * channels + channel, (tl.sum(total, 0) * inverse_locations).to(pooled.dtype.element_ty))


@triton.jit
def _spread(grad_std, row, inside, tile, start, lane, locations, channels, LOCATIONS: tl.constexpr,
            POOL: tl.constexpr, CB: tl.constexpr, C: tl.constexpr, STD_LAYOUT: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """Return the gradient of the pooled std at the elements of a tile, not yet divided by the locations."""
    zero = tl.zeros_like(row)
    if POOL == 0:
        value = read(grad_std, row, start, lane, inside & (lane < channels - start), STD_LAYOUT, C)
    elif POOL == 1:
        channel = tile * CB + lane // LOCATIONS
        value = widened(
            tl.load(pointers(grad_std, row, zero, channel, STD_LAYOUT), mask=channel < channels, other=0), C
        )
    else:
        first, second = boundary(start, locations, BLOCK)
        first_value = widened(tl.load(pointers(grad_std, row, first, zero, STD_LAYOUT)), C)
        second_value = widened(
            tl.load(pointers(grad_std, row, first + 1, zero, STD_LAYOUT), mask=zero + first + 1 < channels, other=0), C
        )
        value = tl.where(lane < second, first_value, second_value)
    return value


@triton.jit
def _backward_kernel(
    grad_z, grad_std, grad_kl, mu, logvar, grad_mu, grad_logvar, partial, prior, prior_step, noise, rows, size,
    channels, locations, across, std_max: tl.float64, logvar_max: tl.float64, inverse_locations: tl.float64,
    LOCATIONS: tl.constexpr, POOL: tl.constexpr, CB: tl.constexpr, CLIP: tl.constexpr, C: tl.constexpr,
    FAST: tl.constexpr, LAYOUT: tl.constexpr, STD_LAYOUT: tl.constexpr, R: tl.constexpr, STEP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, tile, start, count = _begin(across, size, R, STEP)
    lane = tl.arange(0, BLOCK)[None, :]
    inside = row < rows
    mask = inside & (lane < count)
    logvar_value = read(logvar, row, start, lane, mask, LAYOUT, C)
    _, std = _clipped(logvar_value, scalar(std_max, C), scalar(logvar_max, C), CLIP, FAST)
    std_gradient = tl.zeros_like(std)
    mu_gradient = tl.zeros_like(std)
    if grad_std is not None:
        spread = _spread(
            grad_std, row, inside, tile, start, lane, locations, channels, LOCATIONS, POOL, CB, C, STD_LAYOUT, BLOCK
        )
        std_gradient += spread * scalar(inverse_locations, C)
    if grad_z is not None:
        mu_gradient = read(grad_z, row, start, lane, mask, LAYOUT, C)
        if noise[0] is not None:
            w0, w1, w2, w3 = tile_words(noise, row, rows, start, BLOCK)
            std_gradient += mu_gradient * normals_of(w0, w1, w2, w3, BLOCK, C, FAST)
    half = std * 0.5
    logvar_gradient = std_gradient * half
    # Without a gradient of kl its terms are not computed, because 0 * inf is not 0.
    if grad_kl is not None:
        kl_gradient = tl.load(grad_kl[0] + row * grad_kl[1], mask=inside, other=0)
        prior_variance = tl.load(prior + row * prior_step, mask=inside, other=1)
        # kl_gradient / prior = factor1 * factor2: the quotient may overflow although its product with mu or std^2 does
        # not.
        factor1, factor2 = split_quotient(kl_gradient, prior_variance)
        mu_value = read(mu, row, start, lane, mask, LAYOUT, C)
        mu_gradient += (mu_value * factor1) * factor2
        # A fused multiply-add, because the product alone may overflow.
        logvar_gradient += tl.fma(half * factor1, std * factor2, kl_gradient * -0.5)
        if partial is not None:
            scale_down, factor = _square_scale(prior_variance)
            scaled_std, scaled_mu = std * scale_down, mu_value * scale_down
            squares = tl.where(mask, scaled_std * scaled_std + scaled_mu * scaled_mu, 0.0)
            # A sum above 2^223 times the prior counts as infinite; if kl_gradient is 0, such a sum contributes 0.
            scaled_sum = tl.sum(squares, 1)[:, None].to(tl.float64)
            scaled_sum = tl.where((kl_gradient == 0.0) & (scaled_sum == INFINITY), 0.0, scaled_sum)
            slope = count - scaled_sum * (factor.to(tl.float64) * _SQUARE_SCALE)
            prior_gradient = 0.5 * kl_gradient.to(tl.float64) * slope / prior_variance.to(tl.float64)
            tl.store(partial + row * across + tile, prior_gradient, mask=inside)
    elif partial is not None:
        tl.store(partial + row * across + tile, tl.zeros_like(row).to(tl.float64), mask=inside)
    if CLIP:
        # Like torch.clamp, this stops the gradient above the limit and for a NaN.
        logvar_gradient = tl.where(logvar_value <= scalar(logvar_max, C), logvar_gradient, 0.0)
    write(grad_mu, row, size, start, lane, mu_gradient, mask)
    write(grad_logvar, row, size, start, lane, logvar_gradient, mask)


def _settings(mu, prior_var, std_max, sample, seed, stream, sample_ids, config) -> tuple[tuple, dict, Cut]:
    """Return the arguments of both kernels after their tensors: positional arguments, constants, and the cut."""
    rows, channels, locations = mu.shape[0], mu.shape[1], math.prod(mu.shape[2:])
    cut = _cut(rows, channels, locations, config.elements)
    positional = (
        prior_var, 0 if prior_var.numel() == 1 else 1, noise_of(seed if sample else None, stream, sample_ids),
        rows, channels * locations, channels, locations, cut.across,
        *((0.0, 0.0) if std_max is None else (std_max, 2 * math.log(std_max))),
    )  # fmt: skip
    constants = {
        "LOCATIONS": locations if cut.pool == 1 else 1, "POOL": cut.pool, "CB": cut.CB, "CLIP": std_max is not None,
        "C": triton_dtype(mu.dtype), "FAST": fast_math(mu.device), "R": cut.R, "STEP": cut.step,
        "BLOCK": cut.BLOCK, "num_warps": config.num_warps,
    }  # fmt: skip
    return positional, constants, cut


def reparameterize(mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids) -> tuple[Tensor, Tensor, Tensor]:
    dtype = checks.compute_dtype(mu.dtype)
    if mu.numel() == 0:
        # The mean over zero locations is NaN, and the sum over zero elements is 0.
        pooled = torch.full(mu.shape[:2], math.nan, dtype=dtype, device=mu.device)
        return torch.empty(mu.shape, dtype=mu.dtype, device=mu.device), pooled, pooled.new_zeros(mu.shape[:1])
    moments, layout = rows_of(mu, logvar)
    rows, channels, locations = mu.shape[0], mu.shape[1], math.prod(mu.shape[2:])

    def call(config: Config) -> tuple[Tensor, Tensor, Tensor]:
        positional, constants, cut = _settings(mu, prior_var, std_max, sample, seed, stream, sample_ids, config)
        z = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device)
        pooled = torch.empty((rows, channels), dtype=dtype, device=mu.device)
        partial = torch.empty((rows, cut.across), dtype=dtype, device=mu.device)
        std_sums = torch.empty((rows, cut.across, 2), dtype=dtype, device=mu.device) if cut.pool == 2 else None
        launch(
            _forward_kernel, mu.device, cut.programs, *moments, z, pooled, partial, std_sums, *positional,
            LAYOUT=layout, PADDED=next_power_of_2(locations), COLUMNS=next_power_of_2(cut.CB), **constants,
        )  # fmt: skip
        if std_sums is None:
            return z, pooled, partial.view(rows) if cut.across == 1 else sum_runs(partial, (rows,))
        kl = torch.empty((rows,), dtype=dtype, device=mu.device)
        block = min(next_power_of_2(max(locations // cut.step, 1) + 2), 256)
        launch(
            _finish_kernel, mu.device, rows * (channels + 1), partial, std_sums, kl, pooled, channels, locations,
            cut.step, cut.across, 1 / locations, BLOCK=block, num_warps=1,
        )  # fmt: skip
        return z, pooled, kl

    return tuned("reparameterize", mu.dtype, mu.numel(), mu.device, call)


def reparameterize_backward(
    grad_z, grad_std, grad_kl, mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids, needs_prior
) -> tuple[Tensor, Tensor, Tensor]:
    if mu.numel() == 0:
        grad_prior = torch.zeros_like(prior_var) if needs_prior else prior_var.new_empty(0)
        return mu.new_empty(mu.shape), mu.new_empty(mu.shape), grad_prior
    (z_rows, *moments), layout = rows_of(grad_z, mu, logvar)
    pooled, std_layout = rows_of(grad_std, grad_kl)
    inverse = 1 / math.prod(mu.shape[2:])

    def call(config: Config) -> tuple[Tensor, Tensor, Tensor]:
        positional, constants, cut = _settings(mu, prior_var, std_max, sample, seed, stream, sample_ids, config)
        grad_mu = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device)
        grad_logvar = torch.empty_like(grad_mu)
        partial = None
        if needs_prior:
            partial = torch.empty((mu.shape[0], cut.across), dtype=torch.float64, device=mu.device)
        launch(
            _backward_kernel, mu.device, cut.programs, z_rows, *pooled, *moments, grad_mu,
            grad_logvar, partial, *positional, inverse, LAYOUT=layout, STD_LAYOUT=std_layout, **constants,
        )  # fmt: skip
        if partial is None:
            return grad_mu, grad_logvar, prior_var.new_empty(0)
        grad_prior = sum_runs(partial.view(prior_var.numel(), -1), prior_var.shape, dtype=prior_var.dtype)
        return grad_mu, grad_logvar, grad_prior

    return tuned("reparameterize_backward", mu.dtype, mu.numel(), mu.device, call)
