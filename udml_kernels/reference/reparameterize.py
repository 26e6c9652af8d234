import math

from torch import Tensor

from ._dtype import compute_dtype, per_sample
from .random import normal, op_stream

__all__ = ["reparameterize"]


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    prior_var: Tensor | float = 1.0,
    *,
    std_max: float | None = None,
    sample: bool = True,
    seed: Tensor | None = None,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """z = mu + std * eps, the pooled std and the KL; see `udml_kernels.reparameterize`."""
    dtype = compute_dtype(mu)
    mean, log_variance, prior = mu.to(dtype), logvar.to(dtype), per_sample(prior_var, mu, dtype)
    if std_max is not None:
        # Clamped before the exponential, so that the gradient of a clipped element is 0 and not 0 * inf.
        log_variance = log_variance.clamp(max=2 * math.log(std_max))
    std = (log_variance / 2).exp()
    if std_max is not None:
        std = std.clamp(max=std_max)
    z = mean
    if sample:
        assert seed is not None, "sampling needs a seed"
        z = mean + std * normal(
            mu.shape, seed, stream=op_stream("reparameterize", stream), sample_ids=sample_ids, dtype=dtype
        )
    # In float64, and not from std: the derivative std / prior may not be representable in float32 where the KL's is.
    variance = prior.double()
    relative = log_variance.double() - variance.log()
    kl = 0.5 * (relative.exp() + (mean.double() / variance.sqrt()).square() - relative - 1)
    pooled = std.flatten(2).mean(2) if std.dim() > 2 else std.clone()
    return z.to(mu.dtype, copy=True), pooled, kl.flatten(1).sum(1).to(dtype)
