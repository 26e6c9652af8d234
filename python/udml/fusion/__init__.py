"""Fusion heads for 1 to 16 modalities: fused and unimodal logits from one product of each feature."""

from collections.abc import Sequence

from .attention import AttentionFusion
from .base import Fusion, FusionOutput, Weigh, unweighted
from .concat import ConcatFusion
from .film import FiLMFusion
from .gated import GatedFusion
from .sum import SumFusion

FUSIONS: dict[str, type[Fusion]] = {
    "concat": ConcatFusion,
    "sum": SumFusion,
    "gated": GatedFusion,
    "film": FiLMFusion,
    "attention": AttentionFusion,
}


def make_fusion(name: str, widths: Sequence[int], num_classes: int, *, spatial_dims: int = 0, **options) -> Fusion:
    """A fusion head by name, see `FUSIONS`; `options` are the class's own.

    Raises:
        ValueError: for an unknown name, listing the choices.
    """
    if name not in FUSIONS:
        raise ValueError(f"fusion: expected one of {', '.join(FUSIONS)}, got {name!r}")
    return FUSIONS[name](widths, num_classes, spatial_dims=spatial_dims, **options)


__all__ = [
    "FUSIONS",
    "AttentionFusion",
    "ConcatFusion",
    "FiLMFusion",
    "Fusion",
    "FusionOutput",
    "GatedFusion",
    "SumFusion",
    "Weigh",
    "make_fusion",
    "unweighted",
]
