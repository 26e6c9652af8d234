"""python -m udml train | reproduce | broken-sensor | designs | suppression | demo."""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from udml_kernels.tools.console import leave, program

from ._flags import at_least, folder, prog


def _train(argv: list[str]) -> int:
    from .training.cli import main

    return main(argv)


def _reproduce(argv: list[str]) -> int:
    from .experiments import main

    return main(argv)


def _broken_sensor(argv: list[str]) -> int:
    from .experiments.broken import main

    return main(argv)


def _designs(argv: list[str]) -> int:
    from .experiments.designs import main

    return main(argv)


def _suppression(argv: list[str]) -> int:
    from .experiments.suppression import main

    return main(argv)


def _demo(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=prog("demo"), description=COMMANDS["demo"].help)
    parser.add_argument("--out", type=folder, default=Path("demo"), help="folder of the figure (default: demo)")
    parser.add_argument("--epochs", type=at_least(3), default=None, help="epochs of each run, at least 3")
    parser.add_argument("--seed", type=int, default=0, help="seed of both runs (default: 0)")
    arguments = parser.parse_args(argv)
    from .demo import report

    return report.main(arguments.out, arguments.epochs or report.EPOCHS, arguments.seed)


class Command(NamedTuple):
    """A command: the function that runs it, the packages it needs, the extra that installs them, a line of help."""

    run: Callable[[list[str]], int]
    needs: tuple[str, ...]
    extra: str
    help: str


_TRAINING = ("lightning", "torchmetrics", "tensorboard", "jsonargparse", "docstring_parser", "yaml", "rich")
COMMANDS = {
    "train": Command(_train, _TRAINING, "train", "train one method on one data set"),
    "reproduce": Command(
        _reproduce, (*_TRAINING, "numpy", "matplotlib"), "train", "tune, train and compare all methods on a data set"
    ),
    "broken-sensor": Command(
        _broken_sensor, (*_TRAINING, "numpy"), "train", "break one modality, and see what the others still answer"
    ),
    "designs": Command(_designs, (*_TRAINING, "numpy"), "train", "compare ways in which the noise estimator may learn"),
    "suppression": Command(
        _suppression,
        (*_TRAINING, "numpy", "matplotlib"),
        "train",
        "watch a modality that learns slowly under several methods",
    ),
    "demo": Command(
        _demo,
        (*_TRAINING, "numpy", "matplotlib"),
        "train",
        "train on the watch data with the fused and with the reference ops, and compare",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    lines = "\n".join(f"  {key:<13} {value.help}" for key, value in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=program("udml"),
        description="Unbiased dynamic multimodal learning.",
        epilog=f"commands:\n{lines}\n\n{program('udml')} COMMAND --help lists the command's flags",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command", help=", ".join(COMMANDS))
    argv = sys.argv[1:] if argv is None else argv
    name = parser.parse_args(argv[:1]).command
    command = COMMANDS[name]
    missing = [module for module in command.needs if importlib.util.find_spec(module) is None]
    if missing:
        print(f"{name} needs {', '.join(missing)}: pip install 'udml-kernels[{command.extra}]'", file=sys.stderr)
        return 2
    return command.run(argv[1:])


def script() -> NoReturn:
    """The console script `udml`."""
    leave("udml", main)


if __name__ == "__main__":
    script()
