from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

import udml_kernels

MAX_MODALITIES = 16
_LAYERS = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_PRODUCTS: dict[int, Callable[..., Tensor]] = {0: F.linear, 1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

# (tensors, mode="sum" | "scale" | "concat") to (fused, weights).
Weigh = Callable[..., tuple[Any, Tensor]]


class FusionOutput(NamedTuple):
    """The output of a fusion head for B samples, M modalities and K classes.

    Attributes:
        logits: (B, K, *spatial), of all weighted modalities together.
        unimodal: (M, B, K, *spatial), of each modality alone, unweighted.
        weights: (B, M) or (B, M, *spatial), float32 or float64.
    """

    logits: Tensor
    unimodal: Tensor
    weights: Tensor


class Fusion(nn.Module):
    """A fusion head: features of M modalities to class logits, of all modalities together and of each alone.

    Every product with a raw feature is computed once, in `parts`. A modality's weight is one number per sample (and
    location) and so commutes with linear maps: `fused` weights the parts, and `unimodal` needs no zero-padded products.

    A missing modality has weight 0 and features 0 (set, not multiplied: 0 * NaN is NaN). The fused logits are then
    those of the head without that modality, and no gradient reaches its features.

    Args:
        widths: the features' channels C_m, one per modality, 1 to 16 of them.
        num_classes: K.
        spatial_dims: number of dimensions after the channels, 0 to 3; for 0, layers are linear, else 1x1 convolutions.

    Raises:
        ValueError: naming the argument, what was given and what is expected.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, *, spatial_dims: int = 0):
        super().__init__()
        if not 1 <= len(widths) <= MAX_MODALITIES or min(widths) < 1:
            raise ValueError(f"widths: expected 1 to {MAX_MODALITIES} positive numbers, got {list(widths)}")
        if num_classes < 1:
            raise ValueError(f"num_classes: expected a positive number, got {num_classes}")
        if spatial_dims not in _LAYERS:
            raise ValueError(f"spatial_dims: expected one of {', '.join(map(str, _LAYERS))}, got {spatial_dims}")
        self.widths, self.num_classes, self.spatial_dims = tuple(widths), num_classes, spatial_dims

    def forward(
        self, features: Sequence[Tensor], weigh: Weigh | None = None, present: Tensor | None = None
    ) -> FusionOutput:
        """Fuse the features.

        Args:
            features: M tensors (B, C_m, *spatial), one floating dtype.
            weigh: called as weigh(tensors, mode=...) on M tensors (B, ..., *spatial) for (fused, weights), as
                `partial(UncertaintyWeighting(), noise=noise, dependency=alpha, mask=present)` does; None: weights of 1.
            present: bool (B, M), False where a modality is missing; None: all present.

        Raises:
            ValueError: naming the argument, what was given and what is expected.
        """
        parts = self.parts(features)
        logits, weights = self.fused(parts, weigh or partial(unweighted, mask=present))
        return FusionOutput(logits, self.unimodal(parts, present), weights)

    def parts(self, features: Sequence[Tensor]) -> list[Tensor]:
        """M features (B, C_m, *spatial) to everything that is linear in each of them, (B, P, *spatial)."""
        if len(features) != len(self.widths):
            raise ValueError(f"features: expected {len(self.widths)}, one a modality, got {len(features)}")
        for m, (x, width) in enumerate(zip(features, self.widths, strict=True)):
            if x.dim() != 2 + self.spatial_dims or x.shape[1] != width:
                expected = f"(B, {width}) and {self.spatial_dims} spatial dimensions"
                raise ValueError(f"features[{m}]: expected {expected}, got shape {tuple(x.shape)}")
        return self._parts(features)

    def unimodal(self, parts: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """(M, B, K, *spatial): the head with every other modality zeroed.

        `present`, bool (B, M), matters for heads in which a missing modality would otherwise leave a bias of its own.
        """
        raise NotImplementedError

    def fused(self, parts: Sequence[Tensor], weigh: Weigh) -> tuple[Tensor, Tensor]:
        """Logits (B, K, *spatial) of all weighted modalities together, and the weights."""
        raise NotImplementedError

    def _parts(self, features: Sequence[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def _layer(self, fan_in: int, fan_out: int, bias: bool = True) -> nn.Linear:
        """A linear layer, or a 1x1 convolution, which has the same attributes."""
        size = (1,) if self.spatial_dims else ()
        return cast(nn.Linear, _LAYERS[self.spatial_dims](fan_in, fan_out, *size, bias=bias))

    def _layers(self, widths: Sequence[int], fan_out: int, bias: bool = True) -> Sequence[nn.Linear]:
        """One layer per modality, in a ModuleList."""
        layers = nn.ModuleList(self._layer(width, fan_out, bias) for width in widths)
        return cast(Sequence[nn.Linear], layers)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (B, C, *spatial) times a layer's weight."""
        return _PRODUCTS[self.spatial_dims](x, weight)

    def _channels(self, values: Tensor) -> Tensor:
        """(..., C) to (..., C, 1, 1), with as many 1s as there are spatial dimensions."""
        return values.reshape(*values.shape, *[1] * self.spatial_dims)


def unweighted(features: Sequence[Tensor], mode: str, mask: Tensor | None = None) -> tuple[Any, Tensor]:
    """A `weigh` function that gives every present modality weight 1."""
    ones = features[0].new_ones((features[0].shape[0], len(features)))
    return udml_kernels.weighted_fusion(features, ones, mode=mode, mask=mask, g="inverse")


def each(layer: nn.Module, tensors: Tensor) -> Tensor:
    """A layer applied to the M tensors of (M, B, C, *spatial), in one call."""
    return layer(tensors.flatten(0, 1)).unflatten(0, tensors.shape[:2])
