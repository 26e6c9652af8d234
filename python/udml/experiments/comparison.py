"""What `designs` and `suppression` share: runs of labelled methods with the package's defaults, kept and tabulated."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .._flags import at_least, folder
from ..training.folder import write_text
from .jobs import run_jobs
from .plan import DATA, Job, Plan, Trial
from .regimes import EPOCHS, REGIMES, changes
from .tables import markdown, write_table

# By label, a method and its options.
Methods = Mapping[str, tuple[str, dict[str, Any]]]
# By label and seed, the result of a run.
Results = dict[str, dict[int, dict[str, Any]]]


def flags(parser: argparse.ArgumentParser, *, data: str | None, regime: str, seeds: int, fewest: int, out: str) -> None:
    """Add the flags of both commands, with these defaults; without one, --data is required.
    `fewest` seeds have to be asked for."""
    parser.add_argument("--data", choices=DATA, default=data, required=data is None, help=f"(default: {data})")
    parser.add_argument("--regime", choices=REGIMES, default=regime, help=f"(default: {regime})")
    parser.add_argument("--seeds", type=at_least(fewest), default=seeds, help=f"runs of each method (default: {seeds})")
    parser.add_argument("--epochs", type=at_least(1), default=None, help="(default: 60 digits, 18 watch, 40 hog)")
    parser.add_argument("--jobs", type=at_least(1), default=2, help="processes (default: 2)")
    parser.add_argument("--out", type=folder, default=Path(out), help=f"folder of the results (default: {out})")


def run(group: str, methods: Methods, arguments: argparse.Namespace, name: str) -> tuple[Results, int]:
    """Run each method with each seed, those that the folder does not have yet; where it is free, a seed has its own
    partition.

    Args:
        group: the group of the jobs, see `runs.execute`.
        arguments: those of `flags`.
        name: of the folder under `runs`.

    Returns:
        The results, and how many runs failed.
    """
    work = {
        job.name: (label, job)
        for label, (method, options) in methods.items()
        for job in _jobs(group, label, method, options, arguments)
    }
    console = Console(stderr=True, highlight=False)

    def finished(job: Job, failure: Any) -> None:
        console.print(f"{job.name}{'' if failure is None else ' failed: ' + failure.reason}", markup=False)

    jobs = [job for _, job in work.values()]
    outcome = run_jobs(jobs, arguments.out / "runs" / name, arguments.jobs, finished)
    results: Results = {}
    for job_name, (label, job) in work.items():
        if job_name in outcome.results:
            results.setdefault(label, {})[job.seed] = outcome.results[job_name]
    return results, len(outcome.failures)


def _jobs(group: str, label: str, method: str, options: dict[str, Any], arguments: argparse.Namespace) -> list[Job]:
    epochs = arguments.epochs or EPOCHS[arguments.data]
    plan = Plan(arguments.data, epochs=epochs, draws=4)
    plain = label.replace("α", "alpha").replace("γ = ", "gamma-").replace("+", "plus").replace(",", "")
    fields = {"method": method, "variant": f"{arguments.regime}-{plain.replace(' ', '-')}"}
    fields |= changes(arguments.regime, epochs)
    trial = Trial(options=options)
    return [plan.job(group, "udml", seed, trial, split_seed=seed, **fields) for seed in range(arguments.seeds)]


def write(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Write the table as `path`.csv and `path`.md, and print it."""
    write_table(path.with_suffix(".csv"), list(rows))
    text = markdown(list(rows[0]), [list(row.values()) for row in rows])
    write_text(path.with_suffix(".md"), text)
    print(text)
