import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import Fusion, Weigh, each


class AttentionFusion(Fusion):
    """One learned query attends over the modalities; the weights multiply its attention. H channels in heads of d.

        [k_m; v_m] = W_m x_m + b_m,  a_m proportional to w_m exp(q . k_m / sqrt(d)),  logits = out(sum_m a_m v_m)

    where x_m are the raw features. A modality alone gets all the attention. The query starts at 0: the weighted mean.

    Parameters: maps, a ModuleList of Linear(C_m, 2 H); query (H,); out, a Linear(H, K). With spatial dimensions the
    layers are 1x1 convolutions.

    Args:
        widths, num_classes, spatial_dims: as `Fusion` takes them.
        hidden: H; None for the widest modality's width, rounded up to whole heads.
        heads: number of heads; H must be a multiple.

    Shapes and errors: `Fusion`. Source: Vaswani et al., 2017; weights in the attention are this package's.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        *,
        spatial_dims: int = 0,
        hidden: int | None = None,
        heads: int = 4,
    ):
        super().__init__(widths, num_classes, spatial_dims=spatial_dims)
        size = hidden or math.ceil(max(widths) / heads) * heads
        if size % heads:
            raise ValueError(f"hidden: expected a multiple of heads, {heads}, got {size}")
        self.heads = heads
        self.maps = self._layers(widths, 2 * size)
        self.query = nn.Parameter(torch.zeros(size))
        self.out = self._layer(size, num_classes)

    def _parts(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [layer(x) for x, layer in zip(features, self.maps, strict=True)]

    def unimodal(self, parts: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        return each(self.out, torch.stack([part.chunk(2, 1)[1] for part in parts]))

    def fused(self, parts: Sequence[Tensor], weigh: Weigh) -> tuple[Tensor, Tensor]:
        keys, values = torch.stack(list(parts), 1).unflatten(2, (2, self.heads, -1)).unbind(2)
        query = self._channels(self.query.unflatten(0, (self.heads, -1)))
        scores = (query * keys).sum(3) / math.sqrt(query.shape[1])
        # Weighting a 1 of each modality gives the modality's factor, w or 1 + w, in the precision of the 1.
        dtype = torch.promote_types(scores.dtype, torch.float32)
        ones = scores.new_ones((len(scores), 1, *scores.shape[3:]), dtype=dtype)
        factors, weights = weigh([ones] * len(parts), mode="concat")
        present = (weights > 0).reshape(*weights.shape, *[1] * (factors.dim() - weights.dim()))
        scores = scores + torch.where(present, factors, 1).log().unsqueeze(2)
        present = present.unsqueeze(2)
        # Where all modalities are missing, the softmax is uniform, and finite, before it is set to 0.
        attention = scores.masked_fill(~present, torch.finfo(scores.dtype).min).softmax(1) * present
        return self.out((attention.unsqueeze(3) * values).sum(1).flatten(1, 2)), weights
