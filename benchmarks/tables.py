"""The headline table of a results.json in Markdown, its goals and its slopes."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch

from udml_kernels.tools.table import table

from .record import Measured, Result

HELP = "print the headline table, the goals and the slopes of a results.json"
_OPS = (
    "normal uniform inject_noise reparameterize noise_regression weighted_fusion modality_dropout evidential_fusion "
    "head_step training_step"
).split()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="results.json")
    parser.add_argument(
        "--works", nargs="+", default=["*"], metavar="PATTERN", help="only ids that match: '*/cremad/*'"
    )


def run(options: argparse.Namespace) -> int:
    """Returns: 0; 2 for a file that is not a results.json."""
    try:
        result = Result.load(options.results)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{headline(result, options.works)}\n\n{goals_table(result)}\n\n{slopes_table(result)}")
    return 0


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row has the names of the columns."""
    first, *rest = (f"| {' | '.join(' '.join(c.replace('|', '&#124;').split()) for c in row)} |" for row in rows)
    return "\n".join([first, "|---" * len(rows[0]) + "|", *rest])


def goal_rows(result: Result) -> list[tuple[str, ...]]:
    """The goals and what was reached, after the names of the columns."""
    rows: list[tuple[str, ...]] = [("goal", "asked", "reached", "")]
    for goal in result.goals:
        reached = "not measured" if goal.reached is None else f"{goal.reached:.4g} {goal.unit}"
        sign = "<=" if goal.most else ">="
        verdict = "met" if goal.met else "NOT met" if goal.reached is not None else ""
        rows.append((goal.name, f"{sign} {goal.asked:g} {goal.unit}", reached, verdict))
    return rows


def goals_table(result: Result) -> str:
    return table(goal_rows(result), right=(1, 2))


def slope_rows(result: Result) -> list[tuple[str, ...]]:
    """The log-log slopes of the time, 1 is linear, after the names of the columns."""
    rows = [(s.series, s.axis, s.variant, f"{s.slope:.3f}") for s in result.slopes]
    return [("series", "along", "variant", "log-log slope"), *rows]


def slopes_table(result: Result) -> str:
    return table(slope_rows(result), right=(3,)) if result.slopes else ""


def headline(result: Result, patterns: Sequence[str] = ("*",)) -> str:
    """The table of docs/performance.md: works with a warm cache and all threads whose ids match one of the patterns."""
    columns = "work, shape, eager ms, compile ms, fused ms, ns/element, % of copy, × eager, × compile".split(", ")
    return markdown([columns, *(_cells(result, work) for work in _shown(result, patterns))])


def _shown(result: Result, patterns: Sequence[str]) -> Iterator[Measured]:
    threads = max((work.threads for work in result.works), default=1)
    for op in _OPS:
        for work in result.works:
            plain = work.sweep is None and work.cache == "warm" and work.threads == threads and work.variants
            if work.op == op and plain and any(fnmatch(work.id, pattern) for pattern in patterns):
                yield work


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _cells(result: Result, work: Measured) -> list[str]:
    def ms(kind: str) -> str:
        name = work.baseline(kind)
        return _milliseconds(work.variants[name].median) if name else "—"

    def times(kind: str) -> str:
        ratio = work.ratio(kind)
        return f"{ratio:.1f}" if ratio else "—"

    share = result.copy_share(work)
    direction = "fwd+bwd" if "backward" in work.direction else "forward"
    half = "" if work.dtype == "float32" else f" {work.dtype}"
    return [
        f"`{work.op}` {direction}{half}",
        f"{work.shape}: {work.dims}",
        ms("eager"),
        ms("compile"),
        _milliseconds(work.variants["fused"].median),
        f"{work.ns_per_element():.2f}",
        f"{100 * share:.0f}" if share else "—",
        times("eager"),
        times("compile"),
    ]
