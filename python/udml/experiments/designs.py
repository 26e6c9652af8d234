"""python -m udml designs: how the estimator may learn without pulling the encoders off their task.

Each design is trained with the package's defaults, untuned, and measured on validation samples. `--split test` shows
how the chosen one does on samples that had no part in the choice.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from ..data import DataError, load_data
from ..training.evaluate import MIX
from ..training.folder import write_text
from .jobs import run_jobs
from .plan import DATA, Job, Plan, Trial
from .regimes import EPOCHS, REGIMES, changes
from .statistics import Interval, interval, paired
from .tables import difference, markdown, write_table

PROG = "python -m udml designs"
STATIC = "static"
# Label: the method, and its options that are not the package's defaults of before this comparison.
DESIGNS: dict[str, tuple[str, dict[str, Any]]] = {
    STATIC: ("static", {"gamma": 0.3}),
    "static, clean": ("static-clean", {"gamma": 0.3}),
    "free": ("udml", {"logvar_gradient": 1.0, "input_statistics": False}),
    "std detached": ("udml", {"logvar_gradient": 1.0, "input_statistics": False, "detach": True}),
    "loss by variance": ("udml", {"logvar_gradient": 1.0, "input_statistics": False, "lam": 0.3 / 12}),
    "gradient 0.1": ("udml", {"logvar_gradient": 0.1, "input_statistics": False}),
    "features detached": ("udml", {"logvar_gradient": 0.0, "input_statistics": False}),
    "detached, hidden": ("udml", {"logvar_gradient": 0.0, "input_statistics": False, "logvar_hidden": 128}),
    "detached, sizes": ("udml", {"logvar_gradient": 0.0, "input_statistics": True}),
    "detached, sizes, hidden": ("udml", {"logvar_gradient": 0.0, "input_statistics": True, "logvar_hidden": 128}),
    "oracle": ("oracle", {"gamma": 0.3}),
    "static, γ = 0": ("static", {"gamma": 0.0}),
    "PE": ("pe", {"gamma": 0.3}),
}


def jobs(
    data: str, regime: str, seeds: int, epochs: int, labels: Sequence[str], split: str = "validation"
) -> list[Job]:
    """A run of each design with each seed; where the partition is free, each seed has its own."""
    plan = Plan(data, epochs=epochs, draws=4)
    group = "design" if split == "validation" else "design-test"
    found = []
    for label in labels:
        method, options = DESIGNS[label]
        for seed in range(seeds):
            job = plan.job(
                "design",
                "udml",
                seed,
                Trial(),
                variant=_variant(regime, label),
                split_seed=seed,
                **changes(regime, epochs),
            )
            config = {**job.config, "method": method}
            found.append(Job(group, "udml", job.variant, config, options, plan.draws))
    return found


def _variant(regime: str, label: str) -> str:
    return f"{regime}-{label.replace('γ = ', 'gamma-').replace(',', '').replace(' ', '-')}"


Results = Mapping[str, Mapping[int, Mapping[str, float]]]


def table(results: Results, names: Sequence[str]) -> list[dict[str, str]]:
    """A row for each design: means, and on clean data and the mix the paired difference from static."""
    rows = []
    for label, runs in results.items():
        row = {"design": label}
        for key in ("clean", MIX):
            row[key] = f"{100 * fmean(run[key] for run in runs.values()):.1f}"
            row[f"{key} - static"] = "" if label == STATIC else difference(_against_static(results, label, key))
        for key in ("all at 4", "all at 8"):
            row[key] = f"{100 * fmean(run[key] for run in runs.values()):.1f}"
        for key, digits in (("spearman", 3), ("probe", 1)):
            for name in names:
                values = [run[f"{key} {name}"] for run in runs.values() if f"{key} {name}" in run]
                scale = 100 if key == "probe" else 1
                row[f"{key} {name}"] = f"{scale * interval(values).mean:.{digits}f}" if values else ""
        rows.append(row)
    return rows


def _against_static(results: Results, label: str, key: str) -> Interval:
    own, static = ({seed: 100 * run[key] for seed, run in results[name].items()} for name in (label, STATIC))
    return paired(own, static)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if a run failed; 2 for data that cannot be read."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__.partition("\n")[2].strip())
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--regime", choices=REGIMES, default="adamw", help="(default: adamw)")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="(default: validation)")
    parser.add_argument("--only", nargs="+", choices=DESIGNS, metavar="DESIGN", help="static and these designs")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each design, at least 2 (default: 5)")
    parser.add_argument("--epochs", type=int, default=None, help="(default: 60 digits, 18 watch, 40 hog)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("designs"), help="folder of the table (default: designs)")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 2:
        parser.error(f"argument --seeds: expected at least 2, got {arguments.seeds}")
    try:
        names = load_data(arguments.data).spec.modalities
    except DataError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    console = Console(stderr=True, highlight=False)
    chosen = [label for label in DESIGNS if label == STATIC or label in (arguments.only or DESIGNS)]
    epochs = arguments.epochs or EPOCHS[arguments.data]
    work = jobs(arguments.data, arguments.regime, arguments.seeds, epochs, chosen, arguments.split)
    name = f"{arguments.data}-{arguments.regime}{'-test' if arguments.split == 'test' else ''}"

    def finished(job: Job, failure: Any) -> None:
        console.print(f"{job.name}{'' if failure is None else ' failed: ' + failure.reason}", markup=False)

    outcome = run_jobs(work, arguments.out / "runs" / name, arguments.jobs, finished)
    results: dict[str, dict[int, dict[str, float]]] = {label: {} for label in DESIGNS}
    labels = {_variant(arguments.regime, label): label for label in DESIGNS}
    for job in work:
        if job.name in outcome.results:
            results[labels[job.variant]][job.seed] = outcome.results[job.name]
    rows = table({label: runs for label, runs in results.items() if runs}, names)
    write_table(arguments.out / f"{name}.csv", rows)
    text = markdown(list(rows[0]), [list(row.values()) for row in rows])
    write_text(arguments.out / f"{name}.md", text)
    print(text)
    return 1 if outcome.failures else 0
