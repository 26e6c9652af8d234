"""What the ops replace: the best plain PyTorch that a user would write, with torch's own random numbers.

This is not the reference, which reproduces the Philox stream in int64 and is slow on purpose.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _rows(value: Tensor, like: Tensor) -> Tensor:
    return value.view(-1, *[1] * (like.dim() - 1))


def _one(weights: Tensor, m: int, like: Tensor) -> Tensor:
    """Modality m's weights, from (B, M) or (B, M, *spatial), shaped to broadcast over its features."""
    chosen = weights[:, m : m + 1]
    return chosen.reshape(chosen.shape + (1,) * (like.dim() - chosen.dim()))


def reparameterize(mu: Tensor, logvar: Tensor, prior_var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    std = torch.exp(0.5 * logvar)
    z = mu + std * torch.randn_like(std)
    prior = _rows(prior_var, mu)
    kl = 0.5 * ((std.square() + mu.square()) / prior - logvar + prior.log() - 1)
    pooled = std.flatten(2).mean(2) if std.dim() > 2 else std
    return z, pooled, kl.flatten(1).sum(1)


def inject_noise(x: Tensor, sigma: Tensor) -> Tensor:
    return x + _rows(sigma, x) * torch.randn_like(x)


def noisy_image(image: Tensor, sigma: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 -> noise -> clamp -> normalised float32."""
    x = image.float()
    x = (x + _rows(sigma, x) * torch.randn_like(x)).clamp(0, 255)
    return (x / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def weighted_fusion(features: Sequence[Tensor], uncertainty: Tensor, dependency: Tensor) -> tuple[Tensor, Tensor]:
    """Fusion with weights for each row, (B, M), or for each location, (B, M, *spatial)."""
    alpha = dependency.view(-1, *[1] * (uncertainty.dim() - 2))
    weights = len(features) * torch.softmax(1 / (uncertainty * alpha), 1)
    return torch.cat([_one(weights, m, f) * f for m, f in enumerate(features)], 1), weights


def noise_regression_linear(
    std: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, target: Tensor, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Two calls of F.linear for each of the M estimators."""
    predictions = []
    for s, w1, b1, w2, b2 in zip(std, weight1, bias1, weight2, bias2, strict=True):
        predictions.append(torch.exp(F.linear(F.dropout(F.linear(s, w1, b1), dropout_p), w2, b2) / 2))
    noise = torch.stack(predictions)
    return noise, F.mse_loss(noise, target)


def noise_regression_grouped(
    std: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, target: Tensor, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The M estimators as two batched products."""
    hidden = F.dropout(torch.baddbmm(bias1.unsqueeze(1), std, weight1.mT), dropout_p)
    noise = torch.exp(torch.baddbmm(bias2.unsqueeze(1), hidden, weight2.mT) / 2)
    return noise, F.mse_loss(noise, target)


def evidential_loss(evidence: Tensor, target: Tensor, kl_weight: float) -> Tensor:
    alpha = evidence + 1
    true_alpha = alpha.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    cross_entropy = alpha.sum(-1).digamma() - true_alpha.digamma()
    wrong = alpha.scatter(-1, target.unsqueeze(-1), 1.0)
    strength = wrong.sum(-1, keepdim=True)
    uniform = torch.lgamma(alpha.new_tensor(float(alpha.shape[-1])))
    kl = strength.squeeze(-1).lgamma() - wrong.lgamma().sum(-1) - uniform
    kl = kl + ((wrong - 1) * (wrong.digamma() - strength.digamma())).sum(-1)
    return (cross_entropy + kl_weight * kl).mean()


def evidential_closed(evidence: Tensor, target: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    """Dempster's reduced rule as a product over the views."""
    classes = evidence.shape[2]
    fused = classes * torch.expm1(torch.log1p(evidence / classes).sum(1))
    return fused, evidential_loss(fused, target, kl_weight)


def evidential_pairwise(evidence: Tensor, target: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    """The rule as TMC states it, two opinions (belief, uncertainty) at a time."""
    classes = evidence.shape[2]

    def opinion(e: Tensor) -> tuple[Tensor, Tensor]:
        strength = (e + 1).sum(1, keepdim=True)
        return e / strength, classes / strength

    belief, doubt = opinion(evidence[:, 0])
    for view in evidence.unbind(1)[1:]:
        other, other_doubt = opinion(view)
        # Conflict: the products of beliefs in different classes, the off-diagonal of an outer product.
        outer = torch.bmm(belief.unsqueeze(2), other.unsqueeze(1))
        conflict = outer.sum((1, 2)) - outer.diagonal(dim1=1, dim2=2).sum(1)
        scale = 1 / (1 - conflict.unsqueeze(1))
        belief = (belief * other + belief * other_doubt + other * doubt) * scale
        doubt = doubt * other_doubt * scale
    fused = belief * (classes / doubt)
    return fused, evidential_loss(fused, target, kl_weight)


def modality_dropout(features: Sequence[Tensor], p: float) -> tuple[tuple[Tensor, ...], Tensor]:
    """Zero whole modalities with probability p; where all would be dropped, a random one is kept."""
    batch, count = len(features[0]), len(features)
    uniform = torch.rand(batch, count, device=features[0].device)
    mask = (uniform >= p) | (F.one_hot(uniform.argmax(1), count) > 0)
    return tuple(f * _rows(mask[:, m], f).to(f.dtype) for m, f in enumerate(features)), mask


def modality_dependency(logits: Tensor) -> Tensor:
    return logits.abs().sum(2).mean(1)


def masked_fusion(
    features: Sequence[Tensor], uncertainty: Tensor, dependency: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Fusion with weights per row or per location of the modalities present; the weights sum to their number."""
    beside = (1,) * (uncertainty.dim() - 2)
    present = mask.view(*mask.shape, *beside)
    scores = (1 / (uncertainty * dependency.view(-1, *beside))).masked_fill(~present, -torch.inf)
    weights = present.sum(1, keepdim=True) * torch.softmax(scores, 1)
    return torch.cat([_one(weights, m, f) * f for m, f in enumerate(features)], 1), weights
