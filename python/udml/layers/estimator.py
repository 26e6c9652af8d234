from collections.abc import Sequence

from torch import Tensor

import udml_kernels
from udml_kernels import checks
from udml_kernels.reference.noise_regression import ACTIVATIONS

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

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.

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
        for name, size in (("modalities", modalities), ("in_features", in_features), ("hidden", hidden)):
            checks.number(name, size, "a positive integer", lambda v: v > 0 and v % 1 == 0)
        checks.choice("activation", activation, tuple(ACTIVATIONS))
        checks.number("dropout_p", dropout_p, "a probability in [0, 1]", lambda v: 0 <= v <= 1)
        super().__init__(modalities, in_features, hidden, 1)
        self.activation, self.dropout_p, self.log, self.detach = activation, dropout_p, log, detach

    def extra_repr(self) -> str:
        return (
            f"{self.modalities}, {self.weight1.shape[2]}, hidden={self.weight1.shape[1]}, "
            f"activation={self.activation!r}, dropout_p={self.dropout_p}, log={self.log}, detach={self.detach}"
        )

    def forward(
        self,
        std: Sequence[Tensor],
        sigma: Tensor | None = None,
        *,
        seed: Tensor | None = None,
        stream: int = 0,
        sample_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the noise of each modality, and of each location if the stds have locations.

        Args:
            std: M tensors (B, C), pooled, or (B, C, *spatial) of one shape.
            sigma: the true levels, in the units wanted for the noise: (B, M), or (B, M, *spatial); None if unknown.
            seed: int64 (1,), for dropout; None draws one. Used only in training.
            stream: distinguishes estimators that share a seed.
            sample_ids: int64 (B,), the samples' identities; None for 0..B-1.

        Returns:
            noise (B, M) or (B, M, *spatial), the stds' dtype; its mean squared error, a scalar, None without sigma.

        Raises:
            ValueError, TypeError: naming the argument, what was given and what is expected.
        """
        if isinstance(std, Tensor) or len(std) != self.modalities:
            got = f"a tensor {tuple(std.shape)}" if isinstance(std, Tensor) else str(len(std))
            raise ValueError(f"std: expected {self.modalities} tensors, one a modality, got {got}")
        for m, s in enumerate(std):
            if s.shape != std[0].shape:
                raise ValueError(f"std[{m}]: expected std[0]'s shape {tuple(std[0].shape)}, got {tuple(s.shape)}")
        values = [s.detach() if self.detach else s for s in std]
        if self.log:
            values = [s.clamp(min=_SMALLEST_STD).log() for s in values]
        sigma = None if sigma is None else self._target(sigma, std[0])
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
            stream=stream,
            sample_ids=sample_ids,
        )
        return noise.squeeze(2).movedim(0, 1), loss

    def _target(self, sigma: Tensor, std: Tensor) -> Tensor:
        """The levels (B, M) or (B, M, *spatial) as (M, B, *spatial)."""
        pair, spatial = (len(std), self.modalities), tuple(std.shape[2:])
        checks.float_tensor("sigma", sigma, 2)
        checks.exact_shape("sigma", sigma, pair, (*pair, *spatial))
        if sigma.dim() == 2:
            sigma = sigma.reshape(*pair, *[1] * len(spatial)).expand(*pair, *spatial)
        return sigma.movedim(1, 0)
