"""modality_dropout: zero whole modalities of some samples."""

from functools import partial

from udml_kernels.testing.ops import modality_dropout

from .case import ALL, BOTH, FORWARD, cases
from .shapes import FEATURES, LARGE, NYUD, Shape


def _build(shape: Shape) -> partial:
    return partial(modality_dropout.work, shape.maps)


CASES = [
    *cases("modality_dropout", [FEATURES, LARGE], _build, directions=[FORWARD]),
    *cases("modality_dropout", [FEATURES, LARGE], _build, directions=[BOTH], baselines=ALL),
    *cases("modality_dropout", [NYUD], _build),
    *cases("modality_dropout", [LARGE], _build, directions=[FORWARD], caches=["cold"]),
    *cases("modality_dropout", [LARGE], _build, dtypes=["bfloat16"]),
]


def test_modality_dropout(case, measure):
    measure(case)
