"""The main job on real data: train UDML on the fused ops and on the reference, compare, print, draw."""

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from udml_kernels import backends

from .comparison import EPOCH_BOUND, FIRST_EPOCH_BOUND, LEVELS, REFERENCE, TASK_BOUND, Report, compare
from .windows import MODALITIES, SUBJECTS, DataError, Windows, load_watch, split_by_subject
from .figure import draw
from ..schedule import PHASES, Phase, ProgressiveSchedule
from .loop import MIX, SIGMA_UNIT, Config

EPOCHS = 40


def run_demo(out: Path, config: Config, windows: dict[str, Windows], console: Console) -> int:
    """Train, print, draw out/udml.png.

    Returns:
        The exit code: 0, or 1 when the two runs' loss curves disagree.
    """
    print_setup(console, config, windows)
    with _progress(console, 2 * config.schedule.epochs) as advance:
        report = compare(windows, config, advance)
    print_report(console, report)
    out.mkdir(parents=True, exist_ok=True)
    draw(report, out / "udml.png")
    console.print(f"Figure: {out / 'udml.png'}")
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

        def advance(backend: str, epoch: int, phase: Phase, loss: float, validation: float) -> None:
            text = f"{backend:<9} {phase.name:<8} loss {loss:.3f} validation {validation:.3f}"
            progress.update(task, advance=1, description=text)
            # A log file shows the bar only once it is full.
            if not console.is_terminal and (epoch + 1) % 10 == 0:
                console.print(f"{text}, epoch {epoch + 1}")

        yield advance


def print_setup(console: Console, config: Config, windows: dict[str, Windows]) -> None:
    """What is about to run, and on which backend."""
    people = "; ".join(f"{name}: {list(SUBJECTS[name])}, {len(part):,} windows" for name, part in windows.items())
    schedule = " → ".join(f"{n} {p.name}" for n, p in zip(config.schedule.lengths, PHASES, strict=True))
    console.print(f"[bold]UDML on the watch data[/]: {', '.join(MODALITIES)} at 50 Hz, windows of 128 readings")
    console.print(f"People in {people}")
    console.print(f"Epochs: {schedule}; batch {config.batch_size}, seed {config.seed}, one thread")
    console.print(f"σ counts in {SIGMA_UNIT} of each channel's standard deviation over the training people")
    if backends.select(torch.device("cpu")) == REFERENCE:
        reason = backends.why_unavailable("cpu")
        console.print(f"[yellow]The fused ops do not serve this machine ({reason}): both runs use the reference[/]")


def print_report(console: Console, report: Report) -> None:
    """The tables."""

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold")
        for i, name in enumerate(columns):
            made.add_column(name, justify="right" if i else "left")
        return made

    first, second = report.runs
    names = f"{first.backend} ops", f"{second.backend} ops"
    losses = table("Training loss at the end of each phase", "phase", *names, "largest relative difference")
    start = 0
    for phase, length in zip(PHASES, report.config.schedule.lengths, strict=True):
        if length:
            end = start + length
            largest = max(report.differences[start:end])
            losses.add_row(phase.name, *(f"{m.run.losses[end - 1]:.5f}" for m in report.runs), f"{largest:.2e}")
            start = end
    console.print(losses)
    console.print(
        f"Largest relative differences (bounds): first epoch {report.differences[0]:.1e} ({FIRST_EPOCH_BOUND:.1e}),"
        f" any epoch {max(report.differences):.1e} ({EPOCH_BOUND:.1e}),"
        f" task loss alone {max(report.task_differences):.1e} ({TASK_BOUND:.1e})"
    )
    console.print(f"Training took {first.seconds:.0f} s with {names[0]}, {second.seconds:.0f} s with {names[1]}\n")

    times = table(
        "UDML ops of one training step, forward + backward, median", "op", *(f"{n}, ms" for n in names), "ratio"
    )
    for t in report.timings:
        times.add_row(t.name, *(f"{1e3 * statistics.median(s):.3f}" for s in t.seconds), f"{t.ratio:.1f}x")
    console.print(times)

    scores = table("Accuracy on the test people", "trained", "ops", *(f"σ={level}" for level in LEVELS), MIX)
    for name in first.accuracy:
        for m in report.runs:
            scores.add_row(name, m.backend, *(f"{a:.3f}" for a in m.accuracy[name]))
    console.print(scores)

    noise = table("Predicted σ on the test people, median", "modality", "ops", *(f"σ={level}" for level in LEVELS))
    for i, modality in enumerate(MODALITIES):
        for m in report.runs:
            noise.add_row(modality, m.backend, *(f"{q[1]:.2f}" for q in m.predicted[i]))
    console.print(noise)
    errors = ", ".join(f"{m.rmse:.2f} ({m.backend} ops)" for m in report.runs)
    console.print(f"Root mean square error of the predicted σ on the mix: {errors}")


def main(out: Path, epochs: int, seed: int) -> int:
    """`python -m udml demo`. Returns the exit code: 1 when the curves disagree, 2 without data."""
    # Tables and bars need room, also in a log file, where rich assumes 80 columns.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    try:
        windows = split_by_subject(load_watch())
    except DataError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]No data[/]: {error}")
        return 2
    return run_demo(out, Config(ProgressiveSchedule.of(epochs), seed=seed), windows, console)
