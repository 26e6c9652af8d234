"""reparameterize: mu and logvar read once, z written once, std pooled and the KL summed on the way.

A row is C channels of L locations, cut into tiles by its shape alone (`_cut`):

    POOL 0  L is 1: nothing to pool
    POOL 1  short channels: a tile holds CB whole ones, pooled inside it
    POOL 2  long channels: a tile lies in one or two of them; its two sums are added up by `_finish_kernel`
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import checks
from ._launch import ceil_div, fast_math, launch, next_power_of_2, triton_dtype
from ._math import INFINITY, exponential_of_half, logarithm, quotient_in_two, scalar, scale, split
from ._rows import boundary, pointers, read, row_indices, rows_of, tiles_of, widened, write
from ._sums import sum_runs
from ._tuning import DEFAULT, Config, tuned
from .random import noise_of, normals_of, tile_words


class Cut(NamedTuple):
    """`step` elements separate the beginnings of a row's `across` tiles."""

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
        # A tile begins at a multiple of 4 elements, as noise comes in fours; of 8 where that can be: 16 bytes.
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
    """std; by comparisons, which let a NaN pass."""
    if CLIP:
        logvar = tl.where(logvar > logvar_max, logvar_max, logvar)
        std = exponential_of_half(logvar, FAST)
        return logvar, tl.where(std > std_max, std_max, std)
    else:
        return logvar, exponential_of_half(logvar, FAST)


@triton.jit
def _unit(variance):
    """(2^-k 2^-48, 4^k / variance), 4^k near a prior's variance: the squares of std and mu, in such units, are numbers.

    What underflows is less than 2^-30 of the 1 that a square is compared with.
    """
    mantissa, exponent = split(variance)
    half = exponent >> 1
    down = scale(tl.zeros_like(variance) + 1.0, -half - 48)
    return down, 1.0 / (mantissa * (exponent - half - half + 1).to(variance.dtype))


@triton.jit
def _begin(across, size, R: tl.constexpr, STEP: tl.constexpr):
    """The program's rows (R, 1), its tile, the tile's first element, and how many of its lanes are the tile's."""
    pid = tl.program_id(0)
    tile = pid % across
    start = tile.to(tl.int64) * STEP
    return row_indices(pid, across, R), tile, start, tl.minimum(size - start, STEP).to(tl.int32)


@triton.jit
def _forward_kernel(
    mu, logvar, z, pooled, partial, spans, prior, prior_step, noise, rows, size, channels, locations, across,
    std_max: tl.float64, logvar_max: tl.float64, LOCATIONS: tl.constexpr, POOL: tl.constexpr, CB: tl.constexpr,
    CLIP: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr,
    STEP: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, tile, start, count = _begin(across, size, R, STEP)
    lane = tl.arange(0, BLOCK)[None, :]
    inside = row < rows
    mask = inside & (lane < count)
    mean = read(mu, row, start, lane, mask, LAYOUT, C)
    log_variance = read(logvar, row, start, lane, mask, LAYOUT, C)
    log_variance, std = _clipped(log_variance, scalar(std_max, C), scalar(logvar_max, C), CLIP, FAST)
    if noise[0] is None:
        drawn = mean
    else:
        w0, w1, w2, w3 = tile_words(noise, row, rows, start, BLOCK)
        drawn = mean + std * normals_of(w0, w1, w2, w3, BLOCK, C, FAST)
    write(z, row, size, start, lane, drawn, mask)

    variance = tl.load(prior + row * prior_step, mask=inside, other=1)
    offset = logarithm(variance) * 0.5 - 0.5
    down, rest = _unit(variance)
    std_units, mean_units = std * down, mean * down
    # Halves, as a whole may overflow. 2^95 is half of what two factors of 2^-48 took away.
    squares = (std_units * std_units + mean_units * mean_units) * (rest * 39614081257132168796771975168.0)
    divergence = tl.sum(tl.where(mask, squares + (offset - log_variance * 0.5), 0.0), 1)[:, None]
    tl.store(partial + row * across + tile, divergence, mask=inside)

    if POOL == 0:
        tl.store(pooled + row * size + start + lane, std, mask=mask)
    elif POOL == 1:
        row_of_program = tl.program_id(0).to(tl.int64) // across
        if CB * LOCATIONS == BLOCK:
            means = tl.sum(tl.reshape(std, (COLUMNS, BLOCK // COLUMNS)), 1) / LOCATIONS
        else:
            # Through shared memory, a channel to a column: a thread then adds elements of one channel only.
            place = tl.arange(0, PADDED)[:, None]
            column = tl.minimum(tl.arange(0, COLUMNS), CB - 1)[None, :]
            index = column * LOCATIONS + tl.minimum(place, LOCATIONS - 1)
            flat = tl.gather(tl.reshape(std, (BLOCK,)), tl.reshape(index, (PADDED * COLUMNS,)), 0)
            grouped = tl.where(place < LOCATIONS, tl.reshape(flat, (PADDED, COLUMNS)), 0.0)
            means = tl.sum(grouped, 0) / LOCATIONS
        place = tl.arange(0, COLUMNS)
        channel = tile * CB + place
        home = pooled + row_of_program * channels + channel
        tl.store(home, means, mask=(place < CB) & (channel < channels))
    else:
        _, second = boundary(start, locations, BLOCK)
        home = spans + (row * across + tile) * 2
        tl.store(home, tl.sum(tl.where(lane < tl.minimum(second, count), std, 0.0), 1)[:, None])
        tail = tl.zeros((R, 1), C)
        if second < count:
            tail = tl.sum(tl.where((lane >= second) & (lane < count), std, 0.0), 1)[:, None]
        tl.store(home + 1, tail)


@triton.jit
def _finish_kernel(
    partial, spans, kl, pooled, channels, locations, step, across, inverse_locations: tl.float64, BLOCK: tl.constexpr
):
    """Adds what the tiles left, in their order: program (row, k) has channel k, or the row's KL behind the last one."""
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
            # A tile's second sum belongs to the channel behind the one that the tile begins in.
            second = (index * step) // locations < channel
            home = spans + (row * across + index) * 2 + second.to(tl.int64)
            total += tl.load(home, mask=index <= last, other=0).to(tl.float64)
            tile += BLOCK
        tl.store(pooled + row * channels + channel, (tl.sum(total, 0) * inverse_locations).to(pooled.dtype.element_ty))


@triton.jit
def _spread(grad_std, row, inside, tile, start, lane, locations, channels, LOCATIONS: tl.constexpr,
            POOL: tl.constexpr, CB: tl.constexpr, C: tl.constexpr, STD_LAYOUT: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """The pooled std's gradient at the elements of a tile, before the division by the locations."""
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
        one = widened(tl.load(pointers(grad_std, row, first, zero, STD_LAYOUT)), C)
        two = widened(
            tl.load(pointers(grad_std, row, first + 1, zero, STD_LAYOUT), mask=zero + first + 1 < channels, other=0), C
        )
        value = tl.where(lane < second, one, two)
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
    raw = read(logvar, row, start, lane, mask, LAYOUT, C)
    _, std = _clipped(raw, scalar(std_max, C), scalar(logvar_max, C), CLIP, FAST)
    by_std = tl.zeros_like(std)
    by_mu = tl.zeros_like(std)
    if grad_std is not None:
        spread = _spread(
            grad_std, row, inside, tile, start, lane, locations, channels, LOCATIONS, POOL, CB, C, STD_LAYOUT, BLOCK
        )
        by_std += spread * scalar(inverse_locations, C)
    if grad_z is not None:
        by_mu = read(grad_z, row, start, lane, mask, LAYOUT, C)
        if noise[0] is not None:
            w0, w1, w2, w3 = tile_words(noise, row, rows, start, BLOCK)
            by_std += by_mu * normals_of(w0, w1, w2, w3, BLOCK, C, FAST)
    half = std * 0.5
    by_logvar = by_std * half
    # Without a gradient of kl its term is not formed at all, as 0 * inf is not 0.
    if grad_kl is not None:
        by_kl = tl.load(grad_kl[0] + row * grad_kl[1], mask=inside, other=0)
        variance = tl.load(prior + row * prior_step, mask=inside, other=1)
        # by_kl / variance may overflow where its product with mu or std^2 does not, so it comes as two factors.
        one, other = quotient_in_two(by_kl, variance)
        mean = read(mu, row, start, lane, mask, LAYOUT, C)
        by_mu += (mean * one) * other
        # One operation: the product alone may overflow.
        by_logvar += tl.fma(half * one, std * other, by_kl * -0.5)
        if partial is not None:
            down, rest = _unit(variance)
            std_units, mean_units = std * down, mean * down
            squares = tl.where(mask, std_units * std_units + mean_units * mean_units, 0.0)
            # A sum beyond 2^223 priors counts as infinite; without a gradient it has no part.
            sum_in_units = tl.sum(squares, 1)[:, None].to(tl.float64)
            sum_in_units = tl.where((by_kl == 0.0) & (sum_in_units == INFINITY), 0.0, sum_in_units)
            slope = count - sum_in_units * (rest.to(tl.float64) * 79228162514264337593543950336.0)
            by_prior = 0.5 * by_kl.to(tl.float64) * slope / variance.to(tl.float64)
            tl.store(partial + row * across + tile, by_prior, mask=inside)
    elif partial is not None:
        tl.store(partial + row * across + tile, tl.zeros_like(row).to(tl.float64), mask=inside)
    if CLIP:
        # As torch.clamp has it: no gradient past the limit, nor for a NaN.
        by_logvar = tl.where(raw <= scalar(logvar_max, C), by_logvar, 0.0)
    write(grad_mu, row, size, start, lane, by_mu, mask)
    write(grad_logvar, row, size, start, lane, by_logvar, mask)


def _settings(mu, prior_var, std_max, sample, seed, stream, sample_ids, config) -> tuple[tuple, dict, Cut]:
    """What both kernels take behind their tensors: positional arguments, constants, the cut."""
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
        # The mean over no locations at all, the sum over no elements.
        pooled = torch.full(mu.shape[:2], math.nan, dtype=dtype, device=mu.device)
        return torch.empty(mu.shape, dtype=mu.dtype, device=mu.device), pooled, pooled.new_zeros(mu.shape[:1])
    moments, layout = rows_of(mu, logvar)
    rows, channels, locations = mu.shape[0], mu.shape[1], math.prod(mu.shape[2:])

    def call(config: Config) -> tuple[Tensor, Tensor, Tensor]:
        positional, constants, cut = _settings(mu, prior_var, std_max, sample, seed, stream, sample_ids, config)
        z = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device)
        pooled = torch.empty((rows, channels), dtype=dtype, device=mu.device)
        partial = torch.empty((rows, cut.across), dtype=dtype, device=mu.device)
        spans = torch.empty((rows, cut.across, 2), dtype=dtype, device=mu.device) if cut.pool == 2 else None
        launch(
            _forward_kernel, mu.device, cut.programs, *moments, z, pooled, partial, spans, *positional,
            LAYOUT=layout, PADDED=next_power_of_2(locations), COLUMNS=next_power_of_2(cut.CB), **constants,
        )  # fmt: skip
        if spans is None:
            return z, pooled, partial.view(rows) if cut.across == 1 else sum_runs(partial, (rows,))
        kl = torch.empty((rows,), dtype=dtype, device=mu.device)
        block = min(next_power_of_2(max(locations // cut.step, 1) + 2), 256)
        launch(
            _finish_kernel, mu.device, rows * (channels + 1), partial, spans, kl, pooled, channels, locations,
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
