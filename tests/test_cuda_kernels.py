"""What the kernels of csrc/cuda owe beyond the suite that they pass as the backend `cuda-host`, race check included.

There each of their threads runs on the CPU (tests/cuda_host). Here: the suite once more under AddressSanitizer and
UBSan, and what approximate instructions do to the noise.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import DEVICE, QUARTER
from .backends import BACKENDS, OPS
from .cuda_host.build import build, load, sanitizer_environment

if "cuda" not in BACKENDS or DEVICE.type != "cpu":
    pytest.skip("the CUDA kernels are not executed on the host here", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_conformance_under_the_sanitizers():
    """A quarter of the cases, another one each day; all of them with `make test-cuda-host`."""
    # Built before, as in that process the compiler would be sanitized too.
    build("asan")
    environment = os.environ | sanitizer_environment()
    part = "0/1" if QUARTER == "all" else f"{QUARTER}/4"
    environment |= {"UDML_CUDA_HOST": "asan", "UDML_TEST_BACKENDS": "cuda-host", "UDML_TEST_PART": part}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_conformance.py"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    assert " passed" in result.stdout and " skipped" not in result.stdout


def test_all_radii():
    """With instructions that err as the CUDA C++ Programming Guide allows, normals stay within 5e-6 max(1, |n|).

    The host's logarithm, sine and cosine are exact, so what is measured here are the formula's own roundings; on a
    GPU sine and cosine add at most 2^-21.19 each, times the radius.
    """
    index = torch.arange(2**24)
    radius_word, angle_word = index << 8, (index * 2654435761) & 0xFFFFFFFF
    words = (t.to(torch.uint32).numpy() for t in (radius_word, angle_word))
    n0, n1 = (torch.from_numpy(n) for n in load("race").normal_pairs(*words))
    radius = (-2 * (index.double() * 2.0**-24 + 2.0**-25).log()).sqrt()
    angle = angle_word.double() * (2 * math.pi * 2.0**-32)
    instruction = radius * 2.0**-21.19
    for got, exact in ((n0, radius * angle.cos()), (n1, radius * angle.sin())):
        error = (got - exact).abs()
        assert error.max() > 1e-9, "float32 normals cannot be this exact: the wrong thing was measured"
        assert ((error + instruction) / exact.abs().clamp(min=1)).max() <= 5e-6


def test_an_unknown_kind_gives_nan():
    """On a GPU the kinds are not read beforehand."""
    x, seed = torch.zeros(4, 16), torch.tensor([1])
    kinds = torch.tensor([0, 7, -1, 2**32])
    y = OPS["inject_noise"].overloads["cuda"](
        x, torch.ones(1), kinds, -1, [], 1.0, None, None, torch.float32, seed, 1, None
    )
    assert y[0].isfinite().all() and y[1:].isnan().all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64))
@pytest.mark.parametrize("columns", (16, 5))
def test_std_of_any_logvar(dtype, columns):
    largest = torch.finfo(dtype).max
    logvar = torch.tensor([0.0, -300.0, 1e4, 4.7e4, -4.7e4, largest, -largest, torch.inf, -torch.inf, torch.nan])
    logvar = logvar.to(dtype)[:, None].expand(-1, columns).contiguous()
    mu, prior = torch.zeros_like(logvar), torch.ones(1, dtype=torch.promote_types(dtype, torch.float32))
    _, std, _ = OPS["reparameterize"].overloads["cuda"](mu, logvar, prior, None, False, None, 2, None)
    torch.testing.assert_close(std, (logvar.to(prior.dtype) / 2).exp(), rtol=1e-6, atol=1e-45, equal_nan=True)
