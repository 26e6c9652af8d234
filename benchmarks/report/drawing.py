"""A panel of the report, drawn by matplotlib: as SVG that follows the page's theme, or as part of a PNG."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from .palette import LIGHT

WIDTH, DPI = 4.1, 150
_RC: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "udml-kernels",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": LIGHT["quiet"],
    "axes.labelcolor": LIGHT["quiet"],
    "axes.labelsize": 8,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.7,
    "text.color": LIGHT["fg"],
    "xtick.color": LIGHT["quiet"],
    "ytick.color": LIGHT["quiet"],
    "xtick.labelcolor": LIGHT["fg"],
    "ytick.labelcolor": LIGHT["fg"],
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}


@dataclass
class Panel:
    """A plot on one pair of axes.

    Attributes:
        name: unique in the report.
        text: a description of the plot, for those who cannot see it.
        height: inches.
        draw: draws on the axes. For an artist whose gid begins with "tip:", the rest of it is shown under the pointer.
    """

    name: str
    title: str
    text: str
    height: float
    draw: Callable[[Axes], None]


@contextmanager
def _drawn(panel: Panel) -> Iterator[Figure]:
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(WIDTH, panel.height), dpi=DPI, layout="constrained")
        panel.draw(figure.subplots())
        yield figure


def svg(panel: Panel) -> str:
    """An <svg> for the page: text stays text, colours are the theme's variables, ids are unique to the panel."""
    buffer = io.StringIO()
    with _drawn(panel) as figure:
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", text, flags=re.S)
    text = re.sub(r'<g id="tip:([^"]*)">', r'<g class="tip"><title>\1</title>', text)
    prefix = re.sub(r"\W+", "-", panel.name)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}-", text)
    for role, color in LIGHT.items():
        text = text.replace(color, f"var(--{role})")
    box = f"0 0 {72 * WIDTH:g} {72 * panel.height:g}"
    head = f'<svg viewBox="{box}" role="img" aria-labelledby="{prefix}-says"><title id="{prefix}-says">'
    return head + escape(panel.text) + "</title>" + text[text.index(">") + 1 :]


def png(panels: Sequence[Panel], legend: Mapping[str, str], path: Path, columns: int = 3) -> None:
    """The legend (role -> name), and below it the panels, each in the column that is the shortest so far."""
    images = [_image(panel) for panel in panels]
    columns, width, gap = min(columns, len(images)), max(image.width for image in images), DPI // 5
    head = _legend(legend, columns)
    heights, places = [head.height + gap] * columns, []
    for image in images:
        column = heights.index(min(heights))
        places.append((gap + column * (width + gap), heights[column]))
        heights[column] += image.height + gap
    page = Image.new("RGB", (gap + columns * (width + gap), max(heights)), "white")
    for image, place in zip([head, *images], [(gap, gap // 2), *places], strict=True):
        page.paste(image, place, image)
    page.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _legend(names: Mapping[str, str], columns: int) -> Image.Image:
    """The legend, in as many lines as it needs."""
    width, places, x, line = WIDTH * columns, {}, 0.05, 0
    for role, name in names.items():
        room = 0.25 + 0.08 * len(name)
        if x + room > width:
            x, line = 0.05, line + 1
        places[role] = (x, line)
        x += room
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width, 0.25 * (line + 1)), dpi=DPI)
        for role, (left, row) in places.items():
            height = 1 - (row + 0.5) / (line + 1)
            figure.text(left / width, height, f"■ {names[role]}", color=LIGHT[role], va="center", fontsize=9)
        return _pixels(figure)


def _image(panel: Panel) -> Image.Image:
    with _drawn(panel) as figure:
        figure.axes[0].set_title(panel.title, loc="left", fontweight="bold", fontsize=9.5)
        return _pixels(figure)


def _pixels(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()).copy())
