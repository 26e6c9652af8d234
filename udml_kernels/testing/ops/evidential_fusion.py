"""evidential_fusion: the evidence of all views, combined by Dempster's reduced rule."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import udml_kernels

from ..aot_works import KernelWork, Maker
from ..choices import Choices
from ..draw import Draw
from ..forms import B, Form, K, M, mask, values
from ..opinfo import CHECKED_LAYOUTS, SIZES, OpInfo, Row, each, layouts
from ..values import Values
from ..works import Work, generator
from . import evidential_loss


def sample(draw: Draw, shape, powers=(-2, 1), mask=False) -> dict[str, Any]:
    evidence = draw.tensor(torch.zeros(shape)) if powers is None else draw.powers(*powers, *shape)
    return {"evidence": evidence, "mask": draw.mask(*shape[:2]) if mask else None}


ROWS: dict[str, Row] = {
    **{f"{n} classes": dict(shape=(3, 2, n)) for n in SIZES},
    **{f"{m} views": dict(shape=(5, m, 7)) for m in (1, 2, 3, 15, 16)},
    "one element": dict(shape=(1, 1, 1)),
    "empty batch": dict(shape=(0, 3, 5), mask=True),
    "special gradients": dict(shape=(9, 3, 5), mask=True, special_grads=True),
    "threads": dict(shape=(513, 3, 34)),
    "masked": dict(shape=(9, 4, 17), mask=True),
    "zeros": dict(shape=(3, 2, 5), powers=None),
    **each("evidence of 1e", ((-30, -29), (-8, -7), (-8, 2), (2, 4), (8, 9), (11, 12)), "powers", shape=(5, 3, 33)),
    "special": dict(shape=(9, 3, 17), special=True),
    "special masked": dict(shape=(9, 3, 17), special=True, mask=True),
    **layouts(shape=(5, 3, 17), mask=True),
}  # fmt: skip


def generate(c: Choices, draw: Values) -> dict[str, Any]:
    batch, views = c.batch(), c.modalities()
    classes = c.size(max(c.budget() // max(batch * views, 1), 1))
    # float64 has to hold a product over the views.
    powers = c.powers(c.pick(2, 2, min(30, 250 // views)))
    return sample(draw, (batch, views, classes), powers, mask=c.one_in(2))


def eager_closed(evidence: Tensor, target: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    """Dempster's reduced rule as a product over the views."""
    classes = evidence.shape[2]
    fused = classes * torch.expm1(torch.log1p(evidence / classes).sum(1))
    return fused, evidential_loss.eager(fused, target, kl_weight)


def eager_pairwise(evidence: Tensor, target: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    """The rule as TMC states it, two opinions (belief, uncertainty) at a time."""
    classes = evidence.shape[2]

    def opinion(e: Tensor) -> tuple[Tensor, Tensor]:
        strength = (e + 1).sum(1, keepdim=True)
        return e / strength, classes / strength

    belief, doubt = opinion(evidence[:, 0])
    for view in evidence.unbind(1)[1:]:
        other, other_doubt = opinion(view)
        # Conflict: the products of beliefs in different classes, the off-diagonal of an outer product.
        outer = torch.bmm(belief.unsqueeze(2), other.unsqueeze(1))
        conflict = outer.sum((1, 2)) - outer.diagonal(dim1=1, dim2=2).sum(1)
        scale = 1 / (1 - conflict.unsqueeze(1))
        belief = (belief * other + belief * other_doubt + other * doubt) * scale
        doubt = doubt * other_doubt * scale
    fused = belief * (classes / doubt)
    return fused, evidential_loss.eager(fused, target, kl_weight)


def work(rows: int, views: int, classes: int, *, gradient: bool = False) -> Work:
    """Combine the evidence of all views and compute the loss of the result; gradients to the evidence."""
    g = generator()
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
        {"eager pairwise": eager_pairwise, "eager closed form": eager_closed},
        fused,
        (0,) if gradient else (),
        deterministic=True,
    )


def base() -> Row:
    return {"evidence": values(B, M, K)}


FORMS: dict[str, Form] = {"mask": lambda i: {"mask": mask(i)}, "mask None": lambda i: {"mask": None}}


def aot(of: Maker) -> Iterator[KernelWork]:
    evidence, fused = of(4096, 3, 34), of(4096, 34)
    for op, args in (("evidential_fusion", (evidence, None)), ("evidential_fusion_backward", (fused, evidence, None))):
        yield of.work(op, evidence.shape, args, evidence.numel())


INFO = OpInfo(
    "evidential_fusion",
    outputs=("fused",),
    sample=sample,
    rows=ROWS,
    generate=generate,
    file="evidential",
    aot=aot,
    tiny=partial(work, 1, 2, 4),
    checked=(
        *CHECKED_LAYOUTS,
        "16 views", "masked", "evidence of 1e (-8, -7)", "empty batch", "special",
    ),
    base=base,
    forms=FORMS,
    small={"shape": (3, 2, 4), "mask": True},
    compiled=({"shape": (5, 2, 7), "mask": True}, {"shape": (6, 3, 8), "mask": True}),
    crowded=({"shape": (33, 16, 1025), "mask": True},),
    gradchecked={"plain": {"shape": (3, 2, 4), "mask": True}},
    by_sample=({"shape": (21, 3, 77)}, ("evidence",)),
)  # fmt: skip
