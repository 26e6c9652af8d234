"""Measure all works, or some, and write results.json, results.csv and the report."""

import argparse
from importlib.util import find_spec
from pathlib import Path

import pytest

from .case import MODULES

HELP = "measure everything; write results.json, results.csv and the report"
# One process, no state of an earlier run, no other output. A file that lacks a package must not stop the others.
_PYTEST = "-q -p no:cacheprovider -p no:xdist -p no:warnings --continue-on-collection-errors".split()
if find_spec("pytest_benchmark"):
    _PYTEST.append("--benchmark-quiet")
_HERE = Path(__file__).parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("op", nargs="*", metavar="OP", help=f"some of {', '.join(MODULES)}; none: all")
    parser.add_argument("--device", help="cpu (default), or a GPU that torch knows, such as cuda")
    parser.add_argument("--threads", type=int, help="default: one per processor")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results/<machine>")
    parser.add_argument("--quick", action="store_true", help="a fifth of the time, no torch.compile, no memory")
    parser.add_argument("-k", metavar="EXPRESSION", help="only works whose ids match; see pytest -k")


def run(options: argparse.Namespace) -> int:
    """Return pytest's exit code: 0, or 1 if a result was wrong."""
    unknown = sorted({*options.op} - {*MODULES})
    if unknown:
        print(f"op: expected some of {', '.join(MODULES)}, got {', '.join(unknown)}")
        return 2
    files = [str(_HERE / f"bench_{name}.py") for name in options.op or MODULES]
    given = [f"--{name}={value}" for name in ("device", "threads", "out") if (value := getattr(options, name))]
    quick = ["--quick"] if options.quick else []
    chosen = ["-k", options.k] if options.k else []
    return int(pytest.main([*_PYTEST, *files, *given, *quick, *chosen]))
