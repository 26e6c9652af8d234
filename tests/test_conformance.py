"""Every op, backend and dtype on every case of `cases`: forward and all gradients, by the rule of `tolerances`."""

import os

import pytest

from udml_kernels.testing.cases import CASES
from udml_kernels.testing.conformance import check
from udml_kernels.tools.tolerances import TOLERANCES

from . import TWELFTH
from .backends import BACKENDS, display_name, is_executed

# UDML_TEST_PART=i/n: every n-th case, for runs that share them.
PART, PARTS = map(int, os.environ.get("UDML_TEST_PART", "0/1").split("/"))


DTYPES = tuple(TOLERANCES)


def _runs(case: int, dtype: int, backend: str) -> bool:
    """All of them, but of Triton, whose kernels are compiled as they run, a dtype for each third case."""
    if backend != "triton" or not is_executed(backend) or TWELFTH == "all":
        return True
    return (case + int(TWELFTH)) % (3 * len(DTYPES)) == 3 * dtype


ROWS = [
    pytest.param(case, dtype, backend, id=f"{case}-{str(dtype).removeprefix('torch.')}-{display_name(backend)}")
    for i, case in enumerate(CASES[PART::PARTS])
    for k, dtype in enumerate(DTYPES)
    for backend in BACKENDS
    if _runs(i, k, backend)
]


@pytest.mark.parametrize(("case", "dtype", "backend"), ROWS)
def test_matches_the_reference(case, dtype, backend):
    check(case, backend, dtype)
