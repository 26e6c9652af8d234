"""The summary of a folder of results: facts, steps, times, profiled kernels, predictions."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import predictions, read
from .plan import METRICS, Part

_FACTS = ("driver_cuda", "torch", "triton", "cuda", "python", "capability", "multiprocessors", "commit", "date")


def write(out: Path, parts: dict[int, Part]) -> str:
    """Write summary.md from what the folder holds so far, and return it."""
    facts = read.facts(out)
    card = read.details("card", read.text(out, "1_card.txt"))
    sections = [
        f"# {facts.get('card', 'Unknown card')}\n",
        f"nvidia-smi: {card or 'not available'}\n",
        ", ".join(f"{name} {facts[name]}" for name in _FACTS if name in facts) or "the facts are missing",
        "\n" + _copy(facts),
        "\n## Steps\n",
        *_steps(out, parts),
        *_section("Times", _times(out, str(facts.get("card", ""))), _TIMES_NOTE),
        *_section("Through torch.compile", _compiled(out)),
        *_section("Kernels, by ncu", _kernels(out)),
        "\n## Predictions\n",
        *_table(("predicted", "seen"), predictions.beside_what_was_seen(out)),
    ]
    text = "\n".join(sections) + "\n"
    (out / "summary.md").write_text(text)
    return text


def _copy(facts: dict[str, Any]) -> str:
    if "copy_gb_s" not in facts:
        return "The bandwidth of a copy was not measured."
    launch = f"a graph of one small kernel takes {facts.get('one_launch_us', 0):.1f} us"
    return f"A copy moves {facts['copy_gb_s']:.0f} GB/s, reads and writes both counted; {launch}."


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    cells = [tuple(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (tuple(head), ("---",) * len(head), *cells)]


def _section(title: str, table: list[str], note: str = "") -> list[str]:
    """Nothing where the table has no rows."""
    return [f"\n## {title}\n", *([note + "\n"] if note else []), *table] if len(table) > 2 else []


def _steps(out: Path, parts: dict[int, Part]) -> list[str]:
    """Every step of the plan, with the last way in which it ended."""
    ended = {(row["part"], row["name"]): row for row in read.lines(out, "steps.jsonl")}
    rows = []
    for number, part in parts.items():
        for step in part.steps:
            row = ended.get((number, step.name))
            if row is None:
                rows.append((f"{number} {part.title}", step.name, "not run", "", ""))
                continue
            how = row["why"] or ("passed" if row["rc"] == 0 else f"FAILED, exit code {row['rc']}")
            said = read.details(step.name, read.text(out, f"{number}_{step.name}.txt"))
            rows.append((f"{number} {part.title}", step.name, how, f"{row['seconds']:.1f}", said))
    return _table(("part", "step", "how it ended", "s", "what it says"), rows)


_TIMES_NOTE = """Microseconds of a graph's replay: warm, and after the caches were overwritten. Then the share of a
copy's bandwidth, warm and cold, and the share that the counted instructions and sectors predict. Warm shares above
100 % come out of the cache, and launches count in the small works. `host us` is the time until a call without a graph
is queued."""


def _times(out: Path, card: str) -> list[str]:
    shares, rows = predictions.Shares(card), []
    for row in read.lines(out, "times.jsonl"):
        if "work" not in row:
            continue
        predicted = shares.of(row["work"], row["variant"])
        percent = f"{100 * predicted:.0f}" if predicted else ""
        rows.append((*_row(row), percent, _number(row, "host_us"), _launches(row), row.get("error", "")))
    head = ("work", "variant", "us", "cold us", "% of copy", "cold %", "predicted %", "host us", "launches", "error")
    return _table(head, rows)


def _compiled(out: Path) -> list[str]:
    rows = [(*_row(row), row.get("error", "")) for row in read.lines(out, "compile.jsonl") if "work" in row]
    return _table(("work", "variant", "us", "cold us", "% of copy", "cold %", "error"), rows)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = (_number(row, name) for name in ("warm_us", "cold_us", "percent_of_copy", "cold_percent"))
    return (row["work"].removesuffix("/warm"), row["variant"], *numbers)


def _number(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _launches(row: dict[str, Any]) -> str:
    return str(len(row["kernels"])) if "kernels" in row else ""


def _kernels(out: Path) -> list[str]:
    rows = [
        (backend, launch["kernel"], *(_number(launch, metric) for metric in METRICS))
        for backend in ("cuda", "triton")
        for launch in read.profiled(out, backend)
    ]
    return _table(("backend", "kernel", "us", "DRAM %", "sectors stored", "issue %", "warps %"), rows)
