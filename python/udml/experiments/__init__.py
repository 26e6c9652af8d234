"""The experiments behind the reported results: `python -m udml reproduce`."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see `udml.experiments.cli`."""
    # Imported here, as the processes of a pool need neither plots nor a command line.
    from .cli import main

    return main(argv)


__all__ = ["main"]
