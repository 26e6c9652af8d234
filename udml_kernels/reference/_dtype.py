import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of arithmetic and reductions: float64 for a float64 input, float32 for everything else."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def per_sample(value: Tensor | float, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A scalar, (B,) or (B, 1, ...) value, reshaped to broadcast over the samples of `like`."""
    value = torch.as_tensor(value, dtype=dtype, device=like.device)
    return value.reshape((-1,) + (1,) * (like.dim() - 1))
