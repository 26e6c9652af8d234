"""A figure of each op's speed for the documentation, docs/ops/<op>.svg: how many times longer the baselines take."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from .record import Measured, Result

HELP = "write a figure of each op's speed from a results.json"
OPS = "normal inject_noise reparameterize noise_regression weighted_fusion modality_dropout evidential_fusion".split()
_BASELINES = {"eager": ("#d9730d", "eager PyTorch"), "compile": ("#a560a8", "torch.compile")}
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "udml-kernels",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), "#5f6670"),
}
# The page's colours decide: browsers tell an image whether the page around it is dark.
_DARK = "<style>@media (prefers-color-scheme: dark) { text { fill: #c3c8d2 !important } }</style>"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="results.json")
    parser.add_argument("--out", type=Path, default=Path("docs/ops"), metavar="FOLDER")


def run(options: argparse.Namespace) -> int:
    """Returns: 0; 2 for a file that is not a results.json."""
    try:
        result = Result.load(options.results)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for op in OPS:
        _write(_rows(result, op), options.out / f"{op}.svg")
    return 0


def _rows(result: Result, op: str) -> list[Measured]:
    """The works of an op in float32, from a warm cache, with all threads."""
    threads = max(work.threads for work in result.works)
    return [
        work
        for work in result.works
        if (work.op, work.dtype, work.cache, work.threads) == (op, "float32", "warm", threads)
        and work.sweep is None
        and work.variants
    ]


def labels(result: Result, op: str) -> list[str]:
    """What the figure of an op says of each work: its shape, its time, and the ratios."""
    return [text for work in _rows(result, op) for text in (*_name(work), _time(work), *_ratios(work).values())]


def _name(work: Measured) -> tuple[str, str]:
    dims = work.dims.replace("->", "→")
    return dims, f"forward{' + backward' * ('backward' in work.direction)}"


def _time(work: Measured) -> str:
    return f"{1e3 * work.variants['fused'].median:.3g} ms"


def _ratios(work: Measured) -> dict[str, str]:
    return {kind: f"{ratio:.3g}×" for kind in _BASELINES if (ratio := work.ratio(kind))}


def _write(works: Sequence[Measured], path: Path) -> None:
    with matplotlib.rc_context(_STYLE):
        figure = Figure((5.2, 0.75 + 0.42 * len(works)), layout="constrained")
        _draw(works, figure.add_subplot())
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        figure.savefig(path, transparent=True, metadata={"Date": None})
    before, start, rest = path.read_text().partition("<defs>")
    path.write_text("\n".join(line.rstrip() for line in f"{before}{_DARK}{start}{rest}".splitlines()) + "\n")


def _draw(works: Sequence[Measured], axes: Axes) -> None:
    for row, work in enumerate(works):
        ratios = _ratios(work)
        for place, kind in enumerate(ratios):
            at = row + (0.2 * (2 * place - 1) if len(ratios) > 1 else 0)
            ratio, (color, name) = work.ratio(kind) or 1, _BASELINES[kind]
            axes.barh(at, ratio - 1, 0.32, left=1, color=color, label=None if name in _named(axes) else name)
            axes.annotate(ratios[kind], (max(ratio, 1), at), (3, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(works)), ["\n".join(_name(work)) for work in works])
    axes.set_xscale("log")
    axes.set_xlim(right=2 * axes.get_xlim()[1])  # Room for the last label.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(1, color="#3d8fd1", lw=1.5)
    axes.invert_yaxis()
    axes.set_xlabel("time of the baseline over that of the op")
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(works)), [_time(work) for work in works])


def _named(axes: Axes) -> set[str]:
    return set(axes.get_legend_handles_labels()[1])
