"""The ops as workloads to be timed: inputs at a shape, the eager baselines, the fused call.

Every builder takes the shapes, and `gradient`: whether the backward pass is included. Inputs are random and the same
every time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import udml_kernels

from . import eager

Call = Callable[..., Any]
Shape = tuple[int, ...]


@dataclass
class Work:
    """One workload, in all its implementations.

    Attributes:
        op: the op's name.
        dims: the shape as text.
        elements: number of elements of the inputs that are as large as the work.
        bytes: what an ideal implementation reads and writes.
        inputs: tensors, lists of tensors and numbers.
        eager: plain PyTorch by name, called with the inputs.
        fused: called with the inputs and a seed, and `sample_ids` where results have one row per sample.
        leaves: indices of the inputs to differentiate with respect to; empty: forward only.
        exact: the eager baselines have no randomness, so they are compared with the reference too.
        by_sample: every result and gradient has one row per sample, which depends on that sample alone.
        exact_fused: `fused` in float64, where its dtype does not come from the inputs.
        check: (device, other backends) -> what is wrong; replaces the comparison with the reference.
        incoming: gradients of the differentiable outputs; random where none are given.
        libraries: implementations of other libraries, by name, called with the inputs.
        compiled: calls through `torch.compile`, by name, where compiling each eager call unchanged does not work.
    """

    op: str
    dims: str
    elements: int
    bytes: int
    inputs: list[Any]
    eager: dict[str, Call]
    fused: Call
    leaves: tuple[int, ...] = ()
    exact: bool = False
    by_sample: bool = False
    exact_fused: Call | None = None
    check: Callable[[torch.device, tuple[str, ...]], list[str]] | None = None
    incoming: list[Tensor] | None = None
    libraries: dict[str, Call] = field(default_factory=dict)
    compiled: dict[str, Call] = field(default_factory=dict)

    def gradients(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The incoming gradients of these outputs, the same for every caller."""
        if self.incoming is None:
            generator = torch.Generator().manual_seed(1)
            drawn = (torch.randn(o.shape, generator=generator, device="cpu") for o in outputs)
            self.incoming = [g.to(o.device, o.dtype) for g, o in zip(drawn, outputs, strict=True)]
        return self.incoming


def in_words(shapes: Sequence[Shape]) -> str:
    """Shapes as text, such as 64x512x7x7 + 64x512x9x6; equal ones once, with their number."""
    words = ["x".join(map(str, shape)) for shape in shapes]
    if len(words) > 1 and len(set(words)) == 1:
        return f"{len(words)} of {words[0]}"
    return " + ".join(words)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _maps(shapes: Sequence[Shape], dtype: torch.dtype, generator: torch.Generator) -> tuple[list[Tensor], int, int]:
    """A random tensor for each shape, their number of elements and their bytes."""
    maps = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return maps, sum(m.numel() for m in maps), sum(m.nbytes for m in maps)


def _for_each(call: Call, lists: int) -> Call:
    """Call `call` for each modality m with the m-th tensor of each of the first `lists` inputs and the other inputs."""

    def calls(*inputs: Any) -> list[Any]:
        return [call(*tensors, *inputs[lists:]) for tensors in zip(*inputs[:lists], strict=True)]

    return calls


def inject_noise(shapes: Sequence[Shape], *, dtype: torch.dtype = torch.float32, gradient: bool = False) -> Work:
    """Gaussian noise of each sample's level on each modality; gradients to the inputs and the levels."""
    g = _generator()
    maps, elements, size = _maps(shapes, dtype, g)
    # The levels have the maps' dtype for the baseline, which would otherwise promote the result.
    sigma = torch.rand(shapes[0][0], generator=g).to(dtype)

    def fused(maps: list[Tensor], sigma: Tensor, seed: Tensor, sample_ids: Tensor | None = None) -> list[Tensor]:
        noise = partial(udml_kernels.inject_noise, seed=seed, sample_ids=sample_ids)
        return [noise(x, sigma, stream=m) for m, x in enumerate(maps)]

    return Work(
        "inject_noise",
        in_words(shapes),
        elements,
        (4 if gradient else 2) * size,
        [maps, sigma],
        {"eager": _for_each(eager.inject_noise, 1)},
        fused,
        (0, 1) if gradient else (),
        by_sample=True,
    )


def noisy_image(shape: Shape) -> Work:
    """uint8 images, noisy, clamped and normalised in one pass."""
    g = _generator()
    image = torch.randint(0, 256, shape, generator=g).to(torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    sigma = 40 * torch.rand(shape[0], generator=g)

    def fused(
        image: Tensor, sigma: Tensor, mean: Tensor, std: Tensor, seed: Tensor, sample_ids: Tensor | None = None
    ) -> Tensor:
        pipeline = partial(udml_kernels.inject_noise, clamp=(0, 255), normalize=(255, mean, std))
        return pipeline(image, sigma, seed=seed, sample_ids=sample_ids)

    return Work(
        "inject_noise",
        f"{in_words([shape])} uint8",
        image.numel(),
        5 * image.numel(),
        [image, sigma, mean, std],
        {"eager": eager.noisy_image},
        fused,
        by_sample=True,
    )


def reparameterize(shapes: Sequence[Shape], *, dtype: torch.dtype = torch.float32, gradient: bool = False) -> Work:
    """A sample of each modality's distribution, its pooled std and its KL; gradients to mu and logvar."""
    g = _generator()
    mu, elements, size = _maps(shapes, dtype, g)
    logvar, _, _ = _maps(shapes, dtype, g)
    prior_var = torch.rand(shapes[0][0], generator=g) + 0.5

    def fused(
        mu: list[Tensor], logvar: list[Tensor], prior_var: Tensor, seed: Tensor, sample_ids: Tensor | None = None
    ) -> list[Any]:
        sample = partial(udml_kernels.reparameterize, prior_var=prior_var, seed=seed, sample_ids=sample_ids)
        return [sample(a, b, stream=m) for m, (a, b) in enumerate(zip(mu, logvar, strict=True))]

    return Work(
        "reparameterize",
        in_words(shapes),
        elements,
        # Backward reads the gradient, mu and logvar and writes two gradients.
        (8 if gradient else 3) * size,
        [mu, logvar, prior_var],
        {"eager": _for_each(eager.reparameterize, 2)},
        fused,
        (0, 1) if gradient else (),
        by_sample=True,
    )


def random(kind: str, shape: Shape) -> Work:
    """`normal` or `uniform` numbers."""
    draw = getattr(udml_kernels, kind)

    def fused(
        place: Tensor, seed: Tensor, sample_ids: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        rows = shape[0] if sample_ids is None else len(sample_ids)
        return draw((rows, *shape[1:]), seed, sample_ids=sample_ids, dtype=dtype)

    def baseline(place: Tensor) -> Tensor:
        return torch_draw(shape, device=place.device)

    torch_draw = torch.randn if kind == "normal" else torch.rand
    count = math.prod(shape)
    return Work(
        kind,
        in_words([shape]),
        count,
        4 * count,
        # An empty tensor: its device is where the numbers are drawn.
        [torch.empty(0)],
        {f"torch.{torch_draw.__name__}": baseline},
        fused,
        by_sample=True,
        exact_fused=partial(fused, dtype=torch.float64),
    )


def weighted_fusion(
    shapes: Sequence[Shape], *, locations: bool = False, dtype: torch.dtype = torch.float32, gradient: bool = False
) -> Work:
    """Weighted concatenation, with weights for each row or each location; gradients to the features and uncertainty."""
    g = _generator()
    features, elements, size = _maps(shapes, dtype, g)
    spatial = shapes[0][2:] if locations else ()
    uncertainty = torch.rand(shapes[0][0], len(shapes), *spatial, generator=g) + 0.5
    dependency = torch.rand(len(shapes), generator=g) + 0.5

    def fused(
        features: list[Tensor],
        uncertainty: Tensor,
        dependency: Tensor,
        seed: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> Any:
        return udml_kernels.weighted_fusion(features, uncertainty, dependency)

    return Work(
        "weighted_fusion",
        in_words(shapes),
        elements,
        # Forward makes 2 passes over the features, backward 3: features, gradient, result.
        (5 if gradient else 2) * size,
        # In the features' dtype, as under autocast: the baseline would otherwise promote the result.
        [features, uncertainty.to(dtype), dependency.to(dtype)],
        {"eager": eager.weighted_fusion},
        fused,
        (0, 1) if gradient else (),
        exact=dtype == torch.float32,
        by_sample=True,
    )


def modality_dropout(shapes: Sequence[Shape], *, dtype: torch.dtype = torch.float32, gradient: bool = False) -> Work:
    """Modality dropout with probability 0.1; gradients to the features."""
    features, elements, size = _maps(shapes, dtype, _generator())

    def fused(features: list[Tensor], seed: Tensor, sample_ids: Tensor | None = None) -> Any:
        return udml_kernels.modality_dropout(features, 0.1, seed=seed, sample_ids=sample_ids)

    return Work(
        "modality_dropout",
        in_words(shapes),
        elements,
        (4 if gradient else 2) * size,
        [features],
        {"eager": partial(eager.modality_dropout, p=0.1)},
        fused,
        (0,) if gradient else (),
        by_sample=True,
    )


def noise_regression(
    rows: int, width: int, *, groups: int = 2, hidden: int = 256, dropout: float = 0.1, gradient: bool = False
) -> Work:
    """One estimator per modality, on `rows` stds (width,) each; gradients to all inputs but the target."""
    g = _generator()
    inputs = [
        torch.rand(groups, rows, width, generator=g) + 0.5,
        torch.randn(groups, hidden, width, generator=g) / width**0.5,
        torch.randn(groups, hidden, generator=g),
        torch.randn(groups, 1, hidden, generator=g) / hidden**0.5,
        torch.randn(groups, 1, generator=g),
        torch.rand(groups, rows, 1, generator=g),
    ]

    def fused(*values: Tensor) -> Any:
        return udml_kernels.noise_regression(*values[:6], dropout_p=dropout, seed=values[6])

    baselines = {"linear": eager.noise_regression_linear, "baddbmm": eager.noise_regression_grouped}
    return Work(
        "noise_regression",
        f"M={groups} B={rows} {width}->{hidden}->1 dropout {dropout}",
        groups * rows * width,
        (3 if gradient else 1) * sum(t.nbytes for t in inputs),
        inputs,
        {f"eager {name}": partial(call, dropout_p=dropout) for name, call in baselines.items()},
        fused,
        (0, 1, 2, 3, 4) if gradient else (),
        exact=dropout == 0,
    )


def evidential(rows: int, views: int, classes: int, *, gradient: bool = False) -> Work:
    """Combine the evidence of all views and compute the loss of the result; gradients to the evidence."""
    g = _generator()
    evidence = torch.nn.functional.softplus(torch.randn(rows, views, classes, generator=g))
    inputs = [evidence, torch.randint(0, classes, (rows,), generator=g), 0.5]

    def fused(evidence: Tensor, target: Tensor, kl_weight: float, seed: Tensor | None = None) -> Any:
        e = udml_kernels.evidential_fusion(evidence)
        return e, udml_kernels.evidential_loss(e, target, kl_weight)

    count = evidence.numel()
    # Evidence read twice, its gradient written; the fused evidence written and read, and its gradient.
    moved = 3 * count + 4 * count // views if gradient else count + 2 * count // views
    return Work(
        "evidential_fusion",
        f"B={rows} M={views} K={classes}",
        count,
        4 * moved,
        inputs,
        {"eager pairwise": eager.evidential_pairwise, "eager closed form": eager.evidential_closed},
        fused,
        (0,) if gradient else (),
        exact=True,
    )
