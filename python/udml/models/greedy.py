"""Rebalancing by conditional learning speed, against the greedy nature of multimodal learning."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .output import Output, Step
from .static import Static


class Greedy(Static):
    """Static fusion with steps in which only the slowest modality learns.

        speed_m = log(sum_t |g_m|^2 / |w_m|^2) - log(sum_t |u_m|^2 / |w_m|^2)

    over the regular steps t so far, with w_m the parameters of modality m's branch (encoder and embedding), g_m the
    gradient of the fused logits in it, and u_m the gradient of its unimodal loss. Both are measured at the branch's
    features instead of its parameters, which saves a backward pass for each loss. With gamma = 0 there is no u, and g
    alone decides.

    The source compares, in a network with fusion modules inside its branches, the parameters that process the other
    modality with those that do not, and in a rebalancing step runs one branch with the other's history. Here, once
    the fastest and the slowest speed differ by more than the tolerance, a window of rebalancing steps follows, in
    which the gradients of all branches but the slowest are 0; then at least a window of regular steps. (An optimizer's
    momentum and decay still act on a gradient of 0.)

    Under torch.distributed the speeds are those of the whole batch. Counters and sums are part of the state dict, and
    the host reads none. torch.compile cannot compile a whole training step: it does not retain gradients of features.

    Args:
        encoders, num_classes, options: as `MultimodalModel` takes them.
        tolerance: the difference of speeds up to which nothing is rebalanced.
        window: number of steps of a window.
        warmup: number of regular steps at the beginning.

    Source: Wu et al., Characterizing and Overcoming the Greedy Nature of Learning in Multi-modal Deep Neural
    Networks, ICML 2022.
    """

    fused_speed: Tensor
    unimodal_speed: Tensor
    slowest: Tensor
    clock: Tensor

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        tolerance: float = 0.1,
        window: int = 5,
        warmup: int = 20,
        **options,
    ):
        super().__init__(encoders, num_classes, **options)
        if window < 1 or warmup < 0:
            raise ValueError(f"window, warmup: expected at least 1 and 0 steps, got {window} and {warmup}")
        self.tolerance, self.window = tolerance, window
        self.register_buffer("fused_speed", torch.zeros(len(encoders)))
        self.register_buffer("unimodal_speed", torch.zeros(len(encoders)))
        self.register_buffer("slowest", torch.zeros((), dtype=torch.int64))
        # Remaining rebalancing steps, or, if negative, remaining regular steps.
        self.register_buffer("clock", torch.tensor(-warmup))

    def _forward(self, step: Step) -> Output:
        features = [e.features for e in self.embed(step)]
        fused = [f.view_as(f) for f in features]
        unimodal = self.fusion.unimodal(self.fusion.parts(features), step.present)
        logits, weights = self.fusion.fused(self.fusion.parts(fused), self.weigh(step))
        if self.training and torch.is_grad_enabled():
            for f in (*features, *fused):
                f.retain_grad()
        return Output(logits, unimodal, weights, features=features, present=step.present, fused_features=fused)

    @torch.no_grad()
    def after_backward(self, output: Output, target: Tensor, *, seed: Tensor) -> None:
        rebalancing = self.clock > 0
        for m, name in enumerate(self.modalities):
            learns = ~rebalancing | (self.slowest == m)
            for parameter in self.branch(name):
                if parameter.grad is not None:
                    parameter.grad.mul_(learns)
        speed = self._measure(output, rebalancing)
        self.slowest.copy_(torch.where(rebalancing, self.slowest, speed.argmin()))
        apart = speed.max() - speed.min() > self.tolerance
        self.clock.copy_(self._next(apart))

    def _measure(self, output: Output, rebalancing: Tensor) -> Tensor:
        """The speeds (M,), including this step if it is a regular one."""
        assert output.fused_features is not None
        fused = [_gradient(f) for f in output.fused_features]
        # The gradient of a feature is the sum of the gradients of both its uses.
        alone = [_gradient(f) - g for f, g in zip(output.features, fused, strict=True)]
        squares = torch.stack([torch.stack([g.square().sum() for g in gradients]) for gradients in (fused, alone)])
        if dist.is_available() and dist.is_initialized():
            # A rank's loss is the mean over its own part of the batch.
            dist.all_reduce(squares)
            squares /= dist.get_world_size() ** 2
        sizes = torch.stack([nn.utils.get_total_norm(self.branch(name)).square() for name in self.modalities])
        # A step whose gradients are not finite is ignored.
        steps = squares / sizes
        counts = ~rebalancing & steps.isfinite().all()
        for total, step in zip((self.fused_speed, self.unimodal_speed), steps, strict=True):
            total.add_(torch.where(counts, step, 0))
        smallest = torch.finfo(self.fused_speed.dtype).tiny
        return self.fused_speed.clamp(min=smallest).log() - self.unimodal_speed.clamp(min=smallest).log()

    def _next(self, apart: Tensor) -> Tensor:
        """The clock of the next step."""
        started = torch.where(apart, self.window, 0)
        regular = torch.where(self.clock < 0, self.clock + 1, started)
        return torch.where(self.clock > 1, self.clock - 1, torch.where(self.clock == 1, -self.window, regular))


def _gradient(feature: Tensor) -> Tensor:
    assert feature.grad is not None
    return feature.grad
