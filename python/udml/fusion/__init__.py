"""Fusion heads for 1 to 16 modalities: fused and unimodal logits from one matrix product per feature."""

from collections.abc import Sequence

from .attention import AttentionFusion
from .authors import AuthorsFiLMFusion, AuthorsGatedFusion, AuthorsSumFusion
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
# The authors' heads that are different networks.
AUTHORS_FUSIONS: dict[str, type[Fusion]] = {
    "sum": AuthorsSumFusion,
    "gated": AuthorsGatedFusion,
    "film": AuthorsFiLMFusion,
}


def make_fusion(
    name: str, widths: Sequence[int], num_classes: int, *, spatial_dims: int = 0, authors: bool = False, **options
) -> Fusion:
    """A fusion head by name, see `FUSIONS`; `options` are arguments of its class.

    `authors` selects the authors' head where it is a different network, see `AUTHORS_FUSIONS`; their gated and film
    heads fuse two modalities.

    Raises:
        ValueError: for an unknown name, listing the choices.
    """
    if name not in FUSIONS:
        raise ValueError(f"fusion: expected one of {', '.join(FUSIONS)}, got {name!r}")
    known = FUSIONS | AUTHORS_FUSIONS if authors else FUSIONS
    return known[name](widths, num_classes, spatial_dims=spatial_dims, **options)


__all__ = [
    "AUTHORS_FUSIONS",
    "FUSIONS",
    "AttentionFusion",
    "AuthorsFiLMFusion",
    "AuthorsGatedFusion",
    "AuthorsSumFusion",
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
