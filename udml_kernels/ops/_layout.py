"""Flatten an op's arguments, some of which are lists of tensors or None, into a list of tensors, and restore them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import TreeSpec, _broadcast_to_and_flatten, tree_flatten, tree_unflatten

_TENSOR = object()


class Layout(NamedTuple):
    """Arguments without their tensors: `leaves` has a placeholder for each."""

    leaves: list
    spec: TreeSpec

    def with_tensors(self, tensors: Sequence) -> list:
        """The arguments again, with one value in place of each tensor."""
        values = iter(tensors)
        return tree_unflatten([next(values) if leaf is _TENSOR else leaf for leaf in self.leaves], self.spec)

    def for_tensors(self, values: Sequence) -> list:
        """One value for each tensor, from one value (or list of values) for each argument."""
        leaves = _broadcast_to_and_flatten(list(values), self.spec)
        assert leaves is not None, "values: expected the structure of the arguments"
        return [value for value, leaf in zip(leaves, self.leaves, strict=True) if leaf is _TENSOR]


def split(args: Sequence) -> tuple[list[Tensor], Layout]:
    """The tensors of the arguments, and the rest."""
    leaves, spec = tree_flatten(list(args))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return tensors, Layout([_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)


def tensors_of(values: Any) -> Iterator[Tensor]:
    """Every tensor of some arguments or gradients; None and other values are left out."""
    return (leaf for leaf in tree_flatten(values)[0] if isinstance(leaf, Tensor))


def as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
