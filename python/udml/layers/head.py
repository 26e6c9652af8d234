from torch import Tensor, nn

import udml_kernels

_POINTWISE = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class ProbabilisticHead(nn.Module):
    """Features to a normal distribution and a sample of it: z = mu + std * eps, or in evaluation z = mu.

    `mu` and `logvar` are Sequential(1x1 convolution or linear layer, BatchNorm), or only the layer, so the state
    dict of such a pair loads unchanged.

    Args:
        in_features, out_features: channels C_in and C.
        spatial_dims: number of dimensions after the channels, 0 to 3; for 0 the layers are linear.
        batch_norm: add BatchNorm after each layer.
        std_max: upper limit of the standard deviation, or None.
        pool: sample the mean over the locations instead of the map: see `udml_kernels.reparameterize`.

    Raises:
        ValueError: for any other spatial_dims.

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
        pool: bool = False,
    ):
        super().__init__()
        if spatial_dims not in _POINTWISE:
            raise ValueError(f"spatial_dims: expected one of {', '.join(map(str, _POINTWISE))}, got {spatial_dims}")

        def branch() -> nn.Module:
            size = (1,) if spatial_dims else ()
            layer = _POINTWISE[spatial_dims](in_features, out_features, *size)
            return nn.Sequential(layer, _NORMS[spatial_dims](out_features)) if batch_norm else layer

        self.mu, self.logvar, self.std_max, self.pool = branch(), branch(), std_max, pool

    def distribution(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C_in, ...) to the mean and log variance of the normal, (B, C, ...) each."""
        return self.mu(features), self.logvar(features)

    def forward(
        self,
        features: Tensor,
        prior_var: Tensor | float = 1.0,
        *,
        seed: Tensor | None = None,
        stream: int = 0,
        sample_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample the embedding.

        Args:
            features: (B, C_in, ...), floating.
            prior_var: the prior's variance, positive: a number, or (B,).
            seed: int64 (1,); None draws one. Used only in training.
            stream: distinguishes heads that share a seed.
            sample_ids: int64 (B,), the samples' identities; None for 0..B-1.

        Returns:
            z (B, C, ...), or (B, C) with `pool`, the features' dtype; std (B, C), its mean over space; kl (B,) to
                N(0, prior_var), summed over the sample, nats.

        Raises:
            ValueError, TypeError: from `udml_kernels.reparameterize`, naming the argument.
        """
        return udml_kernels.reparameterize(
            *self.distribution(features),
            prior_var,
            std_max=self.std_max,
            sample=self.training,
            pool=self.pool,
            seed=seed,
            stream=stream,
            sample_ids=sample_ids,
        )
