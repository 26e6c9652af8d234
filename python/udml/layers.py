"""UDML's steps as modules, each usable alone in another model.

They hold the parameters and the state; the arithmetic is udml_kernels'. B rows are samples, M modalities.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import udml_kernels

_POINTWISE = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class NoiseInjector(nn.Module):
    """x + unit * sigma * eps on every modality, each with its own stream of the step's seed.

    Args:
        unit: the noise's standard deviation at sigma = 1, in the inputs' units.
    """

    def __init__(self, unit: float = 1.0):
        super().__init__()
        self.unit = unit

    def forward(
        self, inputs: Sequence[Tensor], sigma: Tensor, *, seed: Tensor, sample_ids: Tensor | None = None
    ) -> list[Tensor]:
        """Inputs of (B, ...) each and sigma (B, M), not negative, to noisy inputs of the same shapes and dtypes."""
        levels = (sigma * self.unit).unbind(1)
        return [
            udml_kernels.inject_noise(x, level, seed=seed, stream=m, sample_ids=sample_ids)
            for m, (x, level) in enumerate(zip(inputs, levels, strict=True))
        ]


class ProbabilisticHead(nn.Module):
    """Features to a normal distribution and a sample of it: z = mu + std * eps, in evaluation z = mu.

    `mu` and `logvar` are Sequential(1x1 convolution or linear layer, BatchNorm), so the state dict of such a
    pair loads as it is.

    Args:
        in_features, out_features: channels C_in and C.
        spatial_dims: how many dimensions follow the channels; with 0 the layers are linear.
        batch_norm: follow each layer by BatchNorm.
        std_max: upper limit of the standard deviation, or None.

    Source: UDML, arXiv 2603.19681 (probabilistic embedding).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        spatial_dims: int = 0,
        batch_norm: bool = True,
        std_max: float | None = None,
    ):
        super().__init__()

        def branch() -> nn.Sequential:
            size = (1,) if spatial_dims else ()
            layers: list[nn.Module] = [_POINTWISE[spatial_dims](in_features, out_features, *size)]
            if batch_norm:
                layers.append(_NORMS[spatial_dims](out_features))
            return nn.Sequential(*layers)

        self.mu, self.logvar, self.std_max = branch(), branch(), std_max

    def forward(
        self,
        features: Tensor,
        prior_var: Tensor | float = 1.0,
        *,
        seed: Tensor | None = None,
        stream: int = 0,
        sample_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, C_in, ...) and a prior variance, one number or (B,), to z, std and kl.

        Returns:
            z (B, C, ...); std (B, C), its mean over space; kl (B,) to N(0, prior_var), summed over the sample, nats.
        """
        return udml_kernels.reparameterize(
            self.mu(features),
            self.logvar(features),
            prior_var,
            std_max=self.std_max,
            sample=self.training,
            seed=seed,
            stream=stream,
            sample_ids=sample_ids,
        )


class NoiseEstimator(nn.Module):
    """Noise strengths from pooled standard deviations, all modalities in one call: exp(o / 2), o of a small MLP.

    The input is detached: estimating the noise must not shape the embedding.

    Args:
        modalities: M.
        in_features: C, the width of the pooled standard deviation.
        hidden: the MLP's width.
        activation: identity, relu, gelu or silu.
        dropout_p: dropout probability of the hidden units in training.

    The parameters hold the M estimators stacked. A state dict of their twin loads too:
    ModuleList(Sequential(Linear, Dropout, Linear)), with an activation module between or without.

    Source: UDML, arXiv 2603.19681 (noise estimator).
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    def __init__(
        self,
        modalities: int,
        in_features: int,
        hidden: int = 256,
        *,
        activation: str = "identity",
        dropout_p: float = 0.0,
    ):
        super().__init__()
        twins = [(nn.Linear(in_features, hidden), nn.Linear(hidden, 1)) for _ in range(modalities)]
        for i, layers in enumerate(zip(*twins, strict=True), 1):
            setattr(self, f"weight{i}", nn.Parameter(torch.stack([layer.weight.detach() for layer in layers])))
            setattr(self, f"bias{i}", nn.Parameter(torch.stack([layer.bias.detach() for layer in layers])))
        self.modalities, self.activation, self.dropout_p = modalities, activation, dropout_p

    def forward(
        self,
        std: Sequence[Tensor],
        sigma: Tensor | None = None,
        *,
        seed: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """M pooled stds (B, C), and the true sigma (B, M) or None, to predicted sigma (B, M) and mean squared error."""
        noise, loss = udml_kernels.noise_regression(
            torch.stack([s.detach() for s in std]),
            self.weight1,
            self.bias1,
            self.weight2,
            self.bias2,
            None if sigma is None else sigma.mT,
            activation=self.activation,
            dropout_p=self.dropout_p if self.training else 0.0,
            seed=seed,
            sample_ids=sample_ids,
        )
        return noise.squeeze(2).mT, loss

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for layer, attribute in ((1, "weight"), (1, "bias"), (2, "weight"), (2, "bias")):
            name = f"{prefix}{attribute}{layer}"
            keys = [self._twin_key(state_dict, f"{prefix}{m}.", layer, attribute) for m in range(self.modalities)]
            if name not in state_dict and None not in keys:
                state_dict[name] = torch.stack([state_dict.pop(key) for key in keys])
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def _twin_key(state_dict, prefix: str, layer: int, attribute: str) -> str | None:
        places = ("0",) if layer == 1 else ("2", "3")
        return next((key for p in places if (key := f"{prefix}{p}.{attribute}") in state_dict), None)


class ModalityDependency(nn.Module):
    """How much the model leans on each modality: a running mean of alpha_m = mean_b sum_k |logit_mbk|.

    In training each call moves the mean, the first one sets it; in evaluation it rests. It is part of the state
    dict, so a reloaded model weights its modalities as the saved one did.

    Args:
        modalities: M.
        momentum: how much of the old mean each step keeps.

    Source: UDML, arXiv 2603.19681 (dependency calculator; the authors keep the last batch alone).
    """

    alpha: Tensor
    batches: Tensor

    def __init__(self, modalities: int, momentum: float = 0.95):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("alpha", torch.ones(modalities))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, logits: Tensor) -> Tensor:
        """Logits (M, B, K) of one modality at a time to alpha (M,), without gradient."""
        if self.training:
            batch = udml_kernels.modality_dependency(logits)
            moved = self.momentum * self.alpha + (1 - self.momentum) * batch
            self.alpha.copy_(torch.where(self.batches == 0, batch, moved))
            self.batches += 1
        # A copy: the next step moves the buffer, which autograd must not notice.
        return self.alpha.clone()


class UncertaintyWeighting(nn.Module):
    """Fuse modalities weighted by g(1 / (s_m alpha_m)), with s = noise^2 + floor^2.

    Args:
        g: "inverse" or "softmax", see `udml_kernels.fusion_weights`.
        temperature: tau, positive; above 1 the weights are closer to each other.
        floor: the noise estimate's resolution, in its units. Without it two clean modalities, whose estimates
            are tiny and differ by chance, would be weighted by that chance.
        mode: "concat", "sum" or "scale".
        residual: scale by 1 + w instead of w.

    Source: UDML, arXiv 2603.19681 (uncertainty times dependency); the floor is this package's.
    """

    def __init__(
        self,
        *,
        g: str = "inverse",
        temperature: float = 1.0,
        floor: float = 1.0,
        mode: str = "concat",
        residual: bool = False,
    ):
        super().__init__()
        self.g, self.temperature, self.floor, self.mode, self.residual = g, temperature, floor, mode, residual

    def forward(
        self,
        features: Sequence[Tensor],
        noise: Tensor | None,
        dependency: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor | tuple[Tensor, ...], Tensor]:
        """M features (B, C_m, ...), noise (B, M), dependency (M,) or (B, M) to fused features and weights (B, M).

        noise None weights all modalities alike, 1 each.
        """
        if noise is None:
            uncertainty, dependency = features[0].new_ones((features[0].shape[0], len(features))), None
        else:
            uncertainty = noise.square() + self.floor**2
        return udml_kernels.weighted_fusion(
            features,
            uncertainty,
            dependency,
            mode=self.mode,
            residual=self.residual,
            mask=mask,
            g=self.g,
            temperature=self.temperature,
        )
