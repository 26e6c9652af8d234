"""The kernels of reparameterize with pool=True. A program handles R channels of a sample, and a part of their locations.

_pooled_sums_kernel adds over the locations of each part; _pooled_finish_kernel combines the parts and adds the noise.
The locations of a tile are its dimension AXIS, which is the last one where they are the fast dimension in memory: tiles
are (R, BLOCK) for R channels of BLOCK locations, or (BLOCK, R).
"""

import triton
import triton.language as tl

from ._math import INFINITY, logarithm, scalar, scale, split, split_quotient
from ._reparameterize import _SQUARE_SCALE, _clipped, _square_scale
from ._rows import narrowed, widened
from .random import normals_of, tile_words

# The layouts of the maps: any strides; dense with the locations fast; dense with the channels fast; dense and with few
# locations, whose number does not divide into vectors, so that R channels are accessed as one run of elements.
STRIDED, PLANES, LAST, FLAT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)

# Between these limits a sum of squares lost nothing to underflow or overflow.
_SMALLEST_SUM, _LARGEST_SUM = tl.constexpr(2.0**-80), tl.constexpr(2.0**100)
# The squares for kl are scaled to 1/16 to 1/8 of those over the prior variance, so that they overflow only if kl does.
_SHIFT = tl.constexpr(2.0**46)


@triton.jit
def _sizes(channels, locations, units, LAYOUT: tl.constexpr, UNIT: tl.constexpr):
    """Return (channels, locations). The compiler sees that the fast size is a multiple of UNIT, and so vectorizes."""
    if LAYOUT == LAST:
        channels = units * UNIT
    elif LAYOUT != FLAT:
        locations = units * UNIT
    return channels, locations


@triton.jit
def _place(locations, blocks, parts, steps, R: tl.constexpr, BLOCK: tl.constexpr):
    """Return a program's sample (1, 1), the first of its R channels, its part, and the part's first location and end."""
    pid = tl.program_id(0)
    part = pid // blocks % parts
    row = (pid // blocks // parts).to(tl.int64) + tl.zeros((1, 1), tl.int64)
    first = (pid % blocks).to(tl.int64) * R
    start = part.to(tl.int64) * steps * BLOCK
    return row, first, part, start, tl.minimum(start + steps * BLOCK, locations)


@triton.jit
def _channels(R: tl.constexpr, AXIS: tl.constexpr):
    """Return the numbers of a tile's channels, (R, 1) or (1, R)."""
    return tl.expand_dims(tl.arange(0, R), AXIS)


@triton.jit
def _tile(first, channels, begin, end, R: tl.constexpr, BLOCK: tl.constexpr, AXIS: tl.constexpr):
    """Return the channels and the locations of a tile, and the mask of its elements."""
    channel, location = _channels(R, AXIS), tl.expand_dims(tl.arange(0, BLOCK), 1 - AXIS)
    mask = (channel < tl.minimum(channels - first, R).to(tl.int32)) & (
        location < tl.minimum(end - begin, BLOCK).to(tl.int32)
    )
    return first + channel, begin + location, mask


@triton.jit
def _address(x, row, channel, location, channels, locations, LAYOUT: tl.constexpr):
    """Return addresses of a tile. x is (pointer, strides of sample, channel and location) or, if dense, (pointer,)."""
    if LAYOUT == STRIDED:
        return x[0] + row * x[1] + channel * x[2] + location * x[3]
    elif LAYOUT == LAST:
        return x[0] + row * (channels * locations) + location * channels + channel
    else:
        return x[0] + row * (channels * locations) + channel * locations + location


@triton.jit
def _run(x, row, first, locations, units, UNIT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr):
    """Return the addresses (1, R BLOCK) of R channels that lie side by side, and the mask of the existing elements."""
    size = units.to(tl.int64) * UNIT
    start = first * locations
    lane = tl.arange(0, R * BLOCK)[None, :]
    return x + row * size + start + lane, lane < tl.minimum(size - start, R * locations).to(tl.int32)


@triton.jit
def _read(x, row, first, begin, end, channels, locations, units, LAYOUT: tl.constexpr, UNIT: tl.constexpr,
          R: tl.constexpr, BLOCK: tl.constexpr, AXIS: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Load a tile in the arithmetic dtype C; elements that do not exist are 0."""
    if LAYOUT == FLAT:
        address, exists = _run(x[0], row, first, locations, units, UNIT, R, BLOCK)
        run = tl.reshape(tl.load(address, mask=exists, other=0), (R * BLOCK,))
        # The gather through shared memory gives each lane a channel, so that a sum is one over a thread's elements.
        place = tl.arange(0, BLOCK)[:, None]
        index = _channels(R, AXIS) * locations + tl.minimum(place, locations - 1)
        value = tl.reshape(tl.gather(run, tl.reshape(index, (R * BLOCK,)), 0), (BLOCK, R))
        return tl.where(place < locations, widened(value, C), 0.0)
    else:
        channel, location, mask = _tile(first, channels, begin, end, R, BLOCK, AXIS)
        address = _address(x, row, channel, location, channels, locations, LAYOUT)
        return widened(tl.load(address, mask=mask, other=0), C)


@triton.jit
def _write(x, value, row, first, begin, end, channels, locations, units, inverse_locations, LAYOUT: tl.constexpr,
           UNIT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, AXIS: tl.constexpr):  # fmt: skip
    """Store a tile of a result, which is dense: with the channels last, or contiguous."""
    value = narrowed(value, x.dtype.element_ty)
    if LAYOUT == FLAT:
        address, exists = _run(x, row, first, locations, units, UNIT, R, BLOCK)
        lane = tl.arange(0, R * BLOCK)
        # lane // locations: the distance of lane + 1/2 to a multiple is larger than the rounding errors.
        column = ((lane.to(tl.float32) + 0.5) * scalar(inverse_locations, tl.float32)).to(tl.int32)
        column = tl.minimum(column, R - 1)
        index = (lane - column * locations) % BLOCK * R + column
        run = tl.gather(tl.reshape(value, (R * BLOCK,)), index, 0)
        tl.store(address, run[None, :], mask=exists)
    else:
        channel, location, mask = _tile(first, channels, begin, end, R, BLOCK, AXIS)
        dense: tl.constexpr = LAST if LAYOUT == LAST else PLANES
        tl.store(_address((x,), row, channel, location, channels, locations, dense), value, mask=mask)


@triton.jit
def _add(a0, a1, a2, a3, b0, b1, b2, b3):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@triton.jit
def _scaled_squares(logvar, exponent, row, first, start, end, channels, locations, units, std_max, logvar_max, CLIP: tl.constexpr,
                    C: tl.constexpr, FAST: tl.constexpr, LAYOUT: tl.constexpr, UNIT: tl.constexpr, R: tl.constexpr,
                    BLOCK: tl.constexpr, AXIS: tl.constexpr):  # fmt: skip
    """Return each channel's sum of the squares of std 2^-exponent."""
    squares = tl.zeros((BLOCK, R) if AXIS == 0 else (R, BLOCK), C)
    while start < end:
        mask = _tile(first, channels, start, end, R, BLOCK, AXIS)[2]
        value = _read(logvar, row, first, start, end, channels, locations, units, LAYOUT, UNIT, R, BLOCK, AXIS, C)
        _, std = _clipped(value, scalar(std_max, C), scalar(logvar_max, C), CLIP, FAST)
        scaled = scale(tl.where(mask, std, 0.0), -exponent)
        squares = tl.fma(scaled, scaled, squares)
        start += BLOCK
    return tl.expand_dims(tl.sum(squares, AXIS), AXIS)


@triton.jit
def _added(sums, mu, logvar, row, first, begin, end, channels, locations, units, std_max, logvar_max, scale_down,
           unit, offset, CLIP: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr, LAYOUT: tl.constexpr,
           UNIT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, AXIS: tl.constexpr):  # fmt: skip
    """Add a tile to the sums of mu, of std, of the squares of std, and of kl in units of 1 / (2 unit)."""
    mask = _tile(first, channels, begin, end, R, BLOCK, AXIS)[2]
    mu_value = _read(mu, row, first, begin, end, channels, locations, units, LAYOUT, UNIT, R, BLOCK, AXIS, C)
    logvar_value = _read(logvar, row, first, begin, end, channels, locations, units, LAYOUT, UNIT, R, BLOCK, AXIS, C)
    logvar_value, std = _clipped(logvar_value, scalar(std_max, C), scalar(logvar_max, C), CLIP, FAST)
    std = tl.where(mask, std, 0.0)
    scaled_std, scaled_mu = std * scale_down, mu_value * scale_down
    divergence = tl.fma(scaled_mu, scaled_mu, tl.fma(scaled_std, scaled_std, tl.fma(logvar_value, -unit, offset)))
    divergence = sums[3] + tl.where(mask, divergence, 0.0)
    return sums[0] + mu_value, sums[1] + std, tl.fma(std, std, sums[2]), divergence


@triton.jit(do_not_specialize=["channels", "locations", "units", "blocks", "parts", "steps"])
def _pooled_sums_kernel(
    mu, logvar, sums, partial, prior, channels, locations, units, blocks, parts, steps, std_max: tl.float64, logvar_max: tl.float64,
    inverse_locations: tl.float64, PRIOR_STEP: tl.constexpr, CLIP: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    LAYOUT: tl.constexpr, UNIT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """Write (B, parts, 3, C): for each part the sums of mu and of std, and its share of the spread; and sums for kl."""
    channels, locations = _sizes(channels, locations, units, LAYOUT, UNIT)
    row, first, part, start, end = _place(locations, blocks, parts, steps, R, BLOCK)
    prior_variance = tl.load(prior + row * PRIOR_STEP)
    scale_down = _square_scale(prior_variance)[0] * _SHIFT
    # Exact, because scale_down is a power of 2.
    unit = prior_variance * scale_down * scale_down
    offset = unit * (logarithm(prior_variance) - 1.0)

    zeros = tl.zeros((BLOCK, R) if AXIS == 0 else (R, BLOCK), C)
    added = (zeros, zeros, zeros, zeros)
    if LAYOUT == FLAT:
        added = _added(
            added, mu, logvar, row, first, start, end, channels, locations, units, std_max, logvar_max, scale_down,
            unit, offset, CLIP, C, FAST, LAYOUT, UNIT, R, BLOCK, AXIS,
        )  # fmt: skip
    else:
        begin = start
        while begin < end:
            added = _added(
                added, mu, logvar, row, first, begin, end, channels, locations, units, std_max, logvar_max, scale_down,
                unit, offset, CLIP, C, FAST, LAYOUT, UNIT, R, BLOCK, AXIS,
            )  # fmt: skip
            begin += BLOCK
    mu_sum, std_sum, square_sum, divergence = tl.reduce(added, AXIS, _add)
    mu_sum, std_sum = tl.expand_dims(mu_sum, AXIS), tl.expand_dims(std_sum, AXIS)
    square_sum = tl.expand_dims(square_sum, AXIS)
    spread = tl.sqrt(square_sum) * scalar(inverse_locations, C)
    channel = first + _channels(R, AXIS)
    outside = (channel < channels) & ((square_sum < _SMALLEST_SUM) | (square_sum > _LARGEST_SUM))
    if tl.max(outside.to(tl.int32)) > 0:
        # The sum of std tells the size of the largest one, up to the number of locations.
        _, exponent = split(std_sum)
        exponent = tl.where(std_sum == INFINITY, 127, exponent)
        square_sum = _scaled_squares(
            logvar, exponent, row, first, start, end, channels, locations, units, std_max, logvar_max, CLIP, C, FAST, LAYOUT, UNIT,
            R, BLOCK, AXIS,
        )  # fmt: skip
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


@triton.jit(do_not_specialize=["stream", "z_row", "z_step", "std_row", "std_step", "kl_step", "rows", "channels", "locations", "units",
                               "blocks", "parts", "steps"])  # fmt: skip
def _pooled_backward_kernel(
    grad_z, z_row, z_step, grad_std, std_row, std_step, grad_kl, kl_step, spread, mu, logvar, grad_mu, grad_logvar,
    partial, prior, noise, stream: tl.uint32, rows, channels, locations, units, blocks, parts, steps, std_max: tl.float64,
    logvar_max: tl.float64, inverse_locations: tl.float64, PRIOR_STEP: tl.constexpr, CLIP: tl.constexpr,
    C: tl.constexpr, FAST: tl.constexpr, LAYOUT: tl.constexpr, UNIT: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    channels, locations = _sizes(channels, locations, units, LAYOUT, UNIT)
    row, first, part, start, end = _place(locations, blocks, parts, steps, R, BLOCK)

    # What a channel has once, computed with a channel in each lane.
    inverse = scalar(inverse_locations, C)
    lane = first + tl.arange(0, R)[None, :]
    mean_gradient = tl.zeros((1, R), C)
    z_gradient = tl.zeros((1, R), C)
    if grad_std is not None:
        value = tl.load(grad_std + row * std_row + lane * std_step, mask=lane < channels, other=0)
        mean_gradient = widened(value, C) * inverse
    if grad_z is not None:
        value = tl.load(grad_z + row * z_row + lane * z_step, mask=lane < channels, other=0)
        z_gradient = widened(value, C) * inverse
        if noise[0] is not None:
            w0, w1, w2, w3 = tile_words(noise, stream, row, rows, first, R)
            noise_gradient = _of_channels(z_gradient * normals_of(w0, w1, w2, w3, R, C, FAST), R, AXIS)
            # std / (locations spread) = (std ratio1) ratio2: neither overflows, as the quotient is at most 1.
            deviation = tl.load(spread + row * channels + lane, mask=lane < channels, other=0)
            ratio1, ratio2 = split_quotient(inverse + tl.zeros_like(deviation), deviation)
            ratio1 = _of_channels(tl.where(deviation == 0.0, 0.0, ratio1), R, AXIS)
            ratio2 = _of_channels(ratio2, R, AXIS)
    mean_gradient, z_gradient = _of_channels(mean_gradient, R, AXIS), _of_channels(z_gradient, R, AXIS)

    # Without a gradient of kl its terms are not computed, because 0 * inf is not 0.
    if grad_kl is not None:
        kl_gradient = tl.load(grad_kl + row * kl_step)
        prior_variance = tl.load(prior + row * PRIOR_STEP)
        # kl_gradient / prior = factor1 * factor2: the quotient may overflow although its product with mu or std^2 does
        # not.
        factor1, factor2 = split_quotient(kl_gradient, prior_variance)
        scale_down, factor = _square_scale(prior_variance)
        unit = prior_variance * scale_down * scale_down
    excess = tl.zeros((BLOCK, R) if AXIS == 0 else (R, BLOCK), C)
    begin = start
    while begin < end:
        mask = _tile(first, channels, begin, end, R, BLOCK, AXIS)[2]
        logvar_value = _read(logvar, row, first, begin, end, channels, locations, units, LAYOUT, UNIT, R, BLOCK, AXIS, C)
        _, std = _clipped(logvar_value, scalar(std_max, C), scalar(logvar_max, C), CLIP, FAST)
        std_gradient = mean_gradient
        if grad_z is not None:
            if noise[0] is not None:
                std_gradient = tl.fma(noise_gradient, (std * ratio1) * ratio2, mean_gradient)
        half = std * 0.5
        mu_gradient = z_gradient + tl.zeros_like(std)
        logvar_gradient = std_gradient * half
        if grad_kl is not None:
            mu_value = _read(mu, row, first, begin, end, channels, locations, units, LAYOUT, UNIT, R, BLOCK, AXIS, C)
            mu_gradient += (mu_value * factor1) * factor2
            # A fused multiply-add, because the product alone may overflow.
            logvar_gradient += tl.fma(half * factor1, std * factor2, kl_gradient * -0.5)
            if partial is not None:
                # The 1 of each element is subtracted here, because the sums of both may nearly cancel.
                scaled_std, scaled_mu = std * scale_down, mu_value * scale_down
                squares = tl.fma(scaled_mu, scaled_mu, tl.fma(scaled_std, scaled_std, -unit))
                excess += tl.where(mask, squares, 0.0)
        if CLIP:
            # Like torch.clamp, this stops the gradient above the limit and for a NaN.
            logvar_gradient = tl.where(logvar_value <= scalar(logvar_max, C), logvar_gradient, 0.0)
        _write(grad_mu, mu_gradient, row, first, begin, end, channels, locations, units, inverse_locations, LAYOUT, UNIT, R, BLOCK, AXIS)
        _write(grad_logvar, logvar_gradient, row, first, begin, end, channels, locations, units, inverse_locations, LAYOUT, UNIT, R, BLOCK, AXIS)
        begin += BLOCK

    if partial is not None:
        prior_gradient = tl.zeros_like(row).to(tl.float64)
        if grad_kl is not None:
            # A sum above 2^223 times the prior counts as infinite; if kl_gradient is 0, such a sum contributes 0.
            scaled_sum = tl.sum(excess).to(tl.float64)
            scaled_sum = tl.where((kl_gradient == 0.0) & (scaled_sum == INFINITY), 0.0, scaled_sum)
            slope = scaled_sum * (factor.to(tl.float64) * _SQUARE_SCALE)
            prior_gradient = -0.5 * kl_gradient.to(tl.float64) * slope / prior_variance.to(tl.float64)
        tl.store(partial + (row * parts + part) * blocks + first // R, prior_gradient)
