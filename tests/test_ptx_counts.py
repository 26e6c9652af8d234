"""The compiled GPU kernels execute no more than recorded in udml_kernels/tools/counts.csv."""

import subprocess
import sys
from pathlib import Path

import pytest

from udml_kernels.testing.ops import OPS
from udml_kernels.tools import counts

from . import DEVICE, QUARTER
from .backends import BACKENDS, is_executed

if DEVICE.type != "cpu":
    pytest.skip("the compiled kernels are not executed on the CPU here", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
EXECUTED = [backend for backend in BACKENDS if is_executed(backend)]
# One of the two a day.
DTYPES = ("float32", "bfloat16") if QUARTER == "all" else (("float32", "bfloat16")[int(QUARTER) % 2],)
# Another version of a compiler changes a count by a few percent.
ROOM = 1.05


def _recorded(backend: str) -> dict[tuple, counts.Count]:
    return {row.key: row for row in counts.read() if row.backend == backend}


@pytest.mark.slow
@pytest.mark.parametrize("backend", EXECUTED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_kernel_executes_more_than_recorded(backend, dtype):
    from .ptx.counts import measured

    recorded, measured_rows = _recorded(backend), measured(backend, [dtype], list(OPS))
    grown = []
    for row in measured_rows:
        assert row.key in recorded, f"{row.key} is not in {counts.FILE.name}: make counts"
        before = recorded[row.key]
        for name in ("launches", "instructions", "sectors", "conflicts"):
            now, then = getattr(row, name), getattr(before, name)
            if now > ROOM * then + 0.02:
                grown.append(f"{row.work}, {row.kernel}: {name} {now}, recorded {then}")
    assert not grown, "make counts, if this is meant:\n" + "\n".join(grown)
    missing = {key for key in recorded if key[1] == dtype} - {row.key for row in measured_rows}
    assert not missing, f"recorded, but not launched: {sorted(missing)}; make counts"


def test_the_command_that_counts():
    command = [sys.executable, "-m", "tests.ptx.counts", "--op", "normal", "--dtype", "float32"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert [line.split()[0] for line in result.stdout.splitlines()[-2:]] == ["cuda", "triton"], result.stderr


def test_the_documented_table_is_the_recorded_one():
    documented = (ROOT / "docs" / "performance.md").read_text()
    assert counts.markdown(counts.read()) in documented, "python -m tests.ptx.counts --markdown prints the table"
