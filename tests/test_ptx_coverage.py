"""The conformance cases and the tests of lists launch every compiled kernel of the CUDA backend."""

import pytest
import torch

import udml_kernels
from udml_kernels import reference
from udml_kernels.testing import conformance
from udml_kernels.testing.cases import CASES, Case
from udml_kernels.tools.tolerances import TOLERANCES

from . import DEVICE, test_cuda_lists
from .backends import BACKENDS
from .ptx import machine

if "cuda" not in BACKENDS or DEVICE.type != "cpu":
    pytest.skip("the compiled CUDA kernels are not executed on the CPU here", allow_module_level=True)


def _launch_kernels_of(case: Case, dtype: torch.dtype) -> None:
    """Forward and backward; other tests look at the results."""
    inputs = case.inputs(dtype)
    wanted = conformance.wanted_inputs(case, inputs)
    with torch.no_grad():
        shapes, _ = conformance.evaluate(getattr(reference, case.op), case, inputs, wanted)
    gradients = conformance.incoming_gradients(case, shapes)
    with udml_kernels.use_backend("cuda"):
        leaves = conformance.as_leaves(inputs, wanted)
        conformance.evaluate(getattr(udml_kernels, case.op), case, leaves, wanted, gradients)


@pytest.mark.slow
def test_every_kernel_is_launched():
    with machine.options(races=False):
        for case in CASES:
            for dtype in TOLERANCES:
                _launch_kernels_of(case, dtype)
        for dtype in test_cuda_lists.DTYPES:
            test_cuda_lists.noisy(dtype, listed=True)
            for form in test_cuda_lists.FORMS:
                test_cuda_lists.sampled(dtype=dtype, listed=True, **form)
    compiled = {name for name in machine.kernels() if name.startswith("_ZN4udml")}
    missing = compiled - set(machine.statistics()["kernels"])
    assert len(compiled) > 200
    assert not missing, f"{len(missing)} kernels that no case launches:\n" + "\n".join(sorted(missing))
