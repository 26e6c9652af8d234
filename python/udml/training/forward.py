"""The forward pass: degrade a batch, run a model on it. Training, validation and evaluation all come through here."""

from typing import Any

import torch
from torch import Tensor, nn

from ..data.base import Batch, DataSpec
from ..layers import NoiseInjector
from ..models import Output, authors_levels
from ..schedule import Phase
from .randomness import mixed_sigma


class NoisyPass:
    """Degrades (and normalises) a data set's inputs and runs a model on them."""

    def __init__(self, spec: DataSpec):
        self.names, self.max_sigma = spec.modalities, spec.max_sigma
        self.injector = NoiseInjector([spec.noise[name] for name in spec.modalities])

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        sigma: Tensor | None,
        *,
        seed: Tensor,
        weighting: bool = True,
        kind: str | Tensor = "gaussian",
    ) -> Any:
        """The model's Output on a batch.

        Args:
            sigma: levels (B, M); None for clean data, for which the model does not get a level either.
            seed: int64 (1,), for the noise and for the model's own draws.
            weighting: False weights all modalities equally.
            kind: the kind of noise, a name or indices into `udml_kernels.KINDS`.
        """
        ids = batch.index
        levels = ids.new_zeros((len(ids), len(self.names)), dtype=torch.float32) if sigma is None else sigma
        with torch.autocast(ids.device.type, enabled=False):
            noisy = self.injector([batch.inputs[n] for n in self.names], levels, kind=kind, seed=seed, sample_ids=ids)
        inputs = dict(zip(self.names, noisy, strict=True))
        return model(inputs, sigma=sigma, present=batch.present, weighting=weighting, seed=seed, sample_ids=ids)

    def in_phase(self, model: nn.Module, batch: Batch, phase: Phase, seed: Tensor) -> tuple[Output, Tensor | None]:
        """The Output under the noise of a phase, and its levels (B, M): None in the clean phase, except for a model
        with `Settings.levels`, whose sigma is the authors' level, 1 for clean data."""
        sigma: Tensor | None = None
        kind: str | Tensor = "gaussian"
        shape = len(batch), len(self.names)
        if has_levels(model):
            drawn = authors_levels(*shape, seed, batch.index)
            # The authors' estimator also learns in the clean phase, where the level is 1.
            sigma, kind = (drawn.sigma, drawn.kind) if phase.noise else (torch.zeros_like(drawn.sigma), kind)
        elif phase.noise:
            sigma = mixed_sigma(*shape, self.max_sigma, seed, batch.index)
        return self(model, batch, sigma, seed=seed, weighting=phase.weighting, kind=kind), sigma


def has_levels(model: nn.Module) -> bool:
    """Whether a model's sigma counts the authors' levels (`Settings.levels`)."""
    return getattr(getattr(model, "settings", None), "levels", False)
