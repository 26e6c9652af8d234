"""The kernels of reparameterize with pool=True.

_pooled_sums_kernel adds over the locations, a part of them in each program. _pooled_finish_kernel combines the parts
and adds the noise. _pooled_tiles.py explains places and tiles.
"""

import triton
import triton.language as tl

from ._math import INFINITY, logarithm, scalar, scale, split, split_quotient
from ._pooled_tiles import FLAT, PLANES, channels_of, mask_of, place_of, read_tile, write_tile
from ._reparameterize import _SQUARE_SCALE, _clipped, _square_scale
from ._rows import narrowed, widened
from .random import normals_at, normals_of, tile_words

# Between these limits a sum of squares lost nothing to underflow or overflow.
_SMALLEST_SUM, _LARGEST_SUM = tl.constexpr(2.0**-80), tl.constexpr(2.0**100)
# The squares for kl are scaled to 1/16 to 1/8 of those over the prior variance, so that they overflow only if kl does.
_SHIFT = tl.constexpr(2.0**46)


@triton.jit
def _add(a0, a1, a2, a3, b0, b1, b2, b3):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@triton.jit
def _scaled_squares(logvar, exponent, place, begin, end, limits, CLIP: tl.constexpr, C: tl.constexpr,
                    FAST: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
                    AXIS: tl.constexpr):  # fmt: skip
    """Return each channel's sum of the squares of std 2^-exponent."""
    squares = tl.zeros((BLOCK, R) if AXIS == 0 else (R, BLOCK), C)
    while begin < end:
        value = read_tile(logvar, place, begin, end, LAYOUT, R, BLOCK, AXIS, C)
        std = _clipped(value, limits[0], limits[1], CLIP, FAST)[1]
        scaled = scale(tl.where(mask_of(place, begin, end, R, BLOCK, AXIS), std, 0.0), -exponent)
        squares = tl.fma(scaled, scaled, squares)
        begin += BLOCK
    return tl.expand_dims(tl.sum(squares, AXIS), AXIS)


@triton.jit
def _added(sums, mu, logvar, place, begin, end, limits, scale_down, unit, offset, CLIP: tl.constexpr,
           C: tl.constexpr, FAST: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
           AXIS: tl.constexpr):  # fmt: skip
    """Add a tile to the sums of mu, of std, of the squares of std, and of kl times 2 unit."""
    mask = mask_of(place, begin, end, R, BLOCK, AXIS)
    mu_value = read_tile(mu, place, begin, end, LAYOUT, R, BLOCK, AXIS, C)
    logvar_value = read_tile(logvar, place, begin, end, LAYOUT, R, BLOCK, AXIS, C)
    logvar_value, std = _clipped(logvar_value, limits[0], limits[1], CLIP, FAST)
    std = tl.where(mask, std, 0.0)
    scaled_std, scaled_mu = std * scale_down, mu_value * scale_down
    divergence = tl.fma(scaled_mu, scaled_mu, tl.fma(scaled_std, scaled_std, tl.fma(logvar_value, -unit, offset)))
    divergence = sums[3] + tl.where(mask, divergence, 0.0)
    return sums[0] + mu_value, sums[1] + std, tl.fma(std, std, sums[2]), divergence


@triton.jit(do_not_specialize=["channels", "locations", "units", "blocks", "parts", "steps"])
def _pooled_sums_kernel(
    mu, logvar, sums, partial, prior, channels, locations, units, blocks, parts, steps, std_max: tl.float64,
    logvar_max: tl.float64, inverse_locations: tl.float64, PRIOR_STEP: tl.constexpr, CLIP: tl.constexpr,
    C: tl.constexpr, FAST: tl.constexpr, LAYOUT: tl.constexpr, UNIT: tl.constexpr, R: tl.constexpr,
    BLOCK: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """Write (B, parts, 3, C): each part's sum of mu, sum of std, and share of the spread; and its share of kl."""
    place, part, start, end = place_of(channels, locations, units, blocks, parts, steps, LAYOUT, UNIT, R, BLOCK)
    row, first = place[0], place[1]
    limits = (scalar(std_max, C), scalar(logvar_max, C))
    prior_variance = tl.load(prior + row * PRIOR_STEP)
    scale_down = _square_scale(prior_variance)[0] * _SHIFT
    # Exact, because scale_down is a power of 2.
    unit = prior_variance * scale_down * scale_down
    offset = unit * (logarithm(prior_variance) - 1.0)

    zeros = tl.zeros((BLOCK, R) if AXIS == 0 else (R, BLOCK), C)
    added = (zeros, zeros, zeros, zeros)
    if LAYOUT == FLAT:
        added = _added(
            added, mu, logvar, place, start, end, limits, scale_down, unit, offset, CLIP, C, FAST, LAYOUT, R, BLOCK,
            AXIS,
        )  # fmt: skip
    else:
        begin = start
        while begin < end:
            added = _added(
                added, mu, logvar, place, begin, end, limits, scale_down, unit, offset, CLIP, C, FAST, LAYOUT, R,
                BLOCK, AXIS,
            )  # fmt: skip
            begin += BLOCK
    mu_sum, std_sum, square_sum, divergence = tl.reduce(added, AXIS, _add)
    mu_sum, std_sum = tl.expand_dims(mu_sum, AXIS), tl.expand_dims(std_sum, AXIS)
    square_sum = tl.expand_dims(square_sum, AXIS)
    spread = tl.sqrt(square_sum) * scalar(inverse_locations, C)
    channel = first + channels_of(R, AXIS)
    outside = (channel < channels) & ((square_sum < _SMALLEST_SUM) | (square_sum > _LARGEST_SUM))
    if tl.max(outside.to(tl.int32)) > 0:
        # The sum of std tells the size of the largest one, up to the number of locations.
        exponent = split(std_sum)[1]
        exponent = tl.where(std_sum == INFINITY, 127, exponent)
        # This is rare: a gather's indices would cost the usual case registers.
        simple: tl.constexpr = PLANES if LAYOUT == FLAT else LAYOUT
        square_sum = _scaled_squares(logvar, exponent, place, start, end, limits, CLIP, C, FAST, simple, R, BLOCK, AXIS)
        spread = scale(tl.sqrt(square_sum) * scalar(inverse_locations, C), exponent)

    at = sums + (row * parts + part) * 3 * channels + channel
    tl.store(at, mu_sum, mask=channel < channels)
    tl.store(at + channels, std_sum, mask=channel < channels)
    tl.store(at + 2 * channels, spread, mask=channel < channels)
    tl.store(partial + (row * parts + part) * blocks + first // R, tl.sum(divergence) * (0.5 / unit))


@triton.jit
def _norm(shares):
    """Return the square root of the sum of squares of each column, without leaving the range on the way."""
    largest = tl.max(shares, 0)[None, :]
    ratio = tl.where(shares == largest, 1.0, shares / largest)
    return largest * tl.sqrt(tl.sum(tl.fma(ratio, ratio, tl.zeros_like(ratio)), 0)[None, :])


@triton.jit(do_not_specialize=["stream", "rows", "channels", "parts", "blocks", "groups"])
def _pooled_finish_kernel(
    sums, partial, z, std, kl, spread, noise, stream: tl.uint32, rows, channels, parts, blocks, groups,
    inverse_locations: tl.float64, C: tl.constexpr, FAST: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Program (row, k) computes the k-th group of CHANNELS channels or, at k = groups, the row's KL."""
    pid = tl.program_id(0)
    group = pid % (groups + 1)
    row = (pid // (groups + 1)).to(tl.int64) + tl.zeros((1, 1), tl.int64)
    lane = tl.arange(0, CHANNELS)[None, :]
    if group == groups:
        count = parts * blocks
        begin = 0
        total = tl.zeros((1, CHANNELS), tl.float64)
        while begin < count:
            mask = lane < count - begin
            total += tl.load(partial + row * count + begin + lane, mask=mask, other=0).to(tl.float64)
            begin += CHANNELS
        tl.store(kl + row, tl.sum(total, 1)[:, None].to(kl.dtype.element_ty))
    else:
        start = group.to(tl.int64) * CHANNELS
        channel = start + lane
        part = tl.arange(0, PARTS)[:, None]
        at = sums + (row * parts + part) * 3 * channels + channel
        mask = (part < parts) & (channel < channels)
        inverse = scalar(inverse_locations, C)
        z_value = tl.sum(tl.load(at, mask=mask, other=0), 0)[None, :] * inverse
        std_value = tl.sum(tl.load(at + channels, mask=mask, other=0), 0)[None, :] * inverse
        spread_value = _norm(tl.load(at + 2 * channels, mask=mask, other=0))
        if noise[0] is not None:
            w0, w1, w2, w3 = tile_words(noise, stream, row, rows, start, CHANNELS)
            z_value += spread_value * normals_of(w0, w1, w2, w3, CHANNELS, C, FAST)
        to = row * channels + channel
        tl.store(z + to, narrowed(z_value, z.dtype.element_ty), mask=channel < channels)
        tl.store(std + to, std_value, mask=channel < channels)
        tl.store(spread + to, spread_value, mask=channel < channels)


@triton.jit
def _of_channels(x, R: tl.constexpr, AXIS: tl.constexpr):
    """Return (1, R) values of channels as (R, 1) where tiles have the channels first."""
    if AXIS == 0:
        return x
    else:
        return tl.reshape(x, (R, 1))


@triton.jit
def _channel_gradients(grad_z, z_row, z_step, grad_std, std_row, std_step, spread, place, rows, noise, stream, inverse,
                       C: tl.constexpr, FAST: tl.constexpr, R: tl.constexpr, AXIS: tl.constexpr):  # fmt: skip
    """Return what the elements of a channel share, computed with a channel in each lane.

    These are the gradients of mu and of std through the means, the gradient of the spread, and two factors:
    (std ratio1) ratio2 = std / (locations spread). Neither product overflows, as the quotient is at most 1.
    """
    row, channels = place[0], place[2]
    lane = place[1] + tl.arange(0, R)[None, :]
    mu_gradient, std_gradient, spread_gradient = tl.zeros((1, R), C), tl.zeros((1, R), C), tl.zeros((1, R), C)
    ratio1, ratio2 = tl.zeros((1, R), C), tl.zeros((1, R), C)
    if grad_std is not None:
        value = tl.load(grad_std + row * std_row + lane * std_step, mask=lane < channels, other=0)
        std_gradient = widened(value, C) * inverse
    if grad_z is not None:
        value = tl.load(grad_z + row * z_row + lane * z_step, mask=lane < channels, other=0)
        mu_gradient = widened(value, C) * inverse
        if noise[0] is not None:
            spread_gradient = mu_gradient * normals_at(noise, stream, row, rows, lane, C, FAST)
            deviation = tl.load(spread + row * channels + lane, mask=lane < channels, other=0)
            ratio1, ratio2 = split_quotient(inverse + tl.zeros_like(deviation), deviation)
            ratio1 = tl.where(deviation == 0.0, 0.0, ratio1)
    return (
        _of_channels(mu_gradient, R, AXIS), _of_channels(std_gradient, R, AXIS),
        _of_channels(spread_gradient, R, AXIS), _of_channels(ratio1, R, AXIS), _of_channels(ratio2, R, AXIS),
    )  # fmt: skip


@triton.jit
def _excess(mu_value, std, scale_down, unit, mask):
    """Return std^2 + mu^2 - prior_var of each element, scaled as in `_square_scale`.

    The difference is formed for each element, because the sum of std^2 + mu^2 and that of prior_var may nearly cancel.
    """
    scaled_std, scaled_mu = std * scale_down, mu_value * scale_down
    return tl.where(mask, tl.fma(scaled_mu, scaled_mu, tl.fma(scaled_std, scaled_std, -unit)), 0.0)


@triton.jit
def _prior_gradient(scaled_sum, kl_gradient, prior_variance):
    """Return the gradient of the prior variance from the scaled sum of (std^2 + mu^2) - prior_variance."""
    # A sum above 2^223 times the prior counts as infinite; if kl_gradient is 0, such a sum contributes 0.
    # As a tensor, because the interpreter cannot compare a scalar.
    scaled_sum = (scaled_sum + tl.zeros_like(prior_variance)).to(tl.float64)
    scaled_sum = tl.where((kl_gradient == 0.0) & (scaled_sum == INFINITY), 0.0, scaled_sum)
    factor = _square_scale(prior_variance)[1]
    slope = scaled_sum * (factor.to(tl.float64) * _SQUARE_SCALE)
    return -0.5 * kl_gradient.to(tl.float64) * slope / prior_variance.to(tl.float64)


@triton.jit(do_not_specialize=["z_row", "z_step", "std_row", "std_step", "kl_step", "stream", "rows", "channels",
                               "locations", "units", "blocks", "parts", "steps"])  # fmt: skip
def _pooled_backward_kernel(
    grad_z, z_row, z_step, grad_std, std_row, std_step, grad_kl, kl_step, spread, mu, logvar, grad_mu, grad_logvar,
    partial, prior, noise, stream: tl.uint32, rows, channels, locations, units, blocks, parts, steps,
    std_max: tl.float64, logvar_max: tl.float64, inverse_locations: tl.float64, PRIOR_STEP: tl.constexpr,
    CLIP: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr, LAYOUT: tl.constexpr, UNIT: tl.constexpr, R: tl.constexpr,
    BLOCK: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    place, part, start, end = place_of(channels, locations, units, blocks, parts, steps, LAYOUT, UNIT, R, BLOCK)
    row, first = place[0], place[1]
    limits = (scalar(std_max, C), scalar(logvar_max, C))
    z_gradient, mean_gradient, spread_gradient, ratio1, ratio2 = _channel_gradients(
        grad_z, z_row, z_step, grad_std, std_row, std_step, spread, place, rows, noise, stream,
        scalar(inverse_locations, C), C, FAST, R, AXIS,
    )  # fmt: skip
    # Without a gradient of kl its terms are not computed, because 0 * inf is not 0.
    if grad_kl is not None:
        kl_gradient = tl.load(grad_kl + row * kl_step)
        prior_variance = tl.load(prior + row * PRIOR_STEP)
        # kl_gradient / prior = factor1 * factor2: the quotient may overflow although its product with mu or std^2 does
        # not.
        factor1, factor2 = split_quotient(kl_gradient, prior_variance)
        scale_down = _square_scale(prior_variance)[0]
        unit = prior_variance * scale_down * scale_down
    excess = tl.zeros((BLOCK, R) if AXIS == 0 else (R, BLOCK), C)
    begin = start
    while begin < end:
        mask = mask_of(place, begin, end, R, BLOCK, AXIS)
        logvar_value = read_tile(logvar, place, begin, end, LAYOUT, R, BLOCK, AXIS, C)
        std = _clipped(logvar_value, limits[0], limits[1], CLIP, FAST)[1]
        std_gradient = mean_gradient
        if grad_z is not None:
            if noise[0] is not None:
                std_gradient = tl.fma(spread_gradient, (std * ratio1) * ratio2, mean_gradient)
        half = std * 0.5
        mu_gradient = z_gradient + tl.zeros_like(std)
        # Without a gradient that reaches std, the product with a std that is not finite would be NaN.
        has_std: tl.constexpr = grad_std is not None or (grad_z is not None and noise[0] is not None)
        logvar_gradient = std_gradient * half if has_std else tl.zeros_like(std)
        if grad_kl is not None:
            mu_value = read_tile(mu, place, begin, end, LAYOUT, R, BLOCK, AXIS, C)
            mu_gradient += (mu_value * factor1) * factor2
            # A fused multiply-add, because the product alone may overflow.
            logvar_gradient += tl.fma(half * factor1, std * factor2, kl_gradient * -0.5)
            if partial is not None:
                excess += _excess(mu_value, std, scale_down, unit, mask)
        if CLIP:
            # Like torch.clamp, this stops the gradient above the limit and for a NaN.
            logvar_gradient = tl.where(logvar_value <= limits[1], logvar_gradient, 0.0)
        write_tile(grad_mu, mu_gradient, place, begin, end, inverse_locations, LAYOUT, R, BLOCK, AXIS)
        write_tile(grad_logvar, logvar_gradient, place, begin, end, inverse_locations, LAYOUT, R, BLOCK, AXIS)
        begin += BLOCK

    if partial is not None:
        prior_gradient = tl.zeros_like(row).to(tl.float64)
        if grad_kl is not None:
            prior_gradient = _prior_gradient(tl.sum(excess), kl_gradient, prior_variance)
        tl.store(partial + (row * parts + part) * blocks + first // R, prior_gradient)
