from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Fusion, Weigh, each


class GatedFusion(Fusion):
    """Gated multimodal unit: each modality's hidden vector passes a gate that sees all modalities.

        h_m = tanh(W_m x_m),  gate_m = sigmoid(sum_j U_mj x_j + b_m),  logits = out(sum_m gate_m * h_m)

    where x_m are the weighted features.

    Parameters: hidden, a ModuleList of Linear(C_m, H) without bias; gate, a Linear(sum C_m, M H), whose outputs are
    the M gates in order; out, a Linear(H, K). With spatial dimensions all are 1x1 convolutions.

    Args:
        widths, num_classes, spatial_dims: as `Fusion` takes them.
        hidden: H; None for the widest modality's width.

    Shapes and errors: `Fusion`. Source: Arevalo et al., Gated Multimodal Units, 2017 (the form for several modalities).
    """

    def __init__(self, widths: Sequence[int], num_classes: int, *, spatial_dims: int = 0, hidden: int | None = None):
        super().__init__(widths, num_classes, spatial_dims=spatial_dims)
        self.size = hidden or max(widths)
        self.hidden = self._layers(widths, self.size, bias=False)
        self.gate = self._layer(sum(widths), len(widths) * self.size)
        self.out = self._layer(self.size, num_classes)

    def _parts(self, features: Sequence[Tensor]) -> list[Tensor]:
        # One split, as its gradient is one concatenation; the gradient of M slices would be M matrices of full size.
        gates = self.gate.weight.split(self.widths, 1)
        weights = [torch.cat((layer.weight, gate)) for layer, gate in zip(self.hidden, gates, strict=True)]
        return [self._product(x, weight) for x, weight in zip(features, weights, strict=True)]

    def unimodal(self, parts: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        hidden, gates = self._split(parts)
        own = torch.stack([gate[:, m] for m, gate in enumerate(gates)])
        bias = self._channels(self.gate.bias.unflatten(0, (-1, 1, self.size)))
        return each(self.out, torch.stack(hidden).tanh() * (own + bias).sigmoid())

    def fused(self, parts: Sequence[Tensor], weigh: Weigh) -> tuple[Tensor, Tensor]:
        weighted, weights = weigh(parts, mode="scale")
        hidden, gates = self._split(weighted)
        gate = sum(gates) + self._channels(self.gate.bias.unflatten(0, (-1, self.size)))
        return self.out((torch.stack(hidden, 1).tanh() * gate.sigmoid()).sum(1)), weights

    def _split(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Parts to W_m x_m (B, H, *spatial) and U_.m x_m (B, M, H, *spatial)."""
        split = [part.split((self.size, part.shape[1] - self.size), 1) for part in parts]
        return [hidden for hidden, _ in split], [gates.unflatten(1, (-1, self.size)) for _, gates in split]
