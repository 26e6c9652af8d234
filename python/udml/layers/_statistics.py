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
    groups = _groups(_moving(modules))
    before = [torch.cat([buffer.flatten() for buffer in group]) for group in groups]
    yield
    for group, old in zip(groups, before, strict=True):
        if not repeated:
            new = torch.cat([buffer.flatten() for buffer in group])
            old = torch.where(~new.isfinite() | where, old, new)
        parts = old.split([buffer.numel() for buffer in group])
        # Through .data, unseen by autograd: it saves running statistics for backward, which does not read them here.
        torch._foreach_copy_(
            [buffer.data for buffer in group],
            [part.view(buffer.shape) for part, buffer in zip(parts, group, strict=True)],
        )


def _groups(buffers: Iterator[Tensor]) -> list[list[Tensor]]:
    """Buffers of one dtype and device together: one operation on all of them costs less host time than one on each."""
    groups: dict[tuple, list[Tensor]] = {}
    for buffer in buffers:
        groups.setdefault((buffer.dtype, buffer.device), []).append(buffer)
    return list(groups.values())


def _moving(modules: tuple[nn.Module, ...]) -> Iterator[Tensor]:
    for norm in (m for module in modules for m in module.modules()):
        if isinstance(norm, _NormBase) and norm.training and norm.running_mean is not None:
            assert norm.running_var is not None and norm.num_batches_tracked is not None
            yield from (norm.running_mean, norm.running_var, norm.num_batches_tracked)


@contextmanager
def never_half(module: nn.Module, *names: str) -> Iterator[None]:
    """Around `Module._apply`: buffers that it makes float16 or bfloat16 keep their dtype, and move to its device.

    A running mean in these dtypes would not follow small changes.
    """
    before = {name: module._buffers[name] for name in names}
    yield
    for name, buffer in before.items():
        after = module._buffers[name]
        if buffer is not None and after is not None and after.dtype in (torch.float16, torch.bfloat16):
            module._buffers[name] = buffer.to(after.device)
