"""The machine code of `_C_cuda.so`: it must not spill, nor narrow its accesses."""

import pytest
import torch

from udml_kernels import backends
from udml_kernels.testing.ops import OPS as INFOS
from udml_kernels.tools import aot_cuda
from udml_kernels.tools.aot import works

from . import aot_rows
from .backends import OPS

# A division of doubles is a call, around which these spill up to 72 bytes on sm_80 and sm_100. A reciprocal by Newton's
# method, without a call, would mend it.
SPILLING_IN_FLOAT64 = (
    "location_weights_backward_kernel",
    "evidential_loss_kernel",
    "evidential_loss_backward_kernel",
)


# The library may have been built for some of these only: continuous integration takes turns.
CARRIED = backends.cuda_facts.get("cuda archs", "").split()
NEWEST = "sm_90" if "sm_90" in CARRIED else "sm_100"


@pytest.fixture(scope="module")
def newest(tmp_path_factory) -> list[dict]:
    return aot_rows.rows(tmp_path_factory, "cuda", "newest", "--target", NEWEST)


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> list[dict]:
    """Every other target and every other dtype once; all of them with each other are `make aot`'s."""
    found = []
    for target, dtype in (("sm_80", "bfloat16"), (NEWEST, "float64"), ("sm_100", "float16")):
        if target not in CARRIED:
            continue
        found += aot_rows.rows(tmp_path_factory, "cuda", target, "--target", target, "--dtype", dtype)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("which", ("newest", "others"))
def test_no_kernel_spills(which, request):
    rows = request.getfixturevalue(which)
    assert len({r["work"] for r in rows}) > 20
    assert not [(r["work"], r["target"], r["error"]) for r in rows if r["error"]]
    spilled = [r for r in rows if r["spilled"] and not (r["dtype"] == "float64" and r["kernel"] in SPILLING_IN_FLOAT64)]
    assert not [(r["work"], r["kernel"], r["target"], r["dtype"], r["spilled"]) for r in spilled]
    assert max(r["spilled"] for r in rows) <= 72
    # What a block may have without asking for more.
    assert max(r["shared"] for r in rows) <= 49152


@pytest.mark.slow
def test_dense_data_moves_16_bytes_at_a_time(newest):
    # In these works and in channels-last maps each thread accesses one element; the accesses of a warp are coalesced.
    coalesced = ("weighted_fusion_backward per location", "inject_noise 64x3x128x128 uint8 image")
    aot_rows.check_dense_access(newest, lambda r: 0 if r["work"] in coalesced or "channels last" in r["work"] else 16)


def test_every_launch_of_an_op_is_heard():
    with aot_cuda.compiling_for(NEWEST) as launched:
        for work in works(["reparameterize"], torch.float32):
            results, kernels = launched(work)
            schema = getattr(torch.ops.udml_kernels, work.op).cuda._schema
            name = work.op if "channels last" not in work.label else work.op.replace("ize", "ize_columns", 1)
            assert kernels[0][0] == name + "_kernel" and len(results) == len(schema.returns)
            assert all(blocks > 0 and code.registers > 0 for _, blocks, _, code in kernels)


def test_every_op_has_a_work():
    ops = {work.op for work in works(list(INFOS), torch.float32)}
    assert ops == set(OPS)
