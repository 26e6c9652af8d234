from collections.abc import Sequence

from torch import Tensor, nn

import udml_kernels
from udml_kernels import checks
from udml_kernels.ops.fusion import MODES, check_options


class UncertaintyWeighting(nn.Module):
    """Fuse modalities weighted by g(1 / (s_m alpha_m)), with s = noise^2 + floor^2.

    With a reference noise r, the weights of a row with M present modalities sum to M c, where

        c = sum_m u_m / (sum_m u_m + M u_r),   u_m = (s_m alpha_m)^(-1 / temperature),

    and u_r is that of noise r and the modalities' mean alpha: where all are noisier than the reference, the fused
    features shrink, so that a classifier's logits reflect how much information there is.

    Args:
        g: "inverse" or "softmax", see `udml_kernels.fusion_weights`.
        temperature: tau, positive; above 1 the weights are closer to each other.
        floor: the noise estimate's resolution, in its units. Without it two clean modalities, whose estimates
            are tiny and differ by chance, would be weighted by chance.
        mode: "concat", "sum" or "scale" (the weighted features as a tuple).
        residual: scale by 1 + w instead of w.
        reference: r, positive, in the noise's units; None for weights that sum to M. The formula above is that of g
            "inverse"; `udml_kernels.fusion_weights` has both.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.

    Source: UDML, arXiv 2603.19681 (uncertainty times dependency); the floor and the reference are this package's.
    """

    def __init__(
        self,
        *,
        g: str = "inverse",
        temperature: float = 1.0,
        floor: float = 1.0,
        mode: str = "concat",
        residual: bool = False,
        reference: float | None = None,
    ):
        super().__init__()
        check_options(g, temperature, floor=floor, against=reference)
        checks.choice("mode", mode, MODES)
        self.reference = reference
        self.g, self.temperature, self.floor, self.mode, self.residual = g, temperature, floor, mode, residual

    def forward(
        self,
        features: Sequence[Tensor],
        noise: Tensor | None = None,
        dependency: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        mode: str | None = None,
    ) -> tuple[Tensor | tuple[Tensor, ...], Tensor]:
        """Weight the features and fuse them.

        Args:
            features: M tensors (B, C_m, *spatial), one floating dtype.
            noise: (B, M), or (B, M, *spatial) for weights per location, not negative; None weights all present
                modalities equally, 1 each, whatever the dependency.
            dependency: alpha, positive, (M,) or (B, M); None for 1.
            mask: bool, of shape (B, M) or the noise's, True where the modality is present. A missing one has weight 0.
            mode: overrides the module's mode for this call.

        Returns:
            The fused features, in their dtype, and the weights, (B, M) or (B, M, *spatial), float32.

        Raises:
            ValueError, TypeError: naming the argument, what was given and what is expected.
        """
        against: dict = {"floor": self.floor, "reference": self.reference}
        if noise is None:
            # With equal uncertainties all present modalities have weight 1.
            noise, dependency, against = features[0].new_ones((features[0].shape[0], len(features))), None, {}
        return udml_kernels.weighted_fusion(
            features,
            noise,
            dependency,
            mode=mode or self.mode,
            residual=self.residual,
            mask=mask,
            g=self.g,
            temperature=self.temperature,
            **against,
        )

    def extra_repr(self) -> str:
        return (
            f"g={self.g!r}, temperature={self.temperature}, floor={self.floor}, mode={self.mode!r}, "
            f"residual={self.residual}, reference={self.reference}"
        )

    def weights(self, noise: Tensor, dependency: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Only the weights, in noise's shape; arguments as in `forward`."""
        return udml_kernels.fusion_weights(
            noise,
            dependency,
            mask=mask,
            g=self.g,
            temperature=self.temperature,
            floor=self.floor,
            reference=self.reference,
        )
