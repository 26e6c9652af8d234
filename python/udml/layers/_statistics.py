"""When a forward pass must not update running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def recomputing() -> bool:
    """Whether this forward pass repeats an earlier one during backward, as torch.utils.checkpoint does.

    The earlier pass has updated the statistics. Under torch.compile the graph is traced once, and updates them once.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@contextmanager
def resting(*modules: nn.Module, where: Tensor | bool = False) -> Iterator[None]:
    """Keep running statistics of the modules' BatchNorms (and InstanceNorms) that a forward pass must not update.

    They are kept if the pass repeats an earlier one, if `where` is True, and where new values would not be finite.

    Args:
        where: bool, one element; a tensor if the host need not know it.
    """
    repeated = recomputing()
    moving = list(_moving(modules))
    before = [buffer.clone() for buffer in moving]
    yield
    for buffer, old in zip(moving, before, strict=True):
        # Through .data, unseen by autograd: it saves running statistics for backward, which does not read them here.
        buffer.data.copy_(old if repeated else torch.where(~buffer.isfinite() | where, old, buffer))


def _moving(modules: tuple[nn.Module, ...]) -> Iterator[Tensor]:
    for norm in (m for module in modules for m in module.modules()):
        if isinstance(norm, _NormBase) and norm.training and norm.running_mean is not None:
            assert norm.running_var is not None and norm.num_batches_tracked is not None
            yield from (norm.running_mean, norm.running_var, norm.num_batches_tracked)
