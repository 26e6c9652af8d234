"""The compiled Triton kernels, executed on the CPU: a part of the suite in processes of their own.

In this process Triton interprets, and a process can do only one of the two.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import DEVICE, TRITON
from .backends import BACKENDS

if "triton" not in BACKENDS or DEVICE.type != "cpu" or TRITON != "interpreter":
    pytest.skip("Triton does not interpret here", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]


def _run(*arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    environment |= {"UDML_TEST_TRITON": "ptx", "UDML_TEST_BACKENDS": "triton-ptx"}
    command = [sys.executable, "-m", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_as_ptx():
    """What takes one process minutes; all conformance cases with `make test-ptx`."""
    files = ("test_ptx_counts.py", "test_triton_launches.py", "test_triton.py")
    assert " passed" in _run("pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{file}" for file in files))


def test_the_command_that_counts():
    table = _run("tests.ptx.counts", "--op", "normal", "--dtype", "float32")
    assert [line.split()[0] for line in table.splitlines()[-2:]] == ["cuda", "triton"]
