"""The cost of a call where its kernel's time is negligible: checks, dispatch, autograd."""

from collections.abc import Callable
from functools import partial

from udml_kernels.tools import workloads
from udml_kernels.tools.workloads import Work

from .case import BOTH, FORWARD, SWEEP_BUDGET, Case
from .head_step import head_step
from .shapes import TINY

_MAPS = TINY.maps[:1]
_OPS: dict[str, Callable[..., Work]] = {
    "inject_noise": partial(workloads.inject_noise, _MAPS),
    "reparameterize": partial(workloads.reparameterize, _MAPS),
    "noise_regression": partial(workloads.noise_regression, TINY.batch, TINY.width, hidden=16),
    "weighted_fusion": partial(workloads.weighted_fusion, TINY.maps),
    "modality_dropout": partial(workloads.modality_dropout, TINY.maps),
    "evidential_fusion": partial(workloads.evidential, TINY.batch, 2, 4),
    "head_step": partial(head_step, TINY),
}

CASES = [
    Case("normal", TINY.name, partial(workloads.random, "normal", _MAPS[0]), budget=SWEEP_BUDGET),
    *(
        Case(op, TINY.name, build, direction=direction, budget=SWEEP_BUDGET)
        for op, build in _OPS.items()
        for direction in (FORWARD, BOTH)
        if (op, direction) != ("head_step", FORWARD)
    ),
]


def test_overhead(case, measure_overhead):
    measure_overhead(case)
