"""The kernels of reparameterize. POOL is explained in reparameterize.py."""

import triton
import triton.language as tl

from ._math import INFINITY, exponential_of_half, logarithm, scalar, scale, split, split_quotient
from ._rows import boundary, pointers, read, row_indices, widened, write
from .random import normals_of, tile_words

# csrc/scaled.h explains these constants. _SQUARE_SCALE is 2^(2 _SQUARE_SHIFT).
_SQUARE_SHIFT = tl.constexpr(48)
_SQUARE_SCALE, _HALF_SQUARE_SCALE = tl.constexpr(2.0**96), tl.constexpr(2.0**95)


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


@triton.jit(do_not_specialize=["stream"], do_not_specialize_on_alignment=["across"])
def _forward_kernel(
    mu, logvar, z, pooled, partial, std_sums, prior, noise, stream: tl.uint32, rows, size, channels, locations, across,
    std_max: tl.float64, logvar_max: tl.float64, PRIOR_STEP: tl.constexpr, LOCATIONS: tl.constexpr, POOL: tl.constexpr,
    CB: tl.constexpr, CLIP: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr,
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
        w0, w1, w2, w3 = tile_words(noise, stream, row, rows, start, BLOCK)
        z_value = mu_value + std * normals_of(w0, w1, w2, w3, BLOCK, C, FAST)
    write(z, row, size, start, lane, z_value, mask)

    prior_variance = tl.load(prior + row * PRIOR_STEP, mask=inside, other=1)
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


@triton.jit(do_not_specialize=["groups", "channels", "locations", "step", "across"])
def _finish_kernel(
    partial, std_sums, kl, pooled, groups, channels, locations, step, across, inverse_locations: tl.float64,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the sums of the tiles in order, in float64.

    Program (row, k) computes the k-th group of CHANNELS channels or, at k = groups, the row's KL.
    """
    pid = tl.program_id(0)
    row = (pid // (groups + 1)).to(tl.int64)
    group = pid % (groups + 1)
    begin = 0
    if group == groups:
        lane = tl.arange(0, CHANNELS * BLOCK)
        terms = tl.zeros((CHANNELS * BLOCK,), tl.float64)
        while begin < across:
            terms += tl.load(partial + row * across + begin + lane, mask=lane < across - begin, other=0).to(tl.float64)
            begin += CHANNELS * BLOCK
        tl.store(kl + row, tl.sum(terms, 0).to(kl.dtype.element_ty))
    else:
        channel = group.to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
        first = channel * locations
        tile = first // step + tl.arange(0, BLOCK)[None, :]
        sums = tl.zeros((CHANNELS, BLOCK), tl.float64)
        while begin < locations + 2 * step:
            # A tile's second sum belongs to the channel after the one in which the tile begins.
            second = (tile * step < first).to(tl.int64)
            exists = (tile * step < first + locations) & (channel < channels)
            sums += tl.load(std_sums + (row * across + tile) * 2 + second, mask=exists, other=0).to(tl.float64)
            tile += BLOCK
            begin += BLOCK * step
        mean = tl.sum(sums, 1)[:, None] * inverse_locations
        tl.store(pooled + row * channels + channel, mean.to(pooled.dtype.element_ty), mask=channel < channels)


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


@triton.jit(do_not_specialize=["stream"])
def _backward_kernel(
    grad_z, grad_std, grad_kl, mu, logvar, grad_mu, grad_logvar, partial, prior, noise, stream: tl.uint32,
    rows, size, channels, locations, across, std_max: tl.float64, logvar_max: tl.float64,
    inverse_locations: tl.float64, PRIOR_STEP: tl.constexpr, LOCATIONS: tl.constexpr, POOL: tl.constexpr,
    CB: tl.constexpr, CLIP: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr, LAYOUT: tl.constexpr,
    STD_LAYOUT: tl.constexpr, R: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr,
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
            w0, w1, w2, w3 = tile_words(noise, stream, row, rows, start, BLOCK)
            std_gradient += mu_gradient * normals_of(w0, w1, w2, w3, BLOCK, C, FAST)
    half = std * 0.5
    # Without a gradient that reaches std, the product with a std that is not finite would be NaN.
    has_std: tl.constexpr = grad_std is not None or (grad_z is not None and noise[0] is not None)
    logvar_gradient = std_gradient * half if has_std else tl.zeros_like(std)
    # Without a gradient of kl its terms are not computed, because 0 * inf is not 0.
    if grad_kl is not None:
        kl_gradient = tl.load(grad_kl[0] + row * grad_kl[1], mask=inside, other=0)
        prior_variance = tl.load(prior + row * PRIOR_STEP, mask=inside, other=1)
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
