"""What the command lines of this package share."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from udml_kernels.tools.console import program


def prog(command: str) -> str:
    """What the user called: `udml train`, or `python -m udml train`."""
    return f"{program('udml')} {command}"


def failed(command: str, error: Exception, code: int = 2) -> int:
    """Print an error in one line; returns the exit code."""
    print(f"{prog(command)}: error: {error}", file=sys.stderr)
    return code


def at_least(least: int) -> Callable[[str], int]:
    """The type of a flag: a whole number that is not less than `least`."""

    def whole(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {value}")
        return value

    whole.__name__ = "whole number"
    return whole


def folder(text: str) -> Path:
    """The type of a flag: a folder that exists or can be made."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, got the file {path}")
    return path
