"""modality_dropout: whole modalities of some samples are zeroed."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from typing import Any

import torch

from ..choices import Choices
from ..draw import Draw
from ..opinfo import CHECKED_LAYOUTS, SIZES, OpInfo, Row, each, layouts
from ..values import Values


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


INFO = OpInfo(
    "modality_dropout",
    outputs=("features", "mask"),
    sample=sample,
    rows=ROWS,
    generate=generate,
    checked=(
        *CHECKED_LAYOUTS,
        "modalities 16", "p of each", "p 1.0", "keep any, p 1.0", "special", "empty batch", "stream",
    ),
    small={"batch": 4, "width": 3},
    compiled=({"batch": 5}, {"batch": 7, "width": 11}),
    crowded=({"batch": 17, "modalities": 16, "width": 1025},),
    gradchecked={"plain": {"batch": 4, "width": 3}},
    by_sample=({"batch": 21, "modalities": 3}, ("features",)),
)  # fmt: skip
