"""The report of a run, report.md with its pictures as PNG, from a results.json."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .ratios import duration
from .record import Result
from .tables import goal_rows, goals_table, headline, markdown, slope_rows, slopes_table

HELP = "report.md and its pictures as PNG from a results.json"
# Columns of results.csv, and their names in the report.
_COLUMNS = {
    "shape": "shape",
    "dtype": "dtype",
    "direction": "direction",
    "cache": "cache",
    "threads": "threads",
    "variant": "variant",
    "median_s": "median",
    "p20_s": "p20",
    "p80_s": "p80",
    "ns_per_element": "ns/element",
    "gb_s": "GB/s",
    "share_of_copy": "of copy",
    "times_eager": "× eager",
    "times_compile": "× compile",
    "peak_extra_bytes": "peak extra MiB",
    "launches": "launches",
    "device_s": "on the GPU",
}
_METHOD = """All variants of a work run in one process on the same random inputs, in turn, so that what else the
machine does affects all of them. Figures are medians and percentiles over the rounds. Outputs and gradients are
compared with the reference in float64 first: a wrong kernel gets no time. *eager* is plain PyTorch with its own random
numbers, as a user would write it; of several baselines of a kind the fastest counts. Before a *cold* call the caches
are filled with other data. GB/s counts the bytes that an ideal implementation moves; a copy's bandwidth was measured
in the same run, reads and writes both counted. On shared machines trust the ratios before the times."""


def write(result: Result, directory: Path) -> Iterator[str]:
    """Write results.json, results.csv and the report; yields the lines to print."""
    directory.mkdir(parents=True, exist_ok=True)
    result.save(directory / "results.json")
    result.save_csv(directory / "results.csv")
    yield goals_table(result)
    yield slopes_table(result)
    yield from write_report(result, directory)


def write_report(result: Result, folder: Path) -> Iterator[str]:
    """Write report.md, ratios.png, roofline.png, scaling.png and memory.png; yields why there are no pictures."""
    pictures: list[str] = []
    try:
        # Only here, so that everything else works without matplotlib.
        from .pictures import write_pictures

        pictures = write_pictures(result, folder)
    except ImportError as missing:
        yield f"no pictures: {missing}"
    (folder / "report.md").write_text(page(result, pictures), encoding="utf-8")


def page(result: Result, pictures: Sequence[str]) -> str:
    """The report in Markdown."""
    wrong = [(work.id, "; ".join(work.wrong)) for work in result.works if work.wrong]
    parts = {
        "Wrong results, not timed": markdown([("work", "differences"), *wrong]) if wrong else "",
        "Pictures": "\n\n".join(f"![{name}]({name})" for name in pictures),
        "Goals": markdown(goal_rows(result)) if result.goals else "",
        "Works from a warm cache, all threads": headline(result),
        "Host overhead: a call at the smallest shape": _overhead(result),
        "Slopes: d log(time) / d log(axis), 1 is linear": markdown(slope_rows(result)) if result.slopes else "",
        **_works(result),
        "Environment": _environment(result),
        "How this was measured": _METHOD,
    }
    title = f"# Benchmarks on {result.environment.get('processor', 'an unknown processor')}\n"
    return "\n".join([title, *(f"## {name}\n\n{text}\n" for name, text in parts.items() if text)])


def _works(result: Result) -> dict[str, str]:
    """One table for each op, with a row for each variant of each work; columns that nothing fills are left out."""
    tables: dict[str, list[dict]] = {}
    for row in result.rows():
        tables.setdefault(row["op"], []).append(row)
    found = {}
    for op, rows in tables.items():
        columns = [key for key in _COLUMNS if any(row[key] != "" for row in rows)]
        cells = [[_cell(key, row[key]) for key in columns] for row in rows]
        found[f"{op}, every variant"] = markdown([[_COLUMNS[key] for key in columns], *cells])
    return found


def _cell(key: str, value: float | str) -> str:
    if isinstance(value, str):
        return value or "—"
    if key.endswith("_s") and key != "gb_s":
        return duration(value)
    if key == "share_of_copy":
        return f"{100 * value:.3g} %"
    return f"{value / 2**20:.1f}" if key == "peak_extra_bytes" else f"{value:.3g}"


def _overhead(result: Result) -> str:
    variants = list(dict.fromkeys(entry.variant for entry in result.overhead))
    found = {(e.op, e.direction, e.variant): duration(e.seconds) for e in result.overhead}
    works = dict.fromkeys((e.op, e.direction) for e in result.overhead)
    rows = [(*work, *(found.get((*work, name), "—") for name in variants)) for work in works]
    return markdown([("op", "direction", *variants), *rows]) if rows else ""


def _environment(result: Result) -> str:
    rows = list(result.environment.items())
    rows += [(f"copy, threads: {n}", f"{rate:.1f} GB/s") for n, rate in result.copy_gb_s.items()]
    rows += [(f"arithmetic, threads: {n}", f"{rate:.0f} GFLOP/s") for n, rate in (result.flops_g or {}).items()]
    return markdown([("what", "value"), *rows])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="results.json")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: beside the results)")


def run(options: argparse.Namespace) -> int:
    """Returns: 0; 2 for a file that is not a results.json."""
    folder = options.out or Path(options.results).parent
    try:
        result = Result.load(options.results)
        folder.mkdir(parents=True, exist_ok=True)
        for line in write_report(result, folder):
            print(line)
    except (OSError, ValueError) as error:
        print(f"no report: {error}", file=sys.stderr)
        return 2
    print(f"wrote {folder / 'report.md'}")
    return 0
