"""python -m udml suppression: does a modality that learns slowly get less gradient where weights fall with its noise?

Several methods are watched over the training: what each modality's encoder knows, its head, its gradient by term of the
objective, its weight and its alpha. Validation samples alone are used.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..data import DataError, load_data
from ..training.folder import write_text
from .jobs import run_jobs
from .plan import DATA, Job, Plan, Trial
from .regimes import EPOCHS, REGIMES, changes
from .statistics import interval
from .tables import markdown, write_table

PROG = "python -m udml suppression"
_FREE = {"logvar_gradient": 1.0, "input_statistics": False}
# Label: the method and its options. Unimodal losses (γ) teach every encoder alone: suppression is looked for without.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", {"gamma": 0.0}),
    "PE": ("pe", {"gamma": 0.0}),
    "UDML": ("udml", {"gamma": 0.0}),
    "UDML, α off": ("udml", {"gamma": 0.0, "dependency": False}),
    "UDML, free": ("udml", {"gamma": 0.0, **_FREE}),
    "UDML, free, α off": ("udml", {"gamma": 0.0, "dependency": False, **_FREE}),
    "UDML, 1 + w": ("udml", {"gamma": 0.0, "residual": True}),
    "UDML, α on gradients": ("udml", {"gamma": 0.0, "dependency_gradient": 1.0}),
    "oracle": ("oracle", {"gamma": 0.0}),
    "static, γ = 0.3": ("static", {"gamma": 0.3}),
    "UDML, γ = 0.3": ("udml", {}),
    "authors preset": ("udml", {"preset": "authors"}),
}


def jobs(data: str, regime: str, seeds: int, epochs: int) -> list[Job]:
    """A run of each method with each seed."""
    plan, found = Plan(data, epochs=epochs, draws=4), []
    for label, (method, options) in METHODS.items():
        for seed in range(seeds):
            job = plan.job(
                "suppression", "udml", seed, Trial(), variant=variant(regime, label), split_seed=seed,
                **changes(regime, epochs),
            )  # fmt: skip
            found.append(Job(job.group, job.row, job.variant, {**job.config, "method": method}, options, job.draws))
    return found


def variant(regime: str, label: str) -> str:
    """A part of a file's name."""
    plain = label.replace("α", "alpha").replace("γ = 0.3", "gamma").replace("+", "plus").replace(",", "")
    return f"{regime}-{plain.replace(' ', '-')}"


def table(results: dict[str, list[dict[str, Any]]], slow: str) -> list[dict[str, str]]:
    """A row for each method: means over the seeds, the gradients and weights over the last quarter of the epochs."""
    rows = []
    for label, runs in results.items():
        row = {"method": label}
        for key in ("clean", "mix", *(name for name in runs[0]["final"] if name.startswith("probe"))):
            row[key] = f"{100 * interval([run['final'][key] for run in runs]).mean:.1f}"
        for term in ("task", "unimodal", "kl", "noise"):
            row[f"gradient of {term}, {slow}"] = _late(runs, f"gradient {term} {slow}")
        row |= {f"weight {slow}": _late(runs, f"weight_{slow}"), f"α {slow}": _late(runs, f"alpha_{slow}")}
        rows.append(row)
    return rows


def _late(runs: Sequence[dict[str, Any]], key: str) -> str:
    values = [row[key] for run in runs for row in run["epochs"][-max(1, len(run["epochs"]) // 4) :] if key in row]
    return f"{sum(values) / len(values):.3g}" if values else "–"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if a run failed; 2 for data that cannot be read."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__.partition("\n")[2].strip())
    parser.add_argument("--data", choices=DATA, default="hog", help="(default: hog)")
    parser.add_argument("--regime", choices=REGIMES, default="sgd", help="(default: sgd)")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each method (default: 5)")
    parser.add_argument("--epochs", type=int, default=None, help="(default: that of the data)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("suppression"), help="folder (default: suppression)")
    arguments = parser.parse_args(argv)
    try:
        names = load_data(arguments.data).spec.modalities
    except DataError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    console = Console(stderr=True, highlight=False)
    work = jobs(arguments.data, arguments.regime, arguments.seeds, arguments.epochs or EPOCHS[arguments.data])
    name = f"{arguments.data}-{arguments.regime}"

    def finished(job: Job, failure: Any) -> None:
        console.print(f"{job.name}{'' if failure is None else ' failed: ' + failure.reason}", markup=False)

    outcome = run_jobs(work, arguments.out / "runs" / name, arguments.jobs, finished)
    labels = {variant(arguments.regime, label): label for label in METHODS}
    results: dict[str, list[dict[str, Any]]] = {}
    for job in work:
        if job.name in outcome.results:
            results.setdefault(labels[job.variant], []).append(outcome.results[job.name])
    rows = table(results, names[-1])
    write_table(arguments.out / f"{name}.csv", rows)
    text = markdown(list(rows[0]), [list(row.values()) for row in rows])
    write_text(arguments.out / f"{name}.md", text)
    from .suppression_plot import draw

    draw(results, names[-1], arguments.out / f"{name}.png")
    print(text)
    return 1 if outcome.failures else 0
