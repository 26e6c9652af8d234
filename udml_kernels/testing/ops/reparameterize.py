"""reparameterize: a sample of a Gaussian, its pooled std and its divergence from the prior."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import udml_kernels

from ...checks import compute_dtype
from ..aot_works import KernelWork, Maker
from ..choices import Choices
from ..draw import LAYOUTS, Draw, named_tensors
from ..forms import STREAM, B, C, Form, M, forms, number, seed, values
from ..opinfo import CHECKED_LAYOUTS, SIZES, VECTORS, OpInfo, Row, each, layouts
from ..values import Values
from ..works import Shape, Work, by_row, for_each, generator, in_words, random_maps


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


# Maps whose vectors of 16 bytes a GPU's threads share unequally.
_VECTORS = ((5, 8), (10, 12), (24, 7), (8, 15, 15), (6, 36), (2, 1036))

# Rows with pool=True: pooled by the op itself, with both memory orders of the channels.
_POOLED: dict[str, Row] = {
    **{f"pool {n} locations": dict(shape=(2, 3, n)) for n in (1, 3, 15, 17, 49, 64, 196, 1025)},
    **{f"pool {n} locations, channels last": dict(shape=(2, 21, n), layout="channels_last") for n in (1, 3, 49, 130)},
    **each("pool channels last", ((2, 1, 7), (3, 5, 4, 4), (2, 64, 7, 7), (1, 300, 9), (2, 33, 1)), "shape",
            layout="channels_last", grads="transposed"),
    **each("pool dense", ((2, 48, 7, 7), (2, 32, 3), (2, 8, 14, 14), (2, 2, 72, 72)), "shape"),
    **each("pool vectors", [(2, *row) for row in _VECTORS], "shape"),
    **each("pool long channels", ((1, 2, 200, 200), (1, 2, 199, 201)), "shape"),
    "pool long channels, channels last": dict(shape=(1, 2, 200, 200), layout="channels_last"),
    **each("pool std_max", ("contiguous", "channels_last"), "layout", shape=(2, 8, 7, 7), std_max=1.25),
    **each("pool no sample", ("contiguous", "channels_last"), "layout", shape=(2, 8, 7, 7), sample=False),
    "pool no sample, std_max": dict(shape=(4, 33, 3), sample=False, std_max=1.0),
    "pool no locations": dict(shape=(4, 33)),
    **each("pool nothing in", ((0, 5, 7, 7), (3, 0, 5), (3, 4, 0), (3, 4, 0, 5)), "shape"),
    "pool two locations": dict(shape=(4, 5, 2)),
    "pool threads": dict(shape=(16, 64, 14, 14)),
    "pool one long sample": dict(shape=(1, 40, 33, 33)),
    **each("pool prior", ("one", "tensor", "sample", "column"), "prior", shape=(5, 3, 7, 7)),
    "pool sample ids": dict(shape=(4, 5, 7), sample_ids=(7, -1, 2**40 + 3, 7)),
    "pool stream": dict(shape=(4, 5, 7), stream=2**24 - 1),
    **each("pool logvar", ((-81, -79), (-100, 60), (20, 22), (79, 80), (95, 120)), "logvar", shape=(3, 5, 7)),
    "pool logvar (95, 120), channels last": dict(shape=(3, 5, 7), logvar=(95, 120), layout="channels_last"),
    "pool logvar (-90, -80), channels last": dict(shape=(3, 5, 7), logvar=(-90, -80), layout="channels_last"),
    **each("pool prior var", (1.5e-38, 1e20, 3e38), "prior_var", shape=(2, 3, 5)),
    "pool huge mu": dict(shape=(3, 33, 2), mu_scale=1e15),
    **{f"pool special {name}": dict(shape=(4, 5, 9), special=True, layout=name)
       for name in ("contiguous", "channels_last")},
    "pool special no sample, through z": dict(shape=(4, 5, 9), special=True, sample=False, through=(0,)),
    "pool special std_max": dict(shape=(4, 5, 9), special=True, std_max=1.0),
    **layouts(shape=(4, 5, 7, 9)),
    **each("pool through", ((0,), (1,), (2,), (0, 1), (1, 2)), "through", shape=(3, 5, 7)),
    **each("pool gradient of", (("mu",), ("logvar",), ("prior_var",)), "wrt", shape=(3, 5, 7)),
}  # fmt: skip

# Maps with the channels last, which z and the gradients follow.
_CHANNELS_LAST: dict[str, Row] = {
    **{f"{n} locations": dict(shape=(2, 21, n)) for n in (2, 3, 4, 49, 130, 196)},
    # The terms of the prior's gradient add up to 1.1 in size, and to 0.02.
    "1 locations": dict(shape=(2, 21, 1), cancels={"gradient of prior_var": 1.1}),
    **each("", ((2, 1, 7), (3, 3, 5, 4), (2, 16, 7, 7), (1, 300, 9), (1, 300, 14, 14)), "shape", grads="channels_last"),
    **each("gradients", ("contiguous", "transposed", "expanded"), "grads", shape=(3, 21, 5, 4)),
    **each("long channels", ((1, 2, 200, 200), (1, 35, 33, 33), (2, 3, 513)), "shape"),
    **each("std_max", ((2, 16, 7, 7), (2, 3, 130)), "shape", std_max=1.25),
    **each("no sample", ((2, 16, 7, 7), (2, 3, 130)), "shape", sample=False),
    **each("through", ((0,), (1,), (2,)), "through", shape=(3, 16, 5)),
    **each("logvar", ((-81, -79), (79, 80), (200, 210)), "logvar", shape=(3, 5, 7)),
    "special": dict(shape=(4, 16, 9), special=True, grads="channels_last"),
    "special std_max": dict(shape=(4, 5, 9), special=True, std_max=1.0),
    "special gradients": dict(shape=(4, 16, 9), std_max=1.0, special_grads=True, wrt=("mu", "logvar")),
    "sample ids": dict(shape=(4, 5, 7), sample_ids=(7, -1, 2**40 + 3, 7)),
    "threads": dict(shape=(16, 64, 14, 14)),
    "list": dict(shape=((5, 3, 7, 7), (5, 4, 9), (5, 6)), prior="pair"),
}

_DENSE = ((64,), (48, 7, 7), (16, 4), (32, 3), (8, 14, 14))
ROWS: dict[str, Row] = {
    **{f"{n} wide": dict(shape=(3, n)) for n in (*SIZES, *VECTORS)},
    **{f"{n} locations": dict(shape=(2, 3, n)) for n in (1, 3, 15, 17, 49, 64, 196, 1025)},
    # Rows that whole vectors divide: a channel ends within one, with one, and many of them later.
    **each("dense", [(2, *row) for row in (*_DENSE, (16, 15, 15), (2, 72, 72))], "shape"),
    **each("dense std_max", [(2, *row) for row in (*_DENSE, (16, 15, 15))], "shape", std_max=1.25),
    **each("dense no sample", [(2, *row) for row in (*_DENSE, (16, 15, 15))], "shape", sample=False),
    **each("long channels", ((1, 2, 200, 200), (1, 2, 199, 201)), "shape"),
    **each("vectors", [(2, *row) for row in _VECTORS], "shape"),
    **each("vectors through z", [(2, *row) for row in _VECTORS], "shape", through=(0,), std_max=1.25),
    "dense special": dict(shape=(4, 16, 9), special=True),
    **each("dense through", ((0,), (1,), (2,)), "through", shape=(3, 16, 5)),
    **each("dense through z", ((3, 64), (3, 16, 3), (2, 16, 36)), "shape", through=(0,)),
    "no sample, long channels": dict(shape=(2, 3, 199), sample=False),
    "one element": dict(shape=(1, 1)),
    "empty batch": dict(shape=(0, 5, 7, 7)),
    **each("nothing in", ((3, 0), (3, 0, 5), (3, 4, 0), (0, 0), (3, 4, 0, 5)), "shape"),
    "nothing in a prior for all": dict(shape=(3, 0), prior="tensor"),
    "threads": dict(shape=(16, 64, 14, 14)),
    "one long sample": dict(shape=(1, 40, 33, 33)),
    **each("prior", ("one", "number", "tensor", "sample", "narrow", "column"), "prior", shape=(5, 3, 7, 7)),
    "std_max": dict(shape=(4, 5, 17), std_max=1.25),
    "std_max 49": dict(shape=(4, 5, 7, 7), std_max=0.5),
    "no sample": dict(shape=(4, 5, 7, 7), sample=False),
    "no sample, std_max": dict(shape=(4, 33), sample=False, std_max=1.0),
    "sample ids": dict(shape=(4, 5, 7), sample_ids=(7, -1, 2**40 + 3, 7)),
    "stream": dict(shape=(4, 5, 7), stream=2**24 - 1),
    **each("logvar", ((-81, -79), (-221, -210), (20, 22), (79, 80), (200, 210)), "logvar", shape=(3, 33)),
    **each("prior var", (1.5e-38, 1e-20, 1e20, 3e38), "prior_var", shape=(2, 3)),
    "huge mu": dict(shape=(3, 33), mu_scale=1e15),
    # The squares of mu and std are no float32 numbers, nor is the quotient of kl's gradient and the prior's variance.
    # In kl, logvar and the logarithm of the prior's variance cancel; both are near -70.8 (-88) for each element.
    "squares overflow": dict(shape=(3, 5, 7), mu_scale=1e22, logvar=(99, 102), prior_var=1e38),
    "squares underflow": dict(
        shape=(3, 5, 7), mu_scale=1e-19, logvar=(-88, -86), prior_var=1.2e-38, cancels={"kl": 88 * 35.0}
    ),
    **{
        f"gradients of {scale:.0e}, mu of {mu:.0e}": dict(
            shape=(3, 5, 7), mu_scale=mu, logvar=(-71, -70), prior_var=1.8e-31, grad_scale=scale,
            cancels={"kl": 70.8 * 35},
        )
        for scale, mu in ((1e30, 0.0), (1e30, 1e-24), (1e-30, 1e15))
    },
    "gradients of 1e-30, tiny prior": dict(shape=(3, 33), mu_scale=1e4, prior_var=1.2e-38, grad_scale=1e-30),
    "special": dict(shape=(4, 5, 9), special=True),
    "special std_max": dict(shape=(4, 5, 9), special=True, std_max=1.0),
    "special no sample, through z": dict(shape=(4, 5, 9), special=True, sample=False, through=(0,)),
    # What is clipped passes no gradient on, not even an infinite one.
    **each("special gradients, through", ((0,), (1,), (2,)), "through", shape=(4, 16, 9), std_max=1.0,
            special_grads=True, wrt=("mu", "logvar")),
    "special gradients, no locations": dict(shape=(4, 33), std_max=1.0, special_grads=True, through=(0, 1)),
    **layouts(shape=(4, 5, 7, 9)),
    **{f"layout {name}, no locations": dict(shape=(5, 33), layout=name) for name in LAYOUTS},
    **each("through", ((0,), (1,), (2,), (0, 1), (1, 2)), "through", shape=(3, 5, 7)),
    **each("gradient of", (("mu",), ("logvar",), ("prior_var",)), "wrt", shape=(3, 5, 7)),
    **each("list", (False, True), "pool", shape=((5, 3, 7, 7), (5, 4, 9), (5, 6, 1)), prior="pair", stream=2**24 - 3),
    **each("list prior", ("one", "tensor", "sample"), "prior", shape=((5, 3), (5, 4)), std_max=1.25),
    "list of one": dict(shape=((5, 3, 7),), prior="pair", sample_ids=(7, -1, 2**40 + 3, 7, 0)),
    "list, pooled or not": dict(shape=((5, 3, 7), (5, 4)), pool=True, layout="channels_last"),
    "list without sample": dict(shape=((5, 3, 7), (5, 4)), sample=False),
    "list, empty batch": dict(shape=((0, 3, 7), (0, 4)), prior="pair"),
    "list, gradient of one": dict(shape=((5, 3, 7), (5, 4)), wrt=("mu[1]",), prior="pair"),
    **each("list, through", ((0,), (3,), (4,)), "through", shape=((5, 3, 7), (5, 4))),
    **each("std at locations", ("contiguous", "channels_last", "transposed"), "layout", shape=(4, 5, 7, 3),
           pool_std=False),
    "std at locations, std_max": dict(shape=(4, 5, 7), pool_std=False, std_max=1.25),
    "std at locations, no sample": dict(shape=(4, 16, 9), pool_std=False, sample=False),
    **each("std at locations, through", ((0,), (1,), (2,)), "through", shape=(3, 5, 7), pool_std=False),
    "std at locations, list": dict(shape=((5, 3, 7), (5, 4)), prior="pair", pool_std=False),
    "std at locations, empty batch": dict(shape=(0, 5, 7), pool_std=False),
    **{f"channels last {name}": {"layout": "channels_last", **row} for name, row in _CHANNELS_LAST.items()},
    **{name if name.startswith("pool") else f"pool {name}": {"pool": True, **row} for name, row in _POOLED.items()},
}  # fmt: skip


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
