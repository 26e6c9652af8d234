"""reparameterize: a sample, its pooled std and its KL."""

from dataclasses import replace
from functools import partial

from udml_kernels.testing.ops import reparameterize

from .case import ALL, BOTH, COMPILED, FORWARD, PLAIN, cases
from .shapes import CREMAD, FEATURES, KS, MAP14, NYUD, TOKENS, Shape


def _build(shape: Shape) -> partial:
    return partial(reparameterize.work, shape.maps, pool=shape.name.endswith("pooled"))


# The baseline samples the map and averages it.
POOLED = [replace(shape, name=f"{shape.name}, pooled") for shape in (CREMAD, MAP14, TOKENS)]

CASES = [
    *cases("reparameterize", [FEATURES], _build, directions=[FORWARD], baselines=(*PLAIN, "reference")),
    *cases("reparameterize", [FEATURES], _build, directions=[BOTH], baselines=ALL),
    *cases("reparameterize", [CREMAD], _build, directions=[FORWARD]),
    *cases("reparameterize", [CREMAD], _build, directions=[BOTH], baselines=COMPILED),
    *cases("reparameterize", [MAP14], _build, baselines=COMPILED),
    *cases("reparameterize", [KS, NYUD, TOKENS], _build),
    *cases("reparameterize", POOLED, _build),
    *cases("reparameterize", POOLED[1:2], _build, dtypes=["bfloat16"]),
    *cases("reparameterize", [CREMAD, MAP14], _build, caches=["cold"]),
    *cases("reparameterize", [CREMAD, MAP14], _build, dtypes=["bfloat16"]),
    *cases("reparameterize", [CREMAD, MAP14], _build, threads=1),
    *cases("reparameterize", [TOKENS], _build, directions=[FORWARD], threads=1),
]


def test_reparameterize(case, measure):
    measure(case)
