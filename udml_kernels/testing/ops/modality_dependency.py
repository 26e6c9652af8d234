"""modality_dependency: how much the prediction depends on each modality."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..aot_works import KernelWork, Maker
from ..choices import Choices
from ..draw import Draw
from ..forms import B, C, M, values
from ..opinfo import CHECKED_LAYOUTS, SIZES, VECTORS, OpInfo, Row, each, layouts
from ..values import Values


def sample(draw: Draw, shape, scale=1.0) -> dict[str, Any]:
    return {"logits": draw.normal(*shape, scale=scale)}


ROWS: dict[str, Row] = {
    **{f"{n} classes": dict(shape=(2, 3, n)) for n in (*SIZES, *VECTORS)},
    **{f"{m} modalities": dict(shape=(m, 9, 7)) for m in (1, 2, 3, 16)},
    "one element": dict(shape=(1, 1, 1)),
    "empty batch": dict(shape=(3, 0, 5)),
    **each("nothing in", ((3, 4, 0), (3, 0, 0)), "shape"),
    "special gradients": dict(shape=(4, 3, 5), special_grads=True),
    "threads": dict(shape=(3, 513, 129)),
    "zeros": dict(shape=(2, 3, 5), scale=0.0),
    "special": dict(shape=(3, 9, 7), special=True),
    **layouts(shape=(3, 5, 7)),
}  # fmt: skip


def generate(c: Choices, draw: Values) -> dict[str, Any]:
    modalities, batch = c.modalities(), c.batch()
    classes = 0 if c.one_in(60) else c.size(max(c.budget() // max(modalities * batch, 1), 1))
    return sample(draw, (modalities, batch, classes), c.pick(1.0, 1e-6, 1e3, 0.0))


def eager(logits: Tensor) -> Tensor:
    return logits.abs().sum(2).mean(1)


def base() -> Row:
    return {"logits": values(M, B, C)}


def aot(of: Maker) -> Iterator[KernelWork]:
    logits = of(3, 4096, 34)
    yield of.work("modality_dependency", logits.shape, (logits,), logits.numel())
    yield of.work("modality_dependency_backward", logits.shape, (of.wider(3), logits), logits.numel())


INFO = OpInfo(
    "modality_dependency",
    outputs=("alpha",),
    wide=("alpha",),
    sample=sample,
    rows=ROWS,
    generate=generate,
    file="modality_dropout",
    aot=aot,
    checked=(
        *CHECKED_LAYOUTS,
        "16 modalities", "empty batch", "special",
    ),
    base=base,
    small={"shape": (2, 3, 4)},
    compiled=({"shape": (2, 5, 7)}, {"shape": (3, 6, 8)}),
    crowded=({"shape": (16, 65, 1025)},),
    gradchecked={"plain": {"shape": (2, 3, 4)}},
)  # fmt: skip
