"""The commands: what they print last and how they exit."""

import os
import subprocess
import sys
from fnmatch import fnmatchcase
from importlib.util import find_spec

import pytest
import torch

from udml_kernels import backends
from udml_kernels.testing import conformance
from udml_kernels.testing.cases import checked
from udml_kernels.testing.ops import OPS
from udml_kernels.tools import aot
from udml_kernels.tools.cli import main
from udml_kernels.tools.tolerances import compare

from .backends import OPS as KERNEL_OPS


def test_info_names_every_backend(capsys, monkeypatch):
    # Where the host executes the CUDA kernels there is still no device to ask.
    monkeypatch.setitem(backends._unavailable, "cuda", "no CUDA device")
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in backends.NAMES)


def test_info_shows_which_op_has_kernels_where(capsys, monkeypatch):
    monkeypatch.setitem(backends._unavailable, "cuda", "not built: no nvcc")
    for name, op in KERNEL_OPS.items():
        monkeypatch.setattr(op, "_missing", {"cpu": None, "cuda": f"no {name}", "triton": None})
    monkeypatch.setitem(KERNEL_OPS["fusion_weights"]._missing, "triton", "there is no such file")
    assert main(["info"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["reference", "cpu", "cuda", "triton"] in lines
    assert ["weighted_fusion", "yes", "yes", "no", "yes"] in lines
    assert ["fusion_weights", "yes", "yes", "no", "no"] in lines
    assert "fusion_weights is not on triton: there is no such file".split() in lines
    assert "cuda has no op: not built: no nvcc".split() in lines
    assert not any(line and line[0].endswith("_backward") for line in lines)


@pytest.mark.parametrize(
    "missing, gpu, wanted",
    [
        ({}, False, "there is no GPU, so nothing else is needed"),
        ({"cpu": "not built: no C++ compiler was found"}, False, "CPU kernels: install g++"),
        ({"cpu": "not built: no torch to build against; install torch"}, False, "CPU kernels: install a wheel"),
        (
            {"cuda": "not built: no nvcc", "triton": "triton is not installed"},
            True,
            "pip install 'udml-kernels[triton]'",
        ),
        ({"cuda": "not built: no nvcc"}, True, "udml_kernels check compares"),
    ],
)
def test_info_says_what_to_do_next(missing, gpu, wanted, capsys, monkeypatch):
    for name in backends.KERNEL_BACKENDS:
        monkeypatch.setitem(backends._unavailable, name, missing.get(name))
    if not gpu:
        monkeypatch.setitem(backends._unavailable, "cuda", "not built: no nvcc")
        monkeypatch.setitem(backends._unavailable, "triton", "no GPU")
    monkeypatch.setattr(backends, "has_gpu", lambda: gpu)
    assert main(["info"]) == 0
    assert wanted in capsys.readouterr().out.split("\nnext\n")[1]


def test_check_passes(capsys):
    assert main(["check", "--op", "modality_dropout", "--dtype", "float32", "--backend", "reference"]) == 0
    assert "all 1 within tolerance" in capsys.readouterr().out


def test_check_fails_on_a_wrong_gradient(capsys, monkeypatch):
    right = conformance.kernel_results

    def wrong(case, backend, *given):
        outputs, gradients = right(case, "reference", *given)
        if case.name == "layout transposed":
            gradients["gradient of mu"] = gradients["gradient of mu"] * 1.001
        return outputs, gradients

    monkeypatch.setattr(conformance, "kernel_results", wrong)
    monkeypatch.setitem(backends._unavailable, "cpu", None)
    assert main(["check", "--op", "reparameterize", "--backend", "cpu", "--dtype", "float32"]) == 1
    assert "layout transposed: gradient of mu" in capsys.readouterr().out


@pytest.mark.parametrize("op", OPS)
def test_check_runs_what_an_op_says(op):
    cases = checked(OPS[op])
    assert cases
    for pattern in OPS[op].checked:
        assert any(fnmatchcase(case.name, pattern) for case in cases), f"{pattern}: no such row"
    # Another seed, other inputs.
    pairs = zip(*([case.inputs(torch.float32) for case in checked(OPS[op], seed)] for seed in (0, 1)), strict=True)
    assert sum(str(one) != str(other) for one, other in pairs) > len(cases) / 2


def test_check_needs_neither_the_tests_nor_their_packages():
    code = (
        "import sys; sys.modules.update(tests=None, pytest=None, hypothesis=None)\n"
        "import udml_kernels; assert 'udml_kernels.testing' not in sys.modules\n"
        "from udml_kernels.tools.cli import main\n"
        "sys.exit(main(['check', '--op', 'uniform', '--backend', 'reference']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_check_of_a_missing_backend(capsys, monkeypatch):
    monkeypatch.setitem(backends._unavailable, "cuda", "gone fishing")
    assert main(["check", "--backend", "cuda"]) == 2
    assert "gone fishing" in capsys.readouterr().out


def test_check_without_kernels_is_no_success(monkeypatch):
    for name in backends.KERNEL_BACKENDS:
        monkeypatch.setitem(backends._unavailable, name, "not built")
    assert main(["check"]) == 2


def test_compare_wants_the_same_special_values():
    truth = torch.tensor([1.0, torch.nan, torch.inf])
    assert compare(truth, truth, truth.double(), torch.float32)[0] == 0
    for other in ([1.0, 0.0, torch.inf], [1.0, torch.nan, -torch.inf], [torch.inf, torch.nan, torch.inf]):
        assert compare(torch.tensor(other), truth, truth.double(), torch.float32)[0] == float("inf")


@pytest.mark.skipif(backends.has_gpu() or find_spec("triton") is None, reason="for machines with Triton and no GPU")
def test_check_of_triton_without_a_gpu_turns_the_interpreter_on_and_says_so():
    command = [sys.executable, "-m", "udml_kernels", "check", "--backend", "triton"]
    command += ["--op", "modality_dropout", "normal", "--dtype", "float32"]
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "in Triton's interpreter" in result.stdout and "all 2 within tolerance" in result.stdout


def test_aot_says_what_it_lacks(capsys, monkeypatch):
    monkeypatch.setattr(aot, "find_spec", lambda name: None)
    assert main(["aot"]) == 2
    assert "Triton is not installed" in capsys.readouterr().out
