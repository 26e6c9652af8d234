"""Every op, backend and dtype on every case of `cases`: forward and all gradients, by the rule of `tolerances`."""

import pytest

from .backends import BACKENDS, large_tiles
from .cases import CASES
from .conformance import check
from .tolerances import TOLERANCES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_reference(case, dtype, backend):
    # Made to keep several threads busy, which interpreted kernels do not know.
    with large_tiles(backend, 2**14 if "threads" in case.name else 2**11):
        check(case, backend, dtype)
