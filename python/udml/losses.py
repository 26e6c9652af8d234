"""The training objective."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossWeights:
    """Weights of the objective's terms beside the task's.

    Attributes:
        unimodal: gamma, of the sum of the unimodal task losses.
        kl: beta, of the KL, summed over modalities and features, mean over the batch.
        noise: lambda, of the estimator's squared error in units of sigma squared.
    """

    unimodal: float = 1.0
    kl: float = 1e-3
    noise: float = 0.1


def udml_loss(
    logits: Tensor,
    unimodal: Tensor,
    kl: Tensor,
    noise_loss: Tensor | None,
    target: Tensor,
    weights: LossWeights,
) -> Tensor:
    """task + gamma * sum of unimodal tasks + beta * KL + lambda * noise MSE; the task is cross entropy.

    Args:
        logits: (B, K).
        unimodal: (M, B, K), each modality alone.
        kl: (B,), nats.
        noise_loss: a scalar, or None where the noise is not estimated.
        target: int64 (B,).

    Source: UDML, arXiv 2603.19681 (total loss).
    """
    modalities, _, classes = unimodal.shape
    alone = F.cross_entropy(unimodal.reshape(-1, classes), target.repeat(modalities)) * modalities
    loss = F.cross_entropy(logits, target) + weights.unimodal * alone
    # Weight 0 leaves the term out, also where an infinite KL would turn 0 * inf into NaN.
    if weights.kl:
        loss = loss + weights.kl * kl.mean()
    if noise_loss is not None and weights.noise:
        loss = loss + weights.noise * noise_loss
    return loss


def accuracy(logits: Tensor, target: Tensor) -> float:
    """The share of rows of logits (B, K) whose largest entry is the target's, in [0, 1]."""
    return (logits.argmax(1) == target).to(torch.float64).mean().item()
