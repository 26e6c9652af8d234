"""The picture of `suppression`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .style import figure

PANELS = {
    "probe {}": "linear probe of the frozen features",
    "gradient task {}": "norm of the task's gradient in the encoder",
    "gradient noise {}": "norm of the estimator's gradient in the encoder",
    "weight_{}": "weight in the fusion",
}
# Okabe and Ito's, solid and then dashed.
_COLORS = ("#22262c", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7")


def draw(results: Mapping[str, Sequence[Mapping[str, Any]]], slow: str, path: Path) -> None:
    """By epoch, for the modality that learns slowly, the means over the seeds of each method."""
    with figure(path, 1, len(PANELS), 4.4, 3.8) as (drawn, axes):
        for axis, (pattern, title) in zip(axes[0], PANELS.items(), strict=True):
            for n, (label, runs) in enumerate(results.items()):
                x, y = _mean_by_epoch(runs, pattern.format(slow))
                if x:
                    color, dashes = _COLORS[n % len(_COLORS)], "-" if n < len(_COLORS) else "--"
                    axis.plot(x, y, color=color, linestyle=dashes, label=label)
            axis.set_title(title)
            axis.set_xlabel("epoch")
            # The estimator's gradient may be 0 for all of them.
            if pattern.startswith("gradient") and any(line.get_ydata().max() > 0 for line in axis.lines):
                axis.set_yscale("log")
        handles, labels = axes[0][0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        drawn.suptitle(f"{slow}, which learns slowly: means over seeds", x=0.01, ha="left")


def _mean_by_epoch(runs: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    epochs = range(len(runs[0]["epochs"]))
    found = {e: [run["epochs"][e][key] for run in runs if key in run["epochs"][e]] for e in epochs}
    return [e + 1 for e in epochs if found[e]], [float(np.mean(found[e])) for e in epochs if found[e]]
