"""The benchmark suite: `make bench`, or `python -m benchmarks --help` in a checkout."""

import sys
from pathlib import Path

# Makes `udml` importable for a Python in which this checkout is not installed, such as one with a GPU's own packages.
sys.path.append(str(Path(__file__).parents[1] / "python"))
