"""When the statistics that a forward pass moves must rest."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def recomputing() -> bool:
    """Whether this forward pass repeats an earlier one during backward, as torch.utils.checkpoint lets it.

    The earlier one has moved the statistics. Under torch.compile the graph is traced once, and moves them once.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@contextmanager
def resting(*modules: nn.Module, where: Tensor | bool = False) -> Iterator[None]:
    """Keeps running statistics of the modules' BatchNorms (and InstanceNorms) where a forward pass must not move them.

    They rest in a pass that repeats an earlier one, where their new values would not be finite, and

    Args:
        where: bool, one element, whether all do; a tensor, where the host need not know it.
    """
    repeated = recomputing()
    moving = list(_moving(modules))
    before = [buffer.clone() for buffer in moving]
    yield
    for buffer, old in zip(moving, before, strict=True):
        # Not for autograd to notice: it keeps running statistics for backward, which in training does not read them.
        buffer.data.copy_(old if repeated else torch.where(~buffer.isfinite() | where, old, buffer))


def _moving(modules: tuple[nn.Module, ...]) -> Iterator[Tensor]:
    for norm in (m for module in modules for m in module.modules()):
        if isinstance(norm, _NormBase) and norm.training and norm.running_mean is not None:
            assert norm.running_var is not None and norm.num_batches_tracked is not None
            yield from (norm.running_mean, norm.running_var, norm.num_batches_tracked)
