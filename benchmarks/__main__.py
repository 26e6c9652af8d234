"""python -m benchmarks run | smoke | table | report | figures | compare | revisions | gpu"""

import argparse
import importlib
import sys
from collections.abc import Sequence

# Each module has HELP, add_arguments and run. Only the module of the chosen command is imported: a machine with a GPU
# need not have the packages that draw the report.
_COMMANDS = {
    "run": "running",
    "smoke": "smoke",
    "table": "tables",
    "report": "report",
    "figures": "figures",
    "compare": "compare",
    "revisions": "revisions",
    "gpu": "gpu.command",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name not in _COMMANDS:
        print("python -m benchmarks COMMAND, one of\n" + "\n".join(f"  {n:10} {_help(n)}" for n in _COMMANDS))
        return 0 if name in ("-h", "--help") else 2
    module = importlib.import_module(f".{_COMMANDS[name]}", __package__)
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=module.__doc__)
    module.add_arguments(parser)
    return module.run(parser.parse_args(rest))


def _help(name: str) -> str:
    try:
        return importlib.import_module(f".{_COMMANDS[name]}", __package__).HELP
    except ImportError as missing:
        return f"not available here: {missing}"


if __name__ == "__main__":
    sys.exit(main())
