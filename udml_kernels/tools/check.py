"""Validate the forward pass and every gradient of each op against the float64 reference on this machine.

Exit code 0: all within the tolerances. 1: something is not. 2: the backend asked for is not available.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import udml_kernels

from .. import backends
from .cases import OPS, Case, Values, cases
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
        return self.error <= self.allowed


def _walk(values: Values, change: Callable[[Tensor], Tensor]) -> Values:
    return {
        name: [change(t) for t in value] if isinstance(value, list) else change(value) for name, value in values.items()
    }


def _flat(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _flat(item, f"{name}[{i}]")


def _device(backend: str) -> torch.device:
    """The device on which a backend's tensors have to be."""
    gpu = backend == "cuda" or (backend == "triton" and not backends.triton_is_interpreted())
    return torch.device("cpu" if not gpu else "xpu" if torch.xpu.is_available() else "cuda")


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(_moved(v, device) for v in value) if isinstance(value, (list, tuple)) else value


def evaluate(case: Case, backend: str, rounded: torch.dtype, exact: bool = False) -> dict[str, Tensor]:
    """Outputs and gradients by name, from inputs rounded to a dtype; `exact` computes them in float64."""
    dtype, device = torch.float64 if exact else rounded, _device(backend)
    leaves = _walk(case.inputs, lambda t: t.to(rounded).to(device, dtype).requires_grad_())
    views = _walk(leaves, case.layout)
    options = {name: _moved(value, device) for name, value in case.options.items()}
    if not leaves and case.op in ("normal", "uniform"):
        options["dtype"] = dtype
    if "x" in options:
        # An integer image is computed in float32 whatever the output dtype is.
        options.update(x=options["x"].double() if exact else options["x"], out_dtype=dtype)
    with backends.use_backend(backend):
        outputs = dict(_flat(getattr(udml_kernels, case.op)(**views, **options), "out"))
        results = {name: output.detach().cpu() for name, output in outputs.items()}
        named = [pair for name, value in leaves.items() for pair in _flat(value, name)]
        differentiable = [output for output in outputs.values() if output.requires_grad]
        if not differentiable:
            return results
        generator = torch.Generator().manual_seed(1)
        # The incoming gradients have the inputs' layout too.
        incoming = [
            case.layout(torch.randn(o.shape, dtype=torch.float64, generator=generator).to(rounded).to(device, o.dtype))
            if o.dim()
            else torch.ones_like(o)
            for o in differentiable
        ]
        gradients = torch.autograd.grad(differentiable, [t for _, t in named], incoming, materialize_grads=True)
    results.update((f"grad {n}", g.cpu()) for (n, _), g in zip(named, gradients, strict=True))
    return results


def check(op: str, backend: str, dtype: torch.dtype, seed: int) -> Row:
    row = Row()
    for case in cases(op, seed):
        # An integer image is computed in float32 even if the result is float64.
        arithmetic = torch.float32 if "x" in case.options else dtype
        exact = evaluate(case, "reference", dtype, exact=True)
        same = evaluate(case, "reference", dtype)
        try:
            found = evaluate(case, backend, dtype)
        except Exception as failure:
            # A kernel that raises counts as a failed case: the remaining cases are still checked.
            row.add(float("inf"), 0.0, f"{case.name}: {type(failure).__name__}: {str(failure).splitlines()[0][:80]}")
            continue
        for name in same.keys() | found.keys():
            if name not in same or name not in found:
                row.add(float("inf"), 0.0, f"{case.name}: {name} is missing")
                continue
            limits = compare(found[name], same[name], exact[name], arithmetic, _device(backend))
            row.add(*limits, f"{case.name}: {name}")
    return row


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
    failed = 0
    for op in options.op:
        for backend in chosen:
            for name in options.dtype:
                row = check(op, backend, _DTYPES[name], options.seed)
                failed += not row.ok
                verdict = "ok" if row.ok else "FAIL"
                rows.append((op, backend, name, f"{row.error:.2e}", f"{row.allowed:.2e}", row.count, verdict, row.case))
    print(table(rows, right=(3, 4, 5)))
    print("error: max |y - float64 reference|; allowed: 2 x the same-dtype reference's error + tolerance x max |value|")
    print(f"{failed} of {len(rows) - 1} failed" if failed else f"all {len(rows) - 1} within tolerance")
    return 1 if failed else 0
