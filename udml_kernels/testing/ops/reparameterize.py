"""reparameterize: a sample of a Gaussian, its pooled std and its divergence from the prior."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import udml_kernels

from ...checks import compute_dtype
from ..aot_works import KernelWork, Maker
from ..choices import Choices
from ..draw import Draw, named_tensors
from ..forms import STREAM, B, C, Form, M, forms, number, seed, values
from ..opinfo import CHECKED_LAYOUTS, OpInfo, Row
from ..values import Values
from ..works import Shape, Work, by_row, for_each, generator, in_words, random_maps
from ._reparameterize_rows import ROWS


def sample(
    draw: Draw,
    shape,
    prior="sample",
    prior_var=None,
    logvar=(-2, 2),
    mu_scale=1.0,
    stream=0,
    sample_ids=None,
    **options,
) -> dict[str, Any]:
    listed = bool(shape) and isinstance(shape[0], tuple)
    batch, wide = shape[0][0] if listed else shape[0], compute_dtype(draw.dtype)
    priors = {
        "one": lambda: 1.0,
        "number": lambda: 2.5,
        "tensor": lambda: draw.between(0.5, 4, dtype=wide),
        "sample": lambda: draw.between(0.5, 4, batch, dtype=wide),
        "narrow": lambda: draw.between(0.5, 4, batch),
        "pair": lambda: draw.between(0.5, 4, batch, len(shape), dtype=wide),
        "column": lambda: draw.between(0.5, 4, batch, *[1] * (len(shape) - 1), dtype=wide),
    }
    value = priors[prior]() if prior_var is None else torch.full((batch,), prior_var, dtype=wide)
    low, high = logvar

    def moments(shape) -> tuple[Tensor, Tensor]:
        mu = draw.normal(*shape, scale=mu_scale)
        # normal, not between: it writes the special values.
        return mu, draw.between(low, high, *shape) if not draw.special else draw.normal(*shape)

    mu, log_variance = map(list, zip(*map(moments, shape), strict=True)) if listed else moments(shape)
    noise = draw.noise(stream, sample_ids)
    return {"mu": mu, "logvar": log_variance, "prior_var": value, **noise, **options}


def generate(c: Choices, draw: Values) -> dict[str, Any]:
    shape = c.shape()
    shapes = (shape, (shape[0], 3)) if c.one_in(8) else shape
    low = c.pick(-2, -30, -60, -90, -210, 4, 20, 70, 85, 200)
    arguments = sample(
        draw,
        shapes,
        prior=c.pick("one", "number", "tensor", "sample", "narrow", "column"),
        logvar=(low, low + c.pick(4, 0, 1, 40)),
        mu_scale=c.pick(1.0, 1.0, 0.0, 1e-20, 1e4, 1e15) if draw.dtype != torch.float16 else 1.0,
        std_max=c.pick(None, None, 1.25, 0.5, 1e-3, 50.0, 1.0),
        sample=not c.one_in(5),
        **c.pick({"pool": True}, {"pool": True}, {}, {"pool_std": False}),
        **draw.noise_options(shape[0]),
    )
    if c.one_in(4):
        arguments["prior_var"] = draw.levels(shape[0], -37, 38)
    # The second modality has the next stream.
    arguments["stream"] = min(arguments["stream"], 2**24 - 2)
    if draw.dtype == torch.float64:
        for name, value in named_tensors(arguments):
            if name.startswith("logvar"):
                _limit(value)
    return arguments


def _limit(logvar: Tensor) -> None:
    """No squares of std beyond float64, for which no wider dtype gives the truth."""
    stored = torch.empty(0, dtype=logvar.dtype).set_(logvar.untyped_storage())
    stored[(stored > 690) & stored.isfinite()] = 690


def eager(mu: Tensor, logvar: Tensor, prior_var: Tensor, pool_std: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    std = torch.exp(0.5 * logvar)
    z = mu + std * torch.randn_like(std)
    prior = by_row(prior_var, mu)
    kl = 0.5 * ((std.square() + mu.square()) / prior - logvar + prior.log() - 1)
    pooled = std.flatten(2).mean(2) if std.dim() > 2 and pool_std else std
    return z, pooled, kl.flatten(1).sum(1)


def eager_pooled(mu: Tensor, logvar: Tensor, prior_var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z, pooled, kl = eager(mu, logvar, prior_var)
    return z.flatten(2).mean(2), pooled, kl


def work(
    shapes: Sequence[Shape], *, pool: bool = False, dtype: torch.dtype = torch.float32, gradient: bool = False
) -> Work:
    """A sample of each modality's distribution, its pooled std and its KL; gradients to mu and logvar."""
    g = generator()
    mu, elements, size = random_maps(shapes, dtype, g)
    logvar, _, _ = random_maps(shapes, dtype, g)
    prior_var = torch.rand(shapes[0][0], generator=g) + 0.5

    def fused(
        mu: list[Tensor], logvar: list[Tensor], prior_var: Tensor, seed: Tensor, sample_ids: Tensor | None = None
    ) -> list[Any]:
        sample = partial(udml_kernels.reparameterize, prior_var=prior_var, seed=seed, sample_ids=sample_ids)
        return [sample(a, b, pool=pool, stream=m) for m, (a, b) in enumerate(zip(mu, logvar, strict=True))]

    # Backward reads mu and logvar and writes two gradients; of a map it also reads the gradient. Pooled outputs are
    # negligible.
    passes = (6 if pool else 8) if gradient else (2 if pool else 3)
    return Work(
        "reparameterize",
        in_words(shapes),
        elements,
        passes * size,
        [mu, logvar, prior_var],
        {"eager": for_each(eager_pooled if pool else eager, 2)},
        fused,
        (0, 1) if gradient else (),
        by_sample=True,
    )


def base() -> Row:
    return {"mu": values(B, C), "logvar": values(B, C, key=1), "prior_var": 1.0, "seed": seed()}


FORMS: dict[str, Form] = {
    **forms("prior_var", (B,), (B, 1)),
    **forms("std_max", none=True),
    "sample False": lambda i: {"sample": False, "std_max": number(i)},
    "lists": lambda i: {
        "mu": [values(B, C)] * M,
        "logvar": [values(B, C, key=1)] * M,
        "prior_var": values(B, M, key=i),
    },
    "pool_std False": lambda i: {"mu": values(B, C, 3), "logvar": values(B, C, 3, key=1), "pool_std": False},
    "pool True": lambda i: {"mu": values(B, C, 3), "logvar": values(B, C, 3, key=1), "pool": True},
    **STREAM,
}


def _aot_channels_last(of: Maker, shape: Shape) -> Iterator[KernelWork]:
    batch, channels, *spatial = shape
    mu, logvar = (of(batch, *spatial, channels).movedim(-1, 1) for _ in range(2))
    args = (mu, logvar, of.wider(batch), None, True, of.seed, 2, None)
    count = mu.numel()
    yield of.work("reparameterize", shape, args, count, note="channels last")
    backward = (torch.empty_like(mu), of.wider(batch, channels), of.wider(batch), *args, False)
    yield of.work("reparameterize_backward", shape, backward, count, note="channels last")


def aot(of: Maker) -> Iterator[KernelWork]:
    for shape in ((4096, 512), (64, 512, 7, 7), (64, 512, 14, 14), (8, 256, 60, 80)):
        args = (of(*shape), of(*shape), of.wider(shape[0]), None, True, of.seed, 2, None)
        count = args[0].numel()
        yield of.work("reparameterize", shape, args, count)
        backward = (of(*shape), of.wider(*shape[:2]), of.wider(shape[0]), *args, False)
        yield of.work("reparameterize_backward", shape, backward, count)
        if len(shape) == 2:
            continue
        yield from _aot_channels_last(of, shape)
        yield of.work("reparameterize_pooled", shape, args, count)
        wide = of.wider(*shape[:2])
        pooled = (of(*shape[:2]), wide, of.wider(shape[0]), wide, *args, False)
        yield of.work("reparameterize_pooled_backward", shape, pooled, count)


INFO = OpInfo(
    "reparameterize",
    outputs=("z", "std", "kl"),
    wide=("std", "kl"),
    laid_out={"z": ("mu", "logvar"), "std": ("mu", "logvar")},
    sample=sample,
    rows=ROWS,
    generate=generate,
    file="reparameterize",
    aot=aot,
    tiny=partial(work, [(1, 16)]),
    checked=(
        *CHECKED_LAYOUTS,
        "one element", "empty batch", "no sample", "std_max", "prior sample", "prior tensor",
        "logvar (-81, -79)", "logvar (79, 80)", "special", "sample ids", "stream",
        "pool layout contiguous", "pool layout channels_last", "pool no sample contiguous", "pool logvar (79, 80)",
    ),
    base=base,
    forms=FORMS,
    small={"shape": (3, 2, 5), "std_max": 1.5},
    compiled=({"shape": (4, 5, 7, 9)}, {"shape": (6, 3, 5, 11)}),
    crowded=({"shape": (4, 5, 17, 33), "std_max": 1.0}, {"shape": (4, 5, 17, 33), "pool": True}),
    gradchecked={
        "plain": {"shape": (3, 2, 3)},
        "std_max": {"shape": (3, 4), "std_max": 1.0},
        "no sample": {"shape": (2, 3), "sample": False, "prior": "tensor"},
        "pool": {"shape": (3, 2, 3), "pool": True},
        "std at locations": {"shape": (3, 2, 3), "pool_std": False},
        "list": {"shape": ((3, 2), (3, 3)), "prior": "pair"},
        "pool, std_max": {"shape": (3, 2, 4), "pool": True, "std_max": 1.0},
    },
    by_sample=({"shape": (21, 3, 77)}, ("mu", "logvar", "prior_var")),
)  # fmt: skip
