"""The bar charts: ratios, memory, random numbers. One panel for each op."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..record import Measured, Result
from .chosen import BASELINES, RANDOM_OPS, by_op, headline, lanes, ticks
from .drawing import Panel
from .palette import LIGHT
from .tables import variants
from .text import MISSING, known, number, part, percent, plain, times, where

# A row's name, and for each role the length of its bar and the label at its end.
Row = tuple[str, dict[str, tuple[float, str]]]

# The label has a background patch, so that no line runs through it.
_NUMBER: dict[str, Any] = {
    "textcoords": "offset points",
    "va": "center",
    "fontsize": 7.5,
    "bbox": {"facecolor": LIGHT["card"], "linewidth": 0, "pad": 0.3},
    "zorder": 5,
}


def ratios(result: Result) -> list[Panel]:
    """How many times as long the baselines take."""
    panels = []
    for op, works in by_op(headline(result)).items():
        found = [(where(w), {b: w.ratio(b) for b in BASELINES}) for w in works]
        rows = [(name, {b: (r, times(r)) for b, r in bars.items() if known(r)}) for name, bars in found]
        what = f"{op}, how many times as long as the fused op the baselines take"
        panels += _panel("ratios", op, what, rows, _draw_ratios)
    return panels


def memory(result: Result) -> list[Panel]:
    """Peak extra memory as a fraction of the eager baseline's."""
    panels = []
    for op, works in by_op(headline(result)).items():
        what = f"{op}, peak extra memory as a share of eager PyTorch's"
        panels += _panel("memory", op, what, [(where(w), _memory(w)) for w in works], _draw_memory)
    return panels


def _memory(work: Measured) -> dict[str, tuple[float, str]]:
    eager, found = work.baseline("eager") or "", {}
    for kind, name in {"fused": "fused", "compile": work.baseline("compile")}.items():
        share = work.memory_ratio(name or "")
        if name and known(share):
            found[kind] = share, part(*(work.variants[n].peak_extra_bytes for n in (name, eager)))
    return found


def random(result: Result) -> list[Panel]:
    """Nanoseconds per number, with one panel for each work."""
    panels = []
    for work in (work for work in headline(result) if work.op in RANDOM_OPS):
        found = [(name, kind, work.ns_per_element(name)) for name, kind in variants(work)]
        rows = [(name, {kind: (ns, number(ns))}) for name, kind, ns in found if known(ns)]
        title = f"{work.op} {work.shape}"
        panels += _panel("random", title, f"{title}, nanoseconds a number", rows, _draw_random, bars=1)
    return panels


def _panel(plot: str, title: str, what: str, rows: Sequence[Row], draw, bars: int = 2) -> list[Panel]:
    """One panel, or none if there is nothing to show. Rows without bars are left out; the page lists them."""
    rows = [row for row in rows if row[1]]
    says = "; ".join(
        f"{name}: {', '.join(f'{kind} {text}' for kind, (_, text) in found.items())}" for name, found in rows
    )
    height = 0.6 + len(rows) * (0.12 + 0.13 * bars)
    return [Panel(f"{plot}-{title}", title, f"{what}. {says}.", height, partial(draw, rows))] if rows else []


def _draw_ratios(rows: Sequence[Row], axes: Axes) -> None:
    values = [value for _, found in rows for value, _ in found.values()]
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, min(values) / 1.5), max(2.2, max(values) * 1.9))
    _bars(axes, rows, BASELINES, start=1)
    axes.axvline(1, color=LIGHT["fused"], linewidth=1.8)
    ticks(axes.xaxis, times)
    axes.set_xlabel("time of the baseline, fused = 1×")


def _draw_memory(rows: Sequence[Row], axes: Axes) -> None:
    _bars(axes, rows, ("fused", "compile"))
    axes.axvline(1, color=LIGHT["eager"], linewidth=1.8)
    axes.set_xlim(0, 1.75 * max(1, *(value for _, found in rows for value, _ in found.values())))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(percent(value))))
    axes.set_xlabel("peak extra memory, eager = 100 %")


def _draw_random(rows: Sequence[Row], axes: Axes) -> None:
    _bars(axes, rows)
    axes.margins(x=0.15)
    axes.set_xlabel("nanoseconds a number")


def _bars(axes: Axes, rows: Sequence[Row], kinds: Sequence[str] = (), start: float = 0) -> None:
    """Horizontal bars from `start`, for `kinds` in every row, or else for the roles that the row has."""
    for n, (name, found) in enumerate(rows):
        wanted = kinds or list(found)
        thick = 0.8 / len(wanted)
        for k, kind in enumerate(wanted):
            y = n + (k - (len(wanted) - 1) / 2) * thick
            if kind not in found:
                axes.annotate(
                    f"{kind} {MISSING}", (start, y), (4, 0), color=LIGHT["quiet"], fontstyle="italic", **_NUMBER
                )
                continue
            value, text = found[kind]
            (bar,) = axes.barh(y, value - start, 0.86 * thick, left=start, color=LIGHT[kind], linewidth=0)
            bar.set_gid(f"tip:{name}, {kind}: {text}")
            axes.annotate(text, (max(value, start), y), (4, 0), color=LIGHT[kind], **_NUMBER)
    lanes(axes, [name for name, _ in rows])
    axes.grid(axis="y", visible=False)
