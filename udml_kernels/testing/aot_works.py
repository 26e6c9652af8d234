"""The works that `aot` compiles: kernel ops at shapes that occur in models, on uninitialised tensors never read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import checks
from .works import tensors


@dataclass
class KernelWork:
    """A call of one kernel op.

    Attributes:
        op: its schema name; `file` is the op's (see `OpInfo`).
        args: the schema's arguments.
        elements: the number that "per element" refers to.
    """

    label: str
    file: str
    op: str
    args: Sequence[Any]
    elements: int

    def bytes(self, results: object) -> int:
        """Bytes that an ideal implementation moves: every input read once, every result written once."""
        return sum(t.numel() * t.element_size() for t in tensors((self.args, results)))


class Maker:
    """Makes an op's works of one dtype, and their tensors."""

    def __init__(self, dtype: torch.dtype, file: str):
        self.dtype, self.wide, self.file = dtype, checks.compute_dtype(dtype), file
        self.seed = torch.empty(1, dtype=torch.int64)

    def __call__(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def wider(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.wide)

    def work(
        self,
        op: str,
        shape: Sequence[int],
        args: Sequence[Any],
        elements: int,
        *,
        note: str = "",
    ) -> KernelWork:
        """The work called after the op, the shape and the note."""
        label = " ".join(filter(None, (op, "x".join(map(str, shape)), note)))
        return KernelWork(label, self.file, op, args, elements)
