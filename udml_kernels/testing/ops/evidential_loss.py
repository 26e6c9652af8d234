"""evidential_loss: the expected cross-entropy under a Dirichlet, and its divergence from the uniform one."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..aot_works import KernelWork, Maker
from ..choices import Choices
from ..draw import Draw
from ..forms import B, Form, K, each_form, forms, number, values
from ..opinfo import CHECKED_LAYOUTS, SIZES, OpInfo, Row, each, layouts
from ..values import Values


def sample(draw: Draw, shape=None, classes=7, powers=(-2, 1), target="row", **options) -> dict[str, Any]:
    shape = (9, classes) if shape is None else shape
    evidence = draw.tensor(torch.zeros(shape)) if powers is None else draw.powers(*powers, *shape)
    rows = shape[:1] if target == "row" else shape[:-1]
    return {"evidence": evidence, "target": draw.integers(shape[-1], *rows), **options}


ROWS: dict[str, Row] = {
    **{f"{n} classes": dict(shape=(3, n)) for n in SIZES},
    **{f"{n} rows": dict(shape=(n, 7)) for n in (1, 15, 16, 17, 65, 3000)},
    **each("reduction", ("mean", "sum", "none"), "reduction", shape=(9, 7)),
    **each("kl_weight", (0.0, 0.25, 3.0), "kl_weight", shape=(9, 7)),
    "one element": dict(shape=(1, 1)),
    "empty batch": dict(shape=(0, 5)),
    "empty batch none": dict(shape=(0, 5), reduction="none"),
    "threads": dict(shape=(513, 34)),
    "views": dict(shape=(9, 3, 7), reduction="none"),
    "views, own targets": dict(shape=(9, 3, 7), reduction="none", target="each"),
    "zeros": dict(shape=(3, 5), powers=None),
    # The kl of large evidence is a difference of log-gammas, its gradient one of trigammas.
    **each(
        "evidence of 1e", ((-30, -29), (-4, -3), (-4, 4), (2, 4), (12, 12.5), (29, 30), (-30, 30)), "powers",
        shape=(5, 33),
    ),
    **each("large evidence, classes", (2, 3, 64), "classes", powers=(12, 30), reduction="none"),
    **each("large evidence, kl_weight", (0.0, 1.0), "kl_weight", shape=(9, 2), powers=(29, 38), reduction="none"),
    "special": dict(shape=(17, 9), special=True, reduction="none"),
    # lgamma of the strength, which the kl subtracts, is about 100 here.
    **layouts(shape=(5, 3, 17), reduction="none", target="each", cancels={"loss": 50.0}),
}  # fmt: skip


def generate(c: Choices, draw: Values) -> dict[str, Any]:
    budget = c.budget()
    batch = min(c.batch(), budget // 2)
    rows = (batch, *c.spatial(min(budget // max(2 * batch, 1), 40), 3))
    return sample(
        draw,
        (*rows, c.size(budget // max(math.prod(rows), 1))),
        powers=c.powers(c.pick(2, 2, 30)) if not c.one_in(20) else None,
        target=c.pick("row", "each"),
        kl_weight=c.pick(1.0, 0.0, 0.25, 3.0, 0.7),
        reduction=c.pick("mean", "sum", "none"),
    )


def eager(evidence: Tensor, target: Tensor, kl_weight: float) -> Tensor:
    alpha = evidence + 1
    true_alpha = alpha.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    cross_entropy = alpha.sum(-1).digamma() - true_alpha.digamma()
    wrong = alpha.scatter(-1, target.unsqueeze(-1), 1.0)
    strength = wrong.sum(-1, keepdim=True)
    uniform = torch.lgamma(alpha.new_tensor(float(alpha.shape[-1])))
    kl = strength.squeeze(-1).lgamma() - wrong.lgamma().sum(-1) - uniform
    kl = kl + ((wrong - 1) * (wrong.digamma() - strength.digamma())).sum(-1)
    return (cross_entropy + kl_weight * kl).mean()


def base() -> Row:
    return {"evidence": values(B, K), "target": torch.arange(B) % K}


FORMS: dict[str, Form] = {
    **forms("kl_weight"),
    **each_form("reduction", "reduction", ("none", "sum", "mean"), lambda i: {"kl_weight": number(i)}),
}


def aot(of: Maker) -> Iterator[KernelWork]:
    evidence, target = of(4096, 34), torch.empty(4096, dtype=torch.int64)
    args = (evidence, target, 0.5, 1)
    yield of.work("evidential_loss", evidence.shape, args, evidence.numel())
    yield of.work("evidential_loss_backward", evidence.shape, (of.wider(), *args), evidence.numel())


INFO = OpInfo(
    "evidential_loss",
    outputs=("loss",),
    wide=("loss",),
    sample=sample,
    rows=ROWS,
    generate=generate,
    file="evidential",
    aot=aot,
    checked=(
        *CHECKED_LAYOUTS,
        "views", "reduction mean", "kl_weight 0.25", "evidence of 1e (-4, 4)", "large evidence, classes 2",
        "empty batch", "special",
    ),
    base=base,
    forms=FORMS,
    small={"shape": (3, 4)},
    compiled=({"shape": (5, 7)}, {"shape": (6, 8)}),
    crowded=({"shape": (33, 16, 1025), "target": "each", "reduction": "none"},),
    gradchecked={
        reduction: {"shape": (3, 4), "reduction": reduction, "kl_weight": 0.5} for reduction in ("mean", "sum", "none")
    },
    by_sample=({"shape": (21, 77), "reduction": "none"}, ("evidence", "target")),
)  # fmt: skip
