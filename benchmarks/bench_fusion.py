"""weighted_fusion: modalities weighted by uncertainty and dependency, concatenated."""

from functools import partial

from udml_kernels.testing.ops import weighted_fusion

from .case import ALL, BOTH, FORWARD, cases
from .shapes import FEATURES, LARGE, NYUD, TOKENS, Shape


def _build(shape: Shape) -> partial:
    """Use at least two modalities."""
    maps = shape.maps if len(shape.maps) > 1 else shape.maps * 2
    return partial(weighted_fusion.work, maps, locations=shape.locations)


CASES = [
    *cases("weighted_fusion", [FEATURES, LARGE], _build, directions=[FORWARD]),
    *cases("weighted_fusion", [FEATURES, LARGE], _build, directions=[BOTH], baselines=ALL),
    *cases("weighted_fusion", [NYUD], _build),
    *cases("weighted_fusion", [TOKENS], _build, directions=[BOTH]),
    *cases("weighted_fusion", [LARGE], _build, directions=[FORWARD], caches=["cold"]),
    *cases("weighted_fusion", [LARGE], _build, dtypes=["bfloat16"]),
    *cases("weighted_fusion", [LARGE], _build, threads=1),
]


def test_fusion(case, measure):
    measure(case)
