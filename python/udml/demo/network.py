"""The UDML network: encoders, probabilistic heads, estimator, dependency, weighted fusion, one classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import ModalityDependency, NoiseEstimator, ProbabilisticHead, UncertaintyWeighting


@dataclass
class UDMLOutput:
    """What one forward pass gives, for B samples, M modalities and K classes.

    Attributes:
        logits: (B, K) of the fused features.
        unimodal: (M, B, K), the same classifier with every other modality zeroed.
        kl: (B,), summed over modalities, nats.
        noise: (B, M), the predicted sigma.
        noise_loss: its mean squared error, or None when the true sigma is unknown.
        weights: (B, M).
        dependency: (M,), alpha.
    """

    logits: Tensor
    unimodal: Tensor
    kl: Tensor
    noise: Tensor
    noise_loss: Tensor | None
    weights: Tensor
    dependency: Tensor


class ConvEncoder(nn.Sequential):
    """Three strided 1-D convolutions with BatchNorm and ReLU: (B, channels, T) to (B, width, T / 8)."""

    def __init__(self, channels: int, width: int = 64):
        sizes = (channels, width // 2, width, width)
        layers: list[nn.Module] = []
        for fan_in, fan_out, kernel in zip(sizes[:-1], sizes[1:], (9, 5, 5), strict=True):
            layers += [
                nn.Conv1d(fan_in, fan_out, kernel, stride=2, padding=kernel // 2, bias=False),
                nn.BatchNorm1d(fan_out),
                nn.ReLU(),
            ]
        super().__init__(*layers)


class UDML(nn.Module):
    """A classifier that weights its modalities by their noise and by its dependency on them.

    Args:
        encoders: by modality name; each gives (B, width, T).
        num_classes: K.
        width: channels of the encoders' features and of the embeddings.
        prior_unit: the prior's standard deviation at sigma = 1.
        prior_floor: its value at sigma = 0; a prior of width 0 has no density.
        weighting: how the modalities are fused; None for the default.
        std_max: upper limit of the embeddings' standard deviation, or None.

    Source: UDML, arXiv 2603.19681.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        width: int = 64,
        prior_unit: float = 1.0,
        prior_floor: float = 1.0,
        weighting: UncertaintyWeighting | None = None,
        std_max: float | None = None,
    ):
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.modalities, self.width = len(encoders), width
        self.heads = nn.ModuleDict(
            {n: ProbabilisticHead(width, width, spatial_dims=1, std_max=std_max) for n in encoders}
        )
        self.estimator = NoiseEstimator(self.modalities, width, hidden=2 * width, activation="gelu")
        self.dependency = ModalityDependency(self.modalities)
        self.weighting = weighting or UncertaintyWeighting()
        self.classifier = nn.Linear(self.modalities * width, num_classes)
        self.prior_unit, self.prior_floor = prior_unit, prior_floor

    def prior_var(self, sigma: Tensor) -> Tensor:
        """The prior's variance for noise levels of any shape: the noise's own, plus the floor's."""
        return (sigma * self.prior_unit).square() + self.prior_floor**2

    def embed(
        self, inputs: Sequence[Tensor], sigma: Tensor, seed: Tensor | None, sample_ids: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Inputs (B, channels, T) and sigma (B, M) to pooled embeddings (B, width), pooled stds and kl (B,)."""
        features, stds, kls = [], [], []
        priors = self.prior_var(sigma).unbind(1)
        for m, (name, x) in enumerate(zip(self.encoders, inputs, strict=True)):
            hidden = self.encoders[name](x)
            z, std, kl = self.heads[name](hidden, priors[m], seed=seed, stream=m, sample_ids=sample_ids)
            features.append(z.mean(2))
            stds.append(std)
            kls.append(kl)
        return features, stds, torch.stack(kls).sum(0)

    def unimodal_logits(self, features: Sequence[Tensor]) -> Tensor:
        """(M, B, K): the classifier on each modality alone. A zeroed modality drops out with its columns."""
        columns = self.classifier.weight.split(self.width, dim=1)
        return torch.stack([F.linear(f, w, self.classifier.bias) for f, w in zip(features, columns, strict=True)])

    def forward(
        self,
        inputs: Sequence[Tensor],
        *,
        sigma: Tensor | None = None,
        weighting: bool = True,
        seed: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> UDMLOutput:
        """Classify (noisy) inputs.

        Args:
            inputs: M tensors (B, channels, T), in the encoders' order.
            sigma: the noise's true level (B, M), which the prior follows and the estimator learns; None for unknown.
            weighting: False weights all modalities alike.
            seed: the step's seed (`udml_kernels.draw_seed`); used in training alone.
            sample_ids: int64 (B,), the samples' identities, so that their noise does not depend on the batch.
        """
        known = inputs[0].new_zeros((inputs[0].shape[0], self.modalities)) if sigma is None else sigma
        features, stds, kl = self.embed(inputs, known, seed, sample_ids)
        noise, noise_loss = self.estimator(stds, sigma, seed=seed, sample_ids=sample_ids)
        unimodal = self.unimodal_logits(features)
        dependency = self.dependency(unimodal.detach())
        fused, weights = self.weighting(features, noise.detach() if weighting else None, dependency)
        return UDMLOutput(self.classifier(fused), unimodal, kl, noise, noise_loss, weights, dependency)
