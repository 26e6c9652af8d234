"""Where memory is short: a thread with a small stack, and a result that does not fit."""

import os
import subprocess
import sys

import pytest
import torch

import udml_kernels
from udml_kernels.testing.cases import Case
from udml_kernels.testing.conformance import as_leaves, evaluate, incoming_gradients, wanted_inputs
from udml_kernels.testing.ops import OPS as INFOS

from . import DEVICE
from .backends import BACKENDS, OPS

SEED = torch.tensor([1])
# Squared it is more than any machine has. No page is ever touched: the allocation itself fails.
N = 1 << 23

# Worker threads have the stacks that OMP_STACKSIZE says.
_IN_SMALL_STACKS = """
import threading
import torch
from tests.test_memory import run_everything
torch.set_num_threads(2)
failures = []
def run():
    try:
        run_everything()
    except BaseException as error:
        failures.append(error)
threading.stack_size(256 * 1024)
thread = threading.Thread(target=run)
thread.start()
thread.join()
print("failed" if failures else "done", *failures)
"""


def run_everything() -> None:
    """Every op on the CPU, forward and backward."""
    for op, info in INFOS.items():
        for options in info.crowded:
            # In a layout that the kernels gather from.
            case = Case(op, "small stack", options, layout="transposed")
            inputs = case.inputs(torch.float64)
            wanted = wanted_inputs(case, inputs)
            leaves = as_leaves(inputs, wanted)
            with udml_kernels.use_backend("cpu"):
                outputs, _ = evaluate(getattr(udml_kernels, op), case, leaves, wanted)
                evaluate(getattr(udml_kernels, op), case, leaves, wanted, incoming_gradients(case, outputs))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the other columns keep their buffers elsewhere")
def test_small_stacks_are_enough():
    assert INFOS.keys() == {name.removesuffix("_backward").removesuffix("_pooled") for name in OPS}
    environment = os.environ | {"OMP_STACKSIZE": "256K", "OMP_NUM_THREADS": "2", "UDML_TEST_BACKENDS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", _IN_SMALL_STACKS], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0 and result.stdout.split() == ["done"], (result.returncode, result.stderr[-2000:])


def _enormous(*shape: int) -> torch.Tensor:
    return torch.ones(1, requires_grad=torch.is_grad_enabled()).expand(shape)


TOO_LARGE = {
    "reparameterize": lambda: udml_kernels.reparameterize(_enormous(N, N), _enormous(N, N), seed=SEED),
    "inject_noise": lambda: udml_kernels.inject_noise(_enormous(N, N), 0.5, seed=SEED),
    "noise_regression": lambda: udml_kernels.noise_regression(
        _enormous(N, 1), torch.ones(1, 1), torch.ones(1), _enormous(N, 1), _enormous(N)
    ),
    "fusion_weights": lambda: udml_kernels.fusion_weights(_enormous(N, 2, N)),
    "weighted_fusion": lambda: udml_kernels.weighted_fusion([_enormous(N, N)] * 2, _enormous(N, 2)),
    "modality_dropout": lambda: udml_kernels.modality_dropout([_enormous(N, N)] * 2, 0.5, seed=SEED),
    "normal": lambda: udml_kernels.normal((N, N), SEED),
    "uniform": lambda: udml_kernels.uniform((N, N), SEED),
}
LACKING = MemoryError if DEVICE.type == "cpu" else torch.OutOfMemoryError
# Of Triton's results torch tells the bytes.
SIZE = r"out of memory: could not allocate \S+ MiB for a tensor of shape \(8388608, |out of memory: .*allocate"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient", (False, True))
@pytest.mark.parametrize("op", TOO_LARGE)
def test_a_result_that_does_not_fit_is_named(op, gradient, backend):
    lacking = pytest.raises(LACKING, match=f"^{op}: ({SIZE})")
    with udml_kernels.use_backend(backend), torch.set_grad_enabled(gradient), lacking:
        TOO_LARGE[op]()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_does_not_fit_is_named(backend):
    x, sigma = _enormous(N, N), torch.ones(1)
    args = (x, sigma, None, 2, [], 1.0, None, None, torch.float32, SEED, 1, None)
    with torch.no_grad(), pytest.raises(LACKING, match=f"^inject_noise, backward: ({SIZE})"):
        OPS["inject_noise"].gradients(backend, args, (True, *[False] * 11), (x,))


def test_other_errors_stay_what_they_are():
    with torch.no_grad(), pytest.raises(RuntimeError, match="seed: expected one int64"):
        OPS["normal"]("cpu", [2, 2], SEED.double(), 0, None, torch.float32)
