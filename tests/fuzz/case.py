"""One generated case: made from its number, run on a backend, compared."""

from dataclasses import dataclass

import torch
from torch import Tensor

from udml_kernels import reference
from udml_kernels.tools.tolerances import tolerance

from .. import DEVICE
from ..cases import Case
from ..conformance import (
    as_leaves,
    assert_alike,
    evaluate,
    exact_leaves,
    flat_outputs,
    input_gradients,
    is_image,
    kernel_results,
    wanted_inputs,
)
from ..tolerances import assert_close
from . import exact
from .choices import Choices
from .draw import Values
from .ops import GENERATORS
from .rounding import spread

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Every so manieth case of an op that has formulas of fifty digits is compared with them.
EXACTLY = 20


@dataclass
class Generated:
    """What a case passes; `wanted` names the inputs that want a gradient."""

    carrier: Case
    dtype: torch.dtype
    inputs: dict
    wanted: list[str]
    gradients: dict[str, Tensor]
    same: tuple[dict, dict]
    exactly: bool

    @property
    def precision(self) -> torch.dtype:
        return torch.float32 if is_image(self.carrier, self.inputs) else self.dtype


def generate(op: str, number: int, tape: list[int] | None = None) -> tuple[Generated, list[int]]:
    """The case, and the tape of its choices."""
    key = f"{op}:{number}"
    choices = Choices(key, tape)
    dtype = choices.pick(*DTYPES)
    draw = Values(key, choices, dtype)
    inputs = GENERATORS[op](choices, draw)
    carrier = Case(op, key, {})
    wanted = [name for name in wanted_inputs(carrier, inputs) if not choices.one_in(6)]
    leaves = as_leaves(inputs, wanted)
    outputs = flat_outputs(op, getattr(reference, op)(**leaves))
    gradients = {}
    for name, value in outputs.items():
        if value.requires_grad and not choices.one_in(6):
            gradients[name] = draw.normal(*value.shape, dtype=value.dtype)
    same = outputs, input_gradients(leaves, outputs, wanted, gradients)
    return Generated(carrier, dtype, inputs, wanted, gradients, same, number % EXACTLY == 0), choices.tape


def faults(case: Generated, backend: str) -> list[str]:
    """What is wrong with a backend's results, in words; one entry an output or gradient."""
    op = case.carrier.op
    try:
        got = kernel_results(case.carrier, backend, case.dtype, case.inputs, case.wanted, case.gradients)
    except AssertionError as failure:
        return [str(failure)]
    except Exception as failure:
        return [f"{type(failure).__name__}: {failure}"]
    truth = _truth(case)
    found = _outside(op, got[0]) + _compared(case, got, truth)
    if case.exactly and exact.serves(op, case.inputs):
        digits = exact.FORMULAS[op](exact_leaves(case.inputs, []), case.gradients)
        found += [f"fifty digits: {fault}" for fault in _compared(case, got, digits)]
        # The float64 reference is truth elsewhere, so it has no error of its own to appeal to.
        found += [f"the reference: {fault}" for fault in _compared(case, truth, digits, truth, torch.float64)]
    return found


def _truth(case: Generated) -> tuple[dict, dict]:
    if case.precision == torch.float64 and case.inputs.get("out_dtype") in (None, torch.float64):
        return case.same
    return _evaluate_exactly(case)


@torch.enable_grad()
def _evaluate_exactly(case: Generated) -> tuple[dict, dict]:
    leaves = exact_leaves(case.inputs, case.wanted)
    return evaluate(getattr(reference, case.carrier.op), case.carrier, leaves, case.wanted, case.gradients)


def _outside(op: str, outputs: dict[str, Tensor]) -> list[str]:
    """Documented ranges that the reference might leave, too."""
    low, high = {"uniform": (0, 1 - 2**-24), "normal": (-5.89, 5.89)}.get(op, (-torch.inf, torch.inf))
    values = outputs["noise"] if op in ("uniform", "normal") else torch.zeros(0)
    if values.numel() and (values.min() < low or values.max() > high):
        return [f"noise: {values.min()} to {values.max()}, documented is {low} to {high}"]
    return []


@torch.no_grad()
def _compared(case: Generated, got, truth, same=None, precision: torch.dtype | None = None) -> list[str]:
    same, precision, found = same or case.same, precision or case.precision, []
    floors: dict[str, Tensor] | None = None
    for values, references, exacts in zip(got, same, truth, strict=True):
        for name in values.keys() & exacts.keys():
            value, expected, right = values[name], references[name], exacts[name]
            try:
                assert_alike(name, value, expected)
                try:
                    assert_close(name, value, expected, right, precision)
                    continue
                except AssertionError:
                    if not value.is_floating_point():
                        raise
                if floors is None:
                    unit = tolerance(precision, DEVICE)
                    apart = spread(lambda: _evaluate_exactly(case), _truth(case), unit)
                    floors = {key: wide / unit for key, wide in apart.items()}
                assert_close(name, value, _attainable(value, expected, right), right, precision, floors[name])
            except AssertionError as failure:
                found.append(str(failure))
    return found


def _attainable(got: Tensor, same: Tensor, truth: Tensor) -> Tensor:
    """What the dtype's own reference says, but the truth where `got` is right and that overflowed."""
    rounded = truth.to(got.dtype)
    right = ~got.isfinite() & torch.isclose(got, rounded, equal_nan=True)
    better = got.isfinite() & rounded.isfinite() & ~same.isfinite()
    return torch.where(right | better, rounded, same)
