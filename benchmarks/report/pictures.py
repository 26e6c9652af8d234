"""The page's plots as PNG, for the README."""

from pathlib import Path

from ..record import Result
from . import bars, chosen, drawing, roofline, scaling

PICTURES = {
    "ratios": bars.ratios,
    "roofline": roofline.roofline,
    "scaling": scaling.scaling,
    "memory": bars.memory,
}


def write_pictures(result: Result, folder: Path) -> None:
    """Write one PNG per kind of plot; where there is nothing to plot, remove the one of an earlier run."""
    for name, draw in PICTURES.items():
        path, panels = folder / f"{name}.png", draw(result)
        if panels:
            drawing.png(panels, chosen.legend(result, name), path)
        else:
            path.unlink(missing_ok=True)
