"""One generated case: make it from its number, run it on a backend, compare the results."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from udml_kernels import reference
from udml_kernels.checks import compute_dtype
from udml_kernels.testing.cases import Case
from udml_kernels.testing.choices import Choices
from udml_kernels.testing.conformance import (
    as_leaves,
    assert_alike,
    evaluate,
    flat_outputs,
    float64_leaves,
    input_gradients,
    is_image,
    kernel_results,
    wanted_inputs,
)
from udml_kernels.testing.draw import mapped, named_tensors
from udml_kernels.testing.ops import OPS
from udml_kernels.testing.values import Values
from udml_kernels.tools.tolerances import assert_close, plainly_close, tolerance

from .. import DEVICE
from . import exact
from .rounding import spread, widening

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# One in this many cases of an op is compared with formulas of fifty digits, if the op has such formulas.
EXACTLY = 20
# Number of elements of a tensor from which several threads may share a call.
SHARED = 8192


@dataclass
class Generated:
    """The arguments of a case; `wanted` names the inputs that require a gradient."""

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
    """The case, and the tape that records its choices."""
    key = f"{op}:{number}"
    exactly = op in exact.FORMULAS and number % EXACTLY == 0
    choices = Choices(key, tape, *([exact.MOST_ELEMENTS] if exactly else []))
    dtype = choices.pick(*DTYPES)
    draw = Values(key, choices, dtype)
    inputs = OPS[op].generate(choices, draw)
    carrier = Case(op, key, {})
    wanted = [name for name in wanted_inputs(carrier, inputs) if not choices.one_in(6)]
    leaves = as_leaves(inputs, wanted)
    outputs = flat_outputs(op, getattr(reference, op)(**leaves))
    gradients = {}
    for name, value in outputs.items():
        if value.requires_grad and not choices.one_in(6):
            gradients[name] = draw.normal(*value.shape, dtype=value.dtype)
    same = outputs, input_gradients(leaves, outputs, wanted, gradients)
    return Generated(carrier, dtype, inputs, wanted, gradients, same, exactly), choices.tape


def faults(case: Generated, backend: str) -> list[str]:
    """Descriptions of what is wrong with a backend's results; one entry per output or gradient."""
    op = case.carrier.op
    try:
        with _threads(3 if any(t.numel() >= SHARED for _, t in named_tensors(case.inputs)) else 1):
            got = kernel_results(case.carrier, backend, case.dtype, case.inputs, case.wanted, case.gradients)
    except AssertionError as failure:
        return [str(failure)]
    except Exception as failure:
        return [f"{type(failure).__name__}: {failure}"]
    truth = _truth(case)
    unit = tolerance(case.precision, DEVICE)
    try:
        for values, references in zip(got, case.same, strict=True):
            for name in references:
                assert_alike(name, values[name], references[name])
    except AssertionError as failure:
        return [str(failure)]
    found = _outside(op, got[0])
    overflowing = functools.cache(lambda: _overflowing(case, truth, unit))
    found += _compared(got, case.same, truth, case.precision, _attainable_sizes(case, truth, unit), overflowing)
    if case.exactly and exact.serves(case.inputs, case.gradients):
        *digits, sizes = exact.FORMULAS[op](float64_leaves(case.inputs, []), case.gradients, unit)
        found += _against(digits, sizes, "fifty digits", got, case.same, case.precision)
        # In the other cases the float64 reference is taken as exact, so no tolerance covers its own error.
        sizes = exact.sizes_of_reference(op, case.inputs, case.gradients, sizes)
        found += _against(digits, sizes, "the reference", truth, digits, torch.float64)
    return found


def _attainable_sizes(case: Generated, truth, unit: float) -> Iterator[dict[str, Tensor]]:
    """The sizes of the terms of each result, found by random rounding.

    They come from a few runs, then from more, and then from runs that lose results too small for the dtype. As sizes
    only grow from run to run, what passes with the first runs' sizes passes with those of all.
    """

    def evaluate(changed):
        return _evaluate_exactly(case, changed)

    for seeds in (range(3), range(3, 15)):
        for apart in widening(evaluate, truth, unit, seeds):
            # If rounding decides a sign, all wrong results have the same error up to rounding, which 1.01 covers.
            yield {name: 1.01 * wide / unit for name, wide in apart.items()}
    # Equal rows take the same side of ReLU's step, which independent errors seldom do.
    alike = spread(evaluate, truth, unit, range(40, 48), alike=True)
    widest = {name: torch.maximum(wide, alike[name]) for name, wide in apart.items()}
    # An error that does not shrink with the unit comes from signs that rounding decides. A few runs may miss the worst
    # combination of many signs, so it counts twice.
    finer = spread(evaluate, truth, unit / 1024, range(48, 56))
    yield {name: torch.where(64 * finer[name] > wide, 2, 1.01) * wide / unit for name, wide in widest.items()}
    # Each of these results is lost in half the runs, so a few runs may never lose one.
    for seeds in (range(15, 20), range(20, 40)):
        lossy = spread(evaluate, truth, unit, seeds, tiny=torch.finfo(compute_dtype(case.precision)).tiny)
        # Losing a factor makes NaN of infinities, which is not a rounding error.
        yield {name: torch.where(wide.isinf(), 0, wide) / unit for name, wide in lossy.items()}


def _overflowing(case: Generated, truth, unit: float) -> dict[str, Tensor]:
    """Where the reference's formulas overflow the arithmetic's dtype on the way to a finite result, or nearly do."""
    most = torch.finfo(compute_dtype(case.precision)).max
    apart = spread(lambda changed: _evaluate_exactly(case, changed), truth, unit, range(8), most=most)
    edges = {name: distance.isinf() for name, distance in apart.items()}
    finite = all(bool(t.isfinite().all()) for _, t in named_tensors(case.inputs) if t.is_floating_point())
    if case.carrier.op == "noise_regression" and finite:
        # Its products overflow float64, too: inf - inf is the only NaN that finite inputs give.
        edges = {
            name: edge | values[name].isnan() for values in truth for name, edge in edges.items() if name in values
        }
    return edges


def _against(digits, sizes: dict[str, Tensor], who: str, got, same, precision: torch.dtype) -> list[str]:
    return [f"{who}: {fault}" for fault in _compared(got, same, digits, precision, iter([sizes]), dict)]


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _truth(case: Generated) -> tuple[dict, dict]:
    if case.precision == torch.float64 and case.inputs.get("out_dtype") in (None, torch.float64):
        return case.same
    return _evaluate_exactly(case)


@torch.enable_grad()
def _evaluate_exactly(case: Generated, changed: Callable[[Tensor], Tensor] = Tensor.detach) -> tuple[dict, dict]:
    # inject_noise compares noise with some inputs and clamps it: changed inputs would cross thresholds.
    inputs = float64_leaves(case.inputs, [])
    if case.carrier.op != "inject_noise":
        inputs = mapped(inputs, lambda _, value: changed(value) if value.is_floating_point() else value)
    leaves = as_leaves(inputs, case.wanted)
    return evaluate(getattr(reference, case.carrier.op), case.carrier, leaves, case.wanted, case.gradients)


def _outside(op: str, outputs: dict[str, Tensor]) -> list[str]:
    """Violations of documented ranges, which the reference might violate too."""
    low, high = {"uniform": (0, 1 - 2**-24), "normal": (-5.89, 5.89)}.get(op, (-torch.inf, torch.inf))
    values = outputs["noise"] if op in ("uniform", "normal") else torch.zeros(0)
    if values.numel():
        # Compared as numbers: a comparison with a tensor would round the limits to its dtype.
        least, most = values.min().item(), values.max().item()
        if not low <= least <= most <= high:
            return [f"noise: {least} to {most}, documented is {low} to {high}"]
    return []


@torch.no_grad()
def _compared(
    got,
    same,
    truth,
    precision: torch.dtype,
    sizes: Iterator[dict[str, Tensor]],
    overflowing: Callable[[], dict[str, Tensor]],
) -> list[str]:
    """Failures of `assert_close` that remain with the sizes of terms in `sizes`, tried one after the other."""
    found: list[str] = []
    known: list[dict[str, Tensor]] = []
    for values, references, exacts in zip(got, same, truth, strict=True):
        for name in values.keys() & exacts.keys():
            value, expected, right = values[name], references[name], exacts[name]
            if plainly_close(value, expected, right, precision):
                continue
            if value.is_floating_point():
                value, expected = _judged(name, value, expected, right)
                unknown = ~value.isfinite() | right.isnan()
                if unknown.any() and (edge := overflowing().get(name)) is not None:
                    # Where the formulas overflow on the way, a result may be infinite or NaN. A finite one is compared
                    # with a truth that is a number.
                    value, expected = (torch.where(edge & unknown, right, t).to(t.dtype) for t in (value, expected))
            try:
                assert_close(name, value, expected, right, precision)
            except AssertionError as failure:
                known_sizes = _once(sizes, known) if value.is_floating_point() else ()
                found += _still_wrong(failure, known_sizes, name, value, expected, right, precision)
    return found


def _still_wrong(failure: AssertionError, sizes: Iterable, name: str, got, same, truth, precision) -> list[str]:
    """The failure, if it remains with every size of the terms."""
    unit = tolerance(precision, DEVICE)
    for asked in sizes:
        terms = asked[name]
        # Where rounding alone decides whether a value is finite, it is not compared. A sum over such values is finite
        # or not as they are.
        undecided = terms.isinf() | (got.isinf() & (truth.abs() + unit * terms > torch.finfo(got.dtype).max))
        if any(values.isinf().any() for values in asked.values()):
            undecided |= got.isfinite() & ~same.isfinite()
        value = torch.where(undecided, same, got)
        # Rounding may have made both finite, but not the float64 reference.
        value, expected = (torch.where(undecided & ~truth.isfinite(), truth, t).to(got.dtype) for t in (value, same))
        try:
            assert_close(name, value, expected, truth, precision, terms)
            return []
        except AssertionError as still:
            failure = still
    return [str(failure)]


def _once(sizes: Iterator, known: list) -> Iterator:
    """The values requested before, then the rest."""
    yield from known
    for value in sizes:
        known.append(value)
        yield value


def _judged(name: str, got: Tensor, same: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(got, same), made equal where they may differ in a way that `assert_close` does not allow."""
    if got.isfinite().all() and same.isfinite().all():
        return got, same
    rounded = truth.to(got.dtype)
    # In this dtype the reference and the backend both overflowed on the way to a finite result, and the float64
    # reference did not: exp of a sum whose terms are infinities, for example, is 0.
    alike = ~rounded.isfinite() & same.isfinite() & torch.isclose(got.double(), same.double(), rtol=1e-3)
    got, same = torch.where(alike, rounded, got), torch.where(alike, rounded, same.to(got.dtype))
    # The reference overflowed, in the result or on the way to it, and the backend did not.
    right = ~got.isfinite() & torch.isclose(got, rounded, equal_nan=True)
    # Or rounding decides between infinity and the largest number, in either direction.
    info = torch.finfo(got.dtype)
    past = got.isinf() & (truth.abs() > (1 - 1e-5) * info.max)
    short = (
        (got.double().abs() > (1 - 1e-5) * info.max)
        & rounded.isinf()
        & (truth.abs() < (1 + 1e-5 + info.eps / 4) * info.max)
    )
    edge = (got.sign() == truth.sign()) & (past | short)
    better = got.isfinite() & rounded.isfinite() & ~same.isfinite()
    same = torch.where(right | better, rounded, same.to(got.dtype))
    got = torch.where(edge, same, got)
    if name.startswith("gradient"):
        # 0 * inf, inf - inf: whether a non-finite gradient is NaN, inf or clipped depends on the factoring.
        got = torch.where(~same.isfinite() & ~(got.isfinite() & truth.isfinite()), same, got)
    return got, same
