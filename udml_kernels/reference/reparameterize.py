import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._dtype import compute_dtype, per_modality, per_sample
from .random import normal, op_stream

__all__ = ["reparameterize"]


def reparameterize(
    mu: Tensor | Sequence[Tensor],
    logvar: Tensor | Sequence[Tensor],
    prior_var: Tensor | float = 1.0,
    *,
    std_max: float | None = None,
    sample: bool = True,
    pool: bool = False,
    pool_std: bool = True,
    seed: Tensor | None = None,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> tuple[Any, Any, Tensor]:
    """z = mu + std * eps, std and the KL; see `udml_kernels.reparameterize`."""
    if isinstance(mu, (list, tuple)):
        options: dict = {"std_max": std_max, "sample": sample, "seed": seed, "sample_ids": sample_ids}
        options |= {"pool": pool, "pool_std": pool_std}
        prior_vars = per_modality(prior_var, len(mu))
        calls = [
            reparameterize(a, b, p, stream=stream + m, **options)
            for m, (a, b, p) in enumerate(zip(mu, logvar, prior_vars, strict=True))
        ]
        drawn, stds, kls = zip(*calls, strict=True)
        return drawn, stds, torch.stack(kls, 1)
    assert isinstance(mu, Tensor) and isinstance(logvar, Tensor)
    if pool and mu.dim() > 2:
        return pooled_sample(mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids)[:3]
    mean, std, kl = _moments(mu, logvar, prior_var, std_max)
    z = mean
    if sample:
        assert seed is not None, "sampling needs a seed"
        word = op_stream("reparameterize", stream)
        z = mean + std * normal(mu.shape, seed, stream=word, sample_ids=sample_ids, dtype=std.dtype)
    pooled = std.flatten(2).mean(2) if std.dim() > 2 and pool_std else std.clone()
    return z.to(mu.dtype, copy=True), pooled, kl


def pooled_sample(
    mu: Tensor,
    logvar: Tensor,
    prior_var: Tensor | float,
    std_max: float | None,
    sample: bool,
    seed: Tensor | None,
    stream: int,
    sample_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of `reparameterize` with `pool=True`, and the standard deviation (B, C) of z's noise."""
    mean, std, kl = _moments(mu, logvar, prior_var, std_max)
    locations = std.shape[2:].numel()
    # The norm in float64, as float32 does not hold all squares of float32 numbers. Its gradient at 0 is 0.
    spread = (torch.linalg.vector_norm(std.flatten(2).double(), dim=2) / locations).to(std.dtype)
    z = mean.flatten(2).mean(2)
    if sample:
        assert seed is not None, "sampling needs a seed"
        word = op_stream("reparameterize_pooled", stream)
        z = z + spread * normal(z.shape, seed, stream=word, sample_ids=sample_ids, dtype=std.dtype)
    return z.to(mu.dtype), std.flatten(2).mean(2), kl, spread


def _moments(
    mu: Tensor, logvar: Tensor, prior_var: Tensor | float, std_max: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """mu and std in the arithmetic dtype, and the KL of each sample."""
    dtype = compute_dtype(mu)
    mean, log_variance, prior = mu.to(dtype), logvar.to(dtype), per_sample(prior_var, mu, dtype)
    if std_max is not None:
        # Clamped before the exponential, so that the gradient of a clipped element is 0 and not 0 * inf.
        log_variance = log_variance.clamp(max=2 * math.log(std_max))
    std = (log_variance / 2).exp()
    if std_max is not None:
        std = std.clamp(max=std_max)
    # In float64, and not from std: the derivative std / prior may not be representable in float32 where the KL's is.
    variance = prior.double()
    relative = log_variance.double() - variance.log()
    kl = 0.5 * (relative.exp() + (mean.double() / variance.sqrt()).square() - relative - 1)
    return mean, std, kl.flatten(1).sum(1).to(dtype)
