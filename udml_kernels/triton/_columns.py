"""reparameterize of maps with the channels last, which are read and written as they lie.

`_cut` divides the work by the shape of a sample alone, and so fixes the order of the sums.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..ops.reparameterize import _keeps_channels_last, like_maps
from ._launch import ceil_div, fast_math, launch, next_power_of_2, triton_dtype
from ._pooled import _strided, _strides
from ._reparameterize_columns import _columns_backward_kernel, _columns_finish_kernel, _columns_forward_kernel
from ._sums import sum_runs
from ._tuning import Config, tuned
from .random import noise_of

# A longer run of locations would add more float32 numbers in a chain, a shorter one draws more normals twice.
_STEPS = 8


class Cut(NamedTuple):
    """Tiles of Q runs x R channels. A run has `steps` times four locations; `blocks` x `parts` tiles cover a sample."""

    Q: int
    R: int
    steps: int
    blocks: int
    parts: int


def _cut(channels: int, locations: int, elements: int) -> Cut:
    groups = ceil_div(locations, 4)
    R = min(next_power_of_2(channels), 64)
    # Each run has at least four steps if there are so many.
    Q = max(min(elements // 4 // R, next_power_of_2(groups // 4 + 1) // 2), 1)
    parts = ceil_div(groups, Q * _STEPS)
    return Cut(Q, R, ceil_div(groups, Q * parts), ceil_div(channels, R), parts)


def _settings(mu, prior_var, std_max, sample, seed, stream, sample_ids, config) -> tuple[Cut, tuple, dict[str, Any]]:
    """Return the cut, the arguments of both kernels after their tensors, and the constants."""
    channels, locations = mu.shape[1], math.prod(mu.shape[2:])
    cut = _cut(channels, locations, config.elements // (mu.element_size() // 8 + 1))
    unit = math.gcd(channels, 16 // mu.element_size())
    positional = (
        prior_var, noise_of(seed if sample else None, sample_ids), stream, mu.shape[0], locations, channels // unit,
        cut.blocks, cut.parts, cut.steps, *((0.0, 0.0) if std_max is None else (std_max, 2 * math.log(std_max))),
    )  # fmt: skip
    constants = {
        "PRIOR_STEP": int(prior_var.numel() > 1), "CLIP": std_max is not None, "C": triton_dtype(mu.dtype),
        "FAST": fast_math(mu.device), "UNIT": unit, "SHIFTED": locations % 4 > 0, "Q": cut.Q, "R": cut.R,
        "num_warps": max(config.num_warps * cut.Q * cut.R * 4 // config.elements, 1),
    }  # fmt: skip
    return cut, positional, constants


def reparameterize_columns(
    mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids
) -> tuple[Tensor, Tensor, Tensor]:
    rows, channels, locations = mu.shape[0], mu.shape[1], math.prod(mu.shape[2:])
    dtype = checks.compute_dtype(mu.dtype)

    def call(config: Config) -> tuple[Tensor, Tensor, Tensor]:
        cut, positional, constants = _settings(mu, prior_var, std_max, sample, seed, stream, sample_ids, config)
        z, std = like_maps(mu, logvar), torch.empty((rows, channels), dtype=dtype, device=mu.device)
        partial = std.new_empty((rows, cut.parts * cut.blocks))
        whole = cut.parts == 1
        std_sums = std if whole else std.new_empty((rows, cut.parts, channels))
        launch(
            _columns_forward_kernel, mu.device, partial.numel(), mu, logvar, z, std_sums, partial, *positional,
            1 / locations if whole else 1.0, **constants,
        )  # fmt: skip
        if whole:
            return z, std, partial.view(rows) if cut.blocks == 1 else sum_runs(partial, (rows,))
        kl = std.new_empty((rows,))
        count = min(next_power_of_2(channels), 64)
        groups = ceil_div(channels, count)
        launch(
            _columns_finish_kernel, mu.device, rows * (groups + 1), std_sums, partial, std, kl, channels, cut.parts,
            cut.blocks, groups, 1 / locations, PARTS=min(next_power_of_2(cut.parts), 16), CHANNELS=count,
        )  # fmt: skip
        return z, std, kl

    return tuned("reparameterize_columns", mu.dtype, mu.numel(), mu.device, call)


def reparameterize_columns_backward(
    grad_z, grad_std, grad_kl, mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids, needs_prior
) -> tuple[Tensor, Tensor, Tensor]:
    z_last = grad_z is not None and _keeps_channels_last(grad_z, grad_z)
    z_map = (grad_z, 0, 0, 0) if grad_z is None or z_last else _strided(grad_z)
    kl = (None, 0) if grad_kl is None else (grad_kl, grad_kl.stride(0))

    def call(config: Config) -> tuple[Tensor, Tensor, Tensor]:
        cut, positional, constants = _settings(mu, prior_var, std_max, sample, seed, stream, sample_ids, config)
        grad_mu, grad_logvar = (like_maps(mu, logvar) for _ in range(2))
        programs = mu.shape[0] * cut.parts * cut.blocks
        partial = None
        if needs_prior:
            partial = torch.empty((mu.shape[0], cut.parts * cut.blocks), dtype=torch.float64, device=mu.device)
        launch(
            _columns_backward_kernel, mu.device, programs, *z_map, *_strides(grad_std), *kl, mu, logvar, grad_mu,
            grad_logvar, partial, *positional, 1 / math.prod(mu.shape[2:]), Z_LAST=z_last, **constants,
        )  # fmt: skip
        if partial is None:
            return grad_mu, grad_logvar, prior_var.new_empty(0)
        grad_prior = sum_runs(partial.view(prior_var.numel(), -1), prior_var.shape, dtype=prior_var.dtype)
        return grad_mu, grad_logvar, grad_prior

    return tuned("reparameterize_columns_backward", mu.dtype, mu.numel(), mu.device, call)
