import math

import torch
from torch import Tensor

from ._dtype import compute_dtype

__all__ = ["evidential_fusion", "evidential_loss"]

_STEPS = 20


def _shifted(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(whether x < 20, x if so and else 1, y). For small x, y is x + 20, from which recurrences lead back to x."""
    small = x < _STEPS
    inside = torch.where(small, x, 1)
    return small, inside, torch.where(small, inside + _STEPS, x)


def _steps(x: Tensor) -> Tensor:
    return x.unsqueeze(-1) + torch.arange(_STEPS, dtype=x.dtype, device=x.device)


def _gap(y: Tensor) -> Tensor:
    """y (ln y - psi(y)) for y >= 20 (Abramowitz & Stegun 6.3.18)."""
    v = y.reciprocal()
    u = v * v
    return 0.5 + v * (1 / 12 - u * (1 / 120 - u * (1 / 252 - u * (1 / 240 - u / 132))))


def _digamma_less_log(x: Tensor) -> Tensor:
    """psi(x) - ln x for x > 0, with an accurate derivative: that of torch's psi is off by 1e-9."""
    small, inside, y = _shifted(x)
    shift = ((inside + _STEPS) / inside).log() - _steps(inside).reciprocal().sum(-1)
    return torch.where(small, shift, 0) - _gap(y) / y


def _dirichlet_term(x: Tensor) -> Tensor:
    """(x - 1) (psi(x) - 1) - ln Gamma(x) for x > 0. It grows like ln x, while its terms grow like x ln x."""
    small, inside, y = _shifted(x)
    v, log_y, gap = y.reciprocal(), y.log(), _gap(y)
    u = v * v
    # The terms that ln Gamma(y) has beyond Stirling's formula (6.1.41).
    stirling = v * (1 / 12 - u * (1 / 360 - u * (1 / 1260 - u * (1 / 1680 - u / 1188))))
    at_y = 1 - 0.5 * (math.log(2 * math.pi) + log_y) - (1 - v) * gap - stirling
    steps = _steps(inside)
    shift = _STEPS * (1 - log_y + v * gap) - (inside - 1) * steps.reciprocal().sum(-1) + steps.log().sum(-1)
    return at_y + torch.where(small, shift, 0)


def evidential_fusion(evidence: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """e = K (prod_m (1 + e_m / K) - 1), in log space; see `udml_kernels.evidential_fusion`."""
    classes = evidence.shape[2]
    # In float64: the result loses as many digits as the sum of logarithms has before its decimal point.
    e = evidence.double()
    if mask is not None:
        e = torch.where(mask.unsqueeze(2), e, 0)
    return (classes * (e / classes).log1p().sum(1).expm1()).to(evidence.dtype)


def evidential_loss(evidence: Tensor, target: Tensor, kl_weight: float = 1.0, *, reduction: str = "mean") -> Tensor:
    """Digamma cross entropy + kl_weight * KL to the uniform Dirichlet; see `udml_kernels.evidential_loss`.

    Terms that cancel for large parameters are removed analytically instead of being subtracted: in ln Gamma(x) by
    `_dirichlet_term`, in ln x by `_digamma_less_log`.
    """
    classes = evidence.shape[-1]
    alpha = evidence.double() + 1
    target = target.reshape(target.shape + (1,) * (evidence.dim() - 1 - target.dim())).expand(evidence.shape[:-1])
    # Not one_hot, which reads the targets' values: there are none while tracing. An invalid class gives NaN.
    hot = target.unsqueeze(-1) == torch.arange(classes, device=target.device)
    true_alpha = torch.where(hot.any(-1), torch.where(hot, alpha, 0).sum(-1), torch.nan)
    # The evidence for the true class is removed first: only misleading evidence is penalised.
    wrong = torch.where(hot, 1, alpha)
    strength = wrong.sum(-1)
    others = torch.where(hot, 0, alpha).sum(-1)
    # psi(sum_k alpha_k) - psi(alpha_y)
    cross_entropy = (others / true_alpha).log1p()
    cross_entropy = cross_entropy + _digamma_less_log(true_alpha + others) - _digamma_less_log(true_alpha)
    psi = strength.log() + _digamma_less_log(strength)
    kl = _dirichlet_term(wrong).sum(-1) - _dirichlet_term(strength) + (classes - 1) * (psi - 1) - math.lgamma(classes)
    loss = (cross_entropy + kl_weight * kl).to(compute_dtype(evidence))
    if reduction == "none":
        return loss
    return loss.sum() / (max(loss.numel(), 1) if reduction == "mean" else 1)
