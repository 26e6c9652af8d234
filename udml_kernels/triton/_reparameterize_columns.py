"""The kernels of reparameterize for maps with the channels last.

A tile has Q runs of locations (its dimension 0) and R channels of one sample. Each step takes the next four locations
of every run, because random numbers come in groups of four elements. Element (channel, location) of a sample has the
number channel * locations + location, so for most channels four locations share two such groups.
"""

import triton
import triton.language as tl

from ._math import logarithm, scalar, split_quotient
from ._reparameterize import _HALF_SQUARE_SCALE, _clipped, _square_scale
from ._reparameterize_pooled import _excess, _prior_gradient
from ._rows import narrowed, widened
from .random import _normals, words


@triton.jit
def _place(locations, units, blocks, parts, steps, UNIT: tl.constexpr, Q: tl.constexpr, R: tl.constexpr):
    """Return a program's sample (1, 1), its number in the sample, and its channels (1, R).

    And the first location (Q, 1) of each run, the offsets (Q, R) of these elements, and the number of channels.
    """
    # The compiler sees that the number of channels is a multiple of UNIT, and so vectorizes.
    channels = units.to(tl.int64) * UNIT
    pid = tl.program_id(0)
    row = (pid // blocks // parts).to(tl.int64) + tl.zeros((1, 1), tl.int64)
    channel = (pid % blocks).to(tl.int64) * R + tl.arange(0, R)[None, :]
    run = pid // blocks % parts * Q + tl.arange(0, Q)[:, None]
    location = run.to(tl.int64) * steps * 4
    offset = row * locations * channels + location * channels + channel
    return row, pid % (blocks * parts), channel, location, offset, channels


@triton.jit
def _normals_of_block(noise, stream, row, rows, block, C: tl.constexpr, FAST: tl.constexpr):
    w0, w1, w2, w3 = words(noise, stream, row, rows, block)
    n0, n1 = _normals(w0, w1, C, FAST)
    n2, n3 = _normals(w2, w3, C, FAST)
    return n0, n1, n2, n3


@triton.jit
def _from(start, a, b):
    """Return four consecutive ones of the eight tensors a and b, from number `start` (0 to 3) on."""
    odd, late = (start & 1) != 0, (start & 2) != 0
    x0, x1, x2 = tl.where(odd, a[1], a[0]), tl.where(odd, a[2], a[1]), tl.where(odd, a[3], a[2])
    x3, x4, x5 = tl.where(odd, b[0], a[3]), tl.where(odd, b[1], b[0]), tl.where(odd, b[2], b[1])
    return tl.where(late, x2, x0), tl.where(late, x3, x1), tl.where(late, x4, x2), tl.where(late, x5, x3)


@triton.jit
def _step_normals(noise, stream, row, rows, block, start, held, C: tl.constexpr, FAST: tl.constexpr,
                  SHIFTED: tl.constexpr):  # fmt: skip
    """Return the normals of a step's elements, and those of its last group of random numbers.

    Args:
        block: the number (Q, R) of the group that has the first element.
        start: the element's place in it.
        held: the normals of this group. Without SHIFTED, `start` is 0, and they are computed here.
    """
    if SHIFTED:
        following = _normals_of_block(noise, stream, row, rows, block + 1, C, FAST)
        return _from(start, held, following), following
    else:
        normals = _normals_of_block(noise, stream, row, rows, block, C, FAST)
        return normals, normals


@triton.jit(do_not_specialize=["stream", "rows", "locations", "units", "blocks", "parts", "steps"])
def _columns_forward_kernel(
    mu, logvar, z, std_sums, partial, prior, noise, stream: tl.uint32, rows, locations, units, blocks, parts, steps,
    std_max: tl.float64, logvar_max: tl.float64, std_factor: tl.float64, PRIOR_STEP: tl.constexpr, CLIP: tl.constexpr,
    C: tl.constexpr, FAST: tl.constexpr, UNIT: tl.constexpr, SHIFTED: tl.constexpr, Q: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Write z, each part's sum of std (B, parts, C) times std_factor, and each program's share of kl."""
    row, program, channel, location, offset, channels = _place(locations, units, blocks, parts, steps, UNIT, Q, R)
    prior_variance = tl.load(prior + row * PRIOR_STEP)
    shift = logarithm(prior_variance) * 0.5 - 0.5
    scale_down, factor = _square_scale(prior_variance)
    # Half of the squares, because the whole may overflow.
    factor *= _HALF_SQUARE_SCALE
    element = channel * locations + location
    block, start = (element // 4).to(tl.uint32), (element % 4).to(tl.int32)
    std_sum, divergence = tl.zeros((Q, R), C), tl.zeros((Q, R), C)
    held = (std_sum, std_sum, std_sum, std_sum)
    if noise[0] is not None:
        if SHIFTED:
            held = _normals_of_block(noise, stream, row, rows, block, C, FAST)
    step = 0
    while step < steps:
        normals = held
        if noise[0] is not None:
            normals, held = _step_normals(noise, stream, row, rows, block, start, held, C, FAST, SHIFTED)
        for j in tl.static_range(4):
            mask = (channel < channels) & (location + j < locations)
            at = offset + j * channels
            mu_value = widened(tl.load(mu + at, mask=mask, other=0), C)
            logvar_value = widened(tl.load(logvar + at, mask=mask, other=0), C)
            logvar_value, std = _clipped(logvar_value, scalar(std_max, C), scalar(logvar_max, C), CLIP, FAST)
            z_value = mu_value
            if noise[0] is not None:
                z_value += std * normals[j]
            tl.store(z + at, narrowed(z_value, z.dtype.element_ty), mask=mask)
            scaled_std, scaled_mu = std * scale_down, mu_value * scale_down
            terms = (scaled_std * scaled_std + scaled_mu * scaled_mu) * factor + (shift - logvar_value * 0.5)
            divergence += tl.where(mask, terms, 0.0)
            std_sum += tl.where(mask, std, 0.0)
        step += 1
        location += 4
        offset += 4 * channels
        block += 1

    total = tl.sum(std_sum, 0)[None, :] * scalar(std_factor, C)
    part = row * parts + program // blocks
    tl.store(std_sums + part * channels + channel, total, mask=channel < channels)
    tl.store(partial + row * (blocks * parts) + program, tl.sum(divergence))


@triton.jit(do_not_specialize=["channels", "parts", "blocks", "groups"])
def _columns_finish_kernel(
    std_sums, partial, std, kl, channels, parts, blocks, groups, inverse_locations: tl.float64, PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add the sums of the parts in order, in float64.

    Program (row, k) computes the k-th group of CHANNELS channels or, at k = groups, the row's KL.
    """
    pid = tl.program_id(0)
    group = pid % (groups + 1)
    row = (pid // (groups + 1)).to(tl.int64)
    begin = 0
    if group == groups:
        count = parts * blocks
        lane = tl.arange(0, CHANNELS)
        terms = tl.zeros((CHANNELS,), tl.float64)
        while begin < count:
            terms += tl.load(partial + row * count + begin + lane, mask=lane < count - begin, other=0).to(tl.float64)
            begin += CHANNELS
        tl.store(kl + row, tl.sum(terms, 0).to(kl.dtype.element_ty))
    else:
        channel = group.to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
        part = tl.arange(0, PARTS)[:, None]
        sums = tl.zeros((PARTS, CHANNELS), tl.float64)
        while begin < parts:
            mask = (part < parts - begin) & (channel < channels)
            at = std_sums + (row * parts + begin + part) * channels + channel
            sums += tl.load(at, mask=mask, other=0).to(tl.float64)
            begin += PARTS
        mean = tl.sum(sums, 0)[None, :] * inverse_locations
        tl.store(std + row * channels + channel, mean.to(std.dtype.element_ty), mask=channel < channels)


@triton.jit(do_not_specialize=["z_row", "z_channel", "z_location", "std_row", "std_step", "kl_step", "stream", "rows",
                               "locations", "units", "blocks", "parts", "steps"])  # fmt: skip
def _columns_backward_kernel(
    grad_z, z_row, z_channel, z_location, grad_std, std_row, std_step, grad_kl, kl_step, mu, logvar, grad_mu,
    grad_logvar, partial, prior, noise, stream: tl.uint32, rows, locations, units, blocks, parts, steps,
    std_max: tl.float64, logvar_max: tl.float64, inverse_locations: tl.float64, PRIOR_STEP: tl.constexpr,
    CLIP: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr, UNIT: tl.constexpr, SHIFTED: tl.constexpr,
    Z_LAST: tl.constexpr, Q: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Z_LAST: grad_z has the layout of the maps; z_row, z_channel and z_location are not used."""
    row, program, channel, location, offset, channels = _place(locations, units, blocks, parts, steps, UNIT, Q, R)
    has_noise: tl.constexpr = grad_z is not None and noise[0] is not None
    # Without a gradient that reaches std, the product with a std that is not finite would be NaN.
    has_std: tl.constexpr = grad_std is not None or has_noise
    mean_gradient = tl.zeros((1, R), C)
    if grad_std is not None:
        value = tl.load(grad_std + row * std_row + channel * std_step, mask=channel < channels, other=0)
        mean_gradient = widened(value, C) * scalar(inverse_locations, C)
    # Without a gradient of kl its terms are not computed, because 0 * inf is not 0.
    if grad_kl is not None:
        kl_gradient = tl.load(grad_kl + row * kl_step)
        prior_variance = tl.load(prior + row * PRIOR_STEP)
        # kl_gradient / prior = factor1 * factor2: the quotient may overflow although its product with mu or std^2 does
        # not.
        factor1, factor2 = split_quotient(kl_gradient, prior_variance)
        scale_down = _square_scale(prior_variance)[0]
        unit = prior_variance * scale_down * scale_down
    element = channel * locations + location
    block, start = (element // 4).to(tl.uint32), (element % 4).to(tl.int32)
    excess = tl.zeros((Q, R), C)
    held = (excess, excess, excess, excess)
    if has_noise:
        if SHIFTED:
            held = _normals_of_block(noise, stream, row, rows, block, C, FAST)
    step = 0
    while step < steps:
        normals = held
        if has_noise:
            normals, held = _step_normals(noise, stream, row, rows, block, start, held, C, FAST, SHIFTED)
        for j in tl.static_range(4):
            mask = (channel < channels) & (location + j < locations)
            at = offset + j * channels
            logvar_value = widened(tl.load(logvar + at, mask=mask, other=0), C)
            std = _clipped(logvar_value, scalar(std_max, C), scalar(logvar_max, C), CLIP, FAST)[1]
            mu_gradient, std_gradient = tl.zeros((Q, R), C), mean_gradient + tl.zeros((Q, R), C)
            if grad_z is not None:
                z_at = at if Z_LAST else row * z_row + channel * z_channel + (location + j) * z_location
                mu_gradient = widened(tl.load(grad_z + z_at, mask=mask, other=0), C)
                if has_noise:
                    std_gradient += mu_gradient * normals[j]
            half = std * 0.5
            logvar_gradient = std_gradient * half if has_std else tl.zeros((Q, R), C)
            if grad_kl is not None:
                mu_value = widened(tl.load(mu + at, mask=mask, other=0), C)
                mu_gradient += (mu_value * factor1) * factor2
                # A fused multiply-add, because the product alone may overflow.
                logvar_gradient += tl.fma(half * factor1, std * factor2, kl_gradient * -0.5)
                if partial is not None:
                    excess += _excess(mu_value, std, scale_down, unit, mask)
            if CLIP:
                # Like torch.clamp, this stops the gradient above the limit and for a NaN.
                logvar_gradient = tl.where(logvar_value <= scalar(logvar_max, C), logvar_gradient, 0.0)
            tl.store(grad_mu + at, narrowed(mu_gradient, grad_mu.dtype.element_ty), mask=mask)
            tl.store(grad_logvar + at, narrowed(logvar_gradient, grad_logvar.dtype.element_ty), mask=mask)
        step += 1
        location += 4
        offset += 4 * channels
        block += 1

    if partial is not None:
        prior_gradient = tl.zeros_like(row).to(tl.float64)
        if grad_kl is not None:
            prior_gradient = _prior_gradient(tl.sum(excess), kl_gradient, prior_variance)
        tl.store(partial + row * (blocks * parts) + program, prior_gradient)
