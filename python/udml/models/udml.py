"""UDML: weights by predicted noise and by dependency."""

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import ModalityDependency, ModalityDropout, NoiseEstimator, UncertaintyWeighting
from ..losses import noise_error
from .base import MultimodalModel
from .embedding import LogvarBranch, NormalEmbedding, widened
from .output import Output, Step
from .presets import PRESETS, Settings

_SHARED = ("gamma", "beta", "lam", "std_max", "input_limit")


class UDML(MultimodalModel):
    """Embeddings weighted by w_m = g(1 / (s_m alpha_m)), with s from the predicted noise and alpha the dependency.

    A modality that is hard to learn predicts much noise; without alpha its weight, and so its gradient, would be
    suppressed twice.

    Args:
        encoders, num_classes, fusion, task, width: as `MultimodalModel` takes them.
        preset: "default", the corrected method, or "authors", the arithmetic of the authors' code.
        options: fields of `Settings` that differ from the preset's.

    With "authors", sigma is a level from 1 (`authors_levels`); the fusion's input, fused and unimodal, is x + w x with
    weights that sum to M; `weighting=False` keeps the weights by alpha and has no effect in evaluation; the gradient of
    the weights reaches the estimator; and alpha is the last batch's, starting at 32, 10, 10, ... The authors clamp only
    the std of the audio: `std_max={"audio": limit}`. `udml.models.load_authors` reads their files.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.

    Source: UDML, arXiv 2603.19681.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        fusion: str = "concat",
        *,
        preset: str = "default",
        task: str = "classification",
        width: int | Mapping[str, int] | None = None,
        **options,
    ):
        settings = _settings(preset, options)
        # The base class reads it when it builds the embeddings.
        self.probabilistic, self.authors_heads = settings.probabilistic, settings.authors_heads
        self.logvar_branch = LogvarBranch(settings.logvar_gradient, settings.input_statistics, settings.logvar_hidden)
        shared = {name: getattr(settings, name) for name in _SHARED}
        if isinstance(settings.std_max, Mapping):
            shared["std_max"] = dict.fromkeys(encoders, PRESETS[preset].std_max) | dict(settings.std_max)
        super().__init__(encoders, num_classes, fusion=fusion, task=task, width=width, **shared)
        self.settings = settings
        if settings.add_errors:
            self.loss_weights = replace(self.loss_weights, noise=len(self.encoders) * settings.lam)
        for head in self.heads.values():
            if isinstance(head, NormalEmbedding):
                head.kl_epsilon, head.sample_map = settings.kl_epsilon, not settings.pooled_sampling
        self.weighting = UncertaintyWeighting(
            g=settings.g,
            temperature=settings.temperature,
            floor=settings.floor,
            residual=settings.residual,
            reference=settings.reference,
        )
        self.estimator = self._estimator() if settings.estimator else None
        self.dependency = self._dependency() if settings.dependency else None
        self.modality_dropout = ModalityDropout(settings.modality_dropout) if settings.modality_dropout else None

    @classmethod
    def options(cls) -> set[str]:
        return super().options() | {f.name for f in fields(Settings)}

    def prior_var(self, sigma: Tensor | None) -> Tensor | float:
        """The prior's variance for noise levels (B, M): the noise's plus the floor's, or the level itself."""
        if self.settings.levels:
            return 1.0 if sigma is None else sigma
        unknown = self.settings.prior_floor**2
        return unknown if sigma is None else (sigma * self.settings.prior_unit).square() + unknown

    def estimate(self, std: list[Tensor], sigma: Tensor | None, step: Step) -> tuple[Tensor | None, Tensor | None]:
        """M stds (B, C, *sp) to the predicted noise (B, M, *sp) and, if sigma (B, M) is known, its error."""
        if self.estimator is None:
            return None, None
        noise, loss = self.estimator(std, sigma, seed=step.seed, sample_ids=step.sample_ids)
        if sigma is not None and (step.present is not None or not step.batch):
            loss = noise_error(noise, sigma, step.present)
        if loss is not None and self.settings.add_errors:
            loss = torch.where(loss.isinf(), 0, loss)
        return noise, loss

    def _forward(self, step: Step) -> Output:
        sigma = step.sigma
        if sigma is not None and self.settings.levels:
            sigma = sigma.clamp(min=1)
        embedded = self.embed(step, self.prior_var(sigma))
        features = self._paced([e.features for e in embedded], step)
        if self.modality_dropout is not None:
            features = list(self.modality_dropout(features, seed=step.seed, sample_ids=step.sample_ids)[0])
        std = [F.softplus(widened(e.features)) if e.std is None else e.std for e in embedded]
        noise, noise_loss = self.estimate(std, sigma, step)
        fuse = self._weigh_first if self.settings.weigh_first else self._weigh_last
        logits, unimodal, weights, dependency = fuse(features, noise, step)
        return Output(
            logits,
            unimodal,
            weights,
            noise=noise,
            kl=torch.stack([e.kl for e in embedded if e.kl is not None]).sum(0) if self.probabilistic else None,
            noise_loss=noise_loss,
            dependency=dependency,
            std=std,
            features=features,
            present=step.present,
        )

    def _paced(self, features: list[Tensor], step: Step) -> list[Tensor]:
        """The features; their gradients are scaled as `Settings.dependency_gradient` says."""
        power = self.settings.dependency_gradient
        if not power or self.dependency is None or not (self.training and step.weighting):
            return features
        alpha = self.dependency.value()
        factor = (alpha.mean() / alpha).pow(power).clamp(1 / 4, 4)
        return [torch.lerp(f.detach(), f, k.to(f.dtype)) for f, k in zip(features, factor.unbind(), strict=True)]

    def _weigh_last(self, features: list[Tensor], noise: Tensor | None, step: Step) -> tuple:
        """Logits, unimodal logits of the unweighted features, the weights, and the alpha used by them."""
        parts = self.fusion.parts(features)
        unimodal = self.fusion.unimodal(parts, step.present)
        alpha = None if self.dependency is None else self.dependency(unimodal.detach(), step.present)
        weigh = self.weigh(step, self._reliability(noise, alpha, step), alpha)
        logits, weights = self.fusion.fused(parts, weigh)
        return logits, unimodal, weights, alpha

    def _weigh_first(self, features: list[Tensor], noise: Tensor | None, step: Step) -> tuple:
        """The same, computed from the weighted features."""
        alpha = None if self.dependency is None else self.dependency.value()
        weigh = self.weigh(step, self._reliability(noise, alpha, step), alpha)
        weighted, weights = weigh(features, mode="scale")
        logits, unimodal, _ = self.fusion(weighted, present=step.present)
        if self.dependency is not None:
            self.dependency(unimodal.detach(), step.present)
        return logits, unimodal, weights, alpha

    def _reliability(self, noise: Tensor | None, dependency: Tensor | None, step: Step) -> Tensor | None:
        """The noise to weight by; None to weight all modalities equally."""
        always = self.settings.alpha_always
        weighting = step.weighting or (always and not self.training)
        if noise is not None and weighting:
            return noise.detach() if self.settings.detach_weights else noise
        if dependency is not None and (weighting or always):
            # All-equal noise: the weights depend on alpha alone.
            return dependency.new_ones((step.batch, len(self.encoders)))
        return None

    def _estimator(self) -> NoiseEstimator:
        s, hidden = self.settings, self.settings.hidden or 2 * self.width
        return NoiseEstimator(
            len(self.encoders),
            self.width,
            hidden,
            activation=s.activation,
            dropout_p=s.dropout_p,
            log=s.log_std,
            detach=s.detach,
        )

    def _dependency(self) -> ModalityDependency:
        s, modalities = self.settings, len(self.encoders)
        start = s.alpha_start
        if start is not None:
            start = (*start, *[start[-1]] * modalities)[:modalities]
        return ModalityDependency(modalities, s.momentum, per_sample=s.per_sample, initial=start)


def _settings(preset: str, options: dict) -> Settings:
    if preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    names = [f.name for f in fields(Settings)]
    unknown = [name for name in options if name not in names]
    if unknown:
        raise TypeError(f"options: expected some of {', '.join(names)}, got {', '.join(unknown)}")
    settings = replace(PRESETS[preset], **options)
    if settings.weigh_first and settings.per_sample:
        raise ValueError("per_sample: expected False with weigh_first, whose alpha is an earlier batch's, got True")
    return settings
