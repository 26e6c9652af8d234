"""How the commands of both packages start and end."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

SCRIPTS = {"udml_kernels": "udml-kernels", "udml": "udml"}


def program(package: str) -> str:
    """What the user called: the console script of a package, or `python -m package`."""
    script = SCRIPTS[package]
    return script if Path(sys.argv[0]).name.removesuffix(".exe") == script else f"python -m {package}"


def leave(package: str, main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code: 130 after Ctrl-C, 0 where the reader of the output has closed the pipe."""
    try:
        code = main()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as end:
        # The reader of the pipe, such as `head`, has closed it. rich catches the error and raises SystemExit(1).
        if not isinstance(end, BrokenPipeError) and not isinstance(end.__context__, BrokenPipeError):
            raise
        # Python flushes stdout at exit: what is left goes to the null device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = interrupted(program(package))
    sys.exit(code)


def interrupted(command: str, hint: str = "") -> int:
    """Say in one line that Ctrl-C ended a command, and what to do; returns the exit code."""
    # A terminal has echoed ^C, perhaps beside a progress bar.
    start = "\n" if sys.stderr.isatty() else ""
    print(f"{start}{command}: interrupted{hint}", file=sys.stderr)
    return 130
