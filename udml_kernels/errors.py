"""Errors of the kernels, as Python knows them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# What torch and the kernels say where memory is lacking, on the CPU and on a GPU.
_LACKING = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")


def raise_out_of_memory(error: Exception, op: str, args: Sequence) -> None:
    """Where a kernel's error says that memory is lacking, raise what names the op and the size; else return.

    Raises:
        MemoryError: for `args` on the CPU.
        torch.OutOfMemoryError: for those on a GPU.
    """
    text = str(error)
    if not any(words in text for words in _LACKING):
        return
    kind = torch.OutOfMemoryError if any(t.device.type != "cpu" for t in _tensors(args)) else MemoryError
    raise kind(f"{op}: {'' if text.startswith('out of memory') else 'out of memory: '}{text}") from error


def _tensors(args: Sequence) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
