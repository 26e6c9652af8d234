"""The Triton kernels compiled for GPUs that are not here: they must not spill, nor narrow their accesses."""

import os
import subprocess
import sys

import pytest

from udml_kernels.tools import machine_code
from udml_kernels.tools.aot import TARGETS

from . import QUARTER, aot_rows
from .backends import BACKENDS

if "triton" not in BACKENDS:
    pytest.skip("Triton is not among the backends under test", allow_module_level=True)


# Targets and dtypes, two for each quarter, as each takes minutes. `make aot` compiles all combinations.
QUARTERS = (
    (("sm_90", "float32"), ("sm_100", "float16")),
    (("sm_90", "bfloat16"), ("gfx942", "float32")),
    (("sm_90", "float32"), ("sm_80", "bfloat16")),
    (("sm_90", "bfloat16"), ("sm_90", "float64")),
)
CHOSEN = sorted(set(sum(QUARTERS, ()))) if QUARTER == "all" else QUARTERS[int(QUARTER)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    assert {target for quarter in QUARTERS for target, _ in quarter} == set(TARGETS)
    found = []
    for target, dtype in CHOSEN:
        found += aot_rows.rows(tmp_path_factory, "triton", f"{target}-{dtype}", "--target", target, "--dtype", dtype)
    return found


@pytest.mark.slow
def test_every_kernel_compiles_and_none_spills(rows):
    assert len({r["work"] for r in rows}) > 20
    assert not [(r["work"], r["target"], r["error"]) for r in rows if r["error"]]
    assert not [(r["work"], r["kernel"], r["target"], r["dtype"], r["spilled"]) for r in rows if r["spilled"]]


@pytest.mark.slow
def test_shared_memory_fits_every_card(rows):
    # 99 KB a program on consumer cards of compute capability 8.6 and 8.9; 64 KB on AMD's.
    for r in rows:
        assert r["shared"] <= (65536 if r["target"].startswith("gfx") else 101376), r


@pytest.mark.slow
def test_dense_data_moves_16_bytes_at_a_time(rows):
    newest = [r for r in rows if r["target"] == "sm_90" and r["dtype"] != "float64"]
    # In channels-last maps each thread accesses four channels, and the threads of a warp access consecutive addresses.
    aot_rows.check_dense_access(newest, lambda r: 8 if "channels last" in r["work"] and r["dtype"] != "float32" else 16)


@pytest.mark.slow
def test_tritons_launchers_take_every_kernels_arguments(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "UDML_TEST_DEVICE": "cpu"}
    command = [sys.executable, "-m", "tests.launchers", str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    received, _, heard, _ = result.stdout.split()
    assert received == heard and int(heard) > 60


SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0020*/                   FFMA R4, R4, R5, R6 ;
.L_x_2:
        /*0030*/                   FADD R4, R4, R5 ;
        /*0040*/              @P0  BRA `(.L_x_2) ;
        /*0050*/             @!P1  BRA `(.L_x_1) ;
        /*0060*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   BRA `(.L_x_3);
        /*0090*/                   NOP;
"""


def test_machine_code_is_read():
    code = machine_code.of_sass(SASS, "REG:40 STACK:0 SHARED:512 LOCAL:0")
    assert (code.registers, code.shared, code.spilled) == (40, 512, 0)
    assert (code.widest_load, code.widest_store) == (16, 8)
    # What follows the last exit is padding.
    assert code.instructions == 8


@pytest.mark.parametrize("line", ("STL [R1], R2", "LDL.128 R4, [R1+0x10]"))
def test_a_spill_is_seen(line):
    text = SASS.replace("FADD R4, R4, R5", line)
    assert machine_code.of_sass(text, "REG:255 STACK:0 SHARED:0 LOCAL:0").spilled > 0
    assert machine_code.of_sass(SASS, "REG:255 STACK:16 SHARED:0 LOCAL:0").spilled == 16


AMD = """
\tglobal_load_dwordx4 v[0:3], v0, s[0:1]
.LBB0_1:
\tv_add_f32_e32 v0, v0, v1
\ts_cbranch_scc1 .LBB0_1
\tbuffer_store_short v0, v1, s[4:7], 0 offen
\ts_endpgm
    .vgpr_count:     24
    .sgpr_spill_count: 5
    .vgpr_spill_count: 3
    .group_segment_fixed_size: 128
"""


def test_amds_assembly_is_read_too():
    code = machine_code.of_amdgcn(AMD)
    assert (code.registers, code.spilled, code.shared) == (24, 12, 128)
    assert (code.widest_load, code.widest_store) == (16, 2)
    scratch = AMD.replace(".vgpr_spill_count: 3", ".private_segment_fixed_size: 64")
    assert machine_code.of_amdgcn(scratch).spilled == 64
    assert machine_code.of_amdgcn(AMD.replace(".vgpr_spill_count: 3", "")).spilled == 0
