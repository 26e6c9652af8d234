"""reparameterize with pool=True reads mu and logvar once and writes nothing of their size.

Two launches: the sums over the locations, and what follows from them for each channel and sample. `_cut` divides the
work by the shape of a sample alone.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..ops.reparameterize import _keeps_channels_last, like_maps
from ._launch import ceil_div, fast_math, launch, next_power_of_2, triton_dtype
from ._pooled_tiles import FLAT, LAST, PLANES, STRIDED
from ._reparameterize_pooled import _pooled_backward_kernel, _pooled_finish_kernel, _pooled_sums_kernel
from ._rows import _collapsed
from ._sums import sum_runs
from ._tuning import Config, tuned
from .random import noise_of

# The finish adds the parts of a channel in one tile.
_MOST_PARTS = 64


class Cut(NamedTuple):
    """Tiles of R channels x BLOCK locations. `blocks` of R channels, and `parts` of `steps` tiles, cover a sample."""

    R: int
    BLOCK: int
    blocks: int
    steps: int
    parts: int


def _cut(channels: int, locations: int, layout: int, elements: int) -> Cut:
    """Return wide tiles along the fast dimension: 64 channels, or up to 512 locations."""
    # Random numbers come in groups of four channels.
    width = 64 if layout == PLANES and locations < 512 else 512
    most = 64 if layout == LAST else elements // max(min(next_power_of_2(locations), width), 4)
    R = max(min(next_power_of_2(channels), most), 4)
    block = max(min(next_power_of_2(locations), elements // R), 4)
    steps = max(8, ceil_div(locations, block * _MOST_PARTS))
    return Cut(R, block, ceil_div(channels, R), steps, ceil_div(locations, steps * block))


def _strided(t: Tensor) -> tuple[Tensor, int, int, int]:
    """Return a tensor and its strides of samples, channels and locations, copied if the locations have several."""
    dims = _collapsed(t.shape[2:], t.stride()[2:])
    if len(dims) > 1:
        t = t.contiguous()
        dims = _collapsed(t.shape[2:], t.stride()[2:])
    return t, t.stride(0), t.stride(1), dims[0][1] if dims else 1


def _maps(mu: Tensor, logvar: Tensor) -> tuple[tuple, tuple, int]:
    """Return both maps, and their layout."""
    locations, vector = math.prod(mu.shape[2:]), 16 // mu.element_size()
    if _keeps_channels_last(mu, logvar):
        layout = LAST
    elif not (mu.is_contiguous() and logvar.is_contiguous()):
        return _strided(mu), _strided(logvar), STRIDED.value
    elif locations == 1:
        layout = LAST
    else:
        layout = FLAT if locations % min(vector, 4) and locations <= 256 else PLANES
    return (mu,), (logvar,), layout.value


def _settings(mu, prior_var, std_max, layout, config) -> tuple[Cut, tuple, tuple, dict]:
    """Return the cut, its arguments, those of the limit of std, and the constants."""
    channels, locations = mu.shape[1], math.prod(mu.shape[2:])
    # The number of elements per thread, which its registers limit. Strided elements also need registers for addresses.
    elements = {STRIDED.value: config.elements // 4, FLAT.value: 2 * config.elements}.get(layout, config.elements)
    elements //= mu.element_size() // 8 + 1
    cut = _cut(channels, locations, layout, elements)
    fast = {LAST.value: channels, FLAT.value: channels * locations}.get(layout, locations)
    unit = math.gcd(fast, 16 // mu.element_size())
    limits = (*((0.0, 0.0) if std_max is None else (std_max, 2 * math.log(std_max))), 1 / locations)
    constants: dict[str, Any] = {
        "PRIOR_STEP": int(prior_var.numel() > 1), "CLIP": std_max is not None, "C": triton_dtype(mu.dtype),
        "FAST": fast_math(mu.device), "LAYOUT": layout, "UNIT": unit, "R": cut.R, "BLOCK": cut.BLOCK,
        "AXIS": int(layout in (STRIDED, PLANES)),
        "num_warps": min(max(config.num_warps * cut.R * cut.BLOCK // elements, 1), config.num_warps),
    }  # fmt: skip
    return cut, (channels, locations, fast // unit, cut.blocks, cut.parts, cut.steps), limits, constants


def reparameterize_pooled(
    mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, channels, locations = mu.shape[0], mu.shape[1], math.prod(mu.shape[2:])
    std = torch.empty((rows, channels), dtype=checks.compute_dtype(mu.dtype), device=mu.device)
    z, kl, spread = torch.empty_like(std, dtype=mu.dtype), std.new_empty((rows,)), torch.empty_like(std)
    if mu.numel() == 0:
        # The mean over zero locations is NaN, and the sum over zero elements is 0.
        return z.fill_(math.nan), std.fill_(math.nan), kl.zero_(), spread.fill_(math.nan)
    mu_map, logvar_map, layout = _maps(mu, logvar)

    def call(config: Config) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        cut, division, limits, constants = _settings(mu, prior_var, std_max, layout, config)
        sums = std.new_empty((rows, cut.parts, 3, channels))
        partial = std.new_empty((rows, cut.parts, cut.blocks))
        launch(
            _pooled_sums_kernel, mu.device, partial.numel(), mu_map, logvar_map, sums, partial, prior_var, *division,
            *limits, **constants,
        )  # fmt: skip
        parts = next_power_of_2(cut.parts)
        count = max(min(next_power_of_2(channels), 1024 // parts, 256), 4)
        groups = ceil_div(channels, count)
        launch(
            _pooled_finish_kernel, mu.device, rows * (groups + 1), sums, partial, z, std, kl, spread,
            noise_of(seed if sample else None, sample_ids), stream, rows, channels, cut.parts, cut.blocks, groups,
            1 / locations, C=constants["C"], FAST=constants["FAST"], PARTS=parts, CHANNELS=count,
            num_warps=max(parts * count // 256, 1),
        )  # fmt: skip
        return z, std, kl, spread

    return tuned("reparameterize_pooled", mu.dtype, mu.numel(), mu.device, call)


def _strides(grad: Tensor | None) -> tuple[Any, ...]:
    return (None, 0, 0) if grad is None else (grad, *grad.stride())


def reparameterize_pooled_backward(
    grad_z, grad_std, grad_kl, spread, mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids, needs_prior
) -> tuple[Tensor, Tensor, Tensor]:
    grad_mu, grad_logvar = (like_maps(mu, logvar) for _ in range(2))
    if mu.numel() == 0:
        return grad_mu, grad_logvar, torch.zeros_like(prior_var) if needs_prior else prior_var.new_empty(0)
    mu_map, logvar_map, layout = _maps(mu, logvar)
    kl = (None, 0) if grad_kl is None else (grad_kl, grad_kl.stride(0))

    def call(config: Config) -> tuple[Tensor, Tensor, Tensor]:
        cut, division, limits, constants = _settings(mu, prior_var, std_max, layout, config)
        partial = None
        if needs_prior:
            partial = torch.empty((mu.shape[0], cut.parts * cut.blocks), dtype=torch.float64, device=mu.device)
        launch(
            _pooled_backward_kernel, mu.device, mu.shape[0] * cut.parts * cut.blocks, *_strides(grad_z),
            *_strides(grad_std), *kl, spread.contiguous(), mu_map, logvar_map, grad_mu, grad_logvar, partial, prior_var,
            noise_of(seed if sample else None, sample_ids), stream, mu.shape[0], *division, *limits, **constants,
        )  # fmt: skip
        if partial is None:
            return grad_mu, grad_logvar, prior_var.new_empty(0)
        grad_prior = sum_runs(partial.view(prior_var.numel(), -1), prior_var.shape, dtype=prior_var.dtype)
        return grad_mu, grad_logvar, grad_prior

    return tuned("reparameterize_pooled_backward", mu.dtype, mu.numel(), mu.device, call)
