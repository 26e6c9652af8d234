"""The head step: all UDML ops of one training step, forward and backward, on given features.

Noise of known strength is added to the features x of each modality. The noisy features are the mean of a distribution
whose logvar is given; its sample, pooled, is fused by predicted noise and dependency. The fused step samples the mean
over the locations, the baseline samples the map and averages it, which is the same distribution. In segmentation
nothing is pooled: every location has its own noise and weights.
"""

from typing import Any

import torch
from torch import Tensor

import udml_kernels
from udml_kernels.testing.ops import (
    inject_noise,
    modality_dependency,
    modality_dropout,
    noise_regression,
    reparameterize,
    weighted_fusion,
)
from udml_kernels.testing.works import Work, in_words
from udml_kernels.tools.steps import wrong

from .shapes import Shape

HIDDEN, CLASSES, DROPPED = 256, 34, 0.1
# Above this many elements a smaller batch is compared with the reference.
_WHOLE = 1 << 20


def head_step(shape: Shape, *, gradient: bool = True) -> Work:
    """The head step at a shape; gradients to the features, the log variances and the estimators."""
    g, (batch, modalities, width) = torch.Generator().manual_seed(0), (shape.batch, len(shape.maps), shape.width)
    x, logvar = ([torch.randn(s, generator=g) for s in shape.maps] for _ in range(2))
    estimators = [
        torch.randn(modalities, HIDDEN, width, generator=g) / width**0.5,
        torch.zeros(modalities, HIDDEN),
        torch.randn(modalities, 1, HIDDEN, generator=g) / HIDDEN**0.5,
        torch.zeros(modalities, 1),
    ]
    sigma = torch.rand(batch, modalities, generator=g)
    prior = sigma.square() + 0.01
    target = sigma.mT.unsqueeze(-1).contiguous()
    spatial = shape.maps[0][2:] if shape.locations else ()
    if shape.locations:
        target = target.reshape(modalities, batch, 1, *[1] * len(spatial)).expand(-1, -1, -1, *spatial).contiguous()
    logits = torch.randn(modalities, batch, CLASSES, generator=g)
    fused_width = sum(s[1] for s in shape.maps)
    incoming = [torch.randn(batch, fused_width, *spatial, generator=g), torch.ones(())]
    incoming += [torch.full((batch, modalities), 1 / batch)]
    elements = sum(t.numel() for t in x)
    step = _segmentation if shape.locations else _classification
    work = Work(
        "head_step",
        in_words(shape.maps),
        elements,
        # Forward reads x and logvar, and writes z in segmentation. Backward reads x and logvar, and in segmentation a
        # gradient as large as x, and writes two gradients.
        4 * elements * (8 if shape.locations else 6),
        [x, logvar, *estimators, sigma, prior, target, logits],
        {"eager": lambda *inputs: step(_Eager(), *inputs)},
        lambda *inputs: step(_Fused(inputs[-1]), *inputs[:-1]),
        tuple(range(6)) if gradient else (),
        incoming=incoming if gradient else None,
    )
    if elements > _WHOLE and batch > 2:
        smaller = shape.of_batch(max(2, batch * _WHOLE // elements))
        work.check = lambda device, others: wrong(head_step(smaller, gradient=gradient), device, others)
    return work


class _Fused:
    """This package's ops, with one seed."""

    def __init__(self, seed: Tensor):
        self.seed = seed

    def sampled(self, x: list[Tensor], logvar: list[Tensor], sigma: Tensor, prior: Tensor, pool: bool) -> Any:
        noisy = udml_kernels.inject_noise(x, sigma, seed=self.seed)
        return udml_kernels.reparameterize(noisy, logvar, prior, pool=pool, pool_std=pool, seed=self.seed)

    def noise_regression(self, *inputs: Any) -> Any:
        return udml_kernels.noise_regression(*inputs, dropout_p=DROPPED, seed=self.seed)

    def modality_dropout(self, features: list[Tensor]) -> Any:
        return features, udml_kernels.modality_dropout(features, DROPPED, mask_only=True, seed=self.seed)

    def modality_dependency(self, logits: Tensor) -> Tensor:
        return udml_kernels.modality_dependency(logits)

    def weighted_fusion(self, features: Any, noise: Tensor, alpha: Tensor, mask: Tensor) -> Any:
        return udml_kernels.weighted_fusion(features, noise, alpha, mask=mask)


class _Eager:
    """Plain PyTorch, with its own random numbers."""

    def sampled(self, x: list[Tensor], logvar: list[Tensor], sigma: Tensor, prior: Tensor, pool: bool) -> Any:
        drawn = [
            reparameterize.eager(inject_noise.eager(a, s), b, p, pool_std=pool)
            for a, b, s, p in zip(x, logvar, sigma.unbind(1), prior.unbind(1), strict=True)
        ]
        z, std, kl = zip(*drawn, strict=True)
        pooled = [f.flatten(2).mean(2) if pool and f.dim() > 2 else f for f in z]
        return pooled, std, torch.stack(kl, 1)

    def noise_regression(self, *inputs: Any) -> Any:
        std, weight1, bias1, weight2, bias2, target = inputs
        rows = torch.stack([s.flatten(2).mT if s.dim() > 2 else s for s in std]).flatten(1, -2)
        values = weight1, bias1, weight2, bias2, target.reshape(len(std), -1, 1)
        noise, loss = noise_regression.eager_grouped(rows, *values, DROPPED)
        return noise.reshape(target.shape), loss

    def modality_dropout(self, features: list[Tensor]) -> Any:
        return modality_dropout.eager(features, DROPPED)

    def modality_dependency(self, logits: Tensor) -> Tensor:
        return modality_dependency.eager(logits)

    def weighted_fusion(self, features: Any, noise: Tensor, alpha: Tensor, mask: Tensor) -> Any:
        return weighted_fusion.eager_masked(features, noise, alpha, mask)


def _classification(ops, x, logvar, w1, b1, w2, b2, sigma, prior, target, logits):
    """The fused features, the estimators' loss and the kl of each modality."""
    z, std, kl = ops.sampled(x, logvar, sigma, prior, pool=True)
    noise, loss = ops.noise_regression(std, w1, b1, w2, b2, target)
    kept, mask = ops.modality_dropout(z)
    fused, _ = ops.weighted_fusion(kept, noise.squeeze(2).mT, ops.modality_dependency(logits), mask)
    return fused, loss, kl


def _segmentation(ops, x, logvar, w1, b1, w2, b2, sigma, prior, target, logits):
    """The same with an estimate and weights per location."""
    z, std, kl = ops.sampled(x, logvar, sigma, prior, pool=False)
    noise, loss = ops.noise_regression(std, w1, b1, w2, b2, target)
    kept, mask = ops.modality_dropout(z)
    fused, _ = ops.weighted_fusion(kept, noise.squeeze(2).movedim(0, 1), ops.modality_dependency(logits), mask)
    return fused, loss, kl
