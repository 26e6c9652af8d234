"""The scaling curves: time against the quantity that a sweep varies."""

from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..record import Measured, Result
from .chosen import ticks
from .drawing import Panel
from .palette import LIGHT, MARKERS
from .tables import variants
from .text import known, seconds

# A variant's role, and its points: the value on the axis, median, p20 and p80 in seconds.
Line = tuple[str, list[tuple[Any, float, float, float]]]


def sweeps(result: Result) -> dict[tuple[str, str], list[Measured]]:
    """(series, axis) -> its works along the axis; values that are names keep their order."""
    found: dict[tuple[str, str], list[Measured]] = {}
    for work in result.works:
        if work.sweep:
            found.setdefault((work.sweep.series, work.sweep.axis), []).append(work)
    return {key: sorted(works, key=_place) for key, works in found.items()}


def _place(work: Measured) -> float:
    return work.sweep.value if work.sweep and not isinstance(work.sweep.value, str) else 0


def scaling(result: Result) -> list[Panel]:
    """One panel for each series and axis with a time."""
    panels = []
    for (series, axis), works in sweeps(result).items():
        lines = _lines(works)
        if not lines:
            continue
        slopes = {s.variant: s.slope for s in result.slopes if (s.series, s.axis) == (series, axis)}
        labels = {name: f"{name} {slopes[name]:.2f}" if known(slopes.get(name)) else name for name in lines}
        says = "; ".join(
            f"{labels[name]}: {', '.join(f'{x} {seconds(t)}' for x, t, *_ in line[1])}" for name, line in lines.items()
        )
        text = f"{series}, time against {axis}, with the slopes. {says}."
        draw = partial(_curves, lines, labels, axis)
        panels.append(Panel(f"scaling-{series}-{axis}", f"{series} over {axis}", text, 2.7, draw))
    return panels


def _lines(works: list[Measured]) -> dict[str, Line]:
    found: dict[str, Line] = {}
    for work in works:
        for name, kind in variants(work):
            v = work.variants[name]
            if work.sweep and known(v.median):
                found.setdefault(name, (kind, []))[1].append((work.sweep.value, v.median, v.p20, v.p80))
    return found


def _curves(lines: dict[str, Line], labels: dict[str, str], axis: str, axes: Axes) -> None:
    values = list(dict.fromkeys(x for _, points in lines.values() for x, *_ in points))
    names = any(isinstance(x, str) for x in values)
    place = {x: n if names else x for n, x in enumerate(values)}
    axes.set_yscale("log")
    axes.set_xscale("linear" if names else "log")
    ends = {}
    for name, (kind, points) in lines.items():
        _curve(axes, kind, [(place[x], *times) for x, *times in points], labels[name], ":" if names else "-")
        ends[labels[name]] = place[points[-1][0]], points[-1][1], LIGHT[kind]
    if axis == "threads" and "fused" in lines and not names:
        ends["ideal"] = _ideal(axes, lines["fused"][1])
    if names:
        axes.set_xlim(-0.3, len(values) - 0.7)
    _label_ends(axes, ends)
    axes.xaxis.set_major_locator(FixedLocator(list(place.values())))
    axes.xaxis.set_minor_locator(NullLocator())
    shown = {position: str(x) for x, position in place.items()}
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: shown.get(x, "")))
    ticks(axes.yaxis, seconds)
    axes.set_xlabel(axis)


def _curve(axes: Axes, kind: str, points: list, label: str, dashes: str) -> None:
    """A line through the medians, and the band of the percentiles."""
    xs, medians, low, high = zip(*points, strict=True)
    look: dict[str, Any] = {"color": LIGHT[kind], "marker": MARKERS[kind], "markersize": 4.5, "markeredgewidth": 0}
    (line,) = axes.plot(xs, medians, linewidth=2.2 if kind == "fused" else 1.3, linestyle=dashes, **look)
    line.set_gid(f"tip:{label}")
    if all(map(known, (*low, *high))):
        axes.fill_between(xs, low, high, color=LIGHT[kind], alpha=0.15, linewidth=0)


def _ideal(axes: Axes, points: list) -> tuple[float, float, str]:
    """The ideal scaling with threads; returns where the line ends, and its colour."""
    first, time = points[0][:2]
    xs = [x for x, *_ in points]
    axes.plot(xs, [time * first / x for x in xs], color=LIGHT["quiet"], linewidth=1, linestyle=(0, (2, 2)))
    return xs[-1], time * first / xs[-1], LIGHT["quiet"]


def _label_ends(axes: Axes, ends: dict[str, tuple[float, float, str]]) -> None:
    """Names to the right of the lines' last points, moved apart by a line's height where they would overlap."""
    axes.get_ylim()  # settles the limits
    gap, last = 0.068, -1.0
    for name, (x, y, color) in sorted(ends.items(), key=lambda e: e[1][1]):
        _, height = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        last = max(height, last + gap)
        axes.annotate(name, (1.02, last), xycoords="axes fraction", va="center", fontsize=8, color=color)
