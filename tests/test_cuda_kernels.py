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

from . import DEVICE
from .backends import BACKENDS
from .cuda_host.build import build, load, sanitizer_environment

if "cuda" not in BACKENDS or DEVICE.type != "cpu":
    pytest.skip("the CUDA kernels are not executed on the host here", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_every_case_under_the_sanitizers(part):
    # Built before, as in that process the compiler would be sanitized too.
    build("asan")
    environment = os.environ | sanitizer_environment()
    environment |= {"UDML_CUDA_HOST": "asan", "UDML_TEST_BACKENDS": "cuda-host", "UDML_TEST_PART": f"{part}/2"}
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
