"""Compare a revision with another one, or with the working tree: build both, test both, time them in turn.

The quick tests of the ops compared (tests/test_conformance.py and tests/test_gradients.py on the CPU kernels) run in
both first, about a minute each: if a test fails, nothing is timed. Then three processes take turns, two with the base's
library and one with head's. base/head (above 1, head is faster) is the median of the ratios within rounds, which drift
does not affect, not the ratio of the two medians shown; base/base shows the noise. A change exceeds the noise if its
95 % interval excludes 1 and it exceeds the least change: how far base/base's interval reaches from 1, at least 1 %.
"""

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from statistics import median
from typing import Any

from udml_kernels.tools.table import table

from . import checkouts, pairs
from .catalogue import catalogue
from .process import ProcessError
from .ratios import add_output_arguments, duration, interval, write

HELP = "build, test and time two git revisions in turn: ratios with their spread, and what is beyond the noise"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    ops = sorted({case.op for case in catalogue().values()})
    parser.add_argument("base", metavar="BASE", help="the old git revision")
    parser.add_argument("head", metavar="HEAD", nargs="?", default=checkouts.WORKING_TREE, help="default: %(default)s")
    parser.add_argument("--op", nargs="+", choices=ops, metavar="OP", help=f"only these: {', '.join(ops)}")
    parser.add_argument("--works", nargs="+", metavar="PATTERN", help="only works whose ids match: '*/cremad/*'")
    parser.add_argument("--list", action="store_true", help="print the works and do nothing else")
    parser.add_argument("--threads", type=_positive, default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=_positive, default=12, help="samples in each process (default: %(default)s)")
    parser.add_argument("--processes", type=_positive, default=3, help="fresh starts of each (default: %(default)s)")
    add_output_arguments(parser)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return int(text)


def chosen(ops: Sequence[str] | None, patterns: Sequence[str] | None) -> list[str]:
    """The ids of the works of these ops that match one of the patterns."""
    return [
        id
        for id, case in catalogue().items()
        if (not ops or case.op in ops) and (not patterns or any(fnmatchcase(id, p) for p in patterns))
    ]


def row(outcome: pairs.Outcome) -> dict[str, Any]:
    """The figures of a timed work: seconds per call, and ratios."""
    ratio, control = outcome.ratio, outcome.control
    times = {f"{role}_s": median(s for run in outcome.seconds[role] for s in run) for role in ("base", "head")}
    ratios = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}
    noise = {"base_base": control.value, "floor": outcome.least_change}
    return {"id": outcome.id, **times, **ratios, **noise, "verdict": outcome.verdict}


def _print(outcomes: list[pairs.Outcome], rows: list[dict], names: dict[str, str]) -> None:
    for role, name in names.items():
        print(f"{role}  {name}")
    lines = [("work", "base", "head", "base/head", "base/base", "noise", "")]
    for r in rows:
        noise = f"{r['base_base']:.3f}", f"{100 * (r['floor'] - 1):.1f} %"
        lines.append((r["id"], duration(r["base_s"]), duration(r["head_s"]), interval(r), *noise, r["verdict"]))
    if rows:
        print(table(lines))
    for o in outcomes:
        if o.missing is not None:
            print(f"not in base: {o.id}: {o.missing}")
        elif o.differences:
            print(f"not timed, results differ: {o.id}: {'; '.join(o.differences)}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _red(folders: dict[str, Any], ops: set[str]) -> bool:
    """Whether the tests of one revision fail; prints which ones."""
    for role, folder in folders.items():
        _tell(f"testing {role}")
        if failing := checkouts.failing_tests(folder, ops):
            _tell(f"nothing was timed: the tests of {role} are red\n  " + "\n  ".join(failing))
            return True
    return False


def run(options: argparse.Namespace) -> int:
    """Build, test, time, print.

    Returns:
        0; 1 if results differ or, with --fail-below, a work is slower; 2 if a revision or its library is not
        available; 3 if tests fail.
    """
    works = chosen(options.op, options.works)
    if options.list or not works:
        print("\n".join(works or catalogue()))
        return 0 if options.list else 2
    revisions = {"base": options.base, "head": options.head}
    try:
        _tell("building")
        folders = {role: checkouts.prepare(revision) for role, revision in revisions.items()}
        names = {role: checkouts.describe(revision) for role, revision in revisions.items()}
        if _red(folders, {catalogue()[id].op for id in works}):
            return 3
        libraries = {role: folder / "udml_kernels" for role, folder in folders.items()}
        libraries["again"] = libraries["base"]
        effort = {"threads": options.threads, "rounds": options.rounds, "processes": options.processes}
        outcomes = pairs.measure(libraries, works, **effort, tell=_tell)
    except (checkouts.CannotCompare, ProcessError) as reason:
        _tell(f"cannot compare: {reason}")
        return 2
    rows = [row(o) for o in outcomes if o.timed]
    _print(outcomes, rows, names)
    missing = {o.id: o.missing for o in outcomes if o.missing is not None}
    differing = {o.id: o.differences for o in outcomes if o.differences}
    slow = write(options, rows, {**names, **effort, "not_in_base": missing, "results_differ": differing})
    return int(slow or bool(differing))
