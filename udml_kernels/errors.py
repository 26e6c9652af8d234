"""Errors of the kernels as Python exceptions."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Parts of the messages with which torch and the kernels report a lack of memory, on the CPU and on a GPU.
_LACKING = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")


def raise_out_of_memory(error: Exception, op: str, args: Sequence) -> None:
    """If a kernel's error reports a lack of memory, raise an error that names the op and the size; else return.

    Raises:
        MemoryError: for `args` on the CPU.
        torch.OutOfMemoryError: for `args` on a GPU.
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
