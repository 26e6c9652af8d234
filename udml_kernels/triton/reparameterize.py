"""reparameterize reads mu and logvar once and writes z once. The same pass averages std and sums the KL divergence.

A row is C channels of L locations. Its shape alone determines its division into tiles (`_cut`):

    POOL 0  L is 1: nothing to average
    POOL 1  channels are short: a tile has CB whole channels and averages them
    POOL 2  channels are long: a tile lies in at most two channels; `_finish_kernel` adds its two sums

Maps with the channels last have kernels of their own: _columns.py.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..ops.reparameterize import _keeps_channels_last
from ._columns import reparameterize_columns, reparameterize_columns_backward
from ._launch import ceil_div, fast_math, launch, next_power_of_2, triton_dtype
from ._pooled import reparameterize_pooled, reparameterize_pooled_backward
from ._reparameterize import _backward_kernel, _finish_kernel, _forward_kernel
from ._rows import rows_of, tiles_of
from ._sums import sum_runs
from ._tuning import DEFAULT, Config, tuned
from .random import noise_of

__all__ = [
    "reparameterize",
    "reparameterize_backward",
    "reparameterize_pooled",
    "reparameterize_pooled_backward",
]


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


def _settings(mu, prior_var, std_max, sample, seed, stream, sample_ids, config) -> tuple[tuple, dict, Cut]:
    """Return the arguments of both kernels after their tensors: positional arguments, constants, and the cut."""
    rows, channels, locations = mu.shape[0], mu.shape[1], math.prod(mu.shape[2:])
    cut = _cut(rows, channels, locations, config.elements)
    positional = (
        prior_var, noise_of(seed if sample else None, sample_ids), stream,
        rows, channels * locations, channels, locations, cut.across,
        *((0.0, 0.0) if std_max is None else (std_max, 2 * math.log(std_max))),
    )  # fmt: skip
    constants = {
        "PRIOR_STEP": int(prior_var.numel() > 1), "LOCATIONS": locations if cut.pool == 1 else 1, "POOL": cut.pool,
        "CB": cut.CB, "CLIP": std_max is not None,
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
    if _keeps_channels_last(mu, logvar):
        return reparameterize_columns(mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids)
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
            LAYOUT=layout, PADDED=next_power_of_2(constants["LOCATIONS"]), COLUMNS=next_power_of_2(cut.CB), **constants,
        )  # fmt: skip
        if std_sums is None:
            return z, pooled, partial.view(rows) if cut.across == 1 else sum_runs(partial, (rows,))
        kl = torch.empty((rows,), dtype=dtype, device=mu.device)
        # A channel lies in at most locations // step + 2 tiles.
        block = min(next_power_of_2(locations // cut.step + 2), 32)
        count = min(next_power_of_2(channels), 256 // block)
        groups = ceil_div(channels, count)
        launch(
            _finish_kernel, mu.device, rows * (groups + 1), partial, std_sums, kl, pooled, groups, channels, locations,
            cut.step, cut.across, 1 / locations, CHANNELS=count, BLOCK=block, num_warps=1,
        )  # fmt: skip
        return z, pooled, kl

    return tuned("reparameterize", mu.dtype, mu.numel(), mu.device, call)


def reparameterize_backward(
    grad_z, grad_std, grad_kl, mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids, needs_prior
) -> tuple[Tensor, Tensor, Tensor]:
    if mu.numel() == 0:
        grad_prior = torch.zeros_like(prior_var) if needs_prior else prior_var.new_empty(0)
        return mu.new_empty(mu.shape), mu.new_empty(mu.shape), grad_prior
    if _keeps_channels_last(mu, logvar):
        return reparameterize_columns_backward(
            grad_z, grad_std, grad_kl, mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids, needs_prior
        )
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
