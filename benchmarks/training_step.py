"""A training step of a UDML model: noise, encoders, all its ops, the objective, backward and the optimizer.

The baseline is the same model with every op replaced by plain PyTorch. Both also run under torch.compile.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from udml.encoders import FrameEncoder, MLPEncoder, SpectrogramEncoder
from udml.models import build_model

import udml_kernels
from udml_kernels import backends
from udml_kernels.testing.ops import inject_noise, modality_dependency, reparameterize
from udml_kernels.testing.works import Work, in_words

CLASSES = 6
# Fractions of a gradient's norm and of the norm of all gradients: those of biases before a BatchNorm are rounding only.
_CLOSE, _NOTHING = 1e-3, 1e-5
_CHECKED = 16


def classifier(*, compiled: bool = False, gradient: bool = True) -> Work:
    """Two modalities like CREMA-D's, but small: spectrograms and one frame of a face, 64 samples."""
    shapes = [(64, 1, 129, 94), (64, 3, 1, 112, 112)]
    return _work(lambda: {"audio": SpectrogramEncoder(), "visual": FrameEncoder()}, shapes, compiled)


def perceptron(*, compiled: bool = False, gradient: bool = True) -> Work:
    """Two modalities of pooled features with small encoders, 64 samples."""
    return _work(lambda: {"first": MLPEncoder(512), "second": MLPEncoder(512)}, [(64, 512)] * 2, compiled)


class TrainingStep:
    """A model in training, and its batch.

    Args:
        plain: whether plain PyTorch replaces the ops.
    """

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor], sigma: Tensor, target: Tensor, plain: bool):
        self.model: Any = model
        self.inputs, self.sigma, self.target, self.plain = inputs, sigma, target, plain
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)

    def objective(self, seed: Tensor | None) -> Tensor:
        """Forward pass and objective."""
        drawn = udml_kernels.inject_noise(list(self.inputs.values()), self.sigma, seed=seed)
        noisy = dict(zip(self.inputs, drawn, strict=True))
        output = self.model(noisy, sigma=self.sigma, seed=seed)
        return torch.stack(list(self.model.loss(output, self.target).values())).sum()

    def gradients(self, seed: Tensor | None, objective: Callable[[Tensor | None], Tensor]) -> Tensor:
        """Compute the gradients, in the parameters' `grad`; return the objective."""
        self.optimizer.zero_grad()
        with plain_ops() if self.plain else contextlib.nullcontext():
            loss = objective(seed)
            loss.backward()
        return loss.detach()

    def __call__(self, seed: Tensor | None, objective: Callable[[Tensor | None], Tensor]) -> Tensor:
        """Make one step; return the objective before the optimizer changes the parameters."""
        loss = self.gradients(seed, objective)
        self.optimizer.step()
        return loss


def _work(encoders: Callable[[], dict[str, nn.Module]], shapes: Sequence[tuple[int, ...]], compiled: bool) -> Work:
    """The step; `compiled`: the forward pass and objective with this package's ops run under torch.compile."""
    torch.manual_seed(0)
    model = build_model("udml", encoders(), CLASSES).train()
    g, batch = torch.Generator().manual_seed(0), shapes[0][0]
    inputs = {name: torch.randn(s, generator=g) for name, s in zip(model.modalities, shapes, strict=True)}
    sigma, target = torch.rand(batch, len(shapes), generator=g), torch.randint(0, CLASSES, (batch,), generator=g)

    def step(
        device: torch.device, dtype: torch.dtype = torch.float32, *, plain: bool = False, rows: int = batch
    ) -> TrainingStep:
        data = {name: x[:rows].to(device, dtype) for name, x in inputs.items()}
        own = copy.deepcopy(model).to(device, dtype)
        return TrainingStep(own, data, sigma[:rows].to(device, dtype), target[:rows].to(device), plain)

    def check(device: torch.device, others: tuple[str, ...]) -> list[str]:
        seed, rows = udml_kernels.draw_seed(device), min(batch, _CHECKED)
        with backends.use_backend("reference"):
            same, truth = (_results(step(device, t, rows=rows), seed) for t in (torch.float32, torch.float64))
        found = []
        for backend in (backends.select(device), *others):
            with backends.use_backend(backend):
                got = _results(step(device, rows=rows), seed)
            found += [f"{backend}, {difference}" for difference in _differences(got, same, truth)]
        return found

    return Work(
        "training_step",
        in_words(shapes),
        sum(x.numel() for x in inputs.values()),
        3 * sum(x.nbytes for x in inputs.values()) + 5 * sum(4 * p.numel() for p in model.parameters()),
        [torch.empty(0)],
        {"eager": _Lazy(step, plain=True)},
        _Lazy(step, compiled=compiled),
        check=check,
        compiled={"compile": _Lazy(step, plain=True, compiled=True)},
    )


class _Lazy:
    """A training step that is built on the device of its first call."""

    def __init__(self, make: Callable[..., TrainingStep], *, plain: bool = False, compiled: bool = False):
        self.make, self.plain, self.compiled = make, plain, compiled
        self.step: TrainingStep | None = None

    def __call__(self, place: Tensor, seed: Tensor | None = None) -> Tensor:
        if self.step is None:
            self.step = self.make(place.device, plain=self.plain)
            self.objective = self.step.objective
            if self.compiled:
                self.objective = torch.compile(self.objective, dynamic=False)
        return self.step(seed, self.objective)


def _differences(got: dict[str, Tensor], same: dict[str, Tensor], truth: dict[str, Tensor]) -> Iterator[str]:
    """Results whose error exceeds twice the float32 reference's error plus a small tolerance.

    Errors are norms: where float32 rounding flips a ReLU, single elements differ by much.
    """
    nothing = _NOTHING * sum(float(value.norm()) ** 2 for value in truth.values()) ** 0.5
    for name, right in truth.items():
        error = float((got[name] - right).norm())
        allowed = 2 * float((same[name] - right).norm()) + _CLOSE * float(right.norm()) + nothing
        if not error <= allowed:
            yield f"{name}: error {error:.2e}, allowed {allowed:.2e}"


def _results(step: TrainingStep, seed: Tensor) -> dict[str, Tensor]:
    """The objective and all gradients, in float64."""
    loss = step.gradients(seed, step.objective)
    gradients = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
    return {name: value.double() for name, value in ({"loss": loss} | gradients).items()}


def _inject_noise(x: Sequence[Tensor], sigma: Tensor, **options: Any) -> tuple[Tensor, ...]:
    return tuple(inject_noise.eager(a, s) for a, s in zip(x, sigma.unbind(1), strict=True))


def _reparameterize(
    mu: Sequence[Tensor], logvar: Sequence[Tensor], prior_var: Tensor, *, pool: bool, **options: Any
) -> tuple[list[Tensor], tuple[Tensor, ...], Tensor]:
    drawn = [reparameterize.eager(*each) for each in zip(mu, logvar, prior_var.unbind(1), strict=True)]
    z, std, kl = zip(*drawn, strict=True)
    return [f.flatten(2).mean(2) if pool and f.dim() > 2 else f for f in z], std, torch.stack(kl, 1)


def _noise_regression(*inputs: Any, activation: str, dropout_p: float, **randomness: Any) -> tuple[Tensor, Tensor]:
    listed, weight1, bias1, weight2, bias2, target = inputs
    act = {"identity": lambda h: h, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}[activation]
    std = torch.stack(list(listed))
    hidden = F.dropout(act(torch.baddbmm(bias1.unsqueeze(1), std, weight1.mT)), dropout_p)
    noise = torch.exp(torch.baddbmm(bias2.unsqueeze(1), hidden, weight2.mT) / 2)
    return noise, F.mse_loss(noise.squeeze(2), target)


def _weighted_fusion(
    features: Sequence[Tensor],
    uncertainty: Tensor,
    dependency: Tensor,
    *,
    floor: float,
    reference: float,
    temperature: float,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The sum, weighted by 1 / (s alpha) relative to the reference's."""
    modalities, power = len(features), -1 / temperature
    shares = ((uncertainty.square() + floor**2) * dependency) ** power
    against = ((reference**2 + floor**2) * dependency.mean()) ** power
    weights = modalities * shares / (shares.sum(1, keepdim=True) + modalities * against)
    return (torch.stack(list(features), 1) * weights.unsqueeze(2)).sum(1), weights


_PLAIN = {
    "inject_noise": _inject_noise,
    "reparameterize": _reparameterize,
    "noise_regression": _noise_regression,
    "modality_dependency": modality_dependency.eager,
    "weighted_fusion": _weighted_fusion,
}


@contextlib.contextmanager
def plain_ops() -> Iterator[None]:
    """Inside the block, a model that calls udml_kernels runs plain PyTorch, with torch's own random numbers."""
    with mock.patch.multiple("udml_kernels", **_PLAIN):  # type: ignore[call-overload]
        yield
