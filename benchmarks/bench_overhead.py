"""The cost of a call where its kernel's time is negligible: checks, dispatch, autograd."""

from functools import partial

from udml_kernels.testing.ops import OPS

from .case import BOTH, FORWARD, SWEEP_BUDGET, Case
from .head_step import head_step
from .shapes import TINY

CASES = [
    *(
        Case(info.name, TINY.name, info.tiny, direction=direction, budget=SWEEP_BUDGET)
        for info in OPS.values()
        if info.tiny is not None
        for direction in ((FORWARD, BOTH) if info.differentiable else (FORWARD,))
    ),
    Case("head_step", TINY.name, partial(head_step, TINY), direction=BOTH, budget=SWEEP_BUDGET),
]


def test_overhead(case, measure_overhead):
    measure_overhead(case)
