"""The benchmark suite: `make bench`, or `python -m benchmarks --help` in a checkout."""

import sys
from pathlib import Path

# The training step's package, for a Python in which this checkout is not installed: one with a GPU's own packages.
sys.path.append(str(Path(__file__).parents[1] / "python"))
