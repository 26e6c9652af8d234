"""On a machine with a GPU: tests, times, profilers, in four parts of less than nine minutes; a summary comes last.

Every step runs in a process of its own, and one that fails, lacks a tool or takes too long does not stop the others.
DIR gets <part>_<step>.txt as the lines come, steps.jsonl, times.jsonl, compile.jsonl and summary.md.
"""

import argparse
import signal
import sys
from pathlib import Path

from . import keep, summary
from .plan import ACCESS, ROOT, parts
from .runner import run_part

HELP = "on a machine with a GPU: tests, times and profilers in four parts, with a summary"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/gpu"), help="default: runs/gpu")
    parser.add_argument(
        "--part", type=int, nargs="+", choices=range(1, 5), default=[1, 2, 3, 4], metavar="N", help="some of 1 to 4"
    )
    parser.add_argument("--dry", action="store_true", help="a rehearsal without a GPU, on the smallest works")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="after each part, also all of DIR in one .tar.gz")
    parser.add_argument(
        "--keep", type=Path, nargs="+", metavar="DIR",
        help="run nothing: copy the results of folders, or of .tar.gz files, to benchmarks/results/<card>/gpu",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Return 0, or 1 if a step did not pass; in a rehearsal a missing program is none."""
    if options.keep:
        print(f"kept in {keep.keep(options.keep)}")
        return 0
    # So that a step that is running is ended with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (ROOT / ACCESS).parent.mkdir(parents=True, exist_ok=True)
    plan, ended = parts(out, options.dry), []
    for number in sorted(set(options.part)):
        ended += run_part(number, plan[number], out)
        text = summary.write(out, plan)
        if options.pack:
            keep.pack(out, options.pack.resolve())
        print("\n" + text, flush=True)
    failed = [done for done in ended if not done.passed and not (options.dry and done.why.startswith("missing"))]
    for done in failed:
        print(f"part {done.part}, {done.name}: {done.why or f'exit code {done.rc}'}", file=sys.stderr)
    return 1 if failed else 0
