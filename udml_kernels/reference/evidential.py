import torch
from torch import Tensor

from ._dtype import compute_dtype


def _digamma(x: Tensor) -> Tensor:
    """psi(x) for x > 0 by its recurrence: torch's own derivative of psi is off by 1e-9 for small float64 x."""
    steps = torch.arange(20, dtype=x.dtype, device=x.device)
    return (x + 20).digamma() - (x.unsqueeze(-1) + steps).reciprocal().sum(-1)


def evidential_fusion(evidence: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """e = K (prod_m (1 + e_m / K) - 1), in log space; see `udml_kernels.evidential_fusion`."""
    classes = evidence.shape[2]
    e = evidence.to(compute_dtype(evidence))
    if mask is not None:
        e = torch.where(mask.unsqueeze(2), e, 0)
    return (classes * (e / classes).log1p().sum(1).expm1()).to(evidence.dtype)


def evidential_loss(evidence: Tensor, target: Tensor, kl_weight: float = 1.0, *, reduction: str = "mean") -> Tensor:
    """Digamma cross entropy + kl_weight * KL to the uniform Dirichlet; see `udml_kernels.evidential_loss`."""
    classes = evidence.shape[-1]
    alpha = evidence.to(compute_dtype(evidence)) + 1
    target = target.reshape(target.shape + (1,) * (evidence.dim() - 1 - target.dim())).expand(evidence.shape[:-1])
    # Not one_hot, which reads the targets' values: while tracing there are none. A target that is no class gives NaN.
    hot = target.unsqueeze(-1) == torch.arange(classes, device=target.device)
    true_alpha = torch.where(hot.any(-1), torch.where(hot, alpha, 0).sum(-1), torch.nan)
    cross_entropy = _digamma(alpha.sum(-1)) - _digamma(true_alpha)
    # The evidence for the true class is taken out first: only misleading evidence is punished.
    wrong = torch.where(hot, 1, alpha)
    strength = wrong.sum(-1, keepdim=True)
    kl = (
        strength.squeeze(-1).lgamma()
        - wrong.lgamma().sum(-1)
        - torch.lgamma(torch.tensor(float(classes), dtype=alpha.dtype))
        + ((wrong - 1) * (_digamma(wrong) - _digamma(strength))).sum(-1)
    )
    loss = cross_entropy + kl_weight * kl
    if reduction == "none":
        return loss
    return loss.sum() / (max(loss.numel(), 1) if reduction == "mean" else 1)
