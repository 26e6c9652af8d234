from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._statistics import resting

_Module = TypeVar("_Module", bound=nn.Module)


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all ranks, on any device that the process group supports, including the CPU.

    (torch.nn.SyncBatchNorm supports only GPUs.) The arguments, parameters and state-dict keys are nn.BatchNorm's, and
    so is the result in evaluation or without a process group. Ranks may have batches of different sizes. Gradients
    are those of the sum of all ranks' losses, which DistributedDataParallel then divides. Unlike in nn.BatchNorm,
    running statistics are not updated if they would not be finite, or if torch.utils.checkpoint repeats a call in
    backward.

    Shapes: (B, C, ...) of any floating dtype to the same; the statistics are float32 or wider.

    Raises:
        ValueError: for an input without channels.

    Source: Ioffe and Szegedy, 2015; statistics as in torch.nn.SyncBatchNorm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input: expected (B, C, ...), got shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        with resting(self):
            return self._normalized(input)

    def _normalized(self, input: Tensor) -> Tensor:
        distributed_step = self.training and dist.is_available() and dist.is_initialized()
        if not distributed_step or dist.get_world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean, var, count = _whole_moments(x)
        if self.running_mean is not None:
            self._track(mean.detach(), var.detach() * (count / (count - 1).clamp(min=1)))
        mean, var = mean.to(x.dtype), var.to(x.dtype)
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        y = (x - mean.reshape(shape)) * scale.reshape(shape)
        if self.bias is not None:
            y = y + self.bias.reshape(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, var)):
            assert running is not None
            running.copy_((1 - momentum) * running + momentum * value.to(running.dtype))


class _Sum(torch.autograd.Function):
    """The sum over all ranks, on each rank; its gradient is that of all ranks' losses together."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _Sum.apply(grad)


def _whole_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel over all ranks, (C,) in float64, and the number of values, (1,)."""
    over = [0, *range(2, x.dim())]
    rows = x.numel() // x.shape[1]
    # Each rank's own sums are centred, so that squares of large numbers do not cancel.
    local = x.sum(over) / max(rows, 1)
    centred = (x - local.reshape(1, -1, *[1] * (x.dim() - 2))).square().sum(over).double()
    local = local.double()
    sums = torch.cat((local.new_full((1,), rows), rows * local, centred + rows * local.square()))
    count, total, squares = _Sum.apply(sums).split((1, x.shape[1], x.shape[1]))
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0), count


def sync_batchnorm(module: _Module) -> _Module:
    """Convert every nn.BatchNorm1d, 2d and 3d of a module to a `SyncBatchNorm`, in place.

    Parameters, buffers, state-dict keys and optimizers that hold the parameters stay valid.

    Returns:
        The module, or its replacement if it is a BatchNorm itself.
    """
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        return _synced(module)  # type: ignore[return-value]
    # Not named_children, which lists a module registered under two names only once.
    for name, child in list(module._modules.items()):
        if child is not None:
            setattr(module, name, sync_batchnorm(child))
    return module


def _synced(norm: _BatchNorm) -> SyncBatchNorm:
    synced = SyncBatchNorm(
        norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=norm.track_running_stats
    )
    synced.affine = norm.affine
    synced._parameters.update(norm._parameters)
    synced._buffers.update(norm._buffers)
    return synced.train(norm.training)
