"""The report's tables in the template's format: columns, and rows of cells with the values to sort and filter by."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..record import Measured, Result
from .palette import MARKERS, role
from .text import MISSING, known, number, percent, plain, rate, seconds, size, span, times


@dataclass
class Cell:
    """A cell's text.

    Attributes:
        value: the number by which the cell is sorted; None comes last.
        sorts: whether the cell is sorted by value and not by its text.
        swatch: the role whose colour is shown before the text.
    """

    text: str
    look: str = ""
    value: float | None = None
    sorts: bool = False
    swatch: str = ""
    span: int = 1


@dataclass
class Column:
    name: str
    look: str = ""
    says: str = ""


@dataclass
class Row:
    cells: list[Cell]
    look: str = ""
    data: dict[str, str] = field(default_factory=dict)


@dataclass
class Table:
    caption: str
    columns: Sequence[Column]
    rows: list[Row]
    says: str = ""
    sortable: bool = True


def figure(text: str, value: float | None, look: str = "") -> Cell:
    """A cell with a number; grey where nothing was measured."""
    look = "num missing" if text == MISSING else f"num {look}".strip()
    return Cell(text, look, value if known(value) else None, sorts=True)


FILTERS = {"op": "Op", "dtype": "Dtype", "direction": "Direction", "cache": "Cache", "variant": "Variant"}
_WHAT = [
    Column("Dtype"),
    Column("Direction"),
    Column("Cache", says="warm: called again and again; cold: caches emptied before each call"),
]
_THREADS = Column("Threads", "num")
_FIGURES = [
    Column("Variant"),
    Column("Median", "num", "of one call"),
    Column("p20\u00a0–\u00a0p80", "num", "20th and 80th percentile"),
    Column("ns / element", "num"),
    Column("GB/s", "num", "of the bytes that an ideal implementation moves"),
    Column("% of copy", "num", "of a plain copy's bandwidth in this run"),
    Column("Peak extra memory", "num", "during the call, beyond what was there before"),
    Column("×\u00a0eager", "num", "how many times as fast as the fastest eager PyTorch"),
    Column("×\u00a0compile", "num", "how many times as fast as the fastest torch.compile"),
]
_ON_DEVICE = [
    Column("Launches", "num", "kernels that one call starts on the GPU"),
    Column("GPU time", "num", "how long the GPU is at work for one call; the rest of the median is Python's"),
]


def variants(work: Measured) -> list[tuple[str, str]]:
    """(variant, its role), fused first."""
    order = list(MARKERS)
    found = [(name, role(name, v.kind)) for name, v in work.variants.items()]
    return sorted(found, key=lambda v: (order.index(v[1]) if v[1] in order else len(order), v[0]))


def _work_rows(result: Result, work: Measured, threads: bool, on_device: bool) -> list[Row]:
    shape = work.shape if work.sweep is None else f"{work.sweep.axis} = {work.sweep.value}"
    place = None if work.sweep is None or isinstance(work.sweep.value, str) else work.sweep.value
    what = [
        Cell(shape, "fixed keep", place, sorts=place is not None),
        Cell(work.dtype),
        Cell(work.direction, "keep"),
        Cell(work.cache),
        *([figure(str(work.threads), work.threads)] if threads else []),
    ]
    data = {name: getattr(work, name) for name in FILTERS if name != "variant"}
    if not work.variants:
        says = f"wrong, no time: {'; '.join(work.wrong)}" if work.wrong else MISSING
        look = "wrong" if work.wrong else "missing"
        return [
            Row(
                [*what, Cell(says, look, span=len(_FIGURES) + len(_ON_DEVICE) * on_device)],
                "",
                data | {"variant": "none"},
            )
        ]
    rows = []
    for name, kind in variants(work):
        cells = [Cell(name, "keep", swatch=kind), *_figures(result, work, name)]
        if on_device:
            count, taken = work.variants[name].launches, work.variants[name].device_seconds
            cells += [figure(number(count), count), figure(seconds(taken), taken)]
        rows.append(Row([*what, *cells], kind, data | {"variant": name}))
    return rows


def _figures(result: Result, work: Measured, name: str) -> list[Cell]:
    v = work.variants[name]
    share = result.copy_share(work, name)
    return [
        figure(seconds(v.median), v.median, "strong"),
        figure(span(v.p20, v.p80), v.p20),
        figure(number(work.ns_per_element(name)), work.ns_per_element(name)),
        figure(number(work.gb_s(name)), work.gb_s(name)),
        figure(percent(share), share),
        figure(size(v.peak_extra_bytes), v.peak_extra_bytes),
        *(figure(times(work.ratio(kind, name)), work.ratio(kind, name), "strong") for kind in ("eager", "compile")),
    ]


def works(result: Result, caption: str, chosen: Iterable[Measured]) -> Table:
    """One row for each variant of each work, or one that says why there is none. Threads are a column if they vary."""
    chosen = list(chosen)
    threads = {work.threads for work in chosen}
    on_device = any(v.launches is not None for work in result.works for v in work.variants.values())
    rows = [row for work in chosen for row in _work_rows(result, work, len(threads) > 1, on_device)]
    first = Column("Shape", "fixed keep") if all(w.sweep is None for w in chosen) else Column("At", "fixed keep")
    columns = [first, *_WHAT, *([_THREADS] * (len(threads) > 1)), *_FIGURES, *(_ON_DEVICE * on_device)]
    dims: dict[str, list[str]] = {}
    for work in chosen:
        if work.dims not in dims.setdefault(work.shape, []):
            dims[work.shape].append(work.dims)
    says = [f"{shape} {' or '.join(found)}" for shape, found in dims.items()]
    says += [f"{n} thread{'s' * (n != 1)}" for n in threads if len(threads) == 1]
    return Table(caption, columns, rows, "; ".join(says))


def choices(result: Result) -> list[tuple[str, str, list[str]]]:
    """(attribute, title, values) of the filter's menus, with the values in the order of their first appearance."""
    named = [work for work in result.works if work.sweep is None]
    found = {name: list(dict.fromkeys(getattr(work, name) for work in named)) for name in FILTERS if name != "variant"}
    found["variant"] = list(dict.fromkeys(name for work in named for name, _ in variants(work) or [("none", "")]))
    return [(name, title, found[name]) for name, title in FILTERS.items()]


def goals(result: Result) -> Table:
    """Goals and what was reached; a goal without a measurement is not met."""
    columns = [Column("Goal", "fixed"), Column("Asked", "num"), Column("Reached", "num"), Column("Outcome")]
    rows = []
    for goal in result.goals:
        unit = "×" if goal.unit == "x" else f" {goal.unit}"
        asked = f"{'at most' if goal.most else 'at least'} {plain(number(goal.asked))}{unit}"
        reached = f"{number(goal.reached)}{unit}" if known(goal.reached) else MISSING
        outcome = Cell(MISSING, "missing") if reached == MISSING else _outcome(goal.met)
        cells = [Cell(goal.name, "fixed"), figure(asked, goal.asked), figure(reached, goal.reached, "strong"), outcome]
        rows.append(Row(cells))
    return Table(f"{len(rows)} goals of this package", columns, rows)


def _outcome(met: bool) -> Cell:
    return Cell("✓ met", "met keep") if met else Cell("✗ not met", "missed keep")


def overhead(result: Result) -> Table:
    """One row for each op and direction, one column for each variant."""
    names = list(dict.fromkeys(entry.variant for entry in result.overhead))
    found = {(e.op, e.direction, e.variant): e.seconds for e in result.overhead}
    rows = []
    for op, direction in dict.fromkeys((e.op, e.direction) for e in result.overhead):
        values = [found.get((op, direction, name)) for name in names]
        look = ["strong own" if name == "fused" else "" for name in names]
        cells = [figure(_micro(v), v, strong) for v, strong in zip(values, look, strict=True)]
        rows.append(Row([Cell(op, "fixed keep"), Cell(direction, "keep"), *cells]))
    columns = [Column("Op", "fixed keep"), Column("Direction"), *(Column(f"{name}, µs", "num") for name in names)]
    return Table("Microseconds a call on the host", columns, rows)


def _micro(value: float | None) -> str:
    return number(1e6 * value) if value is not None else MISSING


def slopes(result: Result) -> Table:
    columns = [Column("Series", "fixed keep"), Column("Axis"), Column("Variant"), Column("Slope", "num")]
    rows = [
        Row([Cell(s.series, "fixed keep"), Cell(s.axis), Cell(s.variant), figure(number(s.slope), s.slope, "strong")])
        for s in result.slopes
    ]
    return Table("Slopes: d log(time) / d log(axis), 1 is linear", columns, rows)


def environment(result: Result) -> Table:
    copies = {f"copy bandwidth, {n} thread{'s' * (n != '1')}": rate(v) for n, v in result.copy_gb_s.items()}
    peaks = {
        f"peak arithmetic, {n} thread{'s' * (n != '1')}": f"{number(v)} GFLOP/s"
        for n, v in (result.flops_g or {}).items()
    }
    entries = {**result.environment, **copies, **(peaks or {"peak arithmetic": MISSING})}
    rows = [Row([Cell(str(name), "keep"), Cell(str(value) or MISSING)]) for name, value in entries.items()]
    return Table("The machine and the software of this run", [Column("What"), Column("Value")], rows, sortable=False)
