import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._dtype import compute_dtype, per_modality, per_sample, per_tensor
from .random import normal, op_stream, uniform

__all__ = ["inject_noise"]

KINDS = ("gaussian", "uniform", "speckle", "salt_pepper", "dropout", "replace")
_NORMAL = {"gaussian", "speckle", "replace"}


def inject_noise(
    x: Tensor | Sequence[Tensor],
    sigma: Tensor | float,
    *,
    kind: str | Tensor = "gaussian",
    clamp: Sequence | None = None,
    normalize: Sequence | None = None,
    out_dtype: torch.dtype | None = None,
    seed: Tensor,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> Any:
    """Noise, then clamp, then (y / scale - mean_c) / std_c; see `udml_kernels.inject_noise`."""
    if isinstance(x, (list, tuple)):
        columns = zip(x, *(per_modality(value, len(x)) for value in (sigma, kind)), strict=True)
        options = [per_tensor(value, len(x)) for value in (clamp, normalize)]
        rest: dict = {"out_dtype": out_dtype, "seed": seed, "sample_ids": sample_ids}
        return tuple(
            inject_noise(*of_modality, kind=k, clamp=options[0][m], normalize=options[1][m], stream=stream + m, **rest)
            for m, (*of_modality, k) in enumerate(columns)
        )
    assert isinstance(x, Tensor)
    dtype = compute_dtype(x)
    if out_dtype is None:
        out_dtype = x.dtype if x.is_floating_point() else torch.float32
    word = op_stream("inject_noise", stream)
    value, level = x.to(dtype), per_sample(sigma, x, dtype)
    low, high = (math.nan, math.nan) if clamp is None else clamp

    kinds = {kind} if isinstance(kind, str) else set(KINDS)
    # Each is drawn only where it is needed: drawing takes longer than everything else.
    eps, u = (
        draw(x.shape, seed, stream=word, sample_ids=sample_ids, dtype=dtype) if kinds & wanted else value
        for draw, wanted in ((normal, _NORMAL), (uniform, set(KINDS) - _NORMAL))
    )

    def noisy(name: str, value: Tensor, level: Tensor) -> Tensor:
        if name in _NORMAL:
            return {"gaussian": value + level * eps, "speckle": value * (1 + level * eps), "replace": level * eps}[name]
        if name == "uniform":
            return value + level * (math.sqrt(3) * (2 * u - 1))
        if name == "dropout":
            return torch.where(u < level, 0, value)
        return torch.where(u < level / 2, low, torch.where(u < level, high, value))

    # The inputs of branches that are not selected are replaced too: their gradient would be 0 * inf, which is NaN.
    def of_its_kind(value: Tensor, level: Tensor) -> Tensor:
        if isinstance(kind, str):
            return noisy(kind, value, level)
        y, codes = torch.full_like(value, math.nan), kind.reshape((-1,) + (1,) * (x.dim() - 1))
        for code, name in enumerate(KINDS):
            here = codes == code
            y = torch.where(here, noisy(name, torch.where(here, value, 0), torch.where(here, level, 0)), y)
        return y

    y = of_its_kind(value, level)
    if clamp is not None:
        clamped = y.detach()
        inside = (clamped >= low) & (clamped <= high)
        passed = of_its_kind(torch.where(inside, value, 0), torch.where(inside, level, 0))
        y = torch.where(inside, passed, clamped.clamp(low, high))
    if normalize is not None:
        scale, mean, std = normalize
        channel = (-1,) + (1,) * (x.dim() - 2)
        mean, std = (torch.as_tensor(v, dtype=dtype, device=x.device).reshape(channel) for v in (mean, std))
        y = (y / scale - mean) / std
    return y.to(out_dtype)
