"""The page: the values that the template shows for a run."""

from collections.abc import Callable
from operator import methodcaller
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..record import Measured, Result
from . import bars, chosen, drawing, roofline, scaling, tables
from .palette import COLORS
from .text import MISSING, known, rate, seconds, times, where

_HERE = Path(__file__).parent
SECTIONS = {
    "headline": "Overview",
    "goals": "Goals",
    "ratios": "Speed-ups",
    "ops": "Ops",
    "roofline": "Roofline",
    "scaling": "Scaling",
    "memory": "Memory",
    "overhead": "Overhead",
    "random": "Random numbers",
    "environment": "Environment",
    "method": "Method",
}


def render(result: Result) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(**_frame(), **_words(result), **_parts(result))


def _frame() -> dict:
    """Values that do not depend on the run. Only these files and the plots are inserted into the page unescaped."""
    files = {"style": "style.css", "theme_script": "theme.js", "behaviour_script": "behaviour.js"}
    texts = {name: Markup((_HERE / file).read_text(encoding="utf-8")) for name, file in files.items()}
    return {**texts, "colors": COLORS, "sections": SECTIONS.items()}


def _words(result: Result) -> dict:
    named = chosen.named(result)
    info = {name: str(result.environment.get(name) or MISSING) for name in ("processor", "commit", "date")}
    words = {"machine": info["processor"], "commit": info["commit"], "date": info["date"]}
    isa, torch = result.environment.get("isa"), result.environment.get("torch")
    facts = {
        "Machine": info["processor"],
        "Level": isa,
        "PyTorch": torch,
        "Commit": info["commit"],
        "Date": info["date"],
    }
    return {
        **words,
        "facts": [(name, value) for name, value in facts.items() if value],
        "figures": _figures(result, named),
        "wrong": [(work.id, work.wrong) for work in result.works if work.wrong],
        "roofline_note": _roofline_note(result),
        "no_ratios": {kind: _lacking(named, methodcaller("ratio", kind)) for kind in chosen.BASELINES},
        "no_memory": _lacking(chosen.headline(result), methodcaller("memory_ratio")),
    }


def _lacking(works: list[Measured], figure: Callable[[Measured], float | None]) -> list[str]:
    """The works without this figure, as text; an op without it in any work is one entry."""
    found = []
    for op, of_op in chosen.by_op(works).items():
        lacking = [f"{op} {where(work)}" for work in of_op if not known(figure(work))]
        found += [f"{op} (all {len(lacking)})"] if len(lacking) == len(of_op) > 1 else lacking
    return found


def _figures(result: Result, named: list[Measured]) -> list[dict]:
    """The cards at the top: best, worst, goals, copy."""
    found = [(work.ratio(kind), work, kind) for work in named for kind in chosen.BASELINES]
    ratios = sorted(((r, work, kind) for r, work, kind in found if known(r)), key=lambda entry: entry[0])
    cards = []
    for name, end in (("Best ratio", -1), ("Worst ratio", 0)):
        if ratios:
            ratio, work, kind = ratios[end]
            look = "missed" if ratio < 1 else "met" if name == "Best ratio" else ""
            cards.append({"name": name, "big": times(ratio), "says": _sentence(ratio, work, kind), "look": look})
        else:
            cards.append({"name": name, "big": MISSING, "says": "No work has a baseline.", "look": ""})
    met = sum(g.met and known(g.reached) for g in result.goals)
    unknown = sum(not known(g.reached) for g in result.goals)
    says = (
        f"{len(result.goals) - met - unknown} not met, {unknown} not measured." if result.goals else "No goals stated."
    )
    look = "met" if result.goals and met == len(result.goals) else ""
    cards.append({"name": "Goals met", "big": f"{met} of {len(result.goals)}", "says": says, "look": look})
    copies = [f"{rate(v)} with {n} thread{'s' * (n != '1')}" for n, v in result.copy_gb_s.items()]
    most = max(filter(known, result.copy_gb_s.values()), default=None)
    big = rate(most)
    says = f"Measured in this run, reads and writes counted: {', '.join(copies)}." if copies else "No copy was timed."
    cards.append({"name": "Copy bandwidth", "big": big, "says": says, "look": ""})
    return cards


def _sentence(ratio: float, work: Measured, kind: str) -> str:
    fused, other = (work.variants[name].median for name in ("fused", work.baseline(kind) or kind))
    baseline = {"eager": "eager PyTorch", "compile": "torch.compile"}[kind]
    verdict = "" if ratio >= 1 else ", that is slower"
    return (
        f"{work.op}, {work.shape}, {work.dtype}, {work.direction}, {work.cache} cache: {times(ratio)[:-1]} times "
        f"as fast as {baseline}{verdict} ({seconds(fused)} against {seconds(other)})."
    )


def _roofline_note(result: Result) -> str:
    named = chosen.named(result)
    counted = [work for work in named if work.instructions]
    first = (
        "The bandwidth of the bytes that an ideal implementation moves, against a plain copy's in the same run: "
        "100 % is all that the memory gives; a work that fits the caches can be beyond."
    )
    if not counted:
        return f"{first} Arithmetic was not counted, so there is no intensity to plot against."
    where_counted = (
        f"Where arithmetic was counted ({len(counted)} of {len(named)} works), also throughput against intensity."
    )
    peak = "" if result.flops_g else " The peak arithmetic was not measured, so the roof is the bandwidth's alone."
    return f"{first} {where_counted}{peak}"


def _drawn(panels: list[drawing.Panel]) -> list[dict]:
    return [{"title": panel.title, "svg": Markup(drawing.svg(panel))} for panel in panels]


def _parts(result: Result) -> dict:
    named = chosen.named(result)
    ops = chosen.by_op(named)
    return {
        "legends": {name: chosen.legend(result, name) for name in ("ratios", "roofline", "scaling", "memory")},
        "goals": tables.goals(result),
        "ratio_plots": _drawn(bars.ratios(result)),
        "filters": tables.choices(result),
        "op_tables": [(op, tables.works(result, f"{op}: every shape and variant", works)) for op, works in ops.items()],
        "roofline_plots": _drawn(roofline.roofline(result)),
        "scaling_plots": _drawn(scaling.scaling(result)),
        "slopes": tables.slopes(result),
        "sweep_tables": [
            tables.works(result, f"{series} over {axis}: every point", works)
            for (series, axis), works in scaling.sweeps(result).items()
        ],
        "memory_plots": _drawn(bars.memory(result)),
        "overhead": tables.overhead(result),
        "random_plots": _drawn(bars.random(result)),
        "random_tables": [
            (op, tables.works(result, f"{op}: every generator", ops[op])) for op in chosen.RANDOM_OPS if op in ops
        ],
        "environment": tables.environment(result),
    }
