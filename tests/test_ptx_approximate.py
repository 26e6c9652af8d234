"""The CUDA kernels whose approximate instructions err as much as documented: within the tolerance of a GPU."""

from unittest import mock

import pytest
import torch

from udml_kernels.testing.cases import CASES
from udml_kernels.testing.conformance import check
from udml_kernels.tools import tolerances

from . import DEVICE
from .backends import BACKENDS
from .ptx import machine

if "cuda" not in BACKENDS or DEVICE.type != "cpu":
    pytest.skip("the compiled CUDA kernels are not executed on the CPU here", allow_module_level=True)

# Those of the other ops are first guesses of divisions, which refine them.
OPS = ("inject_noise", "reparameterize", "noise_regression", "normal")
on_cpu = tolerances.tolerance


def _on_a_gpu(dtype: torch.dtype, device: torch.device) -> float:
    return on_cpu(dtype, torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_conformance_with_documented_errors(dtype):
    """The sign of an error is a function of the argument, as an instruction's is; it looks random."""
    failed = []
    with (
        machine.options(races=False, approximate="random"),
        mock.patch.object(tolerances, "tolerance", _on_a_gpu),
    ):
        for case in CASES:
            try:
                if case.op in OPS:
                    check(case, "cuda", dtype)
            except AssertionError as fault:
                failed.append(f"{case}: {fault}")
    assert not failed, "\n".join(failed)
