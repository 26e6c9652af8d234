import argparse
from collections.abc import Sequence

from . import aot, bench, check, info
from .console import program


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=program("udml_kernels"), description="Fused ops for UDML.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{info,check,bench,aot}")
    for module in (info, check, bench, aot):
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    return options.run(options)
