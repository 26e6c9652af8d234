"""The head step: all ops of one training step, forward and backward."""

from functools import partial

from .case import ALL, BOTH, COMPILED, cases
from .head_step import head_step
from .shapes import CREMAD, FEATURES, KS, NYUD, TOKENS, Shape


def _build(shape: Shape) -> partial:
    return partial(head_step, shape)


CASES = [
    *cases("head_step", [FEATURES], _build, directions=[BOTH], baselines=ALL),
    *cases("head_step", [CREMAD, KS, NYUD], _build, directions=[BOTH], baselines=COMPILED),
    *cases("head_step", [TOKENS], _build, directions=[BOTH]),
    *cases("head_step", [CREMAD], _build, directions=[BOTH], caches=["cold"]),
    *cases("head_step", [CREMAD], _build, directions=[BOTH], threads=1),
]


def test_head_step(case, measure):
    measure(case)
