"""Generated cases find wrong kernels, and say so; and random rounding sees what cancels."""

import pytest
import torch

from udml_kernels import reference

from .backends import BACKENDS, OPS
from .fuzz.case import faults, generate
from .fuzz.choices import Choices, smallest
from .fuzz.exact import FORMULAS
from .fuzz.ops import GENERATORS
from .fuzz.rounding import spread
from .test_faults import FAULTS, KERNELS, _plant, _scaled

# Interpreted kernels take a few hundred times as long.
CASES = 12


def _failing(op: str, backend: str, numbers=range(CASES)) -> list[int]:
    return [number for number in numbers if faults(generate(op, number)[0], backend)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
@pytest.mark.parametrize("name", KERNELS)
def test_a_planted_fault_is_found(name, fault, backend, monkeypatch):
    op = name.removesuffix("_backward")
    calls = _plant(monkeypatch, name, backend, fault, which=0)
    for number in range(10 * CASES):
        if faults(generate(op, number)[0], backend):
            break
    else:
        pytest.fail(f"{len(calls)} calls of a wrong kernel, and no mismatch")
