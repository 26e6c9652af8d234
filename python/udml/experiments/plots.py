"""The report's plots, as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..schedule import PHASES
from ..training.evaluate import MIX
from . import tables
from .estimation import ESTIMATORS, answer
from .frame import Condition, Frame, label, panel
from .kinds import CLASSES
from .measures import ALL, LEVELS, TRUE_LEVELS, WEIGHT_LEVELS
from .plan import ROWS, SIDE_ROWS
from .statistics import Interval, interval
from .style import GRID, INK, LOOKS, QUIET, Look, figure, label_ends
from .tables import ABLATION_ROWS

_COMPARED = {
    "static": ("oracle", "pe", "pe-gamma", "static-gamma", "qmf", "udml"),
    "pe": ("oracle", "static", "static-gamma", "pe-gamma", "qmf", "udml"),
}


def draw_plots(frame: Frame, folder: Path) -> None:
    """Draw all plots that have runs."""
    draw_accuracy(frame, folder / "accuracy.png")
    draw_differences(frame, folder / "differences.png")
    draw_ablation(frame, folder / "ablation.png")
    draw_noise(frame, folder / "noise.png")
    draw_weights(frame, folder / "weights.png")
    draw_suppression(frame, folder / "suppression.png")
    for group, name in tables.SIDE_NAMES.items():
        if frame.has(group):
            draw_side(frame, group, folder / f"{name}.png")
    matrix = tables.confusion(frame)
    if matrix is not None:
        draw_confusion(matrix, folder / "noise_types.png")


def draw_accuracy(frame: Frame, path: Path) -> None:
    """Accuracy of every row against sigma: all modalities degraded, and each alone."""
    with figure(path, 1, len(frame.degraded), 5.2, 4.6) as (drawn, axes):
        for axis, degraded in zip(axes[0], frame.degraded, strict=True):
            ends = []
            for row in ROWS:
                answers = (frame.accuracy(row, Condition(degraded, sigma)) for sigma in LEVELS)
                found = [i for i in answers if i is not None]
                if len(found) < len(LEVELS):
                    continue
                band = 0.12 if row in ("udml", "static", "pe") else 0.0
                order = 3 if row == "udml" else 2
                ends.append(_line(axis, row, LEVELS, found, band, markersize=3, zorder=order))
            _finish(axis, panel(degraded), "accuracy, percent")
            label_ends(axis, ends)
        drawn.suptitle(
            f"{frame.spec.name}: accuracy on the test split, bands are 95% intervals over seeds", x=0.01, ha="left"
        )


def draw_differences(frame: Frame, path: Path) -> None:
    """Paired differences to static and to PE against sigma, with intervals."""
    with figure(path, 2, len(frame.degraded), 5.2, 3.6) as (drawn, axes):
        for line, (other, rows) in zip(axes, _COMPARED.items(), strict=True):
            for axis, degraded in zip(line, frame.degraded, strict=True):
                _differences(frame, axis, degraded, other, rows)
        drawn.suptitle(
            f"{frame.spec.name}: paired differences, points; bars are 95% intervals over seeds", x=0.01, ha="left"
        )


def _differences(frame: Frame, axis: Axes, degraded: str, other: str, rows: Sequence[str]) -> None:
    # The mix has its own position left of sigma = 0; levels are evenly spaced, so that adjacent bars stay visible.
    conditions = [*([Condition(MIX)] if degraded == ALL else []), *(Condition(degraded, s) for s in LEVELS)]
    names = ["mix" if c.sigma is None else str(c.sigma) for c in conditions]
    places, ends = np.arange(len(conditions)), []
    axis.axhline(0, color=LOOKS[other].color, linewidth=1.2)
    for n, row in enumerate(rows):
        found = frame.differences(row, other, conditions)
        if found is None:
            continue
        look, x = LOOKS[row], places + (n - (len(rows) - 1) / 2) * 0.11
        means, bars = [i.mean for i in found], np.nan_to_num([i.half for i in found])
        axis.errorbar(x, means, bars, **look.line | {"linestyle": "none"}, markersize=3.5, capsize=0)
        axis.plot(x, means, color=look.color, linestyle=look.dashes, linewidth=0.6 * look.width, alpha=0.5)
        ends.append((x[-1], means[-1], label(row), look.color))
    axis.set_xticks(places, names)
    axis.set_title(f"minus {label(other)}: {panel(degraded)}")
    axis.set_xlabel("σ")
    axis.grid(axis="x", visible=False)
    label_ends(axis, ends)


def draw_ablation(frame: Frame, path: Path) -> None:
    """Accuracy of the ablation's rows on the mix and at some levels, as paired differences to static."""
    conditions = [Condition(MIX), *(Condition(ALL, sigma) for sigma in (0, 2, 4, 8))]
    with figure(path, 1, len(conditions), 2.6, 2.9, sharey=True) as (drawn, axes):
        rows = ABLATION_ROWS[1:]
        for axis, condition in zip(axes[0], conditions, strict=True):
            axis.axvline(0, color=INK, linewidth=1.2)
            for n, row in enumerate(rows):
                found = frame.difference(row, "static", condition)
                if found is not None:
                    color = LOOKS["udml"].color if row == "udml" else LOOKS.get(row, Look(QUIET)).color
                    axis.errorbar(found.mean, -n, xerr=np.nan_to_num(found.half), fmt="o", color=color, markersize=5)
            axis.set_title("mix of levels" if condition.sigma is None else f"σ = {condition.sigma}")
            axis.set_yticks([-n for n in range(len(rows))], [_ablation_label(row) for row in rows])
            axis.set_ylim(0.5 - len(rows), 0.5)
            axis.grid(axis="y", visible=False)
        drawn.supxlabel("points above static, all modalities degraded; bars are 95% intervals over seeds", fontsize=9)


def _ablation_label(row: str) -> str:
    names = {"no-probability": "UDML without\nprobabilistic representation", "udml": "UDML: estimator and α"}
    return names.get(row, label(row))


def draw_noise(frame: Frame, path: Path) -> None:
    """Predicted against true sigma: medians and the band of 80% of the samples, by row and modality."""
    names = frame.spec.modalities
    with figure(path, 1, len(names), 4.6, 4.2, sharey=True) as (drawn, axes):
        for axis, name in zip(axes[0], names, strict=True):
            axis.plot(TRUE_LEVELS, TRUE_LEVELS, color=QUIET, linewidth=1, linestyle=(0, (2, 3)))
            axis.axvspan(frame.spec.max_sigma, TRUE_LEVELS[-1], color=GRID, alpha=0.5, linewidth=0)
            ends: list[tuple[float, float, str, str]] = [(TRUE_LEVELS[-1], TRUE_LEVELS[-1], "true", QUIET)]
            for row in ESTIMATORS:
                found = answer(frame, row, name)
                if found is not None:
                    color = LOOKS[row].color
                    axis.plot(TRUE_LEVELS, found.median, color=color, linewidth=2.2)
                    axis.fill_between(TRUE_LEVELS, found.low, found.high, color=color, alpha=0.15, linewidth=0)
                    ends.append((TRUE_LEVELS[-1], found.median[-1], label(row), color))
            _finish(axis, name, "predicted σ" if axis is axes[0, 0] else "", "true σ")
            axis.text(
                frame.spec.max_sigma + 0.2, 0.01, "beyond training", transform=axis.get_xaxis_transform(), **_SMALL
            )
            label_ends(axis, ends)
        drawn.suptitle("Predicted noise: median and 80% of the samples; PE's times one factor", x=0.01, ha="left")


_SMALL: dict[str, Any] = {"fontsize": 8, "color": QUIET}


def draw_weights(frame: Frame, path: Path) -> None:
    """The weight of the modality that alone is degraded, against sigma."""
    names = frame.spec.modalities
    with figure(path, 1, len(names), 4.6, 3.6, sharey=True) as (drawn, axes):
        for axis, name in zip(axes[0], names, strict=True):
            ends = []
            for row in tables.WEIGHT_ROWS:
                found = tables.weight_intervals(frame, row, name)
                if found:
                    ends.append(_line(axis, row, WEIGHT_LEVELS, found, 0.15, marker=""))
            axis.axhline(1, color=QUIET, linewidth=0.8, linestyle=(0, (2, 3)))
            _finish(axis, f"{name} alone degraded", "mean weight" if axis is axes[0, 0] else "")
            axis.set_ylim(bottom=0)
            label_ends(axis, ends)
        drawn.suptitle("Weight of the degraded modality; the others are clean", x=0.01, ha="left")


def draw_suppression(frame: Frame, path: Path) -> None:
    """Weight and gradient norm of the weaker modality by epoch."""
    weaker, phases = frame.weaker(), []
    with figure(path, 1, 2, 5.6, 3.8) as (drawn, axes):
        for axis, key, name in zip(
            axes[0],
            ("weights", "gradients"),
            ("weight over the others'", "gradient norm of its encoder over the others'"),
            strict=True,
        ):
            ends = []
            for row in ("pe", "pe-gamma", "udml"):
                runs = [run["history"] for run in frame.seeds(row).values()]
                if not runs or weaker is None:
                    continue
                phases = runs[0]["phase"]
                found = [interval(v) for v in zip(*(_against(run[key], weaker) for run in runs), strict=True)]
                ends.append(_line(axis, row, range(1, len(found) + 1), found, 0.15, marker=""))
            _shade(axis, phases)
            _finish(axis, name, "", "epoch")
            axis.set_ylim(bottom=0)
            label_ends(axis, ends)
        drawn.suptitle(f"{weaker}, the weaker modality, in training", x=0.01, ha="left")


def _against(by_modality: Mapping[str, Sequence[float]], weaker: str) -> list[float]:
    """By epoch, a modality's value divided by the mean of the others'."""
    others = [values for name, values in by_modality.items() if name != weaker]
    return [v * len(others) / sum(o) for v, o in zip(by_modality[weaker], zip(*others, strict=True), strict=True)]


def _shade(axis: Axes, phases: Sequence[str]) -> None:
    for n, phase in enumerate(p.name for p in PHASES):
        count = phases.count(phase)
        if count:
            first = phases.index(phase) + 0.5
            axis.axvspan(first, first + count, color=GRID, alpha=(0.0, 0.35, 0.8)[n], linewidth=0, zorder=0)
            axis.text(
                first + count / 2, 1.0, phase, transform=axis.get_xaxis_transform(), ha="center", va="bottom", **_SMALL
            )


def draw_side(frame: Frame, group: str, path: Path) -> None:
    """The fusions or views: accuracy of every row on the mix, and the paired differences of UDML to the other rows."""
    variants, condition = tables.side_variants(group), Condition(MIX)
    with figure(path, 1, 2, 5.6, 0.62 * len(variants) + 1.6, sharey=True) as (drawn, axes):
        for n, variant in enumerate(variants):
            for k, row in enumerate(SIDE_ROWS):
                y, look = -n + 0.13 * (2 - k), LOOKS[row]
                for axis, found in (
                    (axes[0, 0], frame.accuracy(row, condition, variant, group)),
                    (
                        axes[0, 1],
                        None if row == "static" else frame.difference(row, "static", condition, variant, group),
                    ),
                ):
                    if found is not None:
                        face = "white" if row.endswith("gamma") else look.color
                        axis.errorbar(
                            found.mean,
                            y,
                            xerr=np.nan_to_num(found.half),
                            fmt="o",
                            color=look.color,
                            markerfacecolor=face,
                            markersize=4.5,
                            label=label(row) if n == 0 else None,
                        )
        axes[0, 0].set_yticks([-n for n in range(len(variants))], variants)
        axes[0, 1].axvline(0, color=INK, linewidth=1.2)
        for axis, title in zip(axes[0], ("accuracy on the mix of levels, percent", "points above static"), strict=True):
            axis.set_title(title)
            axis.grid(axis="y", visible=False)
        handles, names = axes[0, 0].get_legend_handles_labels()
        drawn.legend(handles, names, loc="outside lower center", ncols=len(SIDE_ROWS), frameon=False, fontsize=8.5)


def draw_confusion(matrix: Sequence[Sequence[float]], path: Path) -> None:
    """How often each kind was predicted for each true kind, in percent of the latter."""
    with figure(path, 1, 1, 5.6, 4.6) as (_, axes):
        axis, shares = axes[0, 0], 100 * np.array(matrix)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        names = [name.replace("_", " and ") for name in CLASSES]
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel("answer")
        axis.set_ylabel("truth")
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        for i, j in np.ndindex(*shares.shape):
            color = "white" if shares[i, j] > 55 else INK
            axis.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", color=color)
        axis.set_title("The kind of noise, percent of the truth")


def _line(
    axis: Axes, row: str, x: Sequence[int], found: Sequence[Interval], band: float, **options
) -> tuple[float, float, str, str]:
    """Draw a row's means and, unless `band`, its opacity, is 0, their intervals; returns the end for `label_ends`."""
    look, means = LOOKS[row], [i.mean for i in found]
    axis.plot(x, means, **look.line | options)
    if band:
        axis.fill_between(x, [i.low for i in found], [i.high for i in found], color=look.color, alpha=band)
    return x[-1], means[-1], label(row), look.color


def _finish(axis: Axes, title: str, y: str, x: str = "σ") -> None:
    axis.set_title(title, pad=14 if x == "epoch" else None)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
