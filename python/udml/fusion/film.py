from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Fusion, Weigh, each


class FiLMFusion(Fusion):
    """Feature-wise linear modulation of each modality by all the others.

        [h_m; g_m; beta_m] = W_m x_m,  S = sum_j g_j,  logits = out(sum_m h_m * (1 + S - g_m) + beta_m)

    where x_m are the weighted features. S - g_m comes from the other modalities, so the cost is linear in M, not
    quadratic.

    Parameters: maps, a ModuleList of Linear(C_m, 3 H) without bias; out, a Linear(H, K). With spatial dimensions all
    are 1x1 convolutions.

    Args:
        widths, num_classes, spatial_dims: as `Fusion` takes them.
        hidden: H; None for the widest modality's width.

    Shapes and errors: `Fusion`. Source: Perez et al., FiLM, 2018; the form symmetric in the modalities is this
    package's.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, *, spatial_dims: int = 0, hidden: int | None = None):
        super().__init__(widths, num_classes, spatial_dims=spatial_dims)
        size = hidden or max(widths)
        self.maps = self._layers(widths, 3 * size, bias=False)
        self.out = self._layer(size, num_classes)

    def _parts(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [layer(x) for x, layer in zip(features, self.maps, strict=True)]

    def unimodal(self, parts: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        hidden, _, shift = torch.stack(list(parts)).chunk(3, 2)
        return each(self.out, hidden + shift)

    def fused(self, parts: Sequence[Tensor], weigh: Weigh) -> tuple[Tensor, Tensor]:
        weighted, weights = weigh(parts, mode="scale")
        hidden, scale, shift = torch.stack(list(weighted)).chunk(3, 2)
        return self.out((hidden * (1 + scale.sum(0) - scale) + shift).sum(0)), weights
