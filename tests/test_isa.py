"""Every ISA level that the processor runs passes conformance, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from udml_kernels import backends

from .backends import BACKENDS

SELECTED = "(test_conformance and (float32 or bfloat16)) or test_noise_is_the_references or test_normals_are_accurate"
FILES = ("test_conformance.py", "test_random.py", "test_distribution.py")


# The level in use is the one that the suite itself runs at.
OTHERS = [level for level in backends.supported_isa_levels() if "cpu" in BACKENDS and level != backends.isa_level]


@pytest.mark.parametrize("level", OTHERS)
def test_conformance_at_level(level):
    here = Path(__file__).parent
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "-k", SELECTED]
        + [str(here / name) for name in FILES],
        env=os.environ | {"UDML_KERNELS_ISA": level, "UDML_TEST_BACKENDS": "cpu"},
        cwd=here.parent,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-9000:] + result.stderr[-2000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout, result.stdout[-500:]


def test_the_level_in_use_is_the_one_asked_for():
    forced = os.environ.get("UDML_KERNELS_ISA")
    assert backends.isa_level == (forced or backends.supported_isa_levels()[0])
