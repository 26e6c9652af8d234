"""inject_noise reads x once and writes the result once. The backward pass regenerates the noise."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.noise import KINDS
from ._launch import fast_math, launch, triton_dtype
from ._math import scalar
from ._rows import boundary, read, rows_of, tile_of, tiles_of, write
from ._sums import sum_runs
from ._tuning import Config, tuned
from .random import noise_of, normals_of, tile_words, uniforms_of

# The order matches udml_kernels.KINDS. With KIND -1, a kernel reads the kind of each row.
GAUSSIAN, UNIFORM, SPECKLE, SALT_PEPPER, DROPOUT, REPLACE = (tl.constexpr(i) for i in range(len(KINDS)))
_ROOT3 = tl.constexpr(math.sqrt(3))


@triton.jit
def _random(
    noise, stream, row, rows, start, kind, KIND: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the normal or uniform number of each element, depending on the kind."""
    w0, w1, w2, w3 = tile_words(noise, stream, row, rows, start, BLOCK)
    if KIND == GAUSSIAN or KIND == SPECKLE or KIND == REPLACE:
        return normals_of(w0, w1, w2, w3, BLOCK, C, FAST)
    elif KIND >= 0:
        return uniforms_of(w0, w1, w2, w3, BLOCK, C)
    else:
        is_normal = (kind == GAUSSIAN) | (kind == SPECKLE) | (kind == REPLACE)
        normals = normals_of(w0, w1, w2, w3, BLOCK, C, FAST)
        return tl.where(is_normal, normals, uniforms_of(w0, w1, w2, w3, BLOCK, C))


@triton.jit
def _noisy(x, r, sigma, low, high, kind, KIND: tl.constexpr):
    """Add noise to x, before the clamp. r is the normal or uniform number of the element."""
    if KIND == GAUSSIAN:
        y = x + r * sigma
    elif KIND == UNIFORM:
        y = x + (r * 2.0 - 1.0) * (sigma * _ROOT3)
    elif KIND == SPECKLE:
        y = x * (r * sigma + 1.0)
    elif KIND == SALT_PEPPER:
        y = tl.where(r < sigma * 0.5, low, tl.where(r < sigma, high, x))
    elif KIND == DROPOUT:
        y = tl.where(r < sigma, 0.0, x)
    elif KIND == REPLACE:
        y = r * sigma + tl.zeros_like(x)
    else:
        y = tl.where(kind == GAUSSIAN, x + r * sigma, float("nan"))
        y = tl.where(kind == UNIFORM, x + (r * 2.0 - 1.0) * (sigma * _ROOT3), y)
        y = tl.where(kind == SPECKLE, x * (r * sigma + 1.0), y)
        salted = tl.where(r < sigma * 0.5, low, tl.where(r < sigma, high, x))
        y = tl.where(kind == SALT_PEPPER, salted, y)
        y = tl.where(kind == DROPOUT, tl.where(r < sigma, 0.0, x), y)
        y = tl.where(kind == REPLACE, r * sigma, y)
    return y


@triton.jit
def _x_gradient(noisy_gradient, r, sigma, kind, KIND: tl.constexpr):
    """Compute dL/dx from dL/dnoisy. If noisy does not depend on x, it is 0 and not a product: 0 * inf is NaN."""
    if KIND == SPECKLE:
        grad = noisy_gradient * (r * sigma + 1.0)
    elif KIND == REPLACE:
        grad = tl.zeros_like(r)
    elif KIND == SALT_PEPPER or KIND == DROPOUT:
        grad = tl.where(r < sigma, 0.0, noisy_gradient)
    elif KIND >= 0:
        grad = noisy_gradient
    else:
        grad = tl.where(kind == SPECKLE, noisy_gradient * (r * sigma + 1.0), noisy_gradient)
        grad = tl.where(((kind == SALT_PEPPER) | (kind == DROPOUT)) & (r < sigma), 0.0, grad)
        grad = tl.where((kind == REPLACE) | (kind < 0) | (kind > REPLACE), 0.0, grad)
    return grad


@triton.jit
def _sigma_gradient(noisy_gradient, x, r, kind, KIND: tl.constexpr):
    """Compute dL/dsigma from dL/dnoisy. It multiplies in the order of the reference, because x r alone may overflow."""
    if KIND == GAUSSIAN or KIND == REPLACE:
        grad = noisy_gradient * r
    elif KIND == UNIFORM:
        grad = noisy_gradient * ((r * 2.0 - 1.0) * _ROOT3)
    elif KIND == SPECKLE:
        grad = noisy_gradient * x * r
    elif KIND >= 0:
        grad = tl.zeros_like(r)
    else:
        grad = tl.where((kind == GAUSSIAN) | (kind == REPLACE), noisy_gradient * r, 0.0)
        grad = tl.where(kind == UNIFORM, noisy_gradient * ((r * 2.0 - 1.0) * _ROOT3), grad)
        grad = tl.where(kind == SPECKLE, noisy_gradient * x * r, grad)
    return grad


@triton.jit
def _level(levels, sigma_step, kind_step, row, rows, KIND: tl.constexpr):
    """Return (sigma, kind) of rows, (R, 1) each. `levels` is (sigma, kinds or None)."""
    sigma = tl.load(levels[0] + row * sigma_step, mask=row < rows, other=0)
    if KIND < 0:
        kind = tl.load(levels[1] + row * kind_step, mask=row < rows, other=0)
    else:
        kind = sigma
    return sigma, kind


@triton.jit
def _normalization(moments, channels, locations, start, lane, scale, SPANS: tl.constexpr, BLOCK: tl.constexpr):
    """Return (factor, shift) of elements: y factor - shift is (y / scale - mean) / std of their channel.

    `moments` is (mean, std). SPANS: a channel is at least as long as a tile.
    """
    if SPANS:
        first, second = boundary(start, locations, BLOCK)
        other = tl.minimum(first + 1, channels - 1)
        inverse0 = 1.0 / tl.load(moments[1] + first)
        inverse1 = 1.0 / tl.load(moments[1] + other)
        shift0 = tl.load(moments[0] + first) * inverse0
        shift1 = tl.load(moments[0] + other) * inverse1
        factor = tl.where(lane < second, inverse0 / scale, inverse1 / scale)
        shift = tl.where(lane < second, shift0, shift1)
    else:
        # Elements past the end of the row get the last channel.
        channel = tl.minimum((start + lane) // locations, channels - 1)
        inverse = 1.0 / tl.load(moments[1] + channel)
        factor = inverse / scale
        shift = tl.load(moments[0] + channel) * inverse
    return factor, shift


@triton.jit(
    do_not_specialize=["sigma_step", "kind_step", "channels", "stream", "rows"],
    do_not_specialize_on_alignment=["across"],
)
def _forward_kernel(
    x, out, levels, sigma_step, kind_step, moments, channels, locations, noise, stream: tl.uint32, rows, size, across,
    low: tl.float64, high: tl.float64, scale: tl.float64, KIND: tl.constexpr, CLAMP: tl.constexpr,
    SPANS: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, _, start, lane, mask = tile_of(rows, size, across, R, BLOCK)
    sigma, kind = _level(levels, sigma_step, kind_step, row, rows, KIND)
    r = _random(noise, stream, row, rows, start, kind, KIND, C, FAST, BLOCK)
    value = read(x, row, start, lane, mask, LAYOUT, C)
    y = _noisy(value, r, sigma, scalar(low, C), scalar(high, C), kind, KIND)
    if CLAMP:
        # The comparisons propagate NaN.
        y = tl.where(y < scalar(low, C), scalar(low, C), y)
        y = tl.where(y > scalar(high, C), scalar(high, C), y)
    if moments[0] is not None:
        factor, shift = _normalization(moments, channels, locations, start, lane, scalar(scale, C), SPANS, BLOCK)
        y = y * factor - shift
    write(out, row, size, start, lane, y, mask)


@triton.jit(
    do_not_specialize=["sigma_step", "kind_step", "channels", "stream", "rows"],
    do_not_specialize_on_alignment=["across"],
)
def _backward_kernel(
    grad, x, grad_x, partial, levels, sigma_step, kind_step, moments, channels, locations, noise, stream: tl.uint32,
    rows, size, across, low: tl.float64, high: tl.float64, scale: tl.float64, KIND: tl.constexpr, CLAMP: tl.constexpr,
    SPANS: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, tile, start, lane, mask = tile_of(rows, size, across, R, BLOCK)
    sigma, kind = _level(levels, sigma_step, kind_step, row, rows, KIND)
    r = _random(noise, stream, row, rows, start, kind, KIND, C, FAST, BLOCK)
    value = read(x, row, start, lane, mask, LAYOUT, C)
    noisy_gradient = read(grad, row, start, lane, mask, LAYOUT, C)
    if moments[0] is not None:
        factor, _ = _normalization(moments, channels, locations, start, lane, scalar(scale, C), SPANS, BLOCK)
        noisy_gradient *= factor
    passes = mask
    if CLAMP:
        # Like torch.clamp, this passes the gradient at the limits and stops it for a NaN.
        y = _noisy(value, r, sigma, scalar(low, C), scalar(high, C), kind, KIND)
        passes = mask & (y >= scalar(low, C)) & (y <= scalar(high, C))
    if grad_x is not None:
        write(
            grad_x,
            row,
            size,
            start,
            lane,
            tl.where(passes, _x_gradient(noisy_gradient, r, sigma, kind, KIND), 0.0),
            mask,
        )
    if partial is not None:
        sigma_gradient = tl.where(passes, _sigma_gradient(noisy_gradient, value, r, kind, KIND), 0.0)
        tl.store(partial + row * across + tile, tl.sum(sigma_gradient, 1)[:, None], mask=row < rows)


def _settings(x, sigma, kinds, kind, clamp, scale, mean, std, seed, stream, sample_ids, config) -> tuple:
    """Return the arguments of both kernels after their tensors: positional arguments, constants, and the tiles."""
    rows, size = x.shape[0], math.prod(x.shape[1:])
    channels = 1 if mean is None else x.shape[1]
    locations = max(size // max(channels, 1), 1)
    tiles = tiles_of(rows, size, config.elements)
    low, high = clamp if clamp else (math.nan, math.nan)
    positional = (
        (sigma, kinds), 0 if sigma.numel() == 1 else 1, 0 if kinds is None else kinds.stride(0),
        (mean, std), channels, locations, noise_of(seed, sample_ids), stream, rows, size, tiles.across,
        low, high, scale,
    )  # fmt: skip
    constants = {
        "KIND": kind, "CLAMP": bool(clamp), "SPANS": mean is not None and locations >= tiles.BLOCK,
        "C": triton_dtype(x.dtype), "FAST": fast_math(x.device), "R": tiles.R,
        "BLOCK": tiles.BLOCK, "num_warps": config.num_warps,
    }  # fmt: skip
    return positional, constants, tiles


def inject_noise(x, sigma, kinds, kind, clamp, scale, mean, std, out_dtype, seed, stream, sample_ids) -> Tensor:
    (x_rows,), layout = rows_of(x)

    def call(config: Config) -> Tensor:
        out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
        positional, constants, tiles = _settings(
            x, sigma, kinds, kind, clamp, scale, mean, std, seed, stream, sample_ids, config
        )
        programs = tiles.programs if out.numel() else 0
        launch(_forward_kernel, x.device, programs, x_rows, out, *positional, LAYOUT=layout, **constants)
        return out

    return tuned("inject_noise", x.dtype, x.numel(), x.device, call)


def inject_noise_backward(
    grad, x, sigma, kinds, kind, clamp, scale, mean, std, out_dtype, seed, stream, sample_ids, needs_x, needs_sigma
) -> tuple[Tensor, Tensor]:
    rows, layout = rows_of(grad, x)

    def call(config: Config) -> tuple[Tensor, Tensor]:
        positional, constants, tiles = _settings(
            x, sigma, kinds, kind, clamp, scale, mean, std, seed, stream, sample_ids, config
        )
        grad_x = torch.empty(x.shape if needs_x else 0, dtype=x.dtype, device=x.device)
        partial = None
        if needs_sigma:
            partial = torch.empty((x.shape[0], tiles.across), dtype=sigma.dtype, device=x.device)
        programs = tiles.programs if x.numel() else 0
        launch(
            _backward_kernel, x.device, programs, *rows, grad_x if needs_x else None, partial, *positional,
            LAYOUT=layout, **constants,
        )  # fmt: skip
        if partial is None:
            return grad_x, sigma.new_empty(0)
        return grad_x, sum_runs(partial.view(sigma.numel(), -1) if sigma.numel() else partial, sigma.shape)

    return tuned("inject_noise_backward", x.dtype, x.numel(), x.device, call)
