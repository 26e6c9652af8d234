"""The cases of the conformance suite: those of every op's `rows`."""

from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from .draw import Draw
from .opinfo import OpInfo
from .ops import OPS


@dataclass(frozen=True)
class Case:
    op: str
    name: str
    options: dict[str, Any] = field(hash=False)
    # Memory layout of every input, and of every incoming gradient.
    layout: str = "contiguous"
    grads: str = "contiguous"
    # What the incoming gradients are multiplied by.
    grad_scale: float = 1.0
    # The outputs that receive a gradient, and the inputs that want one; None for all.
    through: tuple[int, ...] | None = None
    wrt: tuple[str, ...] | None = None
    # NaN, inf and -inf among the inputs, and among the incoming gradients.
    special: bool = False
    special_grads: bool = False
    # By output or gradient, the size of the terms of a sum that cancels; see `tolerances.assert_close`.
    cancels: dict[str, float] = field(default_factory=dict, hash=False)
    # Other numbers give other random inputs.
    number: int = 0

    def __str__(self) -> str:
        return f"{self.op}: {self.name}".replace(" ", "_")

    def inputs(self, dtype: torch.dtype) -> dict[str, Any]:
        """The keyword arguments of the public function."""
        draw = Draw(str(self), dtype, self.layout, self.special, self.number)
        return OPS[self.op].sample(draw, **self.options)


_OWN = {f.name for f in fields(Case)} - {"op", "name", "options"}


def cases(info: OpInfo, number: int = 0) -> tuple[Case, ...]:
    """The conformance cases of an op."""
    return tuple(
        Case(
            info.name,
            name,
            {key: value for key, value in row.items() if key not in _OWN},
            **{key: value for key, value in row.items() if key in _OWN},
            number=number,
        )
        for name, row in info.rows.items()
    )


# Cases of few or repeated values, whose sums cancel for some numbers: these keep the suite's inputs.
_FIXED = ("layout expanded", "one element", "stream")


def checked(info: OpInfo, number: int = 0) -> tuple[Case, ...]:
    """Those that `python -m udml_kernels check` runs."""
    found = (c for c in cases(info, number) if any(fnmatchcase(c.name, pattern) for pattern in info.checked))
    return tuple(replace(c, number=0) if c.name in _FIXED else c for c in found)


CASES = tuple(case for info in OPS.values() for case in cases(info))
