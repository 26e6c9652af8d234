"""python -m udml train."""

import atexit
import json
import os
import sys
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from jsonargparse import ActionConfigFile, ArgumentParser
from rich.console import Console
from rich.table import Table

from udml_kernels.tools.console import interrupted

from .._flags import failed, prog
from ..data import DataError
from ..data.sets import Split
from ..schedule import PHASES
from .config import TrainConfig
from .evaluate import MIX, evaluate
from .fit import Result, Run, prepare
from .folder import RESULT, write_text
from .module import score_name

LEVELS = (0.0, 1.0, 2.0, 4.0, 8.0, 12.0)


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None):
        message = " ".join(str(message).split())
        if "is not accepted" in message or "unrecognized arguments" in message:
            message += f"; expected one of {', '.join(TrainConfig.__dataclass_fields__)}"
        print(f"{prog('train')}: error: {message}", file=sys.stderr)
        raise SystemExit(2)


def parse(argv: list[str]) -> TrainConfig:
    """Parse the command line, and the YAML file that --config names; flags after --config override the file.

    Raises:
        SystemExit: with 2 after a message for an invalid flag, key or value; with 0 after --help.
        ValueError: as TrainConfig.
    """
    parser = _Parser(prog=prog("train"), description="Train one method on one data set.")
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the keys below")
    parser.add_class_arguments(TrainConfig, skip={"resume", "overwrite"})
    parser.add_argument("--resume", action="store_true", help="continue after the last finished epoch in out")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in out")
    values = parser.parse_args(argv).as_dict()
    del values["config"]
    return TrainConfig(**values)


def main(argv: list[str]) -> int:
    """Train, evaluate, print a table, write result.json.

    Returns:
        The exit code: 0; 1 if the loss is no longer finite; 2 for a config or data that cannot be trained on; 130 after
        Ctrl-C.
    """
    try:
        run = prepare(parse(argv))
    except (ValueError, DataError, ImportError) as error:
        return _failed(error, 2)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if run.trainer.is_global_zero:
        _introduce(run, console)
    try:
        result = run.fit()
    except KeyboardInterrupt:
        kept = "" if run.config.out is None else f"; --resume goes on after the last finished epoch in {run.config.out}"
        return interrupted(prog("train"), kept) if run.trainer.is_global_zero else 130
    except FloatingPointError as error:
        return _failed(error, 1)
    except DataError as error:
        # Files are read only when their samples are needed.
        return _failed(error, 2)
    if run.trainer.is_global_zero:
        scores = score(result)
        if result.config.out is not None:
            write_text(result.config.out / RESULT, json.dumps(summary(result, scores), indent=2) + "\n")
        table = _table(result, scores)
        # On a narrow terminal: a line for each level.
        fits = console.measure(table, options=console.options.update(width=1000)).maximum <= console.width
        console.print(table if fits else _table(result, scores, tall=True))
    return 0


@atexit.register
def _leave_group() -> None:
    # Only at the end: a process cannot join torchrun's group a second time.
    if dist.is_initialized():
        dist.destroy_process_group()


def _failed(error: Exception, code: int) -> int:
    return failed("train", error, code) if os.environ.get("RANK", "0") == "0" else code


def score(result: Result) -> dict[str, dict[str, float]]:
    """The selected model's scores by split (validation, test) and level: clean, mix, and each sigma of LEVELS.

    On the mix it is the mean over the same noise draws with which the epochs were selected.
    """
    config, data = result.config, result.data
    cuda = config.device != "cpu" and torch.cuda.is_available()
    model = result.model.to("cuda" if cuda else "cpu")
    options: dict[str, Any] = {"weighting": result.weighting, "workers": config.workers, "precision": config.precision}

    def at(split: Split, level: float | str) -> float:
        draws = config.validation_draws if level == MIX else 1
        return fmean(evaluate(model, split, data.spec, level, draw=draw, **options).score for draw in range(draws))

    levels: dict[str, float | str] = {"clean": 0.0, MIX: MIX, **{f"{level:g}": level for level in LEVELS[1:]}}
    return {
        name: {key: at(data.splits[name], level) for key, level in levels.items()} for name in ("validation", "test")
    }


def summary(result: Result, scores: dict[str, dict[str, float]]) -> dict:
    """The contents of result.json."""
    return {
        "config": result.config.plain(),
        "score": score_name(result.data.spec),
        "selected": result.selected,
    } | scores


def _introduce(run: Run, console: Console) -> None:
    config, data = run.config, run.data
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    phases = ", ".join(f"{n} {p.name}" for n, p in zip(config.schedule.lengths, PHASES, strict=True) if n)
    console.print(f"{config.method} on {data.spec.name} ({', '.join(data.spec.modalities)}): {sizes} samples")
    console.print(f"Epochs: {phases}; batch {config.batch_size}, seed {config.seed}")


def _table(result: Result, scores: dict[str, dict[str, float]], tall: bool = False) -> Table:
    spec = result.data.spec
    last = list(result.selected)[-1]
    title = f"{score_name(spec)} of epoch {result.selected[last] + 1}, selected on the validation samples"
    table = Table(title=title, title_justify="left")
    levels = [name if name in ("clean", MIX) else f"σ={name}" for name in scores["test"]]
    rows = [["samples", *levels], *([name, *(f"{v:.3f}" for v in row.values())] for name, row in scores.items())]
    head, *body = zip(*rows, strict=True) if tall else rows
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left")
    for row in body:
        table.add_row(*row)
    return table
