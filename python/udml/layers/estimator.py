from collections.abc import Sequence

from torch import Tensor

import udml_kernels

from ._grouped import GroupedMLP

# exp(logvar / 2) is 0 in float32 for a logvar of -208 and below.
_SMALLEST_STD = 1e-30


class NoiseEstimator(GroupedMLP):
    """Noise strengths from standard deviations, all modalities in one call: exp(o / 2), where o comes from a small MLP.

    Args:
        modalities: M.
        in_features: C, the width of the standard deviations.
        hidden: the MLP's width.
        activation: identity, relu, gelu or silu.
        dropout_p: dropout probability of the hidden units in training.
        log: read log(std) instead of std. Noise levels span decades, and so do the stds that follow them.
        detach: keep the noise loss from shaping the embedding. Otherwise the std learns to encode the noise.

    The parameters hold the M estimators stacked. A state dict of their plain counterpart ("twin") loads too:
    ModuleList(Sequential(Linear, Dropout, Linear)), with or without an activation module in between. Back:
    `twin.load_state_dict(estimator.twin_state_dict())`.

    Source: UDML, arXiv 2603.19681 (noise estimator); one per location is this package's.
    """

    def __init__(
        self,
        modalities: int,
        in_features: int,
        hidden: int = 256,
        *,
        activation: str = "identity",
        dropout_p: float = 0.0,
        log: bool = False,
        detach: bool = True,
    ):
        super().__init__(modalities, in_features, hidden, 1)
        self.activation, self.dropout_p, self.log, self.detach = activation, dropout_p, log, detach

    def forward(
        self,
        std: Sequence[Tensor],
        sigma: Tensor | None = None,
        *,
        seed: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the noise of each modality, and of each location if the stds have locations.

        Args:
            std: M tensors (B, C), pooled, or (B, C, *spatial) of one shape.
            sigma: the true levels, in the units wanted for the noise: (B, M), or (B, M, *spatial); None if unknown.
            seed: int64 (1,), for dropout; None draws one. Used only in training.
            sample_ids: int64 (B,), the samples' identities; None for 0..B-1.

        Returns:
            noise (B, M) or (B, M, *spatial), the stds' dtype; its mean squared error, a scalar, None without sigma.

        Raises:
            ValueError, TypeError: naming the argument, what was given and what is expected.
        """
        for m, s in enumerate(std):
            if s.shape != std[0].shape:
                raise ValueError(f"std[{m}]: expected std[0]'s shape {tuple(std[0].shape)}, got {tuple(s.shape)}")
        spatial = std[0].shape[2:]
        values = [s.detach() if self.detach else s for s in std]
        if self.log:
            values = [s.clamp(min=_SMALLEST_STD).log() for s in values]
        if sigma is not None:
            if spatial:
                sigma = sigma.reshape(sigma.shape + (1,) * (2 + len(spatial) - sigma.dim()))
                sigma = sigma.expand(-1, -1, *spatial)
            sigma = sigma.movedim(1, 0)
        noise, loss = udml_kernels.noise_regression(
            values,
            self.weight1,
            self.bias1,
            self.weight2,
            self.bias2,
            sigma,
            activation=self.activation,
            dropout_p=self.dropout_p if self.training else 0.0,
            seed=seed,
            sample_ids=sample_ids,
        )
        return noise.squeeze(2).movedim(0, 1), loss
