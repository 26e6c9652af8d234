from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._dtype import compute_dtype
from .random import op_stream, uniform

__all__ = ["modality_dependency", "modality_dropout"]


def modality_dropout(
    features: Sequence[Tensor],
    p: Tensor | float,
    *,
    keep_one: bool = True,
    mask_only: bool = False,
    seed: Tensor,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> Any:
    """Zero whole modalities with probability p; see `udml_kernels.modality_dropout`."""
    count = len(features)
    shape = (features[0].shape[0], count)
    u = uniform(shape, seed, stream=op_stream("modality_dropout", stream), sample_ids=sample_ids)
    margin = u - torch.as_tensor(p, dtype=torch.float32, device=u.device)
    mask = margin >= 0
    if keep_one:
        closest = margin.argmax(1, keepdim=True) == torch.arange(count, device=margin.device)
        mask = mask | (closest & ~mask.any(1, keepdim=True))
    if mask_only:
        return mask
    kept = tuple(torch.where(mask[:, m].reshape((-1,) + (1,) * (f.dim() - 1)), f, 0) for m, f in enumerate(features))
    return kept, mask


def modality_dependency(logits: Tensor) -> Tensor:
    """alpha_m = mean over the batch of sum_k |logit_mbk|; see `udml_kernels.modality_dependency`."""
    return logits.to(compute_dtype(logits)).abs().sum((1, 2)) / max(logits.shape[1], 1)
