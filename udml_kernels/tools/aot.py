"""Compile every kernel for GPUs that need not be present, and report what the kernels cost.

A row is one kernel that a call launches: registers; bytes per thread spilled to memory; shared memory; the widest
access of a thread to global memory (load/store); bytes an ideal implementation moves per element. Then follow, for
sm_80 and float32 or bfloat16, the recorded counts of what these kernels execute, and the time predicted from them (see
`counts`). Nothing runs.

Exit code 0, 1 when a kernel does not compile, 2 when the compiler is missing.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import torch

from .. import backends
from ..testing.aot_works import KernelWork, Maker
from ..testing.ops import OPS
from . import counts
from .table import dtype_name, table

HELP = "compile every kernel without a GPU: registers, spills, access width; executed instructions, predicted time"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
BACKENDS = ("triton", "cuda")
_DTYPES = {dtype_name(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
# Ops, and the files whose kernels serve several of them.
_NAMES = sorted({*OPS, *(info.file for info in OPS.values())})


@dataclass
class Row:
    """A kernel of a call. `bytes_per_element` belongs to the call."""

    target: str
    dtype: str
    work: str
    kernel: str
    programs: int
    registers: int
    spilled: int
    shared: int
    load: int
    store: int
    bytes_per_element: float
    error: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=BACKENDS, default="triton")
    parser.add_argument("--target", nargs="+", choices=TARGETS, help="default: all targets of the backend")
    parser.add_argument("--op", nargs="+", choices=_NAMES, default=list(OPS), metavar="OP", help=", ".join(_NAMES))
    parser.add_argument(
        "--dtype", nargs="+", choices=_DTYPES, default=["float32", "bfloat16"], help="default: float32 and bfloat16"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the rows to this file")


def works(names: Sequence[str], dtype: torch.dtype) -> Iterator[KernelWork]:
    """The works of the ops with these names; a name that no op has is that of a file with kernels."""
    for info in OPS.values():
        if info.name in names or (info.file in names and info.file not in OPS):
            yield from info.aot(Maker(dtype, info.file))


def rows_for(backend: str, target: str, ops: list[str], dtypes: list[str]) -> list[Row]:
    """Compile in this process, which must not have compiled for another target."""
    compiler = importlib.import_module(f".aot_{backend}", __package__)
    rows: list[Row] = []
    with compiler.compiling_for(target) as kernels:
        for name in dtypes:
            for work in works(ops, _DTYPES[name]):
                rows.extend(_rows_of(work, target, name, kernels))
    return rows


def _rows_of(work, target: str, dtype: str, kernels) -> Iterator[Row]:
    try:
        results, compiled = kernels(work)
    except Exception as failure:
        first = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0]}"
        yield Row(target, dtype, work.label, "", 0, 0, 0, 0, 0, 0, 0.0, first)
        return
    moved = work.bytes(results) / work.elements
    for kernel, programs, _, code in compiled:
        yield Row(
            target, dtype, work.label, kernel, programs, code.registers, code.spilled, code.shared, code.widest_load,
            code.widest_store, moved,
        )  # fmt: skip


def _printed(rows: list[Row]) -> str:
    lines: list[tuple[object, ...]] = [("work", "kernel", "dtype", "regs", "spill", "shared", "access", "bytes/el")]
    for r in rows:
        if r.error:
            lines.append((r.work, r.error, r.dtype, *[""] * 5))
            continue
        access = f"{r.load}/{r.store}"
        figures = (r.registers, r.spilled, r.shared, access, f"{r.bytes_per_element:.1f}")
        lines.append((r.work, r.kernel, r.dtype, *figures))
    return table(lines, right=range(3, 8))


def _counts(options: argparse.Namespace) -> str:
    """The recorded counts of the same kernels."""
    labels = {work.label for name in options.dtype for work in works(options.op, _DTYPES[name])}
    return counts.printed(
        [
            row
            for row in counts.read()
            if row.backend == options.backend and row.dtype in options.dtype and row.work in labels
        ]
    )


def _targets(backend: str) -> list[str]:
    return [target for target in TARGETS if backend == "triton" or target.startswith("sm_")]


def _why_not(options: argparse.Namespace) -> str | None:
    if options.backend == "cuda":
        from . import aot_cuda

        foreign = set(options.target or ()) - set(_targets("cuda"))
        return f"CUDA does not compile for {', '.join(sorted(foreign))}" if foreign else aot_cuda.why_not()
    return None if find_spec("triton") else "Triton is not installed, so there is nothing to compile with"


def run(options: argparse.Namespace) -> int:
    if reason := _why_not(options):
        print(reason)
        return 2
    if options.backend == "triton" and backends.triton_is_interpreted():
        return _without_interpreter(options)
    options.target = options.target or _targets(options.backend)
    rows: list[Row] = []
    # One process for each target: Triton's cache of compiled kernels is keyed by their arguments alone.
    with multiprocessing.get_context("spawn").Pool(os.cpu_count() or 1, maxtasksperchild=1) as pool:
        jobs = [
            pool.apply_async(rows_for, (options.backend, target, options.op, options.dtype))
            for target in options.target
        ]
        for target, job in zip(options.target, jobs, strict=True):
            found = job.get()
            print(f"\n{target}\n{_printed(found)}", flush=True)
            rows.extend(found)
    print("\naccess: bytes of a thread's widest global load/store. bytes/el: of the whole call.")
    print(f"\nexecuted, as counted for sm_80; shares of a copy's time are predictions\n{_counts(options)}\n")
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(r) for r in rows], file, indent=1)
    failed = sum(bool(r.error) for r in rows)
    spilling = sum(r.spilled > 0 for r in rows)
    print(f"{len(rows)} kernels, {failed} did not compile, {spilling} with spills or local memory")
    return 1 if failed else 0


def _without_interpreter(options: argparse.Namespace) -> int:
    """Run the command again in a process in which Triton compiles."""
    command = [sys.executable, "-m", "udml_kernels", "aot", "--backend", options.backend]
    for name in ("target", "op", "dtype"):
        command += [f"--{name}", *getattr(options, name)] if getattr(options, name) else []
    command += ["--json", options.json] if options.json else []
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(command, env=clean, check=False).returncode
