from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of arithmetic and reductions: float64 for a float64 input, float32 for everything else."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def per_sample(value: Tensor | float, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A scalar, (B,) or (B, 1, ...) value, reshaped to broadcast over the samples of `like`."""
    value = torch.as_tensor(value, dtype=dtype, device=like.device)
    return value.reshape((-1,) + (1,) * (like.dim() - 1))


def per_modality(value: Any, count: int) -> Sequence[Any]:
    """A value for each modality: the columns of a (B, M) tensor, or one value for all."""
    if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == count:
        return value.unbind(1)
    return [value] * count


def per_tensor(value: Any, count: int) -> Sequence[Any]:
    """A value for each modality from a list of `count` tuples or None, or one value for all."""
    listed = isinstance(value, (list, tuple)) and len(value) == count
    if listed and all(v is None or isinstance(v, (list, tuple)) for v in value):
        return value
    return [value] * count
