"""Ops on lists: one call for all modalities, with the results of a call for each."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends, checks
from ._layout import as_tuple
from ._op import Op


class Call(NamedTuple):
    """A call of an op: its checked arguments, and the op in plain PyTorch, which takes the same."""

    op: Op
    reference: Callable
    device: torch.device
    args: tuple

    def run(self) -> Any:
        backend = backends.select(self.device, self.op)
        return self.reference(*self.args) if backend == "reference" else self.op(backend, *self.args)


def run(calls: Sequence[Call]) -> list[tuple]:
    """The outputs of each call."""
    first = calls[0]
    backend = backends.select(first.device, first.op)
    if backend == "reference" or any(call.op is not first.op for call in calls):
        return [as_tuple(call.run()) for call in calls]
    return first.op.each(backend, [call.args for call in calls])


def check(**arguments: Any) -> None:
    """Require lists of M tensors, 1 to 16, that agree with the first tensor in batch, dtype and device."""
    (first_name, first), *_ = arguments.items()
    for name, values in arguments.items():
        if not isinstance(values, (list, tuple)):
            checks.fail(
                name,
                f"a list of tensors, as {first_name} is",
                type(values).__name__,
                TypeError,
            )
        if not 1 <= len(values) <= checks.MAX_MODALITIES:
            checks.fail(name, f"1 to {checks.MAX_MODALITIES} tensors, one a modality", len(values))
        if len(values) != len(first):
            checks.fail(name, f"{len(first)} tensors, as {first_name} has", len(values))
        for m, value in enumerate(values):
            if not isinstance(value, Tensor):
                checks.fail(f"{name}[{m}]", "a tensor", type(value).__name__, TypeError)
            checks.same_device(f"{name}[{m}]", value, first[0].device)
            if value.dim() == 0 or value.shape[0] != first[0].shape[0]:
                expected = f"a batch of {first[0].shape[0]}, as {first_name}[0] has"
                checks.fail(f"{name}[{m}]", expected, checks.shape_of(value))
            if value.dtype != first[0].dtype and not torch.is_autocast_enabled(value.device.type):
                checks.fail(f"{name}[{m}]", f"the dtype of {first_name}[0], {first[0].dtype}", value.dtype, TypeError)


def per_modality(argument: str, value: Any, tensors: Sequence[Tensor]) -> Sequence:
    """One value for each modality from a number, a tensor for all, or (B, M)."""
    count, batch = len(tensors), tensors[0].shape[0] if tensors[0].dim() else 0
    if not isinstance(value, Tensor) or value.dim() < 2 or (value.dim() == 2 and value.shape[1] == 1 != count):
        return [value] * count
    if value.dim() == 2:
        if value.shape[0] != batch or value.shape[1] != count:
            checks.fail(argument, f"a number, ({batch},) or {batch, count}", checks.shape_of(value))
        return value.mT.contiguous().unbind(0)
    return [value] * count


def element(m: int, names: Sequence[str], call: Callable, *args: Any) -> Any:
    """call(*args) for modality m; an error about one of `names` then names its element: "mu[1]: ..."."""
    try:
        return call(*args)
    except (TypeError, ValueError) as error:
        name, colon, rest = str(error).partition(":")
        if name not in names or not colon:
            raise
        raise type(error)(f"{name}[{m}]:{rest}") from None
