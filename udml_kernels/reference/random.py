"""Philox4x32-10 (Salmon et al., SC 2011) and the normals and uniforms every backend must reproduce.

The value of element e of a sample depends only on (seed, stream, sample id, e): the counter is
(e // 4, stream, sample id low, sample id high), the key consists of the two words of the seed, and
the element takes word e % 4.
"""

import math

import torch
from torch import Tensor

from ..streams import Stream

__all__ = ["normal", "uniform"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

_OPS = ("inject_noise", "reparameterize", "noise_regression", "modality_dropout", "reparameterize_pooled")
OP_IDS = {name: int(Stream[name.upper()]) for name in _OPS}


def op_stream(op: str, stream: int) -> int:
    """The counter's stream word inside an op, by which one seed serves all ops of a step."""
    return OP_IDS[op] + 256 * stream


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]):
    """Ten rounds on int64 tensors that hold 32-bit words; returns four such tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2^64, so both halves come out right after masking.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return c0, c1, c2, c3


def words(shape, seed: Tensor, stream: int, sample_ids: Tensor | None) -> Tensor:
    """Philox words of a (B, ...) tensor, (B, elements rounded up to a multiple of 4), int64."""
    samples, elements = shape[0], math.prod(shape[1:])
    device = seed.device
    ids = torch.arange(samples, device=device) if sample_ids is None else sample_ids
    ids = ids.reshape(-1, 1)
    block = torch.arange((elements + 3) // 4, device=device).reshape(1, -1)
    seed = seed.reshape(())
    counter = (block, torch.full_like(block, stream), ids & _MASK, ids >> 32 & _MASK)
    return torch.stack(torch.broadcast_tensors(*philox(counter, (seed & _MASK, seed >> 32 & _MASK))), -1).flatten(1)


def _shaped(values: Tensor, shape, dtype: torch.dtype) -> Tensor:
    return values[:, : math.prod(shape[1:])].reshape(shape).to(dtype)


def uniform(shape, seed: Tensor, *, stream: int = 0, sample_ids: Tensor | None = None, dtype=torch.float32) -> Tensor:
    """(w >> 8) * 2^-24, in [0, 1). A narrow dtype is rounded down: rounding to nearest could give 1."""
    integers = words(shape, seed, stream, sample_ids) >> 8
    if dtype in (torch.bfloat16, torch.float16):
        # The dtype holds 8 or 11 significant bits of at most 24; frexp counts those that a number has.
        surplus = (integers.double().frexp()[1] - (8 if dtype == torch.bfloat16 else 11)).clamp(min=0)
        integers = integers >> surplus << surplus
    return _shaped(integers.double() * 2.0**-24, shape, dtype)


def normal(shape, seed: Tensor, *, stream: int = 0, sample_ids: Tensor | None = None, dtype=torch.float32) -> Tensor:
    """Box-Muller on word pairs (0, 1) and (2, 3), evaluated in float64.

    float16 and bfloat16 are rounded from the float32 value that the ops use.
    """
    radius_word, angle_word = words(shape, seed, stream, sample_ids).unflatten(1, (-1, 2)).unbind(-1)
    radius = (-2 * ((radius_word >> 8).double() * 2.0**-24 + 2.0**-25).log()).sqrt()
    # The quadrant comes from the integer, so the angle itself stays within a quarter turn.
    turned = angle_word + 2**29
    quadrant = turned >> 30 & 3
    angle = ((turned & 0x3FFFFFFF) - 2**29).double() * (2 * math.pi * 2.0**-32)
    sin, cos = angle.sin(), angle.cos()
    swap, negate_cos, negate_sin = quadrant % 2 == 1, (quadrant == 1) | (quadrant == 2), quadrant >= 2
    cos, sin = torch.where(swap, sin, cos), torch.where(swap, cos, sin)
    pair = torch.stack((torch.where(negate_cos, -cos, cos), torch.where(negate_sin, -sin, sin)), -1)
    values = (radius.unsqueeze(-1) * pair).flatten(1)
    return _shaped(values if dtype == torch.float64 else values.float(), shape, dtype)
