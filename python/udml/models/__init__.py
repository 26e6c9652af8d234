"""UDML and the methods it is compared with, on one backbone."""

from collections.abc import Mapping

from torch import nn

from .authors import authors_state, load_authors
from .base import MultimodalModel
from .greedy import Greedy
from .ogm_ge import OGMGE
from .oracle import Oracle
from .output import Output
from .pe import PE
from .presets import PRESETS, AuthorsLevels, Settings, authors_levels, authors_noise
from .qmf import QMF
from .static import Static, StaticClean
from .tmc import TMC
from .udml import UDML

METHODS: dict[str, type[MultimodalModel]] = {
    "static": Static,
    "static-clean": StaticClean,
    "pe": PE,
    "tmc": TMC,
    "ogm-ge": OGMGE,
    "greedy": Greedy,
    "qmf": QMF,
    "udml": UDML,
    "oracle": Oracle,
}


def build_model(method: str, encoders: Mapping[str, nn.Module], num_classes: int, **options) -> MultimodalModel:
    """A model by the name of its method, see `METHODS`.

    Args:
        encoders: the encoders by modality name.
        num_classes: K.
        options: keyword arguments of the methods. One set serves all methods: options that only another method takes
            are ignored, and None means the method's own default.

    Raises:
        ValueError: for an unknown method or an option of no method, listing the choices.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    known = sorted(set().union(*(m.options() for m in METHODS.values())))
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"options: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    own = METHODS[method].options()
    return METHODS[method](encoders, num_classes, **{n: v for n, v in options.items() if n in own and v is not None})


__all__ = [
    "METHODS",
    "OGMGE",
    "PE",
    "PRESETS",
    "QMF",
    "TMC",
    "UDML",
    "AuthorsLevels",
    "Greedy",
    "MultimodalModel",
    "Oracle",
    "Output",
    "Settings",
    "Static",
    "StaticClean",
    "authors_levels",
    "authors_noise",
    "authors_state",
    "build_model",
    "load_authors",
]
