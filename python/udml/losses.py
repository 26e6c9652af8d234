"""The training objective."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# The label of a pixel that has no class.
IGNORED = 255


@dataclass(frozen=True)
class LossWeights:
    """Weights of the objective's terms other than the task's.

    Attributes:
        unimodal: gamma, weight of the sum of the unimodal task losses.
        kl: beta, weight of the KL, summed over modalities and features, mean over the batch.
        noise: lambda, weight of the estimator's squared error in units of sigma squared.
    """

    unimodal: float = 1.0
    kl: float = 1e-3
    noise: float = 0.1


def resized(logits: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Logits (N, K, h, w) resized to (H, W), bilinearly between the centres of the locations; (N, K) unchanged."""
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def over_labels(losses: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean of losses of target's shape over the labelled elements; rows of `counted` (N,) that are False add 0."""
    labelled = torch.ones_like(target, dtype=torch.bool) if target.dim() == 1 else target != IGNORED
    total = labelled.sum().clamp(min=1)
    if counted is not None:
        labelled = labelled & counted.reshape(-1, *[1] * (target.dim() - 1))
    return torch.where(labelled, losses, 0).sum() / total


def cross_entropy(logits: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean cross entropy.

    Args:
        logits: (N, K), or (N, K, h, w), which are first resized to the target's size.
        target: int64 (N,), or (N, H, W), where IGNORED (255) has no class and is ignored.
        counted: bool (N,), False for rows that add 0; the mean is still over all rows. None counts every row.

    Returns:
        A scalar; 0 if nothing has a label.
    """
    logits = resized(logits, target.shape[1:])
    if target.dim() == 1:
        if counted is None and len(target):
            return F.cross_entropy(logits, target)
        losses = F.cross_entropy(logits, target, reduction="none")
    else:
        losses = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
    return over_labels(losses, target, counted)


def noise_error(noise: Tensor, sigma: Tensor, present: Tensor | None = None) -> Tensor:
    """Mean squared error of the predicted noise (B, M, *spatial) to sigma (B, M); missing modalities add 0."""
    shape = sigma.shape + (1,) * (noise.dim() - 2)
    error = noise - sigma.to(noise.dtype).reshape(shape)
    return _mean((error if present is None else torch.where(present.reshape(shape), error, 0)).square())


def _mean(x: Tensor) -> Tensor:
    """The mean; 0 for an empty tensor."""
    return x.mean() if x.numel() else x.sum()


def udml_terms(
    logits: Tensor,
    unimodal: Tensor,
    kl: Tensor | None,
    noise_loss: Tensor | None,
    target: Tensor,
    weights: LossWeights,
    *,
    present: Tensor | None = None,
) -> dict[str, Tensor]:
    """The objective's terms by name, weighted: "task", "unimodal", "kl" and "noise"; their sum is the objective.

    A term is left out if its weight is 0 or if its input is None.

    Args:
        logits: (B, K), or (B, K, h, w).
        unimodal: (M, B, K), or (M, B, K, h, w), each modality alone.
        kl: (B,), nats, or None without probabilistic embeddings.
        noise_loss: a scalar, or None where the noise is not estimated.
        target: int64 (B,), or (B, H, W).
        weights: gamma, beta and lambda.
        present: bool (B, M), False where a modality is missing: it adds 0 to the unimodal losses.

    Source: UDML, arXiv 2603.19681 (total loss).
    """
    terms = {"task": cross_entropy(logits, target)}
    if weights.unimodal:
        modalities = len(unimodal)
        targets = target.repeat(modalities, *[1] * (target.dim() - 1))
        counted = None if present is None else present.mT.flatten()
        alone = cross_entropy(unimodal.flatten(0, 1), targets, counted)
        terms["unimodal"] = weights.unimodal * modalities * alone
    # A weight of 0 leaves the term out, also because an infinite KL would turn 0 * inf into NaN.
    if kl is not None and weights.kl:
        terms["kl"] = weights.kl * _mean(kl)
    if noise_loss is not None and weights.noise:
        terms["noise"] = weights.noise * noise_loss
    return terms


def udml_loss(
    logits: Tensor,
    unimodal: Tensor,
    kl: Tensor | None,
    noise_loss: Tensor | None,
    target: Tensor,
    weights: LossWeights,
    *,
    present: Tensor | None = None,
) -> Tensor:
    """task + gamma * sum of unimodal tasks + beta * KL + lambda * noise MSE: the sum of `udml_terms`."""
    return torch.stack([*udml_terms(logits, unimodal, kl, noise_loss, target, weights, present=present).values()]).sum()


def accuracy(logits: Tensor, target: Tensor) -> float:
    """The fraction of rows of logits (B, K) whose largest entry is the target's, in [0, 1]."""
    return (logits.argmax(1) == target).to(torch.float64).mean().item()
