"""What the kernels of an op execute: instructions, memory traffic, launches; and the time that follows on a GPU.

A row is one kernel of one work of `aot`. Its figures are counts of an execution, per element of the work:

- `instructions`: PTX instructions that a warp executes, times 32, so that a kernel without divergence and without
  idle lanes has the instructions of one thread for one element; and `machine`, the same in machine instructions: times
  the kernel's length in machine code over its length in PTX;
- `sectors`: global sectors of 32 bytes that its requests touch, over those that the same bytes need when they lie side
  by side (1 is ideal);
- `conflicts`: passes over the banks of shared memory per request (1 is ideal);
- `products`: those of matrix instructions, in 16-bit elements' time;
- `lanes`: the share of lanes that are active in an executed instruction.

    python -m tests.ptx.counts             print the table
    python -m tests.ptx.counts --write     also write it where `python -m udml_kernels aot` and the tests look for it
    python -m tests.ptx.counts --markdown  the recorded counts as the table of docs/performance.md
"""

import argparse
import functools
import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from udml_kernels.testing.aot_works import KernelWork
from udml_kernels.testing.ops import OPS
from udml_kernels.testing.works import tensors
from udml_kernels.tools import aot, aot_cuda, counts, machine_code

from . import machine

BACKENDS = ("cuda", "triton")
DTYPES = ("float32", "bfloat16")


def _fill(work: KernelWork) -> None:
    """Values that no kernel treats as special; a work's tensors are uninitialised."""
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors(work.args):
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        else:
            tensor.zero_()


def _run(backend: str, work: KernelWork) -> Any:
    if backend == "cuda":
        return getattr(torch.ops.udml_kernels, work.op).cuda(*work.args)
    return getattr(importlib.import_module(f"udml_kernels.triton.{work.file}"), work.op)(*work.args)


def _name(symbol: str) -> str:
    """The kernel's name without its template arguments, or without the suffix of a Triton kernel's specialisation."""
    mangled = re.match(r"_ZN4udml\d+(\w+?_kernel)", symbol)
    return mangled[1] if mangled else re.sub(r"_[0-9a-f]{12}$", "", symbol)


def _kernels(statistics: dict, length: Callable[[str], int]) -> dict[str, dict[str, float]]:
    """The counts by kernel; those of several instances of a kernel are added. `length` is that of its machine code."""
    total: dict[str, dict[str, float]] = {}
    for symbol, found in statistics["kernels"].items():
        found["machine"] = found["instructions"] * length(symbol) / found["static"]
        kernel = total.setdefault(_name(symbol), dict.fromkeys(found, 0))
        for key, value in found.items():
            kernel[key] += value
    return total


@functools.cache
def _cuda_code(target: int) -> dict[str, tuple[str, str]]:
    return aot_cuda.machine_code(f"sm_{target}")


def _cuda_length(symbol: str) -> int:
    from . import cuda

    return machine_code.of_sass(*_cuda_code(cuda.TARGET)[symbol]).instructions


@functools.cache
def _triton_length(symbol: str) -> int:
    from . import triton

    tools = Path(str(aot_cuda.tools_path()))
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        ptx.write_text(triton.sources[symbol])
        subprocess.run([tools / "ptxas", f"-arch={triton.TARGET}", ptx, "-o", cubin], check=True)
        return machine_code.of_sass(*machine_code.disassembled(cubin.read_bytes(), tools)).instructions


def rows(backend: str, dtype: str, ops: list[str]) -> Iterator[counts.Count]:
    length = {"cuda": _cuda_length, "triton": _triton_length}[backend]
    for work in aot.works(ops, getattr(torch, dtype)):
        _fill(work)
        machine.statistics(clear=True)
        moved = work.bytes(_run(backend, work)) / work.elements
        kernels = _kernels(machine.statistics(clear=True), length)
        for name, k in sorted(kernels.items(), key=lambda item: -item[1]["instructions"]):
            yield counts.Count(
                backend, dtype, work.label, name, int(k["launches"]),
                round(32 * k["instructions"] / work.elements, 2),
                round(32 * k["machine"] / work.elements, 2),
                round(k["lanes"] / max(k["instructions"], 1) / 32, 3),
                round(k["sectors"] / max(k["ideal"], 1), 2),
                round(k["shared_waves"] / max(k["shared_requests"], 1), 2),
                round(moved, 2),
                round(k["products"] / work.elements, 2),
            )  # fmt: skip


def measured(backend: str, dtypes: list[str], ops: list[str]) -> list[counts.Count]:
    """Count in this process, which serves one backend and one target."""
    importlib.import_module(f".{backend}", __package__).install()
    with machine.options(races=False, statistics=1):
        return [row for dtype in dtypes for row in rows(backend, dtype, ops)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.counts", description=__doc__.split("\n\n")[0])
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--op", nargs="+", choices=OPS, default=list(OPS), metavar="OP")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.markdown:
        return print(counts.markdown(counts.read()))
    found = [row for backend in options.backend for row in measured(backend, options.dtype, options.op)]
    print(counts.printed(found))
    if options.write:
        counts.write(found)


if __name__ == "__main__":
    main()
