from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._dtype import compute_dtype

__all__ = ["fusion_weights", "weighted_fusion"]


def _over_locations(value: Tensor, like: Tensor) -> Tensor:
    """(M,), (B, M) or (B, M, *spatial) expanded to the shape of `like`, (B, M, *spatial)."""
    if value.dim() == 1:
        value = value.unsqueeze(0)
    return value.reshape(value.shape + (1,) * (like.dim() - value.dim())).expand_as(like)


def _softmax(x: Tensor, present: Tensor) -> Tensor:
    """Softmax over dim 1, from differences: where 1 / sum_j exp(x_j - x_m) is 1, its derivative has only small terms.

    The derivative of torch.softmax is p (g - sum_j p_j g_j) there, in which 1 - p is lost, however large dx is.
    """
    top = torch.where(present, x, -torch.inf).amax(1, keepdim=True)
    # For -inf the weight and its derivative are 0. A large negative number gives both, where infinity would give NaN.
    # Adding the reciprocal, which is 0, passes on a NaN of the incoming gradient.
    low = x < -1e300
    finite = torch.where(low, torch.where(low, x, 1).reciprocal() - 1e300, x)
    itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device).reshape(x.shape[1], -1, *[1] * (x.dim() - 2))
    # The difference of an entry with itself is constant, and an absent modality has no difference.
    difference = torch.where(itself, 0, finite.unsqueeze(1) - finite.unsqueeze(2))
    difference = torch.where(present.unsqueeze(1), difference, -torch.inf)
    weights = (-torch.where(present.unsqueeze(2), difference, 0).logsumexp(2)).exp()
    # Where the largest entry is not finite, the weights and their derivatives are NaN.
    odd = ~top.isfinite()
    return weights + torch.where(odd, x, 0) * torch.where(odd, torch.nan, 0)


def fusion_weights(
    uncertainty: Tensor,
    dependency: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    g: str = "softmax",
    temperature: float = 1.0,
    total: float | None = None,
    floor: float | None = None,
    reference: float | None = None,
) -> Tensor:
    """w = total * softmax_m of 1/(s a)/tau or -log(s a)/tau; see `udml_kernels.fusion_weights`."""
    # In float64: the product of two float32 numbers, or its inverse, may not be representable in float32.
    s = uncertainty.double()
    present = torch.ones_like(s, dtype=torch.bool) if mask is None else _over_locations(mask, s)
    count = present.sum(1, keepdim=True)
    # Absent entries are replaced before the logarithm, so that their values reach neither the result nor a gradient.
    s = torch.where(present, s, 1)
    log_inverse = -_variance(s, floor).log()
    alpha = None if dependency is None else torch.where(present, _over_locations(dependency.double(), s), 1)
    if alpha is not None:
        log_inverse = log_inverse - alpha.log()
    if reference is not None:
        log_inverse = torch.cat([log_inverse, _reference(reference, floor, alpha, present, count)], 1)
    # q = 1/(s a) is formed from logarithms: its derivative is then q/s, which is finite where q^2 is not.
    logits = (log_inverse if g == "inverse" else log_inverse.exp()) / temperature
    shared = present
    if reference is not None:
        shared = torch.cat([present, count > 0], 1)
        logits = torch.cat([logits[:, :-1], logits[:, -1:] + count.clamp(min=1).double().log()], 1)
    weights = torch.where(present, _softmax(logits, shared)[:, : present.shape[1]], 0)
    weights = weights * (count if total is None else total)
    return weights.to(compute_dtype(uncertainty))


def _variance(s, floor: float | None):
    return s if floor is None else s * s + floor * floor


def _reference(r: float, floor: float | None, alpha: Tensor | None, present: Tensor, count: Tensor) -> Tensor:
    """-log of the reference's uncertainty times the mean dependency of the modalities present, (B, 1, *spatial)."""
    log_inverse = -(_variance(r, floor) * torch.ones_like(count, dtype=torch.float64)).log()
    if alpha is None:
        return log_inverse
    mean = torch.where(present, alpha, 0).sum(1, keepdim=True) / count.clamp(min=1)
    return log_inverse - torch.where(count > 0, mean, 1).log()


def weighted_fusion(
    features: Sequence[Tensor],
    uncertainty: Tensor,
    dependency: Tensor | None = None,
    *,
    mode: str = "concat",
    residual: bool = False,
    mask: Tensor | None = None,
    g: str = "softmax",
    temperature: float = 1.0,
    total: float | None = None,
    floor: float | None = None,
    reference: float | None = None,
) -> tuple[Tensor | tuple[Tensor, ...], Tensor]:
    """w_m f_m (or (1 + w_m) f_m), concatenated, summed or as a tuple; see `udml_kernels.weighted_fusion`."""
    dtype = compute_dtype(features[0])
    options: dict[str, Any] = {"temperature": temperature, "total": total, "floor": floor, "reference": reference}
    weights = fusion_weights(uncertainty.to(dtype), dependency, mask=mask, g=g, **options)
    scaled = []
    for m, feature in enumerate(features):
        weight = weights[:, m].unsqueeze(1)
        weight = weight.reshape(weight.shape + (1,) * (feature.dim() - weight.dim()))
        value = feature.to(dtype)
        if mask is not None and not residual:
            # An absent modality contributes nothing, whatever its features hold.
            here = _over_locations(mask, weights)[:, m].unsqueeze(1)
            value = torch.where(here.reshape(weight.shape), value, 0)
        scaled.append(value * (1 + weight if residual else weight))
    fused: Tensor | tuple[Tensor, ...]
    if mode == "sum":
        fused = sum(scaled[1:], scaled[0]).to(features[0].dtype)
    elif mode == "concat":
        fused = torch.cat(scaled, 1).to(features[0].dtype)
    else:
        fused = tuple(y.to(features[0].dtype) for y in scaled)
    return fused, weights
