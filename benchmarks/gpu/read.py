"""What the steps of `python -m benchmarks gpu` wrote, read back from a folder."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_COUNTED = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)")
# Of a run that was ended before its last line: the marks of `pytest -q`.
_MARKS = re.compile(r"^([.FEsxX]+)(?:\s*\[ *\d+%\])?$", re.M)
_MARK = {".": "passed", "F": "failed", "E": "errors", "s": "skipped", "x": "xfailed", "X": "xpassed"}
_ACCESS = re.compile(
    r"(\d) vectors, load (\w+), store (\w+), (\d) read (\d) written, blocks/SM (\d+): ([\d.]+) ms +(\d+) GB/s"
)


def text(out: Path, name: str) -> str:
    file = out / name
    return file.read_text(errors="replace") if file.exists() else ""


def lines(out: Path, name: str) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a line that was cut short is left out."""
    found = []
    for line in text(out, name).splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def facts(out: Path) -> dict[str, Any]:
    """The facts of the first part, or what the times say."""
    timed = [row for row in lines(out, "times.jsonl") if "card" in row]
    return {**(timed[-1] if timed else {}), **next(iter(lines(out, "1_facts.txt")), {})}


def tests(output: str) -> str:
    """pytest's counts: of its last line, or else of the marks that it printed; empty where it printed neither."""
    for line in reversed(output.splitlines()):
        if (counts := _COUNTED.findall(line)) and re.search(r" in [\d.]+s", line):
            return ", ".join(f"{n} {what}" for n, what in counts)
    marks = "".join(_MARKS.findall(output))
    counted = [f"{marks.count(mark)} {what}" for mark, what in _MARK.items() if mark in marks]
    return ", ".join(counted) + " before it ended" if counted else ""


def details(name: str, output: str) -> str:
    """What a step's output says in one line."""
    if counts := tests(output):
        return counts
    wanted = {
        "card": r"^(?!name).*,.*$",
        "memcheck": r"^.*(?:ERROR SUMMARY: .*|\d+ cases ran|\d+ cases)$",
        "racecheck": r"^.*(?:RACECHECK SUMMARY: .*|\d+ cases ran|\d+ cases)$",
    }
    found = re.findall(wanted[name], output, re.M) if name in wanted else []
    if name != "card":
        cases = [line for line in found if "SUMMARY" not in line]
        found = [line.strip("= ") for line in found if "SUMMARY" in line] + cases[-1:]
    return ", ".join(dict.fromkeys(found))


def access(out: Path) -> dict[tuple[int, int, int, int], dict[tuple[str, str], float]]:
    """GB/s of each pattern (load, store), by vectors, reads, writes and resident blocks."""
    found: dict[tuple[int, int, int, int], dict[tuple[str, str], float]] = {}
    for v, load, store, reads, writes, blocks, _, rate in _ACCESS.findall(text(out, "1_access.txt")):
        found.setdefault((int(v), int(reads), int(writes), int(blocks)), {})[load, store] = float(rate)
    return found


def _table(output: str) -> Iterator[dict[str, str]]:
    """The rows of the table that `ncu --csv` prints among other lines."""
    rows = output.splitlines()
    start = next((i for i, line in enumerate(rows) if line.startswith('"ID"')), len(rows))
    return csv.DictReader(line for line in rows[start:] if line.startswith('"'))


def profiled(out: Path, backend: str) -> list[dict[str, Any]]:
    """A row for each launch: `kernel`, and its metrics as numbers; times in microseconds."""
    found: dict[str, dict[str, Any]] = {}
    for row in _table(text(out, f"2_ncu_{backend}.txt")):
        try:
            value = float(row["Metric Value"].replace(",", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        # ncu chooses a unit for each time.
        scale = {"ns": 1e-3, "nsecond": 1e-3, "ms": 1e3, "msecond": 1e3, "s": 1e6, "second": 1e6}
        value *= scale.get(row.get("Metric Unit") or "", 1)
        launch = found.setdefault(row["ID"], {"kernel": _short(row["Kernel Name"])})
        launch[row["Metric Name"]] = value
    return list(found.values())


def _short(kernel: str) -> str:
    """A kernel's name without namespace, template and arguments."""
    named = re.search(r"(\w+)\s*(?:<|\(|$)", kernel.removeprefix("void "))
    return named[1] if named else kernel[:40]
