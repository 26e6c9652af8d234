"""The generated cases' own alarm: wrong kernels are found, cases are what their number says, small ones are small."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from udml_kernels import reference
from udml_kernels.reference import random as plain_random
from udml_kernels.testing.choices import Choices, smallest
from udml_kernels.testing.conformance import same_bits
from udml_kernels.testing.draw import named_tensors
from udml_kernels.testing.ops import OPS
from udml_kernels.tools.tolerances import assert_close, plainly_close

from . import QUARTER
from .backends import BACKENDS
from .fuzz import exact
from .fuzz.case import _judged, faults, generate
from .fuzz.rounding import spread
from .fuzz.words import known_words
from .test_faults import FAULTS, KERNELS, case_of, plant

ROOT = Path(__file__).resolve().parents[1]
every_op = pytest.mark.parametrize("op", OPS)


# Half of them a day, the other half on the next. What compares is the same for all backends, and the first is the
# fastest.
PLANTED = FAULTS if QUARTER == "all" else FAULTS[int(QUARTER) % 2 :: 2]


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__.strip("_"))
@pytest.mark.parametrize("name", KERNELS)
def test_a_planted_fault_is_found(name, fault, monkeypatch):
    backend = BACKENDS[0]
    calls = plant(monkeypatch, name, backend, fault, which=0)
    found = (number for number in range(200) if faults(generate(case_of(name).op, number)[0], backend))
    assert next(found, None) is not None, f"{len(calls)} calls of a wrong kernel, and no mismatch"


@every_op
def test_a_number_is_a_case(op):
    for number in range(4):
        (one, tape), (other, again) = generate(op, number), generate(op, number)
        assert tape == again and str(one.inputs) == str(other.inputs)
        replayed, _ = generate(op, number, tape)
        for (name, value), (_, twin) in zip(named_tensors(one.inputs), named_tensors(replayed.inputs), strict=True):
            assert same_bits(value, twin), name


@every_op
def test_the_simplest_choices_are_a_case(op):
    case, _ = generate(op, 0, [])
    assert all(value.numel() <= 4 for _, value in named_tensors(case.inputs))
    assert not faults(case, BACKENDS[0])


def test_a_failing_tape_becomes_small():
    def fails(tape):
        choices = Choices("", tape)
        numbers = [choices.below(1000) for _ in range(20)]
        return numbers[3] >= 17 and numbers[11] > numbers[3]

    tape = [500] * 11 + [900] + [3] * 8
    assert fails(tape)
    small = smallest(tape, fails)
    assert fails(small) and (small[3], small[11]) == (17, 18) and sum(small) == 35


@pytest.mark.parametrize("ids", [None, [7, -1, 2**40 + 3]])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 5, 7), (3, 0)])
def test_known_words_are_those_of_the_reference(shape, ids):
    ids = None if ids is None else torch.tensor(ids)
    arguments = shape, torch.tensor([-(2**63) + 12345]), 2**32 - 1, ids
    expected = plain_random.words(*arguments)
    with known_words():
        made, known = plain_random.words(*arguments), plain_random.words(*arguments)
        other = plain_random.words(shape, torch.tensor([1]), *arguments[2:])
    assert same_bits(made, expected) and known is made
    assert not torch.equal(other, expected) or not expected.numel()


@pytest.mark.parametrize("got", [1.0, 1 + 1e-6, 1 + 3e-6, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("same", [1.0, 1 + 1e-6, torch.nan, torch.inf])
@pytest.mark.parametrize("truth", [1.0, 1 - 1e-6, torch.nan, torch.inf])
def test_what_is_plainly_close_is_close(got, same, truth):
    """Of three, in every place, so that a maximum meets a NaN at any time."""
    for at in range(3):
        values, expected, exact = (torch.full((3,), x, dtype=torch.float64) for x in (1.0, 1.0, 1.0))
        values[at], expected[at], exact[at] = got, same, truth
        arguments = "x", values, expected, exact, torch.float32
        if plainly_close(*arguments[1:]):
            assert_close(*arguments)
            assert all(t.isfinite().all() for t in (values, expected, exact))
        elif all(t.isfinite().all() for t in (values, expected, exact)):
            with pytest.raises(AssertionError):
                assert_close(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_only_a_rounding_may_decide_between_infinity_and_the_largest_number(dtype):
    info = torch.finfo(dtype)
    edge = torch.tensor([info.max * (1 + info.eps / (4 - 2 * info.eps))], dtype=torch.float64)
    highest, infinite = (torch.tensor([value], dtype=dtype) for value in (info.max, torch.inf))
    for sign in (1, -1):
        for value, same, truth, forgiven in (
            (highest, infinite, edge * (1 + 1e-7), True),
            (highest, infinite, edge * 1.01, False),
            (-highest, infinite, edge * (1 + 1e-7), False),
            (highest / 2, infinite, edge * (1 + 1e-7), False),
            (infinite, highest, edge * (1 - 1e-7), True),
            (infinite, highest, edge * 0.9, False),
        ):
            got, expected = _judged("x", sign * value, sign * same, sign * truth)
            assert torch.equal(got, expected) == forgiven


def test_random_rounding_sees_what_cancels():
    """The sum of terms of size 1e6 that cancel to 1: its error is theirs."""
    x = torch.tensor([1e6 + 0.1234567, -1e6 + 1 / 7], dtype=torch.float64)

    def evaluate(changed=None):
        return {"sum": (x * 1.5).sum(), "product": x * 1.5}, {}

    unit = 1e-6
    wide = spread(evaluate, evaluate(), unit)
    assert 0.1 < wide["sum"] < 6
    assert (wide["product"] <= 1.6e6 * unit).all() and (wide["product"] > 1e4 * unit).all()


def test_random_rounding_of_equal_values():
    """A sum of 64 equal terms at a step: in runs where equal values get equal errors, all terms cross it together."""
    x = torch.full((64,), 0.1, dtype=torch.float64)

    def evaluate(changed=None):
        return {"crossed": (x * 3 > 0.1 * 3).double().sum()}, {}

    assert 10 < spread(evaluate, evaluate(), 1e-6)["crossed"] < 64
    assert spread(evaluate, evaluate(), 1e-6, alike=True)["crossed"] > 63.9


def test_random_rounding_leaves_what_is_exact():
    x = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    assert not spread(lambda changed: ({"y": x * 2 + 1}, {}), ({"y": x * 2 + 1}, {}), 1e-6)["y"].any()


@pytest.mark.parametrize("op", exact.FORMULAS)
def test_fifty_digits_agree_with_the_reference_where_nothing_cancels(op):
    generator = torch.Generator().manual_seed(1)
    value = 0.5 + torch.rand((4, 3), generator=generator, dtype=torch.float64)
    incoming = torch.rand((4, 3), generator=generator, dtype=torch.float64)
    if op == "evidential_loss":
        arguments = {"evidence": value, "target": torch.tensor([0, 2, 1, 1]), "kl_weight": 0.7, "reduction": "none"}
        name, incoming = "loss", incoming[:, 0]
    else:
        mask = torch.tensor([[True, True, False]]).expand(4, 3)
        arguments = {"uncertainty": value, "dependency": value[0] + 1, "mask": mask, "g": "softmax"}
        arguments |= {"temperature": 0.8, "total": 2.5}
        name = "weights"
    leaves = {key: v.clone().requires_grad_() if key in ("evidence", "uncertainty", "dependency") else v
              for key, v in arguments.items()}  # fmt: skip
    output = getattr(reference, op)(**leaves)
    output.backward(incoming)
    outputs, gradients, _ = exact.FORMULAS[op](arguments, {name: incoming}, 1e-12)
    torch.testing.assert_close(outputs[name], output.detach(), rtol=1e-12, atol=1e-13)
    for key, gradient in gradients.items():
        expected = leaves[key.removeprefix("gradient of ")].grad
        torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)


def test_the_command_tells_of_a_mismatch(tmp_path):
    """In a process of its own: exit code, counts, and the case made small."""
    script = tmp_path / "wrong.py"
    script.write_text(
        "import os, sys\n"
        "os.environ['UDML_TEST_BACKENDS'] = 'cpu'\n"
        "from tests.backends import OPS\n"
        "op = OPS['modality_dependency']\n"
        "right = op.overloads['cpu']\n"
        "op.overloads['cpu'] = lambda logits: right(logits) * 1.001\n"
        "from tests.fuzz.__main__ import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, str(script), "--op", "modality_dependency", "uniform", "--cases", "20", "--show", "1"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert result.returncode == 1, result.stderr
    assert "made small: alpha: error" in result.stdout and "logits=tensor(" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["uniform", "20", "0"] in [row[:3] for row in rows]
    assert any(row[:2] == ["modality_dependency", "20"] and int(row[2]) > 0 for row in rows)
