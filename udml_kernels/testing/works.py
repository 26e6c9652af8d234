"""The works that the benchmarks time: one call in all its implementations, and what makes the inputs of such works.

An op's eager baseline is the best plain PyTorch that a user would write, with torch's own random numbers. It is not the
reference, which reproduces the Philox stream in int64 and is slow on purpose. Functions that make a work take the
shapes, and `gradient`: whether the backward pass is included. Inputs are random and the same every time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Call = Callable[..., Any]
Shape = tuple[int, ...]


@dataclass
class Work:
    """One workload, in all its implementations.

    Attributes:
        op: the op's name.
        dims: the shape as text.
        elements: number of elements of the inputs that are as large as the work.
        bytes: what an ideal implementation reads and writes.
        inputs: tensors, lists of tensors and numbers.
        eager: plain PyTorch by name, called with the inputs.
        fused: called with the inputs and a seed, and `sample_ids` where results have one row per sample.
        leaves: indices of the inputs to differentiate with respect to; empty: forward only.
        deterministic: the eager baselines have no randomness, so they are compared with the reference too.
        by_sample: every result and gradient has one row per sample, which depends on that sample alone.
        float64_fused: `fused` in float64, where its dtype does not come from the inputs.
        check: (device, other backends) -> what is wrong; replaces the comparison with the reference.
        incoming: gradients of the differentiable outputs; random where none are given.
        libraries: implementations of other libraries, by name, called with the inputs.
        compiled: calls through `torch.compile`, by name, where compiling each eager call unchanged does not work.
    """

    op: str
    dims: str
    elements: int
    bytes: int
    inputs: list[Any]
    eager: dict[str, Call]
    fused: Call
    leaves: tuple[int, ...] = ()
    deterministic: bool = False
    by_sample: bool = False
    float64_fused: Call | None = None
    check: Callable[[torch.device, tuple[str, ...]], list[str]] | None = None
    incoming: list[Tensor] | None = None
    libraries: dict[str, Call] = field(default_factory=dict)
    compiled: dict[str, Call] = field(default_factory=dict)

    def gradients(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The incoming gradients of these outputs, the same for every caller."""
        if self.incoming is None:
            generator = torch.Generator().manual_seed(1)
            drawn = (torch.randn(o.shape, generator=generator, device="cpu") for o in outputs)
            self.incoming = [g.to(o.device, o.dtype) for g, o in zip(drawn, outputs, strict=True)]
        return self.incoming


def in_words(shapes: Sequence[Shape]) -> str:
    """Shapes as text, such as 64x512x7x7 + 64x512x9x6; equal ones once, with their number."""
    words = ["x".join(map(str, shape)) for shape in shapes]
    if len(words) > 1 and len(set(words)) == 1:
        return f"{len(words)} of {words[0]}"
    return " + ".join(words)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random_maps(shapes: Sequence[Shape], dtype: torch.dtype, draw: torch.Generator) -> tuple[list[Tensor], int, int]:
    """A random tensor for each shape, their number of elements and their bytes."""
    values = [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]
    return values, sum(v.numel() for v in values), sum(v.nbytes for v in values)


def for_each(call: Call, lists: int) -> Call:
    """Call `call` for each modality m with the m-th tensor of each of the first `lists` inputs and the other inputs."""

    def calls(*inputs: Any) -> list[Any]:
        return [call(*tensors, *inputs[lists:]) for tensors in zip(*inputs[:lists], strict=True)]

    return calls


def by_row(value: Tensor, like: Tensor) -> Tensor:
    """A number for each row, shaped to broadcast over the rows."""
    return value.view(-1, *[1] * (like.dim() - 1))


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
