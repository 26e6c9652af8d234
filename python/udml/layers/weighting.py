import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import udml_kernels

# The log evidence of a missing modality: infinity would have no gradient.
_NOTHING = -1e4


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
        reference: r, in the noise's units, for g "inverse" without residual; None for weights that sum to M.

    Raises:
        ValueError, TypeError: from the op at the first call, naming the argument.

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
        if reference is not None and (g != "inverse" or residual or not reference > 0):
            got = f"{reference!r} with g {g!r}, residual {residual}"
            raise ValueError(f"reference: expected a positive number, with g 'inverse' and no residual, got {got}")
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
                modalities equally, 1 each.
            dependency: alpha, positive, (M,) or (B, M); None for 1.
            mask: bool, of shape (B, M) or the noise's, True where the modality is present. A missing one has weight 0.
            mode: overrides the module's mode for this call.

        Returns:
            The fused features, in their dtype, and the weights, (B, M) or (B, M, *spatial), float32.

        Raises:
            ValueError, TypeError: naming the argument, what was given and what is expected.
        """
        if noise is None:
            uncertainty, dependency = features[0].new_ones((features[0].shape[0], len(features))), None
        else:
            uncertainty = self._uncertainty(noise)
        fused, weights = udml_kernels.weighted_fusion(
            features,
            uncertainty,
            dependency,
            mode=mode or self.mode,
            residual=self.residual,
            mask=mask,
            g=self.g,
            temperature=self.temperature,
        )
        if noise is None or self.reference is None:
            return fused, weights
        share = self._share(uncertainty, dependency, mask)
        if isinstance(fused, tuple):
            return tuple(_scaled(f, share) for f in fused), weights * share
        return _scaled(fused, share), weights * share

    def weights(self, noise: Tensor, dependency: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Only the weights, in noise's shape; arguments as in `forward`."""
        uncertainty = self._uncertainty(noise)
        weights = udml_kernels.fusion_weights(
            uncertainty, dependency, mask=mask, g=self.g, temperature=self.temperature
        )
        return weights if self.reference is None else weights * self._share(uncertainty, dependency, mask)

    def _share(self, uncertainty: Tensor, dependency: Tensor | None, mask: Tensor | None) -> Tensor:
        """c, (B, 1, *spatial); 0 where no modality is present."""
        assert self.reference is not None
        reference = math.log(self.reference**2 + self.floor**2)
        evidence = reference - uncertainty.log()
        spatial = (1,) * (uncertainty.dim() - 2)
        count = evidence.new_full((), uncertainty.shape[1])
        if mask is not None:
            mask = mask.reshape(*mask.shape, *spatial) if mask.dim() == 2 else mask
            count = mask.sum(1, keepdim=True, dtype=evidence.dtype).clamp(min=1)
        if dependency is not None:
            alpha = dependency.to(evidence.dtype)
            alpha = alpha.reshape(*(alpha.shape if alpha.dim() > 1 else (1, -1)), *spatial)
            total = alpha if mask is None else torch.where(mask, alpha, 0)
            evidence = evidence - (alpha * count / total.sum(1, keepdim=True).clamp(min=1e-30)).log()
        evidence = evidence / self.temperature
        if mask is not None:
            evidence = evidence.masked_fill(~mask, _NOTHING)
        return (evidence.logsumexp(1, keepdim=True) - count.log()).sigmoid()

    def _uncertainty(self, noise: Tensor) -> Tensor:
        # Squared in the op's own precision: in half precision a square overflows beyond 255.
        dtype = torch.promote_types(noise.dtype, torch.float32)
        return noise.to(dtype).square() + self.floor**2


def _scaled(fused: Tensor, share: Tensor) -> Tensor:
    return fused * share.reshape(*share.shape, *[1] * (fused.dim() - share.dim())).to(fused.dtype)
