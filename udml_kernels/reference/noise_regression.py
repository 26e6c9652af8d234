import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._dtype import compute_dtype
from .random import op_stream, uniform

__all__ = ["noise_regression"]


def _gelu(h: Tensor) -> Tensor:
    """The exact GELU. `F.gelu` evaluates 1 + erf, which cancels for negative arguments: below -4 this uses erfc."""
    tail = h.clamp(-40, -4)
    return torch.where((h > -40) & (h < -4), tail / 2 * torch.erfc(-math.sqrt(0.5) * tail), F.gelu(h))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda h: h,
    "relu": F.relu,
    "gelu": _gelu,
    "silu": F.silu,
}


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # Autocast would round the operands of a matrix product; the kernels do not.
    with torch.autocast(x.device.type, enabled=False):
        return x @ weight.mT + bias.unsqueeze(-2)


def noise_regression(
    std: Tensor | Sequence[Tensor],
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    target: Tensor | None = None,
    *,
    activation: str = "identity",
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """o = W2 drop(act(W1 std + b1)) + b2; noise = exp(o / 2); see `udml_kernels.noise_regression`."""
    if not isinstance(std, Tensor):
        if std[0].dim() > 2:
            weights = (weight1, bias1, weight2, bias2)
            options: dict = {"activation": activation, "dropout_p": dropout_p, "seed": seed, "stream": stream}
            return _at_locations(std, weights, target, sample_ids, options)
        std = torch.stack(list(std))
    dtype = compute_dtype(std)
    x, w1, b1, w2, b2 = (t.to(dtype) for t in (std, weight1, bias1, weight2, bias2))
    hidden = ACTIVATIONS[activation](_linear(x, w1, b1))
    if dropout_p > 0:
        assert seed is not None, "dropout needs a seed"
        # Dropout's elements are (group, hidden unit) of a sample, so the groups get different masks.
        grouped = hidden if hidden.dim() == 3 else hidden.unsqueeze(0)
        shape = (grouped.shape[1], grouped.shape[0], grouped.shape[2])
        u = uniform(shape, seed, stream=op_stream("noise_regression", stream), sample_ids=sample_ids)
        keep = (
            (u >= torch.tensor(dropout_p, dtype=torch.float32, device=u.device)).transpose(0, 1).reshape(hidden.shape)
        )
        hidden = torch.where(keep, hidden / (1 - dropout_p) if dropout_p < 1 else hidden, 0)
    noise = (_linear(hidden, w2, b2) / 2).exp()
    loss = None
    if target is not None:
        error = noise - target.to(dtype).reshape(noise.shape)
        loss = error.square().sum() / max(error.numel(), 1)
    return noise.to(std.dtype), loss


def _at_locations(
    maps: Sequence[Tensor],
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    target: Tensor | None,
    sample_ids: Tensor | None,
    options: dict,
) -> tuple[Tensor, Tensor | None]:
    """The estimators at each location of M maps (B, D, *spatial): a location is a sample."""
    batch, spatial = maps[0].shape[0], maps[0].shape[2:]
    locations, outputs = spatial.numel(), weights[2].shape[-2]
    rows = torch.stack([m.flatten(2).mT.reshape(batch * locations, m.shape[1]) for m in maps])
    if target is not None:
        target = target.reshape(len(maps), batch, outputs, locations).mT.reshape(len(maps), batch * locations, outputs)
    if sample_ids is not None:
        sample_ids = (sample_ids.unsqueeze(1) * locations + torch.arange(locations, device=sample_ids.device)).flatten()
    noise, loss = noise_regression(rows, *weights, target, sample_ids=sample_ids, **options)
    return noise.reshape(len(maps), batch, locations, outputs).mT.reshape(len(maps), batch, outputs, *spatial), loss
