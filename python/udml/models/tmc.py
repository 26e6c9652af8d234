"""Trusted multi-view classification: each modality's evidence, combined by Dempster's rule."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import udml_kernels

from ..losses import IGNORED, over_labels, resized
from .base import MultimodalModel
from .embedding import widened
from .output import Output, Step


class TMC(MultimodalModel):
    """Evidence e_m = softplus(logits_m) of each modality for a Dirichlet e_m + 1; views combine in closed form.

        e = K (prod_m (1 + e_m / K) - 1),  loss = L(e) + gamma sum_m L(e_m)

    with L the digamma cross entropy plus an annealed KL to the uniform Dirichlet; the source has gamma = 1. logits_m
    are the fusion's unimodal logits. `logits` holds log(e + 1), whose softmax is the combined Dirichlet's mean, and
    `weights` each modality's share of the evidence; they sum to the number present and are not used.

    Args:
        encoders, num_classes, options: as `MultimodalModel` takes them.
        annealing: the fraction of the training over which the KL's weight rises from 0 to 1; the source's is 50
            epochs of 500.

    Source: Han et al., Trusted Multi-View Classification, ICLR 2021.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], num_classes: int, *, annealing: float = 0.1, **options):
        if not 0 <= annealing <= 1:
            raise ValueError(f"annealing: expected a share of the training in [0, 1], got {annealing}")
        super().__init__(encoders, num_classes, **options)
        self.annealing = annealing

    def _forward(self, step: Step) -> Output:
        features = [e.features for e in self.embed(step)]
        unimodal = self.fusion.unimodal(self.fusion.parts(features), step.present)
        evidence = _evidence(unimodal)
        # One row per location of a sample: (B, *sp, M, K).
        rows = evidence.movedim((0, 2), (-2, -1))
        mask = None
        if step.present is not None:
            mask = step.present.reshape(len(rows), *[1] * (rows.dim() - 3), rows.shape[-2]).expand(rows.shape[:-1])
        combined = udml_kernels.evidential_fusion(
            rows.flatten(0, -3), mask=None if mask is None else mask.flatten(0, -2)
        )
        logits = combined.reshape(*rows.shape[:-2], rows.shape[-1]).log1p().movedim(-1, 1)
        weights = _shares(rows.detach().sum(-1), mask).movedim(-1, 1)
        return Output(logits, unimodal, weights, features=features, present=step.present)

    def loss(
        self, output: Output, target: Tensor, *, epoch_fraction: float = 1.0, sigma: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms "task" (the combination) and "unimodal" (the views); arguments as for `MultimodalModel.loss`."""
        kl_weight = min(1.0, epoch_fraction / self.annealing) if self.annealing else 1.0
        terms = {"task": evidential_cross_entropy(output.logits.expm1(), target, kl_weight)}
        gamma, modalities = self.loss_weights.unimodal, len(output.unimodal)
        if gamma:
            views = resized(output.unimodal.flatten(0, 1), target.shape[1:])
            targets = target.repeat(modalities, *[1] * (target.dim() - 1))
            counted = None if output.present is None else output.present.mT.flatten()
            terms["unimodal"] = (
                gamma * modalities * evidential_cross_entropy(_evidence(views), targets, kl_weight, counted)
            )
        return terms


def evidential_cross_entropy(
    evidence: Tensor, target: Tensor, kl_weight: float, counted: Tensor | None = None
) -> Tensor:
    """Mean `udml_kernels.evidential_loss` of evidence (N, K) or (N, K, H, W); else as `losses.cross_entropy`."""
    evidence = resized(evidence, target.shape[1:]).movedim(1, -1)
    known = target if target.dim() == 1 else torch.where(target == IGNORED, 0, target)
    losses = udml_kernels.evidential_loss(evidence, known, kl_weight, reduction="none")
    return over_labels(losses, target, counted)


def _evidence(logits: Tensor) -> Tensor:
    return F.softplus(widened(logits))


def _shares(strength: Tensor, mask: Tensor | None) -> Tensor:
    """(..., M), not negative, scaled so that it sums to the number of present views."""
    count: int | Tensor = strength.shape[-1]
    if mask is not None:
        strength, count = torch.where(mask, strength, 0), mask.sum(-1, keepdim=True)
    return count * strength / strength.sum(-1, keepdim=True).clamp(min=torch.finfo(strength.dtype).tiny)
