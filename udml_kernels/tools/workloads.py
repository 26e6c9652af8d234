"""The work items of the op table: inputs, the eager baselines, the fused call and the targets."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import udml_kernels

from . import eager

Call = Callable[..., Any]


@dataclass
class Work:
    """`fused` takes a seed after the inputs; `bytes` are those an ideal implementation moves.

    Attributes:
        targets: baseline (an eager name, or "compile" for the fastest compiled one) -> speed-up asked for.
        leaves: the inputs to differentiate with respect to; none: forward only.
        exact: the eager baselines have no randomness, so they are compared with the reference too.
        sampled: (seed, dtype) -> the reference's samples 0 and 63, where that of all would need too much memory.
    """

    name: str
    op: str
    elements: int
    bytes: int
    inputs: list[Any]
    eager: dict[str, Call]
    fused: Call
    targets: dict[str, float] = field(default_factory=dict)
    leaves: tuple[int, ...] = ()
    exact: bool = False
    compiled: bool = True
    sampled: Call | None = None


def _reparameterize(g: torch.Generator, dtype: torch.dtype = torch.float32) -> Iterator[Work]:
    shape = (64, 512, 14, 14)
    mu, logvar = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    inputs = [mu, logvar, torch.rand(64, generator=g) + 0.5]
    half = dtype != torch.float32
    suffix, size = (" bfloat16" if half else ""), mu.element_size() * mu.numel()

    def fused(mu: Tensor, logvar: Tensor, prior_var: Tensor, seed: Tensor) -> Any:
        return udml_kernels.reparameterize(mu, logvar, prior_var, seed=seed)

    baselines = {"eager": eager.reparameterize}
    label = f"reparameterize 64x512x14x14{suffix}"
    targets: dict[str, float] = {} if half else {"eager": 35, "compile": 30}
    yield Work(f"{label} forward", "reparameterize", mu.numel(), 3 * size, inputs, baselines, fused, targets)
    targets = {} if half else {"eager": 28, "compile": 15}
    # Backward reads the gradient, mu and logvar and writes two gradients.
    yield Work(
        f"{label} fwd+bwd", "reparameterize", mu.numel(), 8 * size, inputs, baselines, fused, targets, leaves=(0, 1)
    )


def _inject_noise(g: torch.Generator, dtype: torch.dtype = torch.float32) -> Iterator[Work]:
    shape = (64, 3, 128, 128)
    x, sigma = torch.randn(shape, generator=g).to(dtype), torch.rand(64, generator=g)
    half = dtype != torch.float32
    label = "inject_noise gaussian 64x3x128x128" + (" bfloat16" if half else "")
    targets: dict[str, float] = {} if half else {"eager": 5, "compile": 30}

    def fused(x: Tensor, sigma: Tensor, seed: Tensor) -> Any:
        return udml_kernels.inject_noise(x, sigma, seed=seed)

    baselines: dict[str, Call] = {"eager": eager.inject_noise}
    # sigma in x's dtype for the baseline, which would otherwise promote the result.
    inputs = [x, sigma.to(dtype)]
    yield Work(label, "inject_noise", x.numel(), 2 * x.element_size() * x.numel(), inputs, baselines, fused, targets)
    if half:
        return
    image = torch.randint(0, 256, shape, generator=g).to(torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def pipeline(image: Tensor, sigma: Tensor, mean: Tensor, std: Tensor, seed: Tensor) -> Any:
        return udml_kernels.inject_noise(image, sigma, clamp=(0, 255), normalize=(255, mean, std), seed=seed)

    baselines = {"eager": eager.noisy_image}
    inputs = [image, 40 * sigma, mean, std]
    name = "inject_noise uint8 -> clamp -> normalised float32"
    targets = {"eager": 10, "compile": 30}
    yield Work(name, "inject_noise", x.numel(), 5 * x.numel(), inputs, baselines, pipeline, targets)


def _normal(g: torch.Generator) -> Iterator[Work]:
    shape = (64, 1_562_500)
    count = shape[0] * shape[1]

    def fused(seed: Tensor) -> Any:
        return udml_kernels.normal(shape, seed)

    baselines = {"torch.randn": lambda: torch.randn(shape)}

    def sampled(seed: Tensor, dtype: torch.dtype) -> Tensor:
        ids = torch.tensor([0, 63], device=seed.device)
        return udml_kernels.reference.normal((2, shape[1]), seed, sample_ids=ids, dtype=dtype)

    targets: dict[str, float] = {"torch.randn": 6}
    yield Work(
        "normal 64x1562500", "normal", count, 4 * count, [], baselines, fused, targets, compiled=False, sampled=sampled
    )


def _weighted_fusion(g: torch.Generator) -> Iterator[Work]:
    def fused(features: list[Tensor], uncertainty: Tensor, dependency: Tensor, seed: Tensor) -> Any:
        return udml_kernels.weighted_fusion(features, uncertainty, dependency)

    for batch, targets in ((4096, {"eager": 4, "compile": 1.1}), (64, {"eager": 3, "compile": 2})):
        features = [torch.randn(batch, 512, generator=g) for _ in range(2)]
        inputs = [features, torch.rand(batch, 2, generator=g) + 0.5, torch.rand(2, generator=g) + 0.5]
        count = 2 * batch * 512
        name = f"weighted_fusion concat fwd+bwd B={batch} 2x512"
        # Forward 2 passes over the features, backward 3: features, gradient, result.
        baselines: dict[str, Call] = {"eager": eager.weighted_fusion}
        yield Work(
            name, "weighted_fusion", count, 5 * 4 * count, inputs, baselines, fused, dict(targets), (0, 1), exact=True
        )


def _noise_regression(g: torch.Generator) -> Iterator[Work]:
    groups, batch, width, hidden = 2, 64, 512, 256
    inputs = [
        torch.rand(groups, batch, width, generator=g) + 0.5,
        torch.randn(groups, hidden, width, generator=g) / width**0.5,
        torch.randn(groups, hidden, generator=g),
        torch.randn(groups, 1, hidden, generator=g) / hidden**0.5,
        torch.randn(groups, 1, generator=g),
        torch.rand(groups, batch, 1, generator=g),
    ]
    size = sum(t.numel() * 4 for t in inputs)
    for p in (0.0, 0.1):

        def fused(*values: Tensor, p: float = p) -> Any:
            return udml_kernels.noise_regression(*values[:-1], dropout_p=p, seed=values[-1])

        baselines: dict[str, Call] = {
            "eager linear": functools.partial(eager.noise_regression_linear, dropout_p=p),
            "eager baddbmm": functools.partial(eager.noise_regression_grouped, dropout_p=p),
        }
        name = f"noise_regression fwd+bwd M=2 B=64 512->256->1 dropout {p}"
        targets: dict[str, float] = {"eager": 1.6, "compile": 1.6} if p == 0 else {}
        count = groups * batch * width
        yield Work(
            name, "noise_regression", count, 3 * size, inputs, baselines, fused, targets, (0, 1, 2, 3, 4), exact=p == 0
        )


def _evidential(g: torch.Generator) -> Iterator[Work]:
    batch, classes, views = 4096, 34, 3
    evidence = torch.nn.functional.softplus(torch.randn(batch, views, classes, generator=g))
    inputs = [evidence, torch.randint(0, classes, (batch,), generator=g), 0.5]

    def fused(evidence: Tensor, target: Tensor, kl_weight: float, seed: Tensor) -> Any:
        e = udml_kernels.evidential_fusion(evidence)
        return e, udml_kernels.evidential_loss(e, target, kl_weight)

    baselines: dict[str, Call] = {
        "eager pairwise": eager.evidential_pairwise,
        "eager closed form": eager.evidential_closed,
    }
    targets: dict[str, float] = {"eager pairwise": 10, "eager closed form": 4, "compile": 5}
    count = evidence.numel()
    name = "evidential fusion + loss fwd+bwd B=4096 K=34 M=3"
    # Evidence read twice, its gradient written; the fused evidence and its gradient written and read.
    moved = 4 * (3 * count + 4 * count // views)
    yield Work(name, "evidential_fusion", count, moved, inputs, baselines, fused, targets, (0,), exact=True)


def workloads(ops: list[str]) -> Iterator[Work]:
    """One at a time, since the large ones would not fit together."""
    g = torch.Generator().manual_seed(0)
    makers: dict[str, list[Callable[[], Iterator[Work]]]] = {
        "reparameterize": [lambda: _reparameterize(g), lambda: _reparameterize(g, torch.bfloat16)],
        "inject_noise": [lambda: _inject_noise(g), lambda: _inject_noise(g, torch.bfloat16)],
        "normal": [lambda: _normal(g)],
        "weighted_fusion": [lambda: _weighted_fusion(g)],
        "noise_regression": [lambda: _noise_regression(g)],
        "evidential_fusion": [lambda: _evidential(g)],
    }
    for op in ops:
        for maker in makers[op]:
            yield from maker()


OPS = ("reparameterize", "inject_noise", "normal", "weighted_fusion", "noise_regression", "evidential_fusion")
