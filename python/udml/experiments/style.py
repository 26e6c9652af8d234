"""The style of the plots: a light background, Okabe and Ito's colours, labels at the ends of the lines."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..training.folder import write_atomically
from .plan import ROWS

INK, QUIET, GRID = "#22262c", "#6b7280", "#e3e6ea"
RC: dict[Any, Any] = {
    "figure.facecolor": "white",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
}


class Look(NamedTuple):
    """A line's colour, dashes, width and marker."""

    color: str
    dashes: str = "-"
    width: float = 1.3
    marker: str = "o"

    @property
    def line(self) -> dict[str, Any]:
        return {"color": self.color, "linestyle": self.dashes, "linewidth": self.width, "marker": self.marker}


# "+ γ" has the colour of the row without it, dashed.
LOOKS = {
    "static": Look("#22262c", width=1.8),
    "static-clean": Look("#8a8f98", marker="s"),
    "static-gamma": Look("#22262c", "--"),
    "static-clean-gamma": Look("#8a8f98", "--", marker="s"),
    "pe": Look("#d55e00", width=1.8),
    "pe-gamma": Look("#d55e00", "--"),
    "tmc": Look("#cc79a7", marker="D"),
    "ogm-ge": Look("#56b4e9", marker="v"),
    "greedy": Look("#a6761d", marker="^"),
    "qmf": Look("#e69f00", marker="P"),
    "udml": Look("#0072b2", width=2.6),
    "udml-authors": Look("#0072b2", "--", marker="s"),
    "oracle": Look("#009e73", ":", 1.8),
}
assert set(LOOKS) == set(ROWS)


@contextmanager
def figure(path: Path, rows: int, columns: int, width: float, height: float, **options) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes (rows, columns), with each panel's size in inches; it is written at the end."""
    with plt.rc_context(RC):
        size = (width * columns, height * rows)
        drawn, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
        yield drawn, axes
        _save(drawn, path)
        plt.close(drawn)


def _save(drawn: Any, path: Path) -> None:
    """Save as a PNG of 256 colours, which is a third as large."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, dpi=130)
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    write_atomically(path, lambda file: image.save(file, format="PNG", optimize=True))


def apart(places: Sequence[float], gap: float) -> np.ndarray:
    """Positions moved as little as needed to leave a gap between all of them; their order stays."""
    order = np.argsort(places, kind="stable")
    # Neighbours that touch are moved as one block around their mean.
    blocks: list[list[float]] = []
    for place in np.asarray(places, float)[order]:
        blocks.append([place, 1])
        while len(blocks) > 1:
            (a, n), (b, m) = blocks[-2:]
            if b - a >= gap * (n + m) / 2:
                break
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    moved = [centre + gap * (k - (count - 1) / 2) for centre, count in blocks for k in range(int(count))]
    result = np.empty(len(places))
    result[order] = moved
    return result


def label_ends(axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names to the right of the lines' ends (x, y, name, colour), moved apart where they would overlap."""
    if not ends:
        return
    size = 8.5
    axis.margins(x=0.02)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    inches = axis.get_position().height * cast(Figure, axis.figure).get_figheight()
    gap = (high - low) * size * 1.3 / 72 / max(inches, 0.1)
    heights = apart([y for _, y, _, _ in ends], gap)
    right = max(x for x, _, _, _ in ends)
    places = right + np.array([0.008, 0.04, 0.05]) * (right - axis.get_xlim()[0])
    for (_, y, name, color), height in zip(ends, heights, strict=True):
        axis.plot(places[:2], (y, height), color=color, linewidth=0.6, alpha=0.7, clip_on=False, scalex=False)
        axis.text(places[2], height, name, color=color, fontsize=size, va="center")
