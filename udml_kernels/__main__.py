"""python -m udml_kernels info | check | bench | aot"""

from typing import NoReturn

from .tools.cli import main
from .tools.console import leave


def script() -> NoReturn:
    """The console script `udml-kernels`."""
    leave("udml_kernels", main)


if __name__ == "__main__":
    script()
