from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

import udml_kernels
from udml_kernels import checks

from ._statistics import never_half, recomputing

# A lower bound. Without it, a modality whose logits are all 0 would cause a division by 0 in the weights.
_SMALLEST = 1e-12


class ModalityDependency(nn.Module):
    """How much the model depends on each modality: a running mean of alpha_m = mean_b sum_k |logit_mbk|.

    In training each call updates the mean, unless the batch's own mean is not finite or torch.utils.checkpoint repeats
    a call in backward; in evaluation it is constant. It is part of the state dict, so a reloaded model weights its
    modalities as the saved one did. Under torch.distributed the mean is the whole batch's, over all ranks.

    Args:
        modalities: M.
        momentum: how much of the old mean each step keeps, in [0, 1]; 0 uses only the last batch.
        per_sample: return each sample's own alpha instead of the mean, which is still updated.
        initial: the mean's initial value, a number or one per modality; None lets the first batch set it.
        persistent: whether the state dict contains the mean.

    Raises:
        ValueError: naming the argument, what was given and what is expected.

    Source: UDML, arXiv 2603.19681 (dependency calculator; the authors use only the last batch). Per sample is
    this package's.
    """

    alpha: Tensor
    batches: Tensor
    previous: Tensor

    def __init__(
        self,
        modalities: int,
        momentum: float = 0.95,
        *,
        per_sample: bool = False,
        initial: float | Sequence[float] | None = None,
        persistent: bool = True,
    ):
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
        start = torch.as_tensor(1.0 if initial is None else initial, dtype=torch.float32)
        if start.dim() > 1 or start.numel() not in (1, modalities) or not bool((start > 0).all()):
            raise ValueError(f"initial: expected None or {modalities} positive numbers, one a modality, got {initial}")
        self.momentum, self.per_sample, self.first_sets = momentum, per_sample, initial is None
        self.register_buffer("alpha", start.expand(modalities).clone(), persistent=persistent)
        # Alpha before the last batch, for a repeated call that weights by it.
        self.register_buffer("previous", self.alpha.clone(), persistent=False)
        self.register_buffer("batches", torch.zeros(modalities, dtype=torch.int64), persistent=persistent)

    def extra_repr(self) -> str:
        return f"{len(self.alpha)}, momentum={self.momentum}, per_sample={self.per_sample}"

    def _apply(self, fn, recurse=True):
        with never_half(self, "alpha", "previous"):
            return super()._apply(fn, recurse)

    @torch.no_grad()
    def value(self) -> Tensor:
        """Alpha (M,) before this step's logits are known: a copy of the current mean, positive.

        Where torch.utils.checkpoint repeats the step, it is the mean from the beginning of the step.
        """
        began = self.previous if self.training and recomputing() else self.alpha
        return began.clamp(min=_SMALLEST)

    @torch.no_grad()
    def forward(self, logits: Tensor, present: Tensor | None = None) -> Tensor:
        """Logits of each modality alone to alpha, without gradient.

        Args:
            logits: (M, B, K) or (M, B, K, *spatial); the mean is also taken over the locations.
            present: bool (B, M), False where a modality is missing: its logits are ignored; None: all present.

        Returns:
            (M,), or (B, M) with per_sample (for a missing modality, and for logits that are not finite, the running
                mean); positive, float32 (float64 after `double()`), in a half precision model too.

        Raises:
            ValueError, TypeError: naming the argument, what was given and what is expected.
        """
        modalities = len(self.alpha)
        if not isinstance(logits, Tensor):
            raise TypeError(f"logits: expected a tensor ({modalities}, B, K, ...), got {type(logits).__name__}")
        if logits.dim() < 3 or logits.shape[0] != modalities:
            expected = f"shape ({modalities}, B, K, ...)"
            raise ValueError(f"logits: expected {expected}, got {tuple(logits.shape)}")
        if present is not None:
            checks.tensor_of("present", present, "a bool tensor, True where a modality is present", (torch.bool,))
            checks.exact_shape("present", present, (logits.shape[1], modalities))
            logits = torch.where(present.mT.reshape(modalities, -1, *[1] * (logits.dim() - 2)), logits, 0)
        locations = logits.shape[3:].numel()
        logits = logits.flatten(2)
        if self.training and not recomputing():
            self._move(udml_kernels.modality_dependency(logits) / locations, logits.shape[1], present)
        if not self.per_sample:
            # A copy, as the next step changes the buffer in place, which autograd must not notice.
            return self.alpha.clamp(min=_SMALLEST)
        own = logits.to(self.alpha.dtype).abs().sum(2).mT / locations
        counts = own.isfinite() if present is None else own.isfinite() & present
        own = torch.where(counts, own, self.alpha)
        return own.clamp(min=_SMALLEST)

    def _move(self, mean: Tensor, rows: int, present: Tensor | None) -> None:
        """Update by one batch: its mean over `rows` samples, to which the absent ones contributed 0."""
        count: Tensor | None = None if present is None else present.sum(0)
        if count is None and not rows:
            count = mean.new_zeros(())
        if dist.is_available() and dist.is_initialized():
            own = mean.new_full(mean.shape, rows) if count is None else count.to(mean.dtype)
            total = torch.stack((mean * rows, own))
            dist.all_reduce(total)
            batch, count = total[0] / total[1].clamp(min=1), total[1]
        else:
            batch = mean if count is None else mean * (rows / count.clamp(min=1))
        batch = batch.to(self.alpha.dtype)
        moved = torch.lerp(batch, self.alpha, self.momentum)
        if self.first_sets:
            moved = torch.where(self.batches == 0, batch, moved)
        moves = batch.isfinite() if count is None else (count > 0) & batch.isfinite()
        self.previous.copy_(self.alpha)
        self.alpha.copy_(torch.where(moves, moved, self.alpha))
        self.batches += moves
