"""On-the-fly gradient modulation with generalisation enhancement."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

import udml_kernels
from udml_kernels.streams import Stream

from ..losses import over_labels, resized
from .embedding import widened
from .output import Output
from .static import Static


class OGMGE(Static):
    """Static fusion in which the leading modality learns more slowly, and all gradients get noise.

        rho_m = P_m / mean_{j != m} P_j,  P_m = sum_b softmax(logits_m)_{b, y_b}
        g <- g * (1 - tanh(a rho_m) if rho_m > 1 else 1) + eps std(g),  eps ~ N(0, 1)

    for the gradient g of each parameter of modality m's encoder and embedding. The source has two modalities, where
    the mean is that of the other one; with more, each is compared with the mean of the others (this package's choice).
    Under torch.distributed P is that of all ranks, and eps, drawn from the step's seed, is the same on all.

    Args:
        encoders, num_classes, options: as `MultimodalModel` takes them.
        alpha: a, positive.
        enhance: whether to add the noise.

    Source: Peng et al., Balanced Multimodal Learning via On-the-fly Gradient Modulation, CVPR 2022.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        alpha: float = 0.3,
        enhance: bool = True,
        **options,
    ):
        super().__init__(encoders, num_classes, **options)
        self.alpha, self.enhance = alpha, enhance

    @torch.no_grad()
    def after_backward(self, output: Output, target: Tensor, *, seed: Tensor) -> None:
        factors = self.factors(output, target).unbind()
        stream = int(Stream.OGM_GE)
        for name, factor in zip(self.modalities, factors, strict=True):
            for parameter in self.branch(name):
                stream += 256
                if parameter.grad is not None:
                    self._modulate(parameter.grad, factor, seed, stream)

    def factors(self, output: Output, target: Tensor) -> Tensor:
        """The factors for the gradients of each modality, (M,)."""
        score = self._scores(output, target)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(score)
        others = (score.sum() - score) / max(len(score) - 1, 1)
        # A single modality has no others to lead.
        rho = torch.where(others > 0, score / others, 0)
        return torch.where(rho > 1, 1 - (self.alpha * rho).tanh(), 1)

    def _scores(self, output: Output, target: Tensor) -> Tensor:
        """P, (M,); in segmentation over the pixels that have a class, each modality's mean over them."""
        modalities = len(output.unimodal)
        logits = resized(output.unimodal.detach().flatten(0, 1), target.shape[1:])
        targets = target.repeat(modalities, *[1] * (target.dim() - 1))
        known = targets.clamp(max=self.num_classes - 1).unsqueeze(1)
        right = widened(logits).softmax(1).gather(1, known).squeeze(1).unflatten(0, (modalities, -1))
        present = [None] * modalities if output.present is None else output.present.unbind(1)
        return torch.stack([over_labels(p, target, here) for p, here in zip(right, present, strict=True)])

    def _modulate(self, gradient: Tensor, factor: Tensor, seed: Tensor, stream: int) -> None:
        spread = gradient.std(correction=0)
        gradient.mul_(factor)
        if self.enhance:
            noise = udml_kernels.normal(gradient.shape or (1,), seed, stream=stream, dtype=gradient.dtype)
            gradient.add_(spread * noise.reshape(gradient.shape))
