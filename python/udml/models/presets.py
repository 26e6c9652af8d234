"""UDML's settings: the corrected method, and the arithmetic of the authors' code."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import udml_kernels
from udml_kernels.streams import Stream

LEVELS = 11


@dataclass(frozen=True)
class Settings:
    """What a preset sets and an argument of `UDML` overrides.

    Attributes:
        gamma: weight of the unimodal losses.
        beta: weight of the KL.
        lam: weight of the noise estimator's loss.
        g: "inverse" or "softmax", of the weights.
        temperature: tau of the weights; above 1 they are closer to each other.
        floor: the noise estimate's resolution: s = noise^2 + floor^2, in units of sigma.
        reference: the noise level against which all weights fall, or None: see `UncertaintyWeighting`.
        residual: fuse (1 + w) x instead of w x.
        probabilistic: whether embeddings are distributions; if not, the estimator reads softplus(embedding).
        estimator: whether the weights fall with the predicted noise.
        hidden: width of the estimator; None for twice the embedding's.
        activation: of the estimator: identity, relu, gelu or silu.
        dropout_p: of the estimator's hidden units in training.
        log_std: whether the estimator reads log(std) instead of std.
        detach: whether the estimator's loss stops at the std.
        dependency: whether the weights fall with alpha.
        momentum: of alpha's running mean; 0 is the last batch alone.
        per_sample: weigh by each sample's own alpha.
        alpha_start: where alpha starts, a number for each modality, of which the last serves all that follow; None
            lets the first batch set it.
        alpha_saved: whether alpha is part of the state dict.
        alpha_lags: weigh by alpha as it was before the batch.
        std_max: upper limit of the embeddings' standard deviation, or None.
        input_limit: beyond how many times the usual size an input counts as a broken sensor's, see `InputGuard`; None
            for no guard.
        prior_unit: the prior's standard deviation at sigma = 1.
        prior_floor: its value at sigma = 0; a prior of width 0 has no density.
        levels: sigma counts levels from 1, no noise (what is below counts as 1), and is itself the prior's variance.
        kl_epsilon: the KL's logarithm is log((std^2 + kl_epsilon) / prior).
    """

    gamma: float = 0.3
    beta: float = 1e-4
    lam: float = 0.3
    g: str = "inverse"
    temperature: float = 3.0
    floor: float = 4.0
    reference: float | None = 6.0
    residual: bool = False
    probabilistic: bool = True
    estimator: bool = True
    hidden: int | None = None
    activation: str = "gelu"
    dropout_p: float = 0.0
    log_std: bool = True
    detach: bool = False
    dependency: bool = True
    momentum: float = 0.95
    per_sample: bool = False
    alpha_start: tuple[float, ...] | None = None
    alpha_saved: bool = True
    alpha_lags: bool = False
    std_max: float | None = 100.0
    input_limit: float | None = 6.0
    prior_unit: float = 0.05
    prior_floor: float = 0.25
    levels: bool = False
    kl_epsilon: float = 0.0


PRESETS = {
    "default": Settings(),
    # CREMA-D's; for Kinetics-Sound theirs is gamma 2.5, beta 0.
    "authors": Settings(
        gamma=4.0,
        beta=1e-5,
        lam=0.1,
        temperature=1.0,
        floor=0.0,
        reference=None,
        residual=True,
        hidden=256,
        activation="identity",
        dropout_p=0.1,
        log_std=False,
        detach=True,
        momentum=0.0,
        alpha_start=(32.0, 10.0),
        alpha_saved=False,
        alpha_lags=True,
        std_max=None,
        input_limit=None,
        levels=True,
        kl_epsilon=1e-8,
    ),
}


class AuthorsLevels(NamedTuple):
    """The noise of a batch as the authors draw it.

    Attributes:
        level: (B, M) float32, integers from 1, no noise, to 11: the sigma that a model with the preset is given.
        kind: (B, M) int64, indices into `udml_kernels.KINDS`: replace at level 11, else gaussian.
    """

    level: Tensor
    kind: Tensor

    @property
    def sigma(self) -> Tensor:
        """(B, M), what a `NoiseInjector` is given: the level, but 0 at level 1."""
        return torch.where(self.level > 1, self.level, 0)


def authors_levels(batch: int, modalities: int, seed: Tensor, sample_ids: Tensor | None = None) -> AuthorsLevels:
    """Draw levels: half of the samples clean in all modalities, the others uniform in 1..11 for each modality.

    Their noise is of standard deviation level on the audio's log spectrogram, `Noise(unit=1)`, and level^2 on an
    image's 0..255, `Noise(unit=1, power=2)`.

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
