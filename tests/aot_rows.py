"""The rows of an `aot`, made once for all workers of a run."""

import json
import os
import subprocess
import sys

import pytest
from filelock import FileLock


def rows(factory: pytest.TempPathFactory, backend: str, name: str, *options: str) -> list[dict]:
    """Made by the first of the workers to ask."""
    here = factory.getbasetemp()
    file = (here.parent if "PYTEST_XDIST_WORKER" in os.environ else here) / f"aot-{backend}-{name}.json"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            command = [sys.executable, "-m", "udml_kernels", "aot", "--backend", backend, "--json", str(file), *options]
            environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
            assert file.exists(), result.stdout[-3000:] + result.stderr[-3000:]
    return json.loads(file.read_text())


def first(rows: list[dict], work: str, dtype: str) -> dict:
    """The kernel that passes over the data: the one with most instructions of a call's."""
    return max(
        (r for r in rows if r["work"] == work and r["dtype"] == dtype), key=lambda r: r["instructions_per_element"]
    )
