"""The pictures of a run as PNG: speed-ups, bandwidth as a share of a copy's, scaling, memory."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, NullLocator

from .record import Measured, Result, Variant

# A colour that the colour-blind can tell from the others, a marker and a name for each kind of variant.
_KINDS = {
    "fused": ("#0072b2", "o", "fused, this package"),
    "backend": ("#00a0bd", "P", "its further backends"),
    "compile": ("#963b87", "s", "torch.compile"),
    "eager": ("#b84a00", "D", "eager PyTorch"),
    "library": ("#1c774b", "^", "other libraries"),
    "reference": ("#6e6206", "v", "this package's reference"),
}
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dfe3e8",
    "figure.constrained_layout.h_pad": 0.1,
    "lines.markersize": 4.5,
    "text.parse_math": False,
}
# The figure at the end of a bar, on a white patch.
_FIGURE: dict[str, Any] = {
    "textcoords": "offset points",
    "va": "center",
    "fontsize": 7.5,
    "bbox": {"fc": "white", "lw": 0, "pad": 0.3},
}
_WIDTH = 4.2
# Value by the name of the work, by kind.
Bars = dict[str, dict[str, float]]


@dataclass
class Panel:
    """A plot on one pair of axes, some inches high."""

    title: str
    height: float
    draw: Callable[[Axes], None]


def write_pictures(result: Result, folder: Path) -> list[str]:
    """Write the pictures and return their names; where there is nothing to plot, remove the one of an earlier run."""
    written = []
    for name, (panels, kinds) in _pictures(result).items():
        path = folder / f"{name}.png"
        if panels:
            _save(panels, kinds, path)
            written.append(path.name)
        else:
            path.unlink(missing_ok=True)
    return written


def _pictures(result: Result) -> dict[str, tuple[list[Panel], Collection[str]]]:
    """Panels and the kinds in the legend, by the picture's name."""
    timed = [work for work in result.works if work.sweep is None and work.variants]
    return {
        "ratios": _bar_panels(timed, ("eager", "compile"), lambda work, kind: work.ratio(kind), _draw_ratios),
        "roofline": _shares(result, timed),
        "scaling": (_scaling(result), ()),
        "memory": _bar_panels(timed, ("fused", "compile"), _memory, _draw_memory),
    }


def _kind(variant: str, kind: str) -> str:
    return "backend" if kind == "fused" and variant != "fused" else kind


def _save(panels: list[Panel], kinds: Collection[str], path: Path) -> None:
    """Each panel goes into the column that is the shortest so far."""
    columns: list[list[Panel]] = [[] for _ in panels[:3]]
    for panel in panels:
        min(columns, key=_height).append(panel)
    highest = max(map(_height, columns))
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH * len(columns), highest + 0.4), dpi=96, layout="constrained")
        for part, column in zip(figure.subfigures(1, len(columns), squeeze=False)[0], columns, strict=True):
            heights = [*(panel.height for panel in column), max(1e-3, highest - _height(column))]
            *axes, rest = part.subplots(len(heights), 1, height_ratios=heights)
            rest.set_axis_off()
            for panel, place in zip(column, axes, strict=True):
                place.set_title(panel.title)
                panel.draw(place)
        marks = [
            Line2D([], [], color=_KINDS[k][0], marker=_KINDS[k][1], linestyle="", label=_KINDS[k][2]) for k in kinds
        ]
        if marks:
            marks.append(Line2D([], [], linestyle="", label="nothing drawn: not measured"))
            figure.legend(handles=marks, loc="outside upper left", ncols=2 * len(columns), frameon=False)
        figure.savefig(path, pil_kwargs={"optimize": True})


def _height(column: list[Panel]) -> float:
    return sum(panel.height for panel in column)


def _by_op(works: Iterable[Measured]) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for work in works:
        found.setdefault(work.op, []).append(work)
    return found


def _headline(timed: list[Measured]) -> dict[str, list[Measured]]:
    """One work for each op, shape and direction: preferably from a warm cache, in float32, with the most threads."""
    found: dict[tuple[str, str, str], Measured] = {}
    for work in sorted(timed, key=lambda w: (w.cache != "warm", w.dtype != "float32", -w.threads)):
        found.setdefault((work.op, work.shape, work.direction), work)
    return _by_op(work for work in timed if found[work.op, work.shape, work.direction] is work)


def _label(work: Measured) -> str:
    direction = "fwd+bwd" if "backward" in work.direction else "fwd"
    return " ".join(
        [work.shape, direction, *[work.dtype] * (work.dtype != "float32"), *["cold"] * (work.cache == "cold")]
    )


def _memory(work: Measured, kind: str) -> float | None:
    """Peak extra memory as a fraction of the eager baseline's."""
    return work.memory_ratio("fused" if kind == "fused" else work.baseline(kind) or "")


def _bar_panels(
    timed: list[Measured],
    kinds: Sequence[str],
    figure: Callable[[Measured, str], float | None],
    draw: Callable[[Bars, Axes], None],
) -> tuple[list[Panel], Collection[str]]:
    """A panel for each op, a row for each work that has a figure of one of the kinds."""
    panels, shown = [], set()
    for op, works in _headline(timed).items():
        rows: Bars = {kind: {} for kind in kinds}
        for work in works:
            for kind in kinds:
                if (value := figure(work, kind)) is not None:
                    rows[kind][_label(work)] = value
        rows = {kind: values for kind, values in rows.items() if values}
        shown |= set(rows)
        if rows:
            panels.append(Panel(op, 0.8 + 0.36 * len({*chain(*rows.values())}), partial(draw, rows)))
    return panels, [kind for kind in kinds if kind in shown]


def _draw_ratios(rows: Bars, axes: Axes) -> None:
    """How many times as long the baselines take."""
    values = [value for found in rows.values() for value in found.values()]
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, min(values) / 1.6), max(2.2, max(values) * 1.9))
    _bars(axes, rows, lambda value: f"{value:.3g}×", start=1)
    _log(axes.xaxis, FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.axvline(1, color=_KINDS["fused"][0])
    axes.set_xlabel("time of the baseline, fused = 1×")


def _draw_memory(rows: Bars, axes: Axes) -> None:
    _bars(axes, rows, lambda value: f"{100 * value:.3g} %", start=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.axvline(1, color=_KINDS["eager"][0], zorder=1)
    axes.margins(x=0.2)
    axes.set_xlabel("peak extra memory, eager = 100 %")


def _bars(axes: Axes, rows: Bars, text: Callable[[float], str], start: float) -> None:
    """Horizontal bars from `start`, one below the other for the kinds of a row."""
    names = list(dict.fromkeys(chain(*rows.values())))
    for k, (kind, values) in enumerate(rows.items()):
        color = _KINDS[kind][0]
        for name, value in values.items():
            lane = names.index(name) + 0.4 * (k - (len(rows) - 1) / 2)
            axes.barh(lane, value - start, 0.35, left=start, color=color)
            # To the right of the line at `start` also where the bar is on its left, where the names are.
            axes.annotate(text(value), (max(value, start), lane), (4, 0), color=color, **_FIGURE)
    _lanes(axes, names)


def _lanes(axes: Axes, names: list[str]) -> None:
    """A row for each name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)


def _log(axis: Axis, labels: Any) -> None:
    """Ticks at 1, 2 and 5 of each decade or, over more than two decades, at the decades alone."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 150 else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(labels)
    axis.set_minor_formatter(NullFormatter())


def _shares(result: Result, timed: list[Measured]) -> tuple[list[Panel], Collection[str]]:
    """The bandwidth of every work and variant as a share of a plain copy's: the roof of what is bound by memory."""
    points: dict[str, list[tuple[str, float]]] = {}
    ops: list[str] = []
    for work in timed:
        for name, v in work.variants.items():
            if (share := result.copy_share(work, name)) is not None:
                points.setdefault(_kind(name, v.kind), []).append((work.op, share))
                ops = ops if work.op in ops else [*ops, work.op]
    kinds = [kind for kind in _KINDS if kind in points]

    def draw(axes: Axes) -> None:
        for k, kind in enumerate(kinds):
            color, marker, _ = _KINDS[kind]
            lanes = [ops.index(op) + 0.13 * (k - (len(kinds) - 1) / 2) for op, _ in points[kind]]
            axes.plot([share for _, share in points[kind]], lanes, marker, color=color, markersize=3.5)
        axes.axvline(1, color="grey", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        _lanes(axes, ops)
        _log(axes.xaxis, FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.set_xlabel("of the copy's bandwidth")

    return [Panel("Bandwidth as a share of a copy's", 1 + 0.45 * len(ops), draw)] * bool(ops), kinds


def _scaling(result: Result) -> list[Panel]:
    """Time along every sweep, with the slopes."""
    series: dict[tuple[str, str], list[Measured]] = {}
    for work in result.works:
        if work.sweep and work.variants:
            series.setdefault((work.sweep.series, work.sweep.axis), []).append(work)
    panels = []
    for (name, axis), works in series.items():
        slopes = {s.variant: f"{s.variant} {s.slope:.2f}" for s in result.slopes if (s.series, s.axis) == (name, axis)}
        panels.append(Panel(f"{name} over {axis}", 2.6, partial(_curves, works, axis, slopes)))
    return panels


def _curves(works: list[Measured], axis: str, labels: dict[str, str], axes: Axes) -> None:
    """Medians with the band of the percentiles; names have no scale between them."""
    names = axis == "dtype"
    for name in dict.fromkeys(name for work in works for name in work.variants):
        found: list[tuple[Any, Variant]] = [
            (work.sweep.value, work.variants[name]) for work in works if work.sweep and name in work.variants
        ]
        xs, timed = zip(*found, strict=True)
        color, marker, _ = _KINDS[_kind(name, timed[0].kind)]
        look: dict[str, Any] = {"color": color, "marker": marker, "linestyle": ":" if names else "-"}
        axes.plot(xs, [v.median for v in timed], label=labels.get(name, name), **look)
        axes.fill_between(xs, [v.p20 for v in timed], [v.p80 for v in timed], color=color, alpha=0.15, linewidth=0)
        if axis == "threads" and name == "fused":
            ideal = [timed[0].median * xs[0] / x for x in xs]
            axes.plot(xs, ideal, "--", color="grey", linewidth=1, label="ideal")
    axes.set_yscale("log")
    if not names:
        axes.set_xscale("log")
        axes.set_xticks(xs, list(map(str, xs)))
        axes.xaxis.set_minor_locator(NullLocator())
    _log(axes.yaxis, EngFormatter("s"))
    axes.set_xlabel(axis)
    axes.legend(fontsize=7.5)
