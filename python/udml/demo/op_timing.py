"""How long the UDML ops of one training step take, on that step's own tensors."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import udml_kernels

from .windows import Windows
from ..layers import NoiseInjector
from .network import UDML
from .loop import SIGMA_UNIT, mixed_sigma

TOTAL = "all ops of the step"
REPEATS = 21
WARM_UP = 3


@dataclass
class Timing:
    """Seconds of every repeat, one list a backend, in the order asked for."""

    name: str
    seconds: tuple[list[float], ...]

    @property
    def ratio(self) -> float:
        """The last backend's median over the first one's."""
        return statistics.median(self.seconds[-1]) / statistics.median(self.seconds[0])


@dataclass
class StepTensors:
    """What flows into the ops in one training step; the leaves want gradients as in training."""

    inputs: list[Tensor]
    sigma: Tensor
    seed: Tensor
    sample_ids: Tensor
    mu: list[Tensor]
    logvar: list[Tensor]
    stds: list[Tensor]
    features: list[Tensor]
    unimodal: Tensor


def step_tensors(model: UDML, batch: Windows) -> StepTensors:
    """Run the network on a noisy batch and keep what each op receives."""
    seed, ids = udml_kernels.draw_seed(), batch.index
    sigma = mixed_sigma(len(batch), len(batch.inputs), seed, ids)
    noisy = NoiseInjector(SIGMA_UNIT)(batch.inputs, sigma, seed=seed, sample_ids=ids)
    mu, logvar = [], []
    with torch.no_grad():
        for name, x in zip(model.encoders, noisy, strict=True):
            hidden = model.encoders[name](x)
            mu.append(model.heads[name].mu(hidden).requires_grad_())
            logvar.append(model.heads[name].logvar(hidden).requires_grad_())
        features, stds, _ = model.embed(noisy, sigma, seed, ids)
        unimodal = model.unimodal_logits(features)
    features = [f.requires_grad_() for f in features]
    return StepTensors(batch.inputs, sigma, seed, ids, mu, logvar, stds, features, unimodal)


def op_calls(model: UDML, t: StepTensors) -> dict[str, Callable[[], list[Tensor]]]:
    """The ops of a step by name; each call gives the outputs that receive a gradient."""
    injector = NoiseInjector(SIGMA_UNIT)
    noise = {"seed": t.seed, "sample_ids": t.sample_ids}
    priors = model.prior_var(t.sigma).unbind(1)
    alpha = model.dependency.alpha.clone()

    def inject_noise() -> list[Tensor]:
        injector(t.inputs, t.sigma, **noise)
        return []

    def reparameterize() -> list[Tensor]:
        outputs: list[Tensor] = []
        for m, (mu, logvar) in enumerate(zip(t.mu, t.logvar, strict=True)):
            z, _, kl = udml_kernels.reparameterize(mu, logvar, priors[m], stream=m, **noise)
            outputs += [z, kl]
        return outputs

    def noise_regression() -> list[Tensor]:
        return [model.estimator(t.stds, t.sigma, **noise)[1]]

    def modality_dependency() -> list[Tensor]:
        udml_kernels.modality_dependency(t.unimodal)
        return []

    def weighted_fusion() -> list[Tensor]:
        return [model.weighting(t.features, t.sigma, alpha)[0]]

    calls = [inject_noise, reparameterize, noise_regression, modality_dependency, weighted_fusion]
    return {call.__name__: call for call in calls}


def _forward_backward(call: Callable[[], list[Tensor]], leaves: Sequence[Tensor]) -> float:
    start = time.perf_counter()
    outputs = call()
    if outputs:
        torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs], allow_unused=True)
    return time.perf_counter() - start


def time_ops(model: UDML, windows: Windows, batch_size: int, backends: Sequence[str]) -> list[Timing]:
    """Forward and backward of every op and of all together, the backends taking turns.

    Args:
        model: a trained network; its training mode is used, its state is left as it is.
        windows: the first batch_size of them are the batch.
        batch_size: samples a step.
        backends: names for `udml_kernels.use_backend`.
    """
    model.train()
    with torch.no_grad():
        state = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = step_tensors(model, windows.select(torch.arange(min(batch_size, len(windows)))))
    model.load_state_dict(state)
    calls = op_calls(model, tensors)
    leaves = [*tensors.mu, *tensors.logvar, *tensors.features, *model.estimator.parameters()]
    parts = tuple(calls.values())
    calls[TOTAL] = lambda: [output for part in parts for output in part()]
    timings = []
    for name, call in calls.items():
        seconds: tuple[list[float], ...] = tuple([] for _ in backends)
        for repeat in range(WARM_UP + REPEATS):
            for backend, measured in zip(backends, seconds, strict=True):
                with udml_kernels.use_backend(backend):
                    elapsed = _forward_backward(call, leaves)
                if repeat >= WARM_UP:
                    measured.append(elapsed)
        timings.append(Timing(name, seconds))
    return timings
