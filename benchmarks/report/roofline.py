"""Rooflines by arithmetic intensity, where operations were counted, and each variant's share of a copy's bandwidth."""

from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..record import Measured, Result
from .chosen import by_op, lanes, named, ticks
from .drawing import Panel
from .palette import LIGHT, MARKERS
from .tables import variants
from .text import known, number, percent, rate, where

_REMARK: dict[str, Any] = {"textcoords": "offset points", "color": LIGHT["quiet"], "fontsize": 7.5}
# The share of the copy's bandwidth, the role, the description.
Point = tuple[float, str, str]


def roofline(result: Result) -> list[Panel]:
    """A roofline for each number of threads, then the shares."""
    works = [work for work in named(result) if work.variants]
    counted = [w for w in works if w.instructions and w.bytes and known(result.copy_gb_s.get(str(w.threads)))]
    panels = []
    for threads in sorted({work.threads for work in counted}):
        chosen = [work for work in counted if work.threads == threads]
        title = f"Arithmetic and its intensity, {threads} thread{'s' * (threads != 1)}"
        draw = partial(_draw_roofline, result, chosen, threads)
        panels.append(Panel(f"roofline-{threads}", title, _says(chosen), 3.2, draw))
    return panels + _shares(result, works)


def _says(works: list[Measured]) -> str:
    found = [
        f"{w.op} {where(w)}: {number(_intensity(w))} a byte, {number(_gflops(w, 'fused'))} GFLOP/s"
        for w in works
        if "fused" in w.variants
    ]
    return f"Arithmetic against operations a byte, under the roofs of bandwidth and arithmetic. {'; '.join(found)}."


def _gflops(work: Measured, name: str) -> float:
    return 1e-9 * (work.instructions or 0) / work.variants[name].median


def _intensity(work: Measured) -> float:
    """Operations per byte."""
    return (work.instructions or 0) / work.bytes


def _draw_roofline(result: Result, works: list[Measured], threads: int, axes: Axes) -> None:
    copy, peak = result.copy_gb_s[str(threads)], (result.flops_g or {}).get(str(threads))
    for kind in reversed(MARKERS):
        for work in works:
            for name in (name for name, found in variants(work) if found == kind and known(_gflops(work, name))):
                x, y = _intensity(work), _gflops(work, name)
                look: dict[str, Any] = {"color": LIGHT[kind], "markersize": 5, "alpha": 0.85, "markeredgewidth": 0}
                (dot,) = axes.plot(x, y, MARKERS[kind], **look)
                dot.set_gid(
                    f"tip:{work.op} {where(work)}, {name}: {number(y)} GFLOP/s at {number(x)} operations a byte"
                )
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_xlim()
    if known(peak):
        low, high = min(low, peak / copy / 3), max(high, 3 * peak / copy)
        axes.annotate(f"{number(peak)} GFLOP/s", (high, peak), (-2, 4), ha="right", **_REMARK)
    xs = np.geomspace(low, high, 200)
    axes.plot(xs, np.minimum(copy * xs, peak if known(peak) else np.inf), color=LIGHT["quiet"], linewidth=1.3)
    axes.annotate(f"copy, {rate(copy)}", (low, copy * low), (12, -1), va="top", **_REMARK)
    axes.set_xlim(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        ticks(axis, number)
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("GFLOP/s")


def _shares(result: Result, works: list[Measured]) -> list[Panel]:
    points: dict[str, list[Point]] = {}
    for op, chosen in by_op(works).items():
        found = [(result.copy_share(w, n), kind, f"{op} {where(w)}, {n}") for w in chosen for n, kind in variants(w)]
        points[op] = [(share, kind, text) for share, kind, text in found if known(share) and share > 0]
    points = {op: found for op, found in points.items() if found}
    if not points:
        return []
    best = {
        op: max((share for share, kind, _ in found if kind == "fused"), default=None) for op, found in points.items()
    }
    says = "; ".join(f"{op} {percent(share)}" for op, share in best.items())
    text = f"Bandwidth of every work and variant as a share of a plain copy's. The fused ops at their best: {says}."
    height = 0.8 + 0.45 * len(points)
    return [Panel("efficiency", "Bandwidth as a share of a copy's", text, height, partial(_draw_shares, points))]


def _draw_shares(points: dict[str, list[Point]], axes: Axes) -> None:
    used = [kind for kind in MARKERS if any(kind == k for found in points.values() for _, k, _ in found)]
    for n, found in enumerate(points.values()):
        for share, kind, text in found:
            y = n + 0.13 * (used.index(kind) - (len(used) - 1) / 2)
            (dot,) = axes.plot(share, y, MARKERS[kind], color=LIGHT[kind], markersize=4, alpha=0.8, markeredgewidth=0)
            dot.set_gid(f"tip:{text}: {percent(share)}")
    axes.set_xscale("log")
    axes.axvline(1, color=LIGHT["quiet"], linewidth=1, linestyle=(0, (3, 2)))
    axes.set_xlim(right=max(1.6, axes.get_xlim()[1]))
    lanes(axes, points)
    ticks(axes.xaxis, percent)
    axes.set_xlabel("of the copy's bandwidth")
