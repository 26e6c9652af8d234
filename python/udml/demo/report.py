"""The demo on real data: train UDML on the fused ops and on the reference, compare, print, draw."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from udml_kernels import backends

from ..data import DataError, MultimodalData, load_data
from ..data.watch import SIGMA_UNIT, SUBJECTS
from ..schedule import PHASES
from ..training import MIX, TrainConfig
from ..training.fit import has_room
from .comparison import EPOCH_BOUND, FIRST_EPOCH_BOUND, LEVELS, REFERENCE, TASK_BOUND, Report, compare
from .figure import draw

EPOCHS = 40


def run_demo(out: Path, config: TrainConfig, data: MultimodalData, console: Console) -> int:
    """Train, print, draw out/udml.png.

    Returns:
        The exit code: 0, or 1 if the two runs' loss curves disagree or a loss is no longer finite.
    """
    start = time.perf_counter()
    print_setup(console, config, data)
    try:
        with _progress(console, 2 * config.epochs) as advance:
            report = compare(data, config, advance)
    except FloatingPointError as error:
        console.print(f"[bold red]A run failed[/]: {error}")
        return 1
    print_report(console, report)
    out.mkdir(parents=True, exist_ok=True)
    draw(report, out / "udml.png")
    console.print(f"Figure: {out / 'udml.png'}")
    console.print(f"The demo took {time.perf_counter() - start:.0f} s")
    if report.agree:
        return 0
    name, epoch, difference, bound = report.disagreements[0]
    console.print(
        f"[bold red]The loss curves disagree[/]: the {name} of epoch {epoch + 1} differs by {difference:.2e},"
        f" expected at most {bound:.1e}"
    )
    return 1


@contextlib.contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable]:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("training", total=total)

        def advance(backend: str, row: dict[str, Any]) -> None:
            numbers = f"loss {row['loss']:.3f} validation {row['validation_accuracy']:.3f}"
            text = f"{backend:<9} {row['phase']:<8} {numbers}"
            progress.update(task, advance=1, description=text)
            # In a log file the bar appears only when it is full.
            if not console.is_terminal and (row["epoch"] + 1) % 10 == 0:
                console.print(f"{text}, epoch {row['epoch'] + 1}")

        yield advance


def print_setup(console: Console, config: TrainConfig, data: MultimodalData) -> None:
    """Print what is about to run, and on which backend."""
    people = "; ".join(f"{name}: {list(SUBJECTS[name])}, {len(part):,} windows" for name, part in data.splits.items())
    schedule = " → ".join(f"{n} {p.name}" for n, p in zip(config.schedule.lengths, PHASES, strict=True))
    sensors = ", ".join(data.spec.modalities)
    console.print(f"[bold]UDML on the watch data[/]: {sensors} at 50 Hz, windows of 128 readings")
    console.print(f"People in {people}")
    console.print(f"Epochs: {schedule}; batch {config.batch_size}, seed {config.seed}, one thread")
    console.print(f"σ counts in {SIGMA_UNIT} of each channel's standard deviation over the training people")
    if backends.select(torch.device("cpu")) == REFERENCE:
        reason = backends.why_unavailable("cpu")
        console.print(f"[yellow]The fused ops do not serve this machine ({reason}): both runs use the reference[/]")


def print_report(console: Console, report: Report) -> None:
    """Print the tables."""
    print_losses(console, report)
    print_times(console, report)
    print_answers(console, report)


def print_losses(console: Console, report: Report) -> None:
    """Print how much the two runs differ, and how long they took."""
    first, second = report.runs
    names = _names(report)
    losses = _table("Training loss at the end of each phase", "phase", *names, "largest relative difference")
    start = 0
    for phase, length in zip(PHASES, report.config.schedule.lengths, strict=True):
        if length:
            end = start + length
            largest = max(report.differences[start:end])
            losses.add_row(phase.name, *(f"{run.curve()[end - 1]:.5f}" for run in report.runs), f"{largest:.2e}")
            start = end
    console.print(losses)
    console.print(
        f"Largest relative differences (bounds): first epoch {report.differences[0]:.1e} ({FIRST_EPOCH_BOUND:.1e}),"
        f" any epoch {max(report.differences):.1e} ({EPOCH_BOUND:.1e}),"
        f" task loss alone {max(report.task_differences):.1e} ({TASK_BOUND:.1e})"
    )
    console.print(f"Training took {first.seconds:.0f} s with {names[0]}, {second.seconds:.0f} s with {names[1]}\n")


def print_times(console: Console, report: Report) -> None:
    """Print the times of the ops of one step."""
    title = "UDML ops of one training step, forward + backward, median"
    times = _table(title, "op", *(f"{name}, ms" for name in _names(report)), "ratio")
    for t in report.timings:
        times.add_row(t.name, *(f"{1e3 * statistics.median(s):.3f}" for s in t.seconds), f"{t.ratio:.1f}x")
    console.print(times)


def print_answers(console: Console, report: Report) -> None:
    """Print the models' results on the test people."""
    levels = [f"σ={level}" for level in LEVELS]
    scores = _table("Accuracy on the test people", "trained", "ops", *levels, MIX)
    for name in report.runs[0].accuracy:
        for run in report.runs:
            scores.add_row(name, run.backend, *(f"{score:.3f}" for score in run.accuracy[name]))
    console.print(scores)

    noise = _table("Predicted σ on the test people, median", "modality", "ops", *levels)
    for i, modality in enumerate(report.spec.modalities):
        for run in report.runs:
            noise.add_row(modality, run.backend, *(f"{middle:.2f}" for _, middle, _ in run.predicted[i]))
    console.print(noise)
    errors = ", ".join(f"{run.rmse:.2f} ({run.backend} ops)" for run in report.runs)
    console.print(f"Root mean square error of the predicted σ on the mix: {errors}")


def _names(report: Report) -> list[str]:
    return [f"{run.backend} ops" for run in report.runs]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table


def main(out: Path, epochs: int, seed: int) -> int:
    """`python -m udml demo`. Returns the exit code: 1 if the curves disagree, 2 without data or for bad arguments."""
    # Tables need more width than the 80 columns that rich assumes in a log file, or than a narrow terminal has.
    room = has_room()
    console = Console(highlight=False, width=None if room else 120, force_terminal=None if room else False)
    try:
        if out.exists() and not out.is_dir():
            raise ValueError(f"out: expected a folder, got the file {out}")
        config = TrainConfig(epochs=epochs, seed=seed, validation_draws=1, device="cpu")
        data = load_data(config.data)
    except (DataError, ValueError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]The demo cannot run[/]: {error}")
        return 2
    return run_demo(out, config, data, console)
