"""weighted_fusion: the modalities' features, weighted by their uncertainty and dependency."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import udml_kernels

from ..aot_works import KernelWork, Maker
from ..choices import Choices
from ..draw import LAYOUTS, Draw
from ..forms import B, C, Form, M, each_form, features, number, values
from ..opinfo import CHECKED_LAYOUTS, SIZES, VECTORS, OpInfo, Row, each
from ..values import Values
from ..works import Shape, Work, generator, in_words, random_maps
from . import fusion_weights


def sample(draw: Draw, batch, modalities, width=17, spatial=(), feature_spatial=None, **options) -> dict[str, Any]:
    where = spatial if feature_spatial is None else feature_spatial
    features = draw.features(batch, modalities, width, where)
    return {"features": features, **fusion_weights.sample(draw, batch, modalities, spatial, **options)}


_MODES = ("concat", "sum", "scale")
ROWS: dict[str, Row] = {
    **fusion_weights.WEIGHTINGS,
    **{f"{mode} {n}": dict(batch=3, modalities=2, width=n, mode=mode) for mode in _MODES for n in (*SIZES, *VECTORS)},
    **{f"{mode} residual": dict(batch=5, modalities=3, mode=mode, residual=True, mask="sample") for mode in _MODES},
    **{f"{mode} 16": dict(batch=5, modalities=16, width=5, mode=mode, dependency="modality") for mode in _MODES},
    **each("maps", _MODES, "mode", batch=3, modalities=2, feature_spatial=(7, 7), mask="sample"),
    **{f"{mode} locations": dict(batch=3, modalities=2, spatial=(7, 7), mode=mode, mask="location") for mode in _MODES},
    **{f"{mode} threads": dict(batch=65, modalities=2, width=1025, mode=mode) for mode in _MODES},
    # Rows that whole vectors divide.
    **{f"{mode} dense": dict(batch=5, modalities=3, width=32, mode=mode, mask="sample") for mode in _MODES},
    **{
        f"{mode} dense locations": dict(
            batch=3, modalities=2, spatial=(8, 8), width=4, mode=mode, mask="location", residual=True
        )
        for mode in _MODES
    },
    "dense long": dict(batch=3, modalities=2, width=(4112, 48), residual=True),
    "dense 16": dict(batch=5, modalities=16, width=16, dependency="modality"),
    "widths": dict(batch=5, modalities=4, width=(1, 17, 64, 3)),
    "scale of other shapes": dict(batch=5, modalities=3, width=((4,), (3, 5), (2, 3, 3)), mode="scale"),
    "no width": dict(batch=5, modalities=2, width=(0, 3)),
    **each("nothing to", _MODES, "mode", batch=5, modalities=2, width=0, dependency="modality"),
    **each("no batch to", _MODES, "mode", batch=0, modalities=2),
    **each("no width of locations to", _MODES, "mode", batch=3, modalities=2, width=0, spatial=(3,), mask="location"),
    **each("no locations in maps to", _MODES, "mode", batch=3, modalities=2, feature_spatial=(0,)),
    # A masked modality passes no gradient on, and has none. Of an infinite gradient the weights' own is not a number
    # in the kernels, as torch.softmax has it, and infinite in the reference, so it is not compared.
    **each("special gradients, masked", _MODES, "mode", batch=9, modalities=3, width=4, mask="sample",
            through=(0,), special_grads=True, wrt=tuple(f"features[{m}]" for m in range(3))),
    "special features, masked": dict(batch=9, modalities=3, mask="sample", special=True, residual=True),
    # What receives no gradient passes none on, whatever the features hold.
    "special, weights alone": dict(batch=9, modalities=3, special=True, through=(1,)),
    "special, one scaled": dict(batch=9, modalities=3, special=True, mode="scale", through=(1,)),
    **{
        f"{mode} layout {name}": dict(batch=5, modalities=2, mode=mode, layout=name, grads=name)
        for mode in _MODES
        for name in LAYOUTS
    },
    **{
        f"{mode} reference": dict(
            batch=5, modalities=2, width=32, mode=mode, g="inverse", dependency="modality", reference=2.0, floor=1.0
        )
        for mode in _MODES
    },
    **each("through", ((0,), (1,)), "through", batch=5, modalities=2),
    **each("scale through", ((0,), (1,), (2,)), "through", batch=5, modalities=2, mode="scale"),
    **{
        f"gradient of {name}": dict(batch=5, modalities=2, dependency="sample", wrt=(name,))
        for name in ("features[0]", "features[1]", "uncertainty", "dependency")
    },
}  # fmt: skip


def generate(c: Choices, draw: Values) -> dict[str, Any]:
    budget = c.budget()
    batch, modalities = c.batch(), c.modalities()
    mode = c.pick("concat", "sum", "scale")
    spatial = c.spatial(max(budget // max(batch * modalities, 1), 1), 3)
    room = max(budget // max(batch * modalities, 1), 1)
    for size in spatial:
        room = max(room // max(size, 1), 1)
    width = c.size(room)
    widths = [width] * modalities
    if mode != "sum" and c.one_in(2):
        widths = [0 if c.one_in(60) else c.size(room) for _ in range(modalities)]
    per_location = spatial if c.one_in(2) else ()
    features = draw.features(batch, modalities, widths, spatial)
    weighting = fusion_weights.weighting(c, draw, batch, modalities, per_location)
    return {"features": features, "mode": mode, "residual": c.one_in(2), **weighting}


def _one(weights: Tensor, m: int, like: Tensor) -> Tensor:
    """Modality m's weights, from (B, M) or (B, M, *spatial), shaped to broadcast over its features."""
    chosen = weights[:, m : m + 1]
    return chosen.reshape(chosen.shape + (1,) * (like.dim() - chosen.dim()))


def eager(features: Sequence[Tensor], uncertainty: Tensor, dependency: Tensor) -> tuple[Tensor, Tensor]:
    """Fusion with weights for each row, (B, M), or for each location, (B, M, *spatial)."""
    alpha = dependency.view(-1, *[1] * (uncertainty.dim() - 2))
    weights = len(features) * torch.softmax(1 / (uncertainty * alpha), 1)
    return torch.cat([_one(weights, m, f) * f for m, f in enumerate(features)], 1), weights


def eager_masked(
    features: Sequence[Tensor], uncertainty: Tensor, dependency: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Fusion with weights per row or per location of the modalities present; the weights sum to their number."""
    beside = (1,) * (uncertainty.dim() - 2)
    present = mask.view(*mask.shape, *beside)
    scores = (1 / (uncertainty * dependency.view(-1, *beside))).masked_fill(~present, -torch.inf)
    weights = present.sum(1, keepdim=True) * torch.softmax(scores, 1)
    return torch.cat([_one(weights, m, f) * f for m, f in enumerate(features)], 1), weights


def work(
    shapes: Sequence[Shape], *, locations: bool = False, dtype: torch.dtype = torch.float32, gradient: bool = False
) -> Work:
    """Weighted concatenation, with weights for each row or each location; gradients to the features and uncertainty."""
    g = generator()
    features, elements, size = random_maps(shapes, dtype, g)
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
        {"eager": eager},
        fused,
        (0, 1) if gradient else (),
        deterministic=dtype == torch.float32,
        by_sample=True,
    )


def base() -> Row:
    return {"features": features(), "uncertainty": values(B, M)}


FORMS: dict[str, Form] = {
    **fusion_weights.FORMS,
    **each_form("mode", "mode", _MODES, lambda i: {"temperature": number(i), "residual": True}),
    "uncertainty (B, M, L)": lambda i: {
        "features": [values(B, C, 2, key=m) for m in range(M)], "uncertainty": values(B, M, 2, key=i),
    },
}  # fmt: skip


def aot(of: Maker) -> Iterator[KernelWork]:
    for note, batch, shape, weights, modalities in (
        ("features", 4096, (512,), (), 2),
        ("maps", 64, (512, 7, 7), (), 2),
        ("16 modalities", 1024, (256,), (), 16),
        ("per location", 8, (256, 60, 80), (60, 80), 2),
    ):
        # Weights per location: 64 of the 256 channels at a time.
        features = [of(batch, *shape) for _ in range(modalities)]
        s, count = of.wider(batch, modalities, *weights), modalities * features[0].numel()
        args = (features, s, None, None, 0, False, 0, 1.0, None, None, None)
        yield of.work("weighted_fusion", (batch, *shape), args, count, note=note)
        grads = ([of(batch, modalities * shape[0], *shape[1:])], s, *args, False)
        yield of.work("weighted_fusion_backward", (), grads, count, note=note)


_MASKED = {"mask": "sample", "dependency": "sample"}
INFO = OpInfo(
    "weighted_fusion",
    outputs=("fused", "weights"),
    wide=("weights",),
    sample=sample,
    rows=ROWS,
    generate=generate,
    file="fusion",
    aot=aot,
    tiny=partial(work, [(1, 16)] * 2),
    checked=(
        *(f"concat {layout}" for layout in CHECKED_LAYOUTS), *(f"{mode} residual" for mode in _MODES),
        *(f"{mode} locations" for mode in _MODES), "concat 16", "inverse masked", "maps concat", "widths",
        "special features, masked", "empty batch",
    ),
    plain="dependency of the sample",
    base=base,
    forms=FORMS,
    small={"batch": 3, "modalities": 2, "width": 3, **_MASKED},
    compiled=({"batch": 5, "modalities": 2, **_MASKED}, {"batch": 7, "modalities": 2, "width": 11, **_MASKED}),
    crowded=tuple(
        {"batch": batch, "modalities": 16, "width": width, "spatial": spatial, "mode": mode, **_MASKED}
        for batch, width, spatial in ((33, 1025, ()), (3, 5, (17, 33)))
        for mode in _MODES
    ),
    gradchecked={
        **{
            f"{mode} {residual}": {
                "batch": 3, "modalities": 2, "width": 3, "mode": mode, "residual": residual, **_MASKED,
            }
            for mode in _MODES
            for residual in (False, True)
        },
        "locations": {"batch": 2, "modalities": 2, "width": 2, "spatial": (2,), "mask": "location"},
    },
    by_sample=(
        {"batch": 21, "modalities": 2, "dependency": "sample"}, ("features", "uncertainty", "dependency"),
    ),
)  # fmt: skip
