"""The suite's own alarm: a kernel that is wrong on purpose must turn the comparison red."""

import pytest
import torch
from torch import Tensor

from udml_kernels.testing.cases import CASES
from udml_kernels.testing.conformance import check, poisoned_memory
from udml_kernels.testing.ops import OPS as INFOS
from udml_kernels.tools.tolerances import TOLERANCES, assert_close, tolerance

from . import DEVICE
from .backends import BACKENDS, OPS

# The case of each op on which faults are planted.
CHOSEN = {case.op: case for case in CASES if INFOS[case.op].plain == case.name}
# Kernels that a public function calls only with an option, and a case that calls them. The case has few locations,
# because with many of them the gradient through kl is much larger than the gradient through z.
OPTIONS = {"reparameterize_pooled": next(case for case in CASES if case.name == "pool two locations")}


def _tensors(result) -> list[Tensor]:
    values = result if isinstance(result, (tuple, list)) else [result]
    flat = [t for v in values for t in (v if isinstance(v, (tuple, list)) else [v]) if isinstance(t, Tensor)]
    return [t for t in flat if t.is_floating_point() and t.numel()]


def _scaled(args, output):
    output.mul_(1 + 1e-4)


def _shifted(args, output):
    output.view(-1)[-1] += 1e-4 * output.abs().max()


def _missing_tail(args, output):
    output.view(-1)[-1] = torch.empty_like(output).view(-1)[-1]


def _zero_tail(args, output):
    output.view(-1)[-1] = 0


def _swapped(args, output):
    """The two elements, or rows, that differ most change places."""
    flat = output.view(-1)
    one, other = int(flat.argmin()), int(flat.argmax())
    flat[[one, other]] = flat[[other, one]]


def _infinite(args, output):
    output.view(-1)[0] = torch.inf


def _input_written(args, output):
    _tensors(args)[0].view(-1)[0] += 1


FAULTS = (_scaled, _shifted, _missing_tail, _zero_tail, _swapped, _infinite)


def plant(monkeypatch, name: str, backend: str, fault, which: int) -> list:
    """Make the overload of one kernel go wrong in its output number `which`; returns the calls it served."""
    op, calls = OPS[name], []
    overload = op.overloads[backend]

    def wrong(*args):
        result = overload(*args)
        outputs = _tensors(result)
        calls.append(len(outputs))
        fault(args, outputs[min(which, len(outputs) - 1)])
        return result

    monkeypatch.setitem(op.overloads, backend, wrong)
    return calls


KERNELS = [name for name in OPS if name.removesuffix("_backward") in CHOSEN | OPTIONS]


def case_of(name: str):
    """The case on which faults of a kernel are planted."""
    return (CHOSEN | OPTIONS)[name.removesuffix("_backward")]


def test_every_kernel_is_covered():
    assert sorted(KERNELS) == sorted(OPS)
    assert CHOSEN.keys() == INFOS.keys()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", KERNELS)
def test_the_untouched_kernel_passes(name, backend):
    for dtype in (torch.float32, torch.float64):
        check(case_of(name), backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("name", KERNELS)
def test_a_wrong_kernel_is_caught(name, fault, backend, monkeypatch):
    if name == "modality_dropout" and fault is _zero_tail:
        # Its last element may be 0 rightly: the fault is planted on an input that has none dropped.
        fault = _shifted
    calls = plant(monkeypatch, name, backend, fault, which=0)
    with pytest.raises(AssertionError):
        check(case_of(name), backend, torch.float32)
    assert calls, "the faulty kernel was never called"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", (1, 2, 3))
@pytest.mark.parametrize("name", [n for n in KERNELS if len(OPS[n].overloads["cpu"]._schema.returns) > 1])
def test_every_output_is_compared(name, which, backend, monkeypatch):
    calls = plant(monkeypatch, name, backend, _scaled, which)
    with pytest.raises(AssertionError):
        check(case_of(name), backend, torch.float32)
    assert calls, "the faulty kernel was never called"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [n for n in KERNELS if n not in ("normal", "uniform")])
def test_a_kernel_that_writes_its_input_is_caught(name, backend, monkeypatch):
    plant(monkeypatch, name, backend, _input_written, which=0)
    with pytest.raises(AssertionError, match=r"written|version counter"):
        check(case_of(name), backend, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_output_that_is_its_input_is_caught(backend, monkeypatch):
    op = OPS["modality_dropout"]
    monkeypatch.setitem(
        op.overloads,
        backend,
        lambda features, *rest: (features, torch.ones(features[0].shape[0], len(features), dtype=torch.bool)),
    )
    case = next(c for c in CASES if c.op == "modality_dropout" and c.name == "keep any, p 0.0")
    with pytest.raises(AssertionError, match="shares memory"):
        check(case, backend, torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_poison_reaches_what_aten_allocates_in_cpp(dtype):
    """new_empty is composed in C++: the allocation is made below Python, as the kernels make theirs."""
    with poisoned_memory():
        for value in (
            torch.zeros(3, dtype=dtype).new_empty(5),
            torch.ops.aten.empty_permuted([4, 4], [1, 0], dtype=dtype),
        ):
            assert value.isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_rule_itself(dtype):
    truth = torch.linspace(1, 2, 7, dtype=torch.float64)
    same = truth.to(dtype)
    allowed = tolerance(dtype, DEVICE) * 2 + 2 * (same.double() - truth).abs().max()
    assert_close("y", same, same, truth, dtype)
    beyond = truth.clone()
    beyond[3] += 1.01 * allowed
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close("y", beyond, same, truth, dtype)
    for odd in (torch.nan, torch.inf, -torch.inf):
        wrong = same.clone()
        wrong[2] = odd
        with pytest.raises(AssertionError):
            assert_close("y", wrong, same, truth, dtype)
        with pytest.raises(AssertionError):
            assert_close("y", same, wrong, truth, dtype)
        assert_close("y", wrong, wrong, truth, dtype)
