import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._statistics import never_half, recomputing

# Limit of the root mean square: products of three features of this size are finite in float32.
_LARGEST = 1e12
# 5 median absolute deviations are 3.4 standard deviations of a normal distribution.
_DEVIATIONS = 5.0
# The histogram of log root mean squares: from -28 to 28, which is beyond _LARGEST, in steps of 1/16.
_RANGE, _BINS = 28, 16


class InputGuard(nn.Module):
    """Detects inputs from a broken sensor, so that a model can treat them as missing.

    A sample's input of a modality is broken when

    - it holds NaN or infinity, or its root mean square r exceeds 1e12;
    - it is stuck: each of its channels (the features of a vector) has a single value, in more than one element;
    - it is far larger than in training: log r > c + max(log limit, 5 d), with c the median of log r over the samples
      and d the median of |log r - c|, both running means over the training batches. Up to half of the training
      samples may be broken themselves. Before any training there is no such limit.

    If that would leave a sample without any modality, its finite ones are kept, so that the model still answers: when
    all inputs are unusual at once, the environment has more likely changed than every sensor broken. Integer inputs are
    never broken.

    Args:
        modalities: M.
        limit: how large an input's root mean square may be, as a multiple of the median, above 1; larger if it varies
            much in training.
        momentum: how much of the old means each training batch keeps.

    Source: this package's.
    """

    center: Tensor
    spread: Tensor
    batches: Tensor

    def __init__(self, modalities: int, limit: float = 6.0, momentum: float = 0.95):
        super().__init__()
        if not limit > 1:
            raise ValueError(f"limit: expected a number above 1, got {limit!r}")
        self.limit, self.momentum = limit, momentum
        self.register_buffer("center", torch.zeros(modalities))
        self.register_buffer("spread", torch.zeros(modalities))
        self.register_buffer("batches", torch.zeros(modalities, dtype=torch.int64))

    def extra_repr(self) -> str:
        return f"{len(self.center)}, limit={self.limit}, momentum={self.momentum}"

    @torch.no_grad()
    def forward(self, inputs: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Which inputs to use. In training the statistics are updated first, except by a broken batch.

        Args:
            inputs: M tensors (B, ...).
            present: bool (B, M), False where a modality is missing; None: all present.

        Returns:
            bool (B, M), False where it is missing or broken.

        Raises:
            ValueError: for another number of inputs.
        """
        if len(inputs) != len(self.center):
            raise ValueError(f"inputs: expected {len(self.center)} tensors, one a modality, got {len(inputs)}")
        size, stuck = (torch.stack(values, 1) for values in zip(*map(_measured, inputs), strict=True))
        # NaN compares as False.
        finite = size <= _LARGEST
        finite = finite if present is None else finite & present
        good = finite & ~stuck
        size = size.clamp(min=torch.finfo(size.dtype).tiny).log()
        if self.training and not recomputing():
            self._move(torch.where(good, size, torch.nan))
        highest = self.center + (_DEVIATIONS * self.spread).clamp(min=math.log(self.limit))
        good &= (self.batches == 0) | (size <= highest)
        return torch.where(good.any(1, keepdim=True), good, finite)

    def _move(self, size: Tensor) -> None:
        """Update by one batch of log sizes (B, M), NaN for those to ignore."""
        center, count = _median(size)
        spread, _ = _median((size - center).abs())
        moves = count > 0
        # The first batch replaces the old mean; a batch without values keeps it.
        kept = torch.where(moves, torch.where(self.batches == 0, 0.0, self.momentum), 1.0)
        for running, median in ((self.center, center), (self.spread, spread)):
            running.copy_(median.to(running.dtype).lerp(running, kept.to(running.dtype)))
        self.batches += moves

    def _apply(self, fn, recurse=True):
        with never_half(self, "center", "spread"):
            return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # State dicts saved before the guard existed lack its buffers: no limit until the next training batch.
        for name, buffer in self._buffers.items():
            state_dict.setdefault(prefix + name, torch.zeros_like(buffer))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _median(values: Tensor) -> tuple[Tensor, Tensor]:
    """Medians (M,) of values (B, M), ignoring NaN, and the number of values, over all ranks.

    They are read from a histogram, linear within a bin of 1/16, so that ranks only have to add counts.
    """
    last = 2 * _RANGE * _BINS
    # Ignored values go to an extra bin after the last.
    bins = (values * _BINS + _RANGE * _BINS).clamp(0, last - 1).nan_to_num(nan=last).long()
    counts = values.new_zeros((last + 1, values.shape[1])).scatter_add_(0, bins, torch.ones_like(values))
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    counts = counts[:-1]
    total = counts.cumsum(0)
    half = total[-1] / 2
    place = (total < half).sum(0).clamp(max=len(total) - 1).unsqueeze(0)
    inside, until = counts.gather(0, place)[0], total.gather(0, place)[0]
    share = (half - until + inside) / inside.clamp(min=1)
    return (place[0] + share) / _BINS - _RANGE, total[-1]


def _measured(x: Tensor) -> tuple[Tensor, Tensor]:
    """The root mean square of each sample of x (B, ...), (B,) in float32, and whether the sample is stuck."""
    batch, elements = x.shape[0], x.shape[1:].numel()
    if not x.is_floating_point() or not elements:
        return torch.ones(batch, device=x.device), torch.zeros(batch, dtype=torch.bool, device=x.device)
    norm = torch.linalg.vector_norm(
        x.reshape(batch, elements), dim=1, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    size = (norm / math.sqrt(elements)).float()
    if elements == 1:
        return size, torch.zeros_like(size, dtype=torch.bool)
    channels = x.shape[1] if x.dim() > 2 and elements > x.shape[1] else 1
    low, high = x.reshape(batch, channels, elements // channels).aminmax(dim=2)
    return size, (low == high).all(1)
