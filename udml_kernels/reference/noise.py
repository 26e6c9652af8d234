import math

import torch
from torch import Tensor

from ._dtype import compute_dtype, per_sample
from .random import normal, op_stream, uniform

KINDS = ("gaussian", "uniform", "speckle", "salt_pepper", "dropout", "replace")


def inject_noise(
    x: Tensor,
    sigma: Tensor | float,
    *,
    kind: str | Tensor = "gaussian",
    clamp: tuple[float, float] | None = None,
    normalize: tuple | None = None,
    out_dtype: torch.dtype | None = None,
    seed: Tensor,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> Tensor:
    """Noise, then clamp, then (y / scale - mean_c) / std_c; see `udml_kernels.inject_noise`."""
    dtype = compute_dtype(x)
    if out_dtype is None:
        out_dtype = x.dtype if x.is_floating_point() else torch.float32
    word = op_stream("inject_noise", stream)
    value, level = x.to(dtype), per_sample(sigma, x, dtype)
    low, high = (math.nan, math.nan) if clamp is None else clamp

    def noisy(name: str) -> Tensor:
        if name in ("gaussian", "speckle", "replace"):
            eps = normal(x.shape, seed, stream=word, sample_ids=sample_ids, dtype=dtype)
            return {"gaussian": value + level * eps, "speckle": value * (1 + level * eps), "replace": level * eps}[name]
        u = uniform(x.shape, seed, stream=word, sample_ids=sample_ids, dtype=dtype)
        if name == "uniform":
            return value + level * (math.sqrt(3) * (2 * u - 1))
        if name == "dropout":
            return torch.where(u < level, 0, value)
        return torch.where(u < level / 2, low, torch.where(u < level, high, value))

    if isinstance(kind, str):
        y = noisy(kind)
    else:
        y, codes = torch.full_like(value, math.nan), kind.reshape((-1,) + (1,) * (x.dim() - 1))
        for code, name in enumerate(KINDS):
            y = torch.where(codes == code, noisy(name), y)
    if clamp is not None:
        y = y.clamp(low, high)
    if normalize is not None:
        scale, mean, std = normalize
        channel = (-1,) + (1,) * (x.dim() - 2)
        mean, std = (torch.as_tensor(v, dtype=dtype, device=x.device).reshape(channel) for v in (mean, std))
        y = (y / scale - mean) / std
    return y.to(out_dtype)
