"""weighted_fusion: the modalities' features, weighted by their uncertainty and dependency."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from typing import Any

from ..choices import Choices
from ..draw import LAYOUTS, Draw
from ..opinfo import CHECKED_LAYOUTS, SIZES, OpInfo, Row, each
from ..values import Values
from . import fusion_weights


def sample(draw: Draw, batch, modalities, width=17, spatial=(), feature_spatial=None, **options) -> dict[str, Any]:
    where = spatial if feature_spatial is None else feature_spatial
    features = draw.features(batch, modalities, width, where)
    return {"features": features, **fusion_weights.sample(draw, batch, modalities, spatial, **options)}


_MODES = ("concat", "sum", "scale")
ROWS: dict[str, Row] = {
    **fusion_weights.WEIGHTINGS,
    **{f"{mode} {n}": dict(batch=3, modalities=2, width=n, mode=mode) for mode in _MODES for n in SIZES},
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


_MASKED = {"mask": "sample", "dependency": "sample"}
INFO = OpInfo(
    "weighted_fusion",
    outputs=("fused", "weights"),
    wide=("weights",),
    sample=sample,
    rows=ROWS,
    generate=generate,
    checked=(
        *(f"concat {layout}" for layout in CHECKED_LAYOUTS), *(f"{mode} residual" for mode in _MODES),
        *(f"{mode} locations" for mode in _MODES), "concat 16", "inverse masked", "maps concat", "widths",
        "special features, masked", "empty batch",
    ),
    plain="dependency of the sample",
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
