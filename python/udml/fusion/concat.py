from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Fusion, Weigh


class ConcatFusion(Fusion):
    """One linear map of the concatenated features: W [w_1 x_1; ...; w_M x_M] + b = sum_m w_m W_m x_m + b.

    Parameters: weight (K, sum C_m) and bias (K,), as nn.Linear(sum C_m, K) holds them, or (K, sum C_m, 1, 1), as a
    1x1 convolution does; the state dict of either loads.

    Arguments, shapes and errors: `Fusion`. Source: UDML, arXiv 2603.19681 (fusion by concatenation).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, widths: Sequence[int], num_classes: int, *, spatial_dims: int = 0):
        super().__init__(widths, num_classes, spatial_dims=spatial_dims)
        layer = self._layer(sum(widths), num_classes)
        self.weight, self.bias = layer.weight, layer.bias

    def _parts(self, features: Sequence[Tensor]) -> list[Tensor]:
        # One split, as its gradient is one concatenation; the gradient of M slices would be M matrices of full size.
        return [self._product(x, w) for x, w in zip(features, self.weight.split(self.widths, 1), strict=True)]

    def unimodal(self, parts: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        return torch.stack(list(parts)) + self._channels(self.bias)

    def fused(self, parts: Sequence[Tensor], weigh: Weigh) -> tuple[Tensor, Tensor]:
        logits, weights = weigh(parts, mode="sum")
        return logits + self._channels(self.bias), weights
