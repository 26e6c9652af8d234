from collections.abc import Sequence

import torch
from torch import Tensor

from ._dtype import compute_dtype


def _over_locations(value: Tensor, like: Tensor) -> Tensor:
    """(M,), (B, M) or (B, M, *spatial) expanded to the shape of `like`, (B, M, *spatial)."""
    if value.dim() == 1:
        value = value.unsqueeze(0)
    return value.reshape(value.shape + (1,) * (like.dim() - value.dim())).expand_as(like)


def fusion_weights(
    uncertainty: Tensor,
    dependency: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    g: str = "softmax",
    temperature: float = 1.0,
    total: float | None = None,
) -> Tensor:
    """w = total * softmax_m of 1/(s a)/tau or -log(s a)/tau; see `udml_kernels.fusion_weights`."""
    # In float64: of two float32 numbers neither the product nor its inverse need be one.
    s = uncertainty.double()
    present = torch.ones_like(s, dtype=torch.bool) if mask is None else _over_locations(mask, s)
    # Absent entries are replaced before the logarithm, so that whatever they hold reaches neither
    # the result nor a gradient.
    log_inverse = -torch.where(present, s, 1).log()
    if dependency is not None:
        alpha = _over_locations(dependency.double(), s)
        log_inverse = log_inverse - torch.where(present, alpha, 1).log()
    # 1/(s a) is formed from logarithms: its derivative is then q/s, which is finite where q^2 is not.
    logits = (log_inverse if g == "inverse" else log_inverse.exp()) / temperature
    any_present = present.any(1, keepdim=True)
    logits = torch.where(any_present, logits.masked_fill(~present, -torch.inf), 0)
    weights = torch.where(present, logits.softmax(1), 0)
    weights = weights * (present.sum(1, keepdim=True) if total is None else total)
    return weights.to(compute_dtype(uncertainty))


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
) -> tuple[Tensor | tuple[Tensor, ...], Tensor]:
    """w_m f_m (or (1 + w_m) f_m), concatenated, summed or apart; see `udml_kernels.weighted_fusion`."""
    dtype = compute_dtype(features[0])
    weights = fusion_weights(uncertainty.to(dtype), dependency, mask=mask, g=g, temperature=temperature, total=total)
    scaled = []
    for m, feature in enumerate(features):
        weight = weights[:, m].unsqueeze(1)
        weight = weight.reshape(weight.shape + (1,) * (feature.dim() - weight.dim()))
        value = feature.to(dtype)
        if mask is not None and not residual:
            # A modality that is absent contributes nothing, whatever its features hold.
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
