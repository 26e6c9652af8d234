"""python -m udml reproduce."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from udml_kernels.tools.console import interrupted

from .._flags import at_least, failed, folder, prog
from ..data import DataError, load_data
from ..training.folder import write_text
from .frame import Frame
from .jobs import Failure, Outcome, read_result, run_jobs
from .plan import DATA, Job, Plan
from .plots import draw_plots
from .report import write_report
from .tables import write_table, write_tables
from .tuning import choose
from .unseen_tables import unseen


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Raises SystemExit with 2 after a message if it is not valid."""
    parser = argparse.ArgumentParser(
        prog=prog("reproduce"), description="Tune, train, measure and report all methods on a data set."
    )
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--seeds", type=at_least(2), default=10, help="runs of each method (default: 10)")
    parser.add_argument("--trials", type=at_least(1), default=6, help="trials of each method's tuning (default: 6)")
    parser.add_argument("--out", type=folder, default=None, help="folder of the report (default: reproduce/DATA)")
    parser.add_argument("--jobs", type=at_least(1), default=_cores(), help="processes (default: the cores)")
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing: report the runs that --out already has"
    )
    parser.add_argument("--quick", action="store_true", help="2 seeds, 1 trial, 3 epochs: test whether everything runs")
    arguments = parser.parse_args(argv)
    arguments.out = arguments.out or Path("reproduce") / arguments.data
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs that the folder does not have yet, unless --report-only; then write the report.

    Returns:
        The exit code: 0; 1 if a run failed, which the report then lacks; 2 for data that cannot be read; 130 after
        an interruption.
    """
    arguments = parse(argv)
    try:
        return _reproduce(arguments)
    except KeyboardInterrupt:
        return interrupted(prog("reproduce"), f"; the same command goes on with what {arguments.out} has")


def _reproduce(arguments: argparse.Namespace) -> int:
    plan = Plan.of(arguments.data, arguments.seeds, arguments.trials, arguments.quick)
    try:
        spec = load_data(plan.data).spec
    except DataError as error:
        return failed("reproduce", error)
    out, console = arguments.out, Console(stderr=True, highlight=False)
    run = _kept if arguments.report_only else _run
    tuned = run("tuning", plan.tuning(), out, arguments.jobs, console)
    chosen, tuning = choose(plan, tuned.results)
    write_text(out / "chosen.json", json.dumps({"chosen": _plain(chosen), "trials": tuning}, indent=2) + "\n")
    jobs = plan.runs(chosen)
    ran = run("runs", jobs, out, arguments.jobs, console)
    failures = tuned.failures + ran.failures
    frame = Frame.of(plan, spec, jobs, ran.results)
    write_tables(frame, tuning, out)
    write_table(out / "unseen.csv", unseen(frame))
    draw_plots(frame, out)
    write_report(frame, tuning, failures, out)
    console.print(f"{out / 'report.md'}: {len(tuned.results) + len(ran.results)} runs, {len(failures)} failed")
    return 1 if failures else 0


def _run(name: str, jobs: Sequence[Job], out: Path, workers: int, console: Console) -> Outcome:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(name, total=len(jobs))

        def finished(job: Job, failure: Failure | None) -> None:
            progress.advance(task)
            if failure is not None:
                report = {"config": job.config, "options": job.options}
                console.print(f"{job.name} failed: {json.dumps(report)}\n{failure.error}", markup=False)

        return run_jobs(jobs, out / "runs", workers, finished)


def _kept(name: str, jobs: Sequence[Job], out: Path, workers: int, console: Console) -> Outcome:
    found = {job.name: result for job in jobs if (result := read_result(out / "runs", job)) is not None}
    console.print(f"{name}: {len(found)} of {len(jobs)}")
    return Outcome(found, [])


def _plain(chosen) -> dict:
    return {row: {**point.config, **point.options} for row, point in chosen.items()}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
