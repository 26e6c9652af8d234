"""python -m udml demo."""

import argparse
import importlib.util
import sys
from pathlib import Path

NEEDED = ("numpy", "rich", "matplotlib")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m udml", description="Unbiased dynamic multimodal learning.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    help_text = "train on the watch data with the fused and with the reference ops, and compare"
    demo = commands.add_parser("demo", help=help_text, description=help_text)
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder of the figure (default: demo)")
    demo.add_argument("--epochs", type=int, default=None, help="epochs of each run, at least 3")
    demo.add_argument("--seed", type=int, default=0, help="seed of both runs (default: 0)")
    arguments = parser.parse_args(argv)
    if arguments.epochs is not None and arguments.epochs < 3:
        parser.error(f"argument --epochs: expected at least 3, got {arguments.epochs}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = _arguments(argv)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"The demo needs {', '.join(missing)}: pip install 'udml-kernels[demo]'", file=sys.stderr)
        return 2
    from . import demo

    return demo.main(arguments.out, arguments.epochs or demo.EPOCHS, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
