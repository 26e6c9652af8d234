"""Validate the forward pass and every gradient of each op against the float64 reference on this machine.

Exit code 0: all within the tolerances. 1: something is not. 2: the backend asked for is not available or lacks an op.
Where no backend was asked for, what one of them lacks is named and skipped.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from .. import backends
from ..ops import _op as kernels
from ..testing.cases import checked
from ..testing.conformance import comparisons
from ..testing.ops import OPS
from .table import dtype_name, table
from .tolerances import TOLERANCES, compare

HELP = "compare forward and gradients with the float64 reference, on random and adversarial inputs"
_DTYPES = {dtype_name(dtype): dtype for dtype in TOLERANCES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", nargs="+", choices=sorted(OPS), default=list(OPS), metavar="OP", help=", ".join(OPS))
    parser.add_argument("--backend", choices=backends.NAMES, help="default: every kernel backend available here")
    parser.add_argument("--dtype", nargs="+", choices=_DTYPES, default=list(_DTYPES), help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random inputs (default 0)")


@dataclass
class Row:
    """The case of one op, backend and dtype that comes closest to its limit or exceeds it."""

    error: float = 0.0
    allowed: float = 0.0
    case: str = ""
    count: int = 0
    ratio: float = -1.0

    def add(self, error: float, allowed: float, case: str) -> None:
        self.count += 1
        # Both are compared as fractions of the limit; a limit of 0 asks for equality.
        ratio = error / allowed if allowed else (0.0 if error == 0 else float("inf"))
        if ratio > self.ratio:
            self.error, self.allowed, self.case, self.ratio = error, allowed, case, ratio

    @property
    def ok(self) -> bool:
        return self.count > 0 and self.error <= self.allowed


def _on_device_of(backend: str) -> contextlib.AbstractContextManager:
    """Inside the block, tensors are created on the device of a backend."""
    gpu = backend == "cuda" or (backend == "triton" and not backends.triton_is_interpreted())
    # Not torch.device("cpu"): as a context it slows down every call.
    return torch.device("xpu" if torch.xpu.is_available() else "cuda") if gpu else contextlib.nullcontext()


def check(op: str, backend: str, dtype: torch.dtype, seed: int) -> Row:
    row = Row()
    with _on_device_of(backend):
        for case in checked(OPS[op], seed):
            try:
                for name, got, same, truth, arithmetic, terms in comparisons(case, backend, dtype):
                    row.add(*compare(got, same, truth, arithmetic, terms), f"{case.name}: {name}")
            except Exception as failure:
                # A kernel that raises counts as a failed case: the remaining cases are still checked.
                first = (str(failure).splitlines() or [""])[0]
                row.add(float("inf"), 0.0, f"{case.name}: {type(failure).__name__}: {first[:80]}")
    return row


def _why_missing(op: str, backend: str) -> str | None:
    """None where kernels fail to import, too: each of the op's cases then fails with that error."""
    try:
        return None if backend == "reference" else kernels.OPS[op].why_missing(backend)
    except Exception:
        return None


def _interpreted(options: argparse.Namespace) -> int:
    """Run the command again in a process in which Triton interprets: this must be set before Triton is imported."""
    print("no GPU here: the Triton kernels run on the CPU, in Triton's interpreter (TRITON_INTERPRET=1)", flush=True)
    command = [sys.executable, "-m", "udml_kernels", "check", "--backend", "triton", "--seed", str(options.seed)]
    command += ["--op", *options.op, "--dtype", *options.dtype]
    return subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=False).returncode


def run(options: argparse.Namespace) -> int:
    interpretable = find_spec("triton") is not None and not backends.triton_is_interpreted()
    if options.backend == "triton" and interpretable and not backends.has_gpu():
        return _interpreted(options)
    if options.backend:
        if reason := backends.why_unavailable(options.backend):
            print(f"backend {options.backend} is not available: {reason}")
            return 2
        chosen = [options.backend]
    else:
        chosen = [name for name in backends.available() if name != "reference"]
    if not chosen:
        reasons = "; ".join(f"{name}: {backends.why_unavailable(name)}" for name in backends.KERNEL_BACKENDS)
        print(f"no kernel backend is available here, so there is nothing to check ({reasons})")
        return 2
    rows: list[tuple[object, ...]] = [("op", "backend", "dtype", "worst error", "allowed", "results", "", "worst case")]
    failed = skipped = 0
    for op in options.op:
        for backend in chosen:
            if reason := _why_missing(op, backend):
                print(f"{op} is not on {backend}: {reason}")
                skipped += 1
                continue
            for name in options.dtype:
                row = check(op, backend, _DTYPES[name], options.seed)
                failed += not row.ok
                verdict = "ok" if row.ok else "FAIL"
                rows.append((op, backend, name, f"{row.error:.2e}", f"{row.allowed:.2e}", row.count, verdict, row.case))
    print(table(rows, right=(3, 4, 5)))
    print("error: max |y - float64 reference|; allowed: 2 x the same-dtype reference's error + tolerance x max |value|")
    verdict = f"{failed} of {len(rows) - 1} failed" if failed else f"all {len(rows) - 1} within tolerance"
    print(f"{verdict}, {skipped} without a kernel" if skipped else verdict)
    if failed:
        return 1
    # Of a backend that was asked for, every op has to be there.
    return 2 if len(rows) == 1 or (skipped and options.backend) else 0
