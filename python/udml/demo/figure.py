"""The demo's figure: two runs, six panels."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..data.watch import SIGMA_UNIT
from ..experiments.style import GRID, INK, RC
from ..schedule import PHASES
from .comparison import LEVELS, Report, curve_bound, task_bound

BACKENDS = ("#0b6e99", "#e07a1f")
PHASE_COLORS = {"clean": "#8a94a6", "noisy": "#7b5ea7", "weighted": "#1a8f5a"}
PHASE_LABELS = {"clean": "clean data", "noisy": "noisy data", "weighted": "noisy data, weighted"}
MODALITY_COLORS = ("#c2384f", "#3d5a9e")
RINGS: dict[str, Any] = {
    "marker": "o",
    "linestyle": "none",
    "markerfacecolor": "white",
    "markersize": 4.5,
    "markeredgewidth": 1.3,
}
STYLE = RC | {"legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.8}


def draw(report: Report, path: Path) -> None:
    """Write the figure of a report as a PNG of about 2000 x 1200 pixels."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(14, 8.2), layout="constrained")
        panels = (_losses, _differences, _times, _accuracy, _predicted, _shares)
        for panel, axis in zip(panels, axes.flat, strict=True):
            panel(report, axis)
        figure.suptitle("UDML on the watch data: accelerometer and gyroscope, people unseen in training", fontsize=13)
        figure.supxlabel(f"σ = 1 is noise of {SIGMA_UNIT} standard deviations of the training signal", fontsize=9.5)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _shade_phases(report: Report, axis: Axes) -> None:
    start = 0.5
    for phase, length in zip(PHASES, report.config.schedule.lengths, strict=True):
        if length:
            axis.axvspan(start, start + length, color=PHASE_COLORS[phase.name], alpha=0.10, linewidth=0)
            axis.text(
                start + length / 2,
                0.985,
                phase.name,
                ha="center",
                va="top",
                transform=axis.get_xaxis_transform(),
                fontsize=8.5,
            )
            start += length
    axis.set_xlim(0.5, start)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(False, axis="x")


def _losses(report: Report, axis: Axes) -> None:
    _shade_phases(report, axis)
    epochs = np.arange(1, report.config.epochs + 1)
    for run, color, style, width in zip(report.runs, BACKENDS, ("-", (0, (3, 2))), (3.2, 1.6), strict=True):
        axis.plot(epochs, run.curve(), color=color, linestyle=style, linewidth=width, label=f"{run.backend} ops")
    axis.set_yscale("log")
    axis.set_ylabel("mean training loss")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="y", which="minor", labelsize=8)
    axis.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
    axis.set_title("Loss curves of the two runs")


def _differences(report: Report, axis: Axes) -> None:
    _shade_phases(report, axis)
    epochs = np.arange(1, len(report.differences) + 1)
    lowest = 1e-9
    for name, differences, bound, color in (
        ("loss", report.differences, curve_bound, INK),
        ("task loss alone", report.task_differences, task_bound, MODALITY_COLORS[0]),
    ):
        axis.plot(
            epochs, np.maximum(differences, lowest), color=color, marker="o", markersize=3, linewidth=1.2, label=name
        )
        bounds = [bound(e - 1) for e in epochs]
        axis.step(epochs, bounds, where="mid", color=color, linestyle="--", linewidth=1.2, label=f"{name}, bound")
    axis.set_yscale("log")
    axis.set_ylim(lowest / 2, 1)
    axis.set_ylabel("relative difference of the losses")
    axis.legend(loc="lower right")
    axis.set_title("Their difference, epoch by epoch")


def _times(report: Report, axis: Axes) -> None:
    rows = np.arange(len(report.timings))
    for i, (run, color) in enumerate(zip(report.runs, BACKENDS, strict=True)):
        medians = [1e3 * float(np.median(t.seconds[i])) for t in report.timings]
        bars = axis.barh(rows + (i - 0.5) * 0.38, medians, 0.36, color=color, label=f"{run.backend} ops")
        axis.bar_label(bars, [f"{v:.2f}" if v < 10 else f"{v:.0f}" for v in medians], padding=3, fontsize=8)
    axis.set_yticks(rows, [f"{t.name}\n{t.ratio:.1f}×" for t in report.timings], fontsize=8.5)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.margins(x=0.15)
    axis.set_xlabel("forward + backward, median, ms")
    axis.grid(False, axis="y")
    axis.legend(loc="center right", bbox_to_anchor=(1, 0.42))  # beside the shortest bars
    axis.set_title(f"UDML ops of a step, batch {report.config.batch_size}, one thread")


def _accuracy(report: Report, axis: Axes) -> None:
    x = np.arange(len(LEVELS))
    mix = len(LEVELS) + 0.4
    first, second = report.runs
    for name in first.accuracy:
        color = PHASE_COLORS[name]
        fused, reference = (100 * np.array(run.accuracy[name]) for run in (first, second))
        axis.plot(x, fused[:-1], color=color, label=f"after {PHASE_LABELS[name]}")
        axis.plot(mix, fused[-1], marker="_", markersize=22, markeredgewidth=2.5, color=color)
        axis.plot([*x, mix], reference, color=color, **RINGS)
    axis.axvline(len(LEVELS) - 0.3, color=GRID)
    chance = 100 / len(report.spec.classes)
    axis.axhline(chance, color=INK, linewidth=0.8, linestyle=":")
    axis.text(0, chance + 1, "chance", fontsize=8)
    axis.set_xticks([*x, mix], [*map(str, LEVELS), "mix"])
    axis.set_ylim(0, 100)
    axis.set_xlabel("noise level σ in both modalities")
    axis.set_ylabel("accuracy, %")
    _legend_with_runs(axis, report, loc="lower left", bbox_to_anchor=(0, 0.17))
    axis.set_title("Accuracy under noise")


def _predicted(report: Report, axis: Axes) -> None:
    axis.plot(LEVELS, LEVELS, color=INK, linewidth=0.9, linestyle=":", label="truth")
    for m, (modality, color) in enumerate(zip(report.spec.modalities, MODALITY_COLORS, strict=True)):
        low, middle, high = np.array(report.runs[0].predicted[m]).T
        axis.fill_between(LEVELS, low, high, color=color, alpha=0.15, linewidth=0)
        axis.plot(LEVELS, middle, color=color, label=modality)
        reference = np.array(report.runs[1].predicted[m])[:, 1]
        axis.plot(LEVELS, reference, color=color, **RINGS)
    axis.set_xlabel("true σ")
    axis.set_ylabel("predicted σ, median and 10–90%")
    _legend_with_runs(axis, report, loc="upper left")
    axis.set_title("The noise estimator")


def _shares(report: Report, axis: Axes) -> None:
    for m, (modality, color) in enumerate(zip(report.spec.modalities, MODALITY_COLORS, strict=True)):
        fused, reference = (run.shares[m] for run in report.runs)
        axis.plot(LEVELS, fused, color=color, label=modality)
        axis.plot(LEVELS, reference, color=color, **RINGS)
    axis.axhline(0.5, color=INK, linewidth=0.9, linestyle=":")
    axis.text(12, 0.51, "alike", ha="right", fontsize=8)
    axis.set_ylim(0, 1)
    axis.set_xlabel("noise level σ in that modality alone")
    axis.set_ylabel("its share of the fusion weights")
    _legend_with_runs(axis, report, loc="upper right")
    axis.set_title("A degraded modality loses its say")


def _legend_with_runs(axis: Axes, report: Report, **place) -> None:
    handles, labels = axis.get_legend_handles_labels()
    line = Line2D([], [], color="#777777")
    rings = Line2D([], [], color="#777777", **RINGS)
    names = [f"lines: {report.runs[0].backend} ops", f"rings: {report.runs[1].backend} ops"]
    axis.legend([*handles, line, rings], [*labels, *names], **place)
