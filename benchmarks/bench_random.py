"""Random numbers alone, compared with torch's, NumPy's and oneMKL's."""

import math

from udml_kernels.testing.ops import random
from udml_kernels.testing.works import Work

from .case import FORWARD, Case, cases
from .libraries import generators
from .shapes import CREMAD, MAP14, TOKENS, Shape


def _random(kind: str, shape: Shape) -> Work:
    """Omit the other libraries, which are slow, at the largest shape."""
    dims = shape.maps[0]
    work = random.work(kind, dims)
    if shape != TOKENS:
        work.libraries = generators(kind, math.prod(dims))
    return work


def _cases(kind: str, shapes: list[Shape], threads: int | None = None) -> list[Case]:
    return cases(kind, shapes, lambda shape: lambda: _random(kind, shape), directions=[FORWARD], threads=threads)


CASES = [
    *_cases("normal", [CREMAD, MAP14, TOKENS]),
    *_cases("normal", [MAP14, TOKENS], threads=1),
    *_cases("uniform", [MAP14]),
]


def test_random(case, measure):
    measure(case)
