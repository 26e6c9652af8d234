"""Every op, backend and dtype on every case of `cases`: forward and all gradients, by the rule of `tolerances`."""

import os

import pytest

from udml_kernels.testing.cases import CASES
from udml_kernels.testing.conformance import check
from udml_kernels.tools.tolerances import TOLERANCES

from . import QUARTER, TWELFTH
from .backends import BACKENDS, display_name, is_executed, is_interpreted, large_tiles

# UDML_TEST_PART=i/n: every n-th case, for runs that share them.
PART, PARTS = map(int, os.environ.get("UDML_TEST_PART", "0/1").split("/"))


DTYPES = tuple(TOLERANCES)


def _runs(case: int, dtype: int, backend: str) -> bool:
    """All of them, but of interpreted Triton, a hundred times slower than the others, a dtype for each case, and of
    Triton that is compiled as it runs, a dtype for each third case."""
    if backend == "triton" and is_executed(backend):
        return TWELFTH == "all" or (case + int(TWELFTH)) % (3 * len(DTYPES)) == 3 * dtype
    return not is_interpreted(backend) or QUARTER == "all" or (case + int(QUARTER)) % len(DTYPES) == dtype


ROWS = [
    pytest.param(case, dtype, backend, id=f"{case}-{str(dtype).removeprefix('torch.')}-{display_name(backend)}")
    for i, case in enumerate(CASES[PART::PARTS])
    for k, dtype in enumerate(DTYPES)
    for backend in BACKENDS
    if _runs(i, k, backend)
]


@pytest.mark.parametrize(("case", "dtype", "backend"), ROWS)
def test_matches_the_reference(case, dtype, backend):
    # Made to keep several threads busy, which interpreted kernels do not know.
    with large_tiles(backend, 2**14 if "threads" in case.name else 2**11):
        check(case, backend, dtype)
