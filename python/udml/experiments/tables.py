"""The report's tables, in CSV and in Markdown."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..training.evaluate import MIX
from ..training.folder import write_csv
from .aims import points
from .estimation import ESTIMATORS, answer
from .frame import Condition, Frame, label
from .kinds import CLASSES
from .measures import LEVELS, TRUE_LEVELS, WEIGHT_LEVELS
from .plan import FUSIONS, ROWS, SIDE_ROWS, VIEWS
from .statistics import Interval, interval

ABLATION_ROWS = ("static", "static-gamma", "no-dependency", "udml", "no-probability", "no-gamma")
WEIGHT_ROWS = ("udml", "pe", "pe-gamma", "oracle")
# By group, the name of its files.
SIDE_NAMES = {"fusion": "fusions", "views": "views"}
Rows = list[dict[str, Any]]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with the first column left-aligned and the others right-aligned."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def percent(i: Interval | None) -> str:
    """An accuracy as text: 81.2 ± 0.4."""
    if i is None:
        return "–"
    return f"{i.mean:.1f}" if math.isnan(i.half) else f"{i.mean:.1f} ± {i.half:.1f}"


def difference(i: Interval | None) -> str:
    """A difference as text, bold if its interval does not contain zero."""
    if i is None:
        return "–"
    return f"**{points(i)}**" if i.low > 0 or i.high < 0 else points(i)


def write_table(path: Path, rows: Rows) -> None:
    """Write rows as CSV; numbers have five significant digits, missing values are empty."""
    write_csv(path, [{key: _cell(value) for key, value in row.items()} for row in rows])


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.5g}"
    return "" if value is None else value


def spread(i: Interval | None, name: str) -> dict[str, Any]:
    """An interval as three columns."""
    low, high = (None, None) if i is None else (i.low, i.high)
    return {name: None if i is None else i.mean, f"{name}_low": low, f"{name}_high": high}


def accuracies(frame: Frame, rows: Sequence[str]) -> Rows:
    """Every row under every condition: percent, and paired differences to static and to PE in points."""
    lines = (
        _compared(frame, {"method": label(row), "degraded": c.degraded, "sigma": c.sigma}, row, c)
        for row in rows
        for c in frame.conditions()
    )
    return [line for line in lines if line is not None]


def _compared(
    frame: Frame, start: dict[str, Any], row: str, condition: Condition, variant: str = "", group: str = "main"
) -> dict[str, Any] | None:
    """A line of a table of accuracies; None without runs."""
    found = frame.accuracy(row, condition, variant, frame.group_of(row, group))
    if found is None:
        return None
    line = start | {"seeds": found.n} | spread(found, "accuracy")
    for other in ("static", "pe"):
        minus = None if row == other else frame.difference(row, other, condition, variant, group)
        line |= spread(minus, f"minus_{other}")
    return line


def by_level(rows: Sequence[str], conditions: Sequence[Condition], cell: Callable[[str, Condition], str]) -> str:
    """A Markdown table: rows by conditions."""
    header = ["mix" if c.degraded == MIX else f"σ = {c.sigma}" for c in conditions]
    return markdown(["", *header], ([label(row), *(cell(row, c) for c in conditions)] for row in rows))


def panel_conditions(degraded: str) -> list[Condition]:
    """The conditions of a panel; the mix is shown beside the levels on all modalities."""
    levels = [Condition(degraded, sigma) for sigma in LEVELS]
    return levels if degraded != "all" else [Condition(MIX), *levels]


def side(frame: Frame, group: str) -> Rows:
    """The fusions or the views, by row: percent, and the differences to static and PE."""
    conditions = [c for c in frame.conditions() if c.degraded in (MIX, "all")]
    lines = (
        _compared(frame, {group: variant, "method": label(row), "condition": str(c)}, row, c, variant, group)
        for variant in side_variants(group)
        for row in SIDE_ROWS
        for c in conditions
    )
    return [line for line in lines if line is not None]


def side_variants(group: str) -> tuple[str, ...]:
    """The variants in the order of the table; the main comparison's own comes first."""
    return FUSIONS if group == "fusion" else ("two", *VIEWS)


def estimates(frame: Frame) -> tuple[Rows, Rows]:
    """The predicted noise at every true level, and its statistics, for UDML and PE by modality."""
    curves, figures = [], []
    for row in ESTIMATORS:
        for modality in frame.spec.modalities:
            found = answer(frame, row, modality)
            if found is None:
                continue
            start = {"method": label(row), "modality": modality}
            quantiles = zip(TRUE_LEVELS, found.low, found.median, found.high, strict=True)
            curves += [start | {"sigma": s, "low": a, "median": b, "high": c} for s, a, b, c in quantiles]
            for name, i in found.figures.items():
                figures.append(start | {"figure": name} | spread(i, "value"))
    return curves, figures


def weight_intervals(frame: Frame, row: str, modality: str) -> list[Interval]:
    """The mean weight of the modality that alone is degraded, at WEIGHT_LEVELS; empty without runs."""
    runs = [run["weights"][modality] for run in frame.seeds(row).values()]
    return [interval(values) for values in zip(*runs, strict=True)]


def weights(frame: Frame) -> Rows:
    """`weight_intervals` of all rows and modalities."""
    return [
        {"method": label(row), "modality": modality, "sigma": sigma} | spread(found, "weight")
        for row in WEIGHT_ROWS
        for modality in frame.spec.modalities
        for sigma, found in zip(WEIGHT_LEVELS, weight_intervals(frame, row, modality), strict=False)
    ]


def suppression(frame: Frame) -> Rows:
    """Training weight and gradient norm of every modality's encoder, by epoch, means over seeds."""
    table = []
    for row in ("pe", "pe-gamma", "udml"):
        runs = [run["history"] for run in frame.seeds(row).values()]
        for modality in frame.spec.modalities if runs else ():
            for epoch, phase in enumerate(runs[0]["phase"]):
                line = {"method": label(row), "modality": modality, "epoch": epoch + 1, "phase": phase}
                for name, key in (("weight", "weights"), ("gradient_norm", "gradients")):
                    line |= spread(interval([run[key][modality][epoch] for run in runs]), name)
                table.append(line)
    return table


def confusion(frame: Frame) -> list[list[float]] | None:
    """The mean over seeds: rows are the truth, columns the answer, of CLASSES."""
    runs = [run["confusion"] for run in frame.seeds("udml", group="kinds").values()]
    if not runs:
        return None
    return [[sum(run[i][j] for run in runs) / len(runs) for j in range(len(CLASSES))] for i in range(len(CLASSES))]


def write_tables(frame: Frame, tuning: Rows, folder: Path) -> None:
    """Write every table as CSV."""
    curves, figures = estimates(frame)
    tables = {
        "accuracy": accuracies(frame, tuple(ROWS)),
        "ablation": accuracies(frame, ABLATION_ROWS),
        "noise": curves,
        "estimators": figures,
        "weights": weights(frame),
        "suppression": suppression(frame),
        "tuning": tuning,
    }
    tables |= {name: side(frame, group) for group, name in SIDE_NAMES.items() if frame.has(group)}
    matrix = confusion(frame)
    if matrix is not None:
        shares = zip(CLASSES, matrix, strict=True)
        tables["noise_types"] = [{"truth": name} | dict(zip(CLASSES, row, strict=True)) for name, row in shares]
    for name, rows in tables.items():
        write_table(folder / f"{name}.csv", rows)
