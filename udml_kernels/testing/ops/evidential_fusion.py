"""evidential_fusion: the evidence of all views, combined by Dempster's reduced rule."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from typing import Any

import torch

from ..choices import Choices
from ..draw import Draw
from ..opinfo import CHECKED_LAYOUTS, SIZES, OpInfo, Row, each, layouts
from ..values import Values


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


INFO = OpInfo(
    "evidential_fusion",
    outputs=("fused",),
    sample=sample,
    rows=ROWS,
    generate=generate,
    checked=(
        *CHECKED_LAYOUTS,
        "16 views", "masked", "evidence of 1e (-8, -7)", "empty batch", "special",
    ),
    small={"shape": (3, 2, 4), "mask": True},
    compiled=({"shape": (5, 2, 7), "mask": True}, {"shape": (6, 3, 8), "mask": True}),
    crowded=({"shape": (33, 16, 1025), "mask": True},),
    gradchecked={"plain": {"shape": (3, 2, 4), "mask": True}},
    by_sample=({"shape": (21, 3, 77)}, ("evidence",)),
)  # fmt: skip
