"""Which works the plots show, and helpers that several plots share."""

from collections.abc import Callable, Iterable

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..record import Measured, Result
from .palette import MARKERS, role
from .text import KINDS, plain

BASELINES = ("eager", "compile")
RANDOM_OPS = ("normal", "uniform")


def named(result: Result) -> list[Measured]:
    """The works that are not points of a sweep."""
    return [work for work in result.works if work.sweep is None]


def headline(result: Result) -> list[Measured]:
    """One work for each op, shape and direction: preferably from a warm cache, in float32, with the most threads."""
    found: dict[tuple[str, str, str], Measured] = {}
    for work in sorted(named(result), key=lambda w: (w.cache != "warm", w.dtype != "float32", -w.threads)):
        found.setdefault((work.op, work.shape, work.direction), work)
    ids = {work.id for work in found.values()}
    return [work for work in named(result) if work.id in ids]


def by_op(works: Iterable[Measured]) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for work in works:
        found.setdefault(work.op, []).append(work)
    return found


def legend(result: Result, plot: str) -> dict[str, str]:
    """The roles that a plot shows: role -> its name."""
    sweeps = plot == "scaling"
    works = [work for work in result.works if (work.sweep is not None) == sweeps]
    roles = {role(name, v.kind) for work in works for name, v in work.variants.items()}
    if plot in ("ratios", "memory"):
        roles &= {"fused", *BASELINES}
    return {name: KINDS[name] for name in MARKERS if name in roles}


def ticks(axis: Axis, label: Callable[[float], str]) -> None:
    """Ticks at 1, 2, 5 per decade for at most two decades, else at the decades, without exponents."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 150 else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(label(value))))
    axis.set_minor_formatter(NullFormatter())


def lanes(axes: Axes, names: Iterable[str]) -> None:
    """One horizontal lane for each name, the first on top, without a left spine."""
    names = list(names)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
