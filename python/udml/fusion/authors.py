"""The heads of UDML's authors, where they differ from the networks that have the same name here."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Fusion, Weigh, each
from .sum import SumFusion


class AuthorsSumFusion(SumFusion):
    """A `SumFusion` in which unimodal logits include only the modality's own bias: W_m x_m + b_m.

    Parameters, arguments, shapes and errors: `SumFusion`. Source: the authors' code of UDML, arXiv 2603.19681.
    """

    def unimodal(self, parts: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        return torch.stack(list(parts)) + self._biases().unsqueeze(1)


class _Pair(Fusion):
    """A fusion of two modalities."""

    def __init__(self, widths: Sequence[int], num_classes: int, *, spatial_dims: int = 0):
        super().__init__(widths, num_classes, spatial_dims=spatial_dims)
        if len(widths) != 2:
            raise ValueError(f"widths: expected two, as the authors' head fuses two modalities, got {list(widths)}")


class AuthorsGatedFusion(_Pair):
    """The first modality gates the second: out(sigmoid(h_1) * h_2) with h_m = W_m x_m + b_m and x_m weighted.

    Unimodal logits: a modality gates itself, out(sigmoid(h_m) * h_m).

    Parameters: maps, two Linear(C_m, H); out, a Linear(H, K). With spatial dimensions all are 1x1 convolutions.

    Args:
        widths, num_classes, spatial_dims: as `Fusion` takes them, for two modalities.
        hidden: H; None for the wider modality's width.

    Shapes and errors: `Fusion`. Source: the authors' code of UDML, arXiv 2603.19681.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, *, spatial_dims: int = 0, hidden: int | None = None):
        super().__init__(widths, num_classes, spatial_dims=spatial_dims)
        size = hidden or max(widths)
        self.maps = self._layers(widths, size)
        self.out = self._layer(size, num_classes)

    def _parts(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [self._product(x, layer.weight) for x, layer in zip(features, self.maps, strict=True)]

    def unimodal(self, parts: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        hidden = torch.stack(self._hidden(parts))
        return each(self.out, hidden.sigmoid() * hidden)

    def fused(self, parts: Sequence[Tensor], weigh: Weigh) -> tuple[Tensor, Tensor]:
        weighted, weights = weigh(parts, mode="scale")
        first, second = self._hidden(weighted)
        return self.out(first.sigmoid() * second), weights

    def _hidden(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [part + self._channels(layer.bias) for part, layer in zip(parts, self.maps, strict=True)]


class AuthorsFiLMFusion(_Pair):
    """A bilinear head: out(fc(vec(x_1 x_2^T))) with x_m weighted, vec by rows; unimodal: out(fc(vec(x_m x_m^T))).

    Parameters: fc, a Linear(C * C, H); out, a Linear(H, K). With spatial dimensions both are 1x1 convolutions.

    Args:
        widths, num_classes, spatial_dims: as `Fusion` takes them, for two modalities of one width C.
        hidden: H; None for C.

    Shapes and errors: `Fusion`. Source: the authors' code of UDML, arXiv 2603.19681.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, *, spatial_dims: int = 0, hidden: int | None = None):
        super().__init__(widths, num_classes, spatial_dims=spatial_dims)
        if widths[0] != widths[1]:
            raise ValueError(f"widths: expected two that are equal, got {list(widths)}")
        size = hidden or widths[0]
        self.fc = self._layer(widths[0] * widths[1], size)
        self.out = self._layer(size, num_classes)

    def _parts(self, features: Sequence[Tensor]) -> list[Tensor]:
        return list(features)

    def unimodal(self, parts: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        return torch.stack([self._bilinear(x, x) for x in parts])

    def fused(self, parts: Sequence[Tensor], weigh: Weigh) -> tuple[Tensor, Tensor]:
        (first, second), weights = weigh(parts, mode="scale")
        return self._bilinear(first, second), weights

    def _bilinear(self, first: Tensor, second: Tensor) -> Tensor:
        return self.out(self.fc((first.unsqueeze(2) * second.unsqueeze(1)).flatten(1, 2)))
