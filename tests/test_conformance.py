"""Every op, backend and dtype on every case of `cases`: forward and all gradients, by the rule of `tolerances`."""

import os

import pytest

from .backends import BACKENDS, large_tiles
from .cases import CASES
from .conformance import check
from .tolerances import TOLERANCES

# UDML_TEST_PART=i/n: every n-th case, for runs that share them.
PART, PARTS = map(int, os.environ.get("UDML_TEST_PART", "0/1").split("/"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES[PART::PARTS], ids=str)
def test_matches_the_reference(case, dtype, backend):
    # Made to keep several threads busy, which interpreted kernels do not know.
    with large_tiles(backend, 2**14 if "threads" in case.name else 2**11):
        check(case, backend, dtype)
