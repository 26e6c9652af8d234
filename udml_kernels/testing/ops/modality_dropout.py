"""modality_dropout: whole modalities of some samples are zeroed."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import udml_kernels

from ..aot_works import KernelWork, Maker
from ..choices import Choices
from ..draw import Draw
from ..forms import STREAM, Form, M, features, forms, number, seed, values
from ..opinfo import CHECKED_LAYOUTS, SIZES, OpInfo, Row, each, layouts
from ..values import Values
from ..works import Shape, Work, by_row, generator, in_words, random_maps


def sample(draw: Draw, batch, modalities=2, width=17, p=0.5, stream=0, sample_ids=None, **options) -> dict[str, Any]:
    features = draw.features(batch, modalities, width)
    if p == "tensor":
        p = torch.tensor(0.375, dtype=draw.dtype)
    elif isinstance(p, tuple):
        p = draw.tensor(torch.tensor(p))
    return {"features": features, "p": p, **draw.noise(stream, sample_ids), **options}


ROWS: dict[str, Row] = {
    **{f"{n} wide": dict(batch=5, width=n) for n in SIZES},
    **each("modalities", (1, 2, 3, 4, 5, 15, 16), "modalities", batch=17),
    **each("p", (0.0, 0.125, 0.5, 1.0), "p", batch=17),
    **each("keep any, p", (0.0, 0.125, 0.5, 1.0), "p", batch=17, keep_one=False),
    "p of each": dict(batch=33, p=(0.0, 0.5, 1.0), modalities=3),
    "p tensor": dict(batch=33, p="tensor"),
    "one element": dict(batch=1, width=1, modalities=1),
    "empty batch": dict(batch=0),
    "no width": dict(batch=5, width=0),
    "no width, no batch": dict(batch=0, width=0),
    "no width of one": dict(batch=5, modalities=3, width=((3,), (0,), (2, 0, 3))),
    "threads": dict(batch=65, width=1025),
    "widths": dict(batch=5, modalities=3, width=((4,), (3, 5), (2, 3, 3))),
    "sample ids": dict(batch=4, sample_ids=(7, -1, 2**40 + 3, 7)),
    "stream": dict(batch=9, stream=2**24 - 1),
    "special": dict(batch=9, special=True),
    "special gradients": dict(batch=17, width=5, special_grads=True),
    **layouts(batch=9, width=((5, 7), (3, 4)), modalities=2),
    **each("through", ((0,), (1,)), "through", batch=5, modalities=2),
    **each("gradient of", (("features[0]",), ("features[1]",)), "wrt", batch=5, modalities=2),
}  # fmt: skip


def generate(c: Choices, draw: Values) -> dict[str, Any]:
    batch, modalities = c.batch(), c.modalities()
    room = max(c.budget() // max(batch * modalities, 1), 1)
    widths = [(c.size(room), *c.spatial(4, 3)) for _ in range(modalities)]
    if c.one_in(10):
        widths[0] = ()
    p = c.pick(0.5, 0.0, 1.0, 0.125, "tensor", tuple(c.below(17) / 16 for _ in range(modalities)))
    options = draw.noise_options(batch)
    return sample(draw, batch, modalities, widths, p, keep_one=not c.one_in(2), **options)


def eager(features: Sequence[Tensor], p: float) -> tuple[tuple[Tensor, ...], Tensor]:
    """Zero whole modalities with probability p; where all would be dropped, a random one is kept."""
    batch, count = len(features[0]), len(features)
    uniform = torch.rand(batch, count, device=features[0].device)
    mask = (uniform >= p) | (F.one_hot(uniform.argmax(1), count) > 0)
    return tuple(f * by_row(mask[:, m], f).to(f.dtype) for m, f in enumerate(features)), mask


def work(shapes: Sequence[Shape], *, dtype: torch.dtype = torch.float32, gradient: bool = False) -> Work:
    """Modality dropout with probability 0.1; gradients to the features."""
    features, elements, size = random_maps(shapes, dtype, generator())

    def fused(features: list[Tensor], seed: Tensor, sample_ids: Tensor | None = None) -> Any:
        return udml_kernels.modality_dropout(features, 0.1, seed=seed, sample_ids=sample_ids)

    return Work(
        "modality_dropout",
        in_words(shapes),
        elements,
        (4 if gradient else 2) * size,
        [features],
        {"eager": partial(eager, p=0.1)},
        fused,
        (0,) if gradient else (),
        by_sample=True,
    )


def base() -> Row:
    return {"features": features(), "p": 0.5, "seed": seed()}


FORMS: dict[str, Form] = {
    **forms("p"),
    "p (M,)": lambda i: {"p": values(M, key=i) / 2},
    "keep_one": lambda i: {"keep_one": False, "p": number(i)},
    **STREAM,
}


def aot(of: Maker) -> Iterator[KernelWork]:
    features = [of(4096, 512) for _ in range(2)]
    args = (features, torch.empty(2), True, of.seed, 4, None)
    yield of.work("modality_dropout", (4096, 512), args, 2 * features[0].numel(), note="2 modalities")


INFO = OpInfo(
    "modality_dropout",
    outputs=("features", "mask"),
    sample=sample,
    rows=ROWS,
    generate=generate,
    file="modality_dropout",
    aot=aot,
    tiny=partial(work, [(1, 16)] * 2),
    checked=(
        *CHECKED_LAYOUTS,
        "modalities 16", "p of each", "p 1.0", "keep any, p 1.0", "special", "empty batch", "stream",
    ),
    base=base,
    forms=FORMS,
    small={"batch": 4, "width": 3},
    compiled=({"batch": 5}, {"batch": 7, "width": 11}),
    crowded=({"batch": 17, "modalities": 16, "width": 1025},),
    gradchecked={"plain": {"batch": 4, "width": 3}},
    by_sample=({"batch": 21, "modalities": 3}, ("features",)),
)  # fmt: skip
