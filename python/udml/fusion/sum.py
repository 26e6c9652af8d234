from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Fusion, Weigh


class SumFusion(Fusion):
    """A linear head for each modality, with their logits summed: sum_m (W_m w_m x_m + b_m).

    The bias of a missing modality (weight 0) is left out.

    Parameters: heads, a ModuleList of Linear(C_m, K), or of 1x1 convolutions.

    Arguments, shapes and errors: `Fusion`. Source: UDML, arXiv 2603.19681 (fusion by summation).
    """

    def __init__(self, widths: Sequence[int], num_classes: int, *, spatial_dims: int = 0):
        super().__init__(widths, num_classes, spatial_dims=spatial_dims)
        self.heads = self._layers(widths, num_classes)

    def _parts(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [self._product(x, head.weight) for x, head in zip(features, self.heads, strict=True)]

    def unimodal(self, parts: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        bias = self._biases().sum(0) if present is None else self._bias_of(present)
        return torch.stack(list(parts)) + bias

    def fused(self, parts: Sequence[Tensor], weigh: Weigh) -> tuple[Tensor, Tensor]:
        logits, weights = weigh(parts, mode="sum")
        return logits + self._bias_of(weights > 0), weights

    def _biases(self) -> Tensor:
        return self._channels(torch.stack([head.bias for head in self.heads]))

    def _bias_of(self, present: Tensor) -> Tensor:
        """Bool (B, M) or (B, M, *spatial) to the sum of the present modalities' biases, (B, K, *spatial or 1s)."""
        present = present.reshape(*present.shape, *[1] * (2 + self.spatial_dims - present.dim()))
        return (present.unsqueeze(2) * self._biases()).sum(1)
