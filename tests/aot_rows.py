"""The rows of an `aot`, made once for all workers of a run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

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


def check_dense_access(rows: list[dict], least: Callable[[dict], int] = lambda row: 16) -> None:
    """The works that pass over dense data load and store at least that many bytes a thread at once."""
    ops = ("inject_noise", "reparameterize", "weighted_fusion", "modality_dropout")
    widest: dict[tuple[str, str], tuple[int, int, int]] = {}
    for r in rows:
        if r["work"].split()[0].removesuffix("_backward") in ops:
            load, store, _ = widest.get((r["work"], r["dtype"]), (0, 0, 0))
            widest[r["work"], r["dtype"]] = max(load, r["load"]), max(store, r["store"]), least(r)
    assert len(widest) > 10 * len({dtype for _, dtype in widest})
    narrow = {key: value for key, value in widest.items() if min(value[:2]) < value[2]}
    assert not narrow
