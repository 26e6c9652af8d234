"""UDML's settings: the corrected method, and the arithmetic of the authors' code."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

import udml_kernels
from udml_kernels.streams import Stream

from ..layers.noise import Noise
from .widths import STD_MAX

LEVELS = 11


@dataclass(frozen=True)
class Settings:
    """Settings that a preset defines and that an argument of `UDML` overrides.

    Attributes:
        gamma: weight of the unimodal losses.
        beta: weight of the KL.
        lam: weight of the noise estimator's loss.
        add_errors: whether this loss adds up the modalities' errors instead of averaging them; an infinite sum is 0.
        g: "inverse" or "softmax", the function of the weights.
        temperature: tau of the weights; above 1 they are closer to each other.
        floor: the noise estimate's resolution: s = noise^2 + floor^2, in units of sigma.
        reference: the noise level relative to which all weights fall, or None: see `UncertaintyWeighting`.
        residual: fuse (1 + w) x instead of w x.
        probabilistic: whether embeddings are distributions; if not, the estimator reads softplus(embedding).
        pooled_sampling: whether a pooled embedding is sampled directly, with one random number for each channel,
            instead of averaging a sampled map. Both have the same distribution.
        estimator: whether the weights fall with the predicted noise.
        hidden: width of the estimator; None for twice the embedding's.
        activation: activation of the estimator: identity, relu, gelu or silu.
        dropout_p: dropout probability of the estimator's hidden units in training.
        log_std: whether the estimator reads log(std) instead of std.
        detach: whether the gradient of the estimator's loss stops at the std.
        logvar_gradient: the factor by which gradients pass from the embedding's log variance into the encoder; 0 for
            none.
        input_statistics: whether the log variance also reads the sizes of the raw input, see
            `udml.models.embedding.input_statistics`.
        logvar_hidden: width of a hidden layer in front of the log variance; 0 for none.
        detach_weights: whether the gradient of the weights stops at the predicted noise.
        dependency: whether the weights fall with alpha.
        dependency_gradient: k; in training with weights, the gradient that reaches a modality's embedding is multiplied
            by (mean alpha / alpha_m)^k, at least 1/4 and at most 4, so that a modality on which the model depends less
            learns faster. 0 for no change.
        momentum: momentum of alpha's running mean; 0 uses only the last batch.
        per_sample: weight by each sample's own alpha.
        alpha_start: alpha's initial values, one number per modality, the last of which applies to all that follow; None
            lets the first batch set it.
        alpha_always: weight by alpha even if `weighting` is False, and in evaluation also by the noise.
        weigh_first: weight the features before anything else uses them: the unimodal logits, and alpha, are those of
            the weighted features, and the weights use alpha as it was before the batch.
        modality_dropout: probability, in training, that a modality's embedding is zeroed, never all of a sample's;
            1 - sqrt(1/3) makes {first alone, second alone, both} equally likely.
        authors_heads: whether gated, film and sum are the authors' networks, see `udml.fusion.AUTHORS_FUSIONS`.
        std_max: upper limit of the embeddings' standard deviation: one for all, or by name; None for no limit. A name
            that is left out gets the preset's.
        input_limit: the multiple of the usual size above which an input counts as a broken sensor's, see `InputGuard`;
            None for no guard.
        prior_unit: the prior's standard deviation at sigma = 1.
        prior_floor: its value at sigma = 0; a prior of width 0 has no density.
        levels: sigma counts levels from 1, which is no noise (smaller values count as 1), and is itself the prior's
            variance.
        kl_epsilon: the KL's logarithm is log((std^2 + kl_epsilon) / prior).
    """

    gamma: float = 0.3
    beta: float = 1e-4
    lam: float = 0.3
    add_errors: bool = False
    g: str = "inverse"
    temperature: float = 3.0
    floor: float = 4.0
    reference: float | None = 6.0
    residual: bool = False
    probabilistic: bool = True
    pooled_sampling: bool = True
    estimator: bool = True
    hidden: int | None = None
    activation: str = "gelu"
    dropout_p: float = 0.0
    log_std: bool = True
    detach: bool = False
    logvar_gradient: float = 0.0
    input_statistics: bool = True
    logvar_hidden: int = 0
    detach_weights: bool = True
    dependency: bool = True
    dependency_gradient: float = 0.0
    momentum: float = 0.95
    per_sample: bool = False
    alpha_start: tuple[float, ...] | None = None
    alpha_always: bool = False
    weigh_first: bool = False
    modality_dropout: float = 0.0
    authors_heads: bool = False
    std_max: float | Mapping[str, float | None] | None = STD_MAX
    input_limit: float | None = 6.0
    prior_unit: float = 0.05
    prior_floor: float = 0.25
    levels: bool = False
    kl_epsilon: float = 0.0


PRESETS = {
    "default": Settings(),
    # The authors' settings for CREMA-D; for Kinetics-Sound they use gamma 2.5, beta 0.
    "authors": Settings(
        gamma=4.0,
        beta=1e-5,
        lam=0.1,
        add_errors=True,
        temperature=1.0,
        floor=0.0,
        reference=None,
        residual=True,
        pooled_sampling=False,
        hidden=256,
        activation="identity",
        dropout_p=0.1,
        log_std=False,
        detach=True,
        logvar_gradient=1.0,
        input_statistics=False,
        detach_weights=False,
        momentum=0.0,
        alpha_start=(32.0, 10.0),
        alpha_always=True,
        weigh_first=True,
        authors_heads=True,
        std_max=None,
        input_limit=None,
        levels=True,
        kl_epsilon=1e-8,
    ),
}


class AuthorsLevels(NamedTuple):
    """The noise of a batch, drawn as the authors do.

    Attributes:
        level: (B, M) float32, integers from 1 (no noise) to 11: the sigma for a model with this preset.
        kind: (B, M) int64, indices into `udml_kernels.KINDS`: replace at level 11, else gaussian.
    """

    level: Tensor
    kind: Tensor

    @property
    def sigma(self) -> Tensor:
        """(B, M), the input of a `NoiseInjector`: the level, but 0 at level 1."""
        return torch.where(self.level > 1, self.level, 0)


def authors_levels(batch: int, modalities: int, seed: Tensor, sample_ids: Tensor | None = None) -> AuthorsLevels:
    """Draw levels: half of the samples clean in all modalities, the others uniform in 1..11 for each modality.

    `authors_noise` defines what a level means for a modality's input.

    Args:
        batch, modalities: B and M.
        seed: int64 (1,); its device is the result's.
        sample_ids: int64 (B,), the samples' identities; None for 0..B-1.

    Source: the authors' code of UDML, arXiv 2603.19681.
    """
    u = udml_kernels.uniform((batch, 1 + modalities), seed, stream=Stream.AUTHORS_LEVELS, sample_ids=sample_ids)
    level = torch.where(u[:, :1] < 0.5, 1, 1 + (LEVELS * u[:, 1:]).floor())
    gaussian, replace = (udml_kernels.KINDS.index(name) for name in ("gaussian", "replace"))
    return AuthorsLevels(level, torch.where(level == LEVELS, replace, gaussian))


def authors_noise(noise: Noise) -> Noise:
    """A modality's noise with the peculiarities of the authors' code.

    The highest level replaces the input by N / 10 * 255, where N is the noise of that level. An image (a modality with
    a clamp) has one draw for its colour channels and is truncated to integers; other inputs are limited to 255 from
    above. The authors' audio is `authors_noise(Noise())` on the log spectrogram, their images
    `authors_noise(Noise(power=2, clamp=(0, 255)))`; values below 0 wrap around in their code, and are 0 here.

    Source: the authors' code of UDML, arXiv 2603.19681.
    """
    image = noise.clamp is not None
    clamp = noise.clamp if image else (-math.inf, 255.0)
    return replace(noise, replaced=25.5, clamp=clamp, shared_channels=image, whole=image)
