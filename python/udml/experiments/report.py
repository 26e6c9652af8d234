"""report.md: the aims first, then every table with its plot."""

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from udml_kernels.streams import Seed

from ..training.folder import write_text
from . import tables, unseen_tables
from .aims import aims, losses, points
from .frame import Condition, Frame, Probe, label, panel
from .jobs import Failure
from .kinds import CLASSES, LEVELS, SHARES
from .measures import ALL, TUNING_LEVELS
from .plan import ABLATION, ROWS, SIDE_ROWS
from .statistics import interval
from .tables import ABLATION_ROWS, Rows, difference, markdown, percent

HELD = {True: "yes", False: "**no**", None: "beside"}


def write_report(frame: Frame, tuning: Rows, failures: Sequence[Failure], folder: Path) -> None:
    """Write report.md."""
    parts = [
        _introduction(frame),
        _failed(failures),
        _missing(frame),
        _aims(frame),
        _losses(frame),
        _accuracy(frame),
        unseen_tables.section(frame),
        _ablation(frame),
        _noise(frame),
        _weights(frame),
        _suppression(frame),
        *_sides(frame),
        _kinds(frame),
        _tuning(tuning),
    ]
    write_text(folder / "report.md", "\n".join(part for part in parts if part))


def _introduction(frame: Frame) -> str:
    plan, spec = frame.plan, frame.spec
    unit = spec.noise[spec.modalities[0]].unit
    return f"""# UDML on {spec.name}

`python -m udml reproduce --data {plan.data}`: {", ".join(spec.modalities)}; {len(spec.classes)} classes; test split;
{plan.seeds} seeds ({plan.side_seeds} for fusions, views and noise types), {plan.epochs} epochs of batches of
{plan.batch_size}, features of width {plan.width}. Hyper-parameters: {plan.trials} trials a row, the first of them the
default, chosen on the validation split alone (half the accuracy on the mix of levels, half that with all modalities at
σ = {", ".join(map(str, TUNING_LEVELS))}), seeds from {Seed.TUNING:d} on ({plan.tuning_seeds} a trial). Accuracies are
means over {plan.draws} draws of the test noise, the same for every model. Intervals are 95% t-intervals over seeds,
of differences paired by seed; they tell how a result varies with the seed, not with the test samples, and are not
corrected for their number. σ = 1 is noise of {unit:g} standard deviations of the training signal; on the mix of
levels each modality is clean with probability 1/2, else at a level uniform up to {spec.max_sigma:g}.

Static, PE and OGM-GE have no unimodal losses in their formula, so γ = 0; "+ γ" adds UDML's to them. TMC, Greedy and
QMF have them. The oracle is UDML that is told σ. "UDML, authors" has the arithmetic and the training noise of the
authors' code; of its hyper-parameters the optimizer's and γ are tuned.

(torch {torch.__version__}, {platform.machine()}.)
"""


def _failed(failures: Sequence[Failure]) -> str:
    if not failures:
        return ""
    lines = [
        f"- `{f.job.name}`: {f.reason}; configuration `{f.job.config}`, options `{f.job.options}`" for f in failures
    ]
    return "## Failed runs\n\nThese are missing below.\n\n" + "\n".join(lines) + "\n"


def _missing(frame: Frame) -> str:
    """The methods that have fewer runs in the main comparison or the ablation than the plan."""
    counts = {row: len(frame.seeds(row, group=frame.group_of(row))) for row in (*ROWS, *ABLATION)}
    few = [f"{label(row)} {count}" for row, count in counts.items() if count < frame.plan.seeds]
    if not few:
        return ""
    return (
        f"Fewer than {frame.plan.seeds} seeds; differences are those of the seeds that both have: {', '.join(few)}.\n"
    )


def _aims(frame: Frame) -> str:
    rows = [[aim.text, HELD[aim.holds], aim.figure] for aim in aims(frame)]
    text = "Paired differences in points with 95% intervals; a row of several figures holds where all of them do.\n"
    text += '"beside": not an aim, but what it must be read with.\n\n'
    return f"## The aims\n\n{text}{markdown(['aim', 'holds', 'figure'], rows)}"


def _losses(frame: Frame) -> str:
    found = losses(frame)
    text = "Where the interval of UDML minus the method, on the same seeds, lies below zero:\n\n"
    if not found:
        return "## Where UDML loses\n\nNo interval of UDML minus another method lies below zero.\n"
    lines = [f"- {name}: " + "; ".join(f"{c} {points(i)}" for c, i in below) for name, below in found]
    return f"## Where UDML loses\n\n{text}" + "\n".join(lines) + "\n"


def _accuracy(frame: Frame) -> str:
    rows, parts = (
        tuple(ROWS),
        ["## Accuracy against σ\n\n![accuracy](accuracy.png)\n\n![differences](differences.png)\n"],
    )

    def add(title: str, degraded: str, cell, of: Sequence[str] = rows) -> None:
        parts.append(f"{title}, {panel(degraded)}:\n\n{tables.by_level(of, tables.panel_conditions(degraded), cell)}")

    for degraded in frame.degraded:
        add("Percent", degraded, lambda row, c: percent(frame.accuracy(row, c)))
    for other in ("static", "pe"):
        for degraded in frame.degraded:
            of = [row for row in rows if row != other]
            title = f"Points above {label(other)}"
            add(title, degraded, lambda row, c, o=other: difference(frame.difference(row, o, c)), of)
    for degraded in frame.degraded:
        of = [row for row in rows if row != "udml"]
        add(
            "UDML minus the row's method, points",
            degraded,
            lambda row, c: difference(frame.difference("udml", row, c)),
            of,
        )
    return "\n".join(parts)


def _ablation(frame: Frame) -> str:
    conditions = tables.panel_conditions(ALL)

    def accuracy(row: str, condition: Condition) -> str:
        return percent(frame.accuracy(row, condition, group=frame.group_of(row)))

    def against(row: str, condition: Condition) -> str:
        return "" if row == "static" else difference(frame.difference(row, "static", condition))

    def above(row: str, condition: Condition) -> str:
        return difference(frame.difference("udml", row, condition))

    return f"""## Ablation

UDML's hyper-parameters but for what the row says; percent, all modalities degraded:

![ablation](ablation.png)

{tables.by_level(ABLATION_ROWS, conditions, accuracy)}
Points above static:

{tables.by_level(ABLATION_ROWS[1:], conditions, against)}
Points of UDML above the row:

{tables.by_level([row for row in ABLATION_ROWS if row != "udml"], conditions, above)}"""


def _noise(frame: Frame) -> str:
    _, figures = tables.estimates(frame)
    names = list(dict.fromkeys(row["figure"] for row in figures))
    lines: dict[tuple[str, str], list[str]] = {}
    for row in figures:
        value, low, high = (row[key] for key in ("value", "value_low", "value_high"))
        lines.setdefault((row["method"], row["modality"]), []).append(f"{value:.3f} [{low:.3f}, {high:.3f}]")
    body = [[f"{method}, {modality}", *cells] for (method, modality), cells in lines.items()]
    return f"""## Predicted against true σ

All modalities at the same σ, 0 to 16; training has seen σ up to {frame.spec.max_sigma:g}. PE's answer is the root mean
square of its std, times one least-squares factor a run, fitted on these very answers. Spearman over all samples and
levels; slopes are least-squares lines over the samples in a band of σ.

![predicted noise](noise.png)

{markdown(["", *names], body)}"""


def _weights(frame: Frame) -> str:
    return """## Weights against σ

The mean weight of a modality that alone is degraded (`weights.csv`). PE's weights sum to the number of modalities,
UDML's to less: a reference noise competes with them.

![weights](weights.png)
"""


_HISTORY = ("weights", "gradients")


def _mean(run: dict, key: str, modality: str) -> float:
    """The mean over the weighted epochs of a run's history."""
    weighted = [v for v, phase in zip(run[key][modality], run["phase"], strict=True) if phase == "weighted"]
    return sum(weighted) / len(weighted)


def _against(run: dict, key: str, modality: str) -> float:
    """The same, divided by the mean of the other modalities'."""
    others = [_mean(run, key, other) for other in run[key] if other != modality]
    return _mean(run, key, modality) * len(others) / sum(others)


def _suppression(frame: Frame) -> str:
    weaker, rows = frame.weaker(), []
    if weaker is None:
        return ""
    for row in ("pe", "pe-gamma", "udml"):
        runs = [run["history"] for run in frame.seeds(row).values()]
        if not runs:
            continue
        found = [interval([value(run, key, weaker) for run in runs]) for key in _HISTORY for value in (_mean, _against)]
        rows.append([label(row), *(f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in found)])
    header = ["", "weight", "weight over the others'", "gradient norm", "gradient norm over the others'"]
    unimodal = {}
    for name in frame.spec.modalities:
        values = [100 * run["unimodal"][name] for run in frame.seeds("static-gamma").values()]
        unimodal[name] = percent(interval(values)) if values else "–"
    told = ", ".join(f"{name} {value}" for name, value in unimodal.items())
    return f"""## Dual suppression

The weaker modality is {weaker}: alone, on clean validation samples, static + γ is right in percent: {told}.
Its weight and the norm of its encoder's gradient, means over the weighted epochs. The gradient is the whole
objective's, before clipping; the unimodal losses are part of it where γ is not 0.

![dual suppression](suppression.png)

{markdown(header, rows)}
What a linear classifier of an encoder's frozen features knows of clean test samples, percent:

{markdown(["", *frame.spec.modalities], _probes(frame))}"""


def _probes(frame: Frame) -> list[list[str]]:
    rows = ("static", "static-gamma", "pe", "pe-gamma", "udml", "udml-authors", "oracle")
    names = frame.spec.modalities
    return [[label(row), *(percent(frame.accuracy(row, Probe(name))) for name in names)] for row in rows]


def _sides(frame: Frame) -> Iterator[str]:
    if frame.has("fusion"):
        yield _side(frame, "fusion", "The five fusions", "fusions")
    if frame.has("views"):
        yield _side(frame, "views", "Two, three and six views", "views")


def _side(frame: Frame, group: str, title: str, file: str) -> str:
    conditions = tables.panel_conditions(ALL)
    parts = [f"## {title}\n\nPercent, all modalities degraded, {frame.plan.side_seeds} seeds (`{file}.csv` has the"]
    parts[0] += f" differences to static and PE):\n\n![{group}]({file}.png)\n"
    for variant in tables.side_variants(group):

        def cell(row: str, condition: Condition, v: str = variant) -> str:
            return percent(frame.accuracy(row, condition, v, group))

        def against(row: str, condition: Condition, v: str = variant) -> str:
            return difference(frame.difference("udml", row, condition, v, group))

        parts.append(f"{variant}:\n\n{tables.by_level(SIDE_ROWS, conditions, cell)}")
        parts.append(f"{variant}, UDML minus:\n\n{tables.by_level(SIDE_ROWS[:-1], conditions, against)}")
    return "\n".join(parts)


def _kinds(frame: Frame) -> str:
    runs = list(frame.seeds("udml", group="kinds").values())
    if not runs:
        return ""

    def told(values: Iterator[float]) -> str:
        return percent(interval([100 * value for value in values]))

    levels = [told(run["by_level"][n] for run in runs) for n in range(len(LEVELS))]
    mixed = [
        [f"{share:.0%} to {1 - share:.0%}", *(told(run["mixed"][n][key] for run in runs) for key in run_keys)]
        for run_keys in (("first", "either", "both"),)
        for n, share in enumerate(SHARES)
    ]
    return f"""## The kind of noise

A UDML trained with a kind drawn for every modality of a sample ({", ".join(CLASSES[1:])}; of equal power at a level,
but for dropout, which takes σ/16 of the elements), then `NoiseTypeClassifier` on its embeddings' std and mean. On the
test split's mix of levels it is right in {told(run["accuracy"] for run in runs)} percent, where always answering
"clean" is in {told(run["majority"] for run in runs)}. By level:

{markdown(["", *(f"σ = {level}" for level in LEVELS)], [["percent right", *levels]])}
![noise types](noise_types.png)

Two kinds on one input, which training has not seen, at levels of 2 and more:

{markdown(["shares of the power", "the first kind", "one of the two", "the two likeliest are the two"], mixed)}"""


def _tuning(tuning: Rows) -> str:
    header = ["", "trial", "validation, percent", "values"]
    names = [key for row in tuning for key in row if key not in ("row", "trial", "score", "chosen")]
    body = []
    for row in tuning:
        if not row["chosen"]:
            continue
        values = ", ".join(f"{name} {row[name]}" for name in dict.fromkeys(names) if name in row)
        score = "–" if row["score"] is None else f"{100 * row['score']:.1f}"
        body.append([label(row["row"]), str(row["trial"]), score, values])
    return f"## Chosen hyper-parameters\n\nAll trials: `tuning.csv`.\n\n{markdown(header, body)}"
