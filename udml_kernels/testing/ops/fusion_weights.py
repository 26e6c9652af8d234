"""fusion_weights: the modalities' weights from their uncertainty and dependency."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from collections.abc import Callable, Iterator
from typing import Any

from ..aot_works import KernelWork, Maker
from ..choices import Choices
from ..draw import LAYOUTS, Draw
from ..forms import B, Form, M, forms, mask, number, values
from ..opinfo import CHECKED_LAYOUTS, SIZES, OpInfo, Row, each, layouts
from ..values import Values


def sample(
    draw: Draw, batch, modalities, spatial=(), dependency=None, mask=None, powers=(-0.5, 0.5), spoil=(), **options
) -> dict[str, Any]:
    dependencies: dict[str | None, Callable[[], Any]] = {
        None: lambda: None,
        "modality": lambda: draw.between(0.5, 2, modalities),
        "sample": lambda: draw.between(0.5, 2, batch, modalities),
        "wide": lambda: draw.powers(*powers, batch, modalities),
    }
    masks = {
        None: lambda: None,
        "sample": lambda: draw.mask(batch, modalities),
        "location": lambda: draw.mask(batch, modalities, *spatial),
    }
    uncertainty, alpha = draw.powers(*powers, batch, modalities, *spatial), dependencies[dependency]()
    for i, value in enumerate(spoil):
        # One row's uncertainty, another's dependency, and a third with both.
        uncertainty[3 * i, 0] = alpha[3 * i + 1, 1] = uncertainty[3 * i + 2, 0] = alpha[3 * i + 2, 0] = value
    return {"uncertainty": uncertainty, "dependency": alpha, "mask": masks[mask](), **options}


def _gradients(size: float) -> dict:
    return {"gradient of uncertainty": size, "gradient of dependency": size}


_G = ("softmax", "inverse")
WEIGHTINGS: dict[str, Row] = {
    **{f"{m} modalities": dict(batch=5, modalities=m) for m in (1, 2, 3, 4, 5, 8, 15, 16)},
    **{f"{g} {m}": dict(batch=9, modalities=m, g=g, dependency="modality") for g in _G for m in (1, 2, 16)},
    # Over the batch the two modalities' gradients cancel, to a thousandth.
    "inverse 2": dict(
        batch=9, modalities=2, g="inverse", dependency="modality", cancels={"gradient of dependency": 0.25}
    ),
    **{f"{g} masked": dict(batch=9, modalities=3, g=g, mask="sample") for g in _G},
    "one element": dict(batch=1, modalities=1),
    "empty batch": dict(batch=0, modalities=3, dependency="sample", mask="sample"),
    "empty batch, one dependency": dict(batch=0, modalities=3, dependency="modality"),
    "no locations": dict(batch=3, modalities=2, spatial=(0,), dependency="modality"),
    "no locations in rows": dict(batch=3, modalities=2, spatial=(4, 0), dependency="sample", mask="location"),
    "dependency of the sample": dict(batch=9, modalities=4, dependency="sample"),
    "masked dependency": dict(batch=9, modalities=4, dependency="sample", mask="sample"),
    "masked dependency of the modality": dict(batch=9, modalities=4, dependency="modality", mask="sample"),
    **{f"temperature {g}": dict(batch=9, modalities=3, g=g, temperature=0.25) for g in _G},
    "total": dict(batch=9, modalities=3, total=2.5),
    "masked total": dict(batch=9, modalities=3, total=1.0, mask="sample"),
    **{f"locations {n}": dict(batch=3, modalities=3, spatial=(n,)) for n in (1, 17, 49, 196)},
    "locations masked": dict(batch=3, modalities=3, spatial=(7, 9), mask="sample", dependency="sample"),
    "locations masked each": dict(batch=3, modalities=3, spatial=(7, 9), mask="location", dependency="modality"),
    **{f"{g} of 1e{k}": dict(batch=5, modalities=3, g=g, powers=(k, k + 0.5)) for g in _G for k in (-30, -1, 4, 29)},
    # Where q is almost 1, the rounding of 1 - q is multiplied by 1 / s^2, some 1e8; exp(-1e4) is as good as 0.
    **{f"{g} of 1e-4": dict(batch=5, modalities=3, g=g, powers=(-4, -3.5), cancels=_gradients(1e5)) for g in _G},
    # q (1 - q) / s where q rounds to 1 and s is 1e-15: terms of up to 1e15 cancel.
    **{
        f"{g} of 1e-30 to 1e30": dict(
            batch=9, modalities=3, g=g, powers=(-15, 15), dependency="wide", cancels=_gradients(1e8)
        )
        for g in _G
    },
    # s alpha from 1e-88 to 1e74: neither it nor its inverse is a float32 number, nor are some ratios of two of them.
    **{
        f"{g} of 1e-88 to 1e74, temperature {t}": dict(
            batch=9, modalities=4, g=g, powers=(-44, 37), dependency="wide", temperature=t
        )
        for g in _G for t in (1000.0, 1.0)
    },
    **{
        f"{g} of 1e-88 to 1e74, locations": dict(
            batch=3, modalities=3, g=g, powers=(-44, 37), spatial=(17,), dependency="wide", temperature=1000.0,
            mask="location",
        )
        for g in _G
    },
    **{f"special {g}": dict(batch=9, modalities=3, g=g, special=True) for g in _G},
    "special masked": dict(batch=9, modalities=3, mask="sample", special=True),
    "floor": dict(batch=9, modalities=3, floor=0.5, mask="sample"),
    "floor 0, of 1e-30 to 1e30": dict(
        batch=9, modalities=4, floor=0.0, g="inverse", powers=(-15, 15), dependency="wide"
    ),
    **{f"floor {f} and {g}": dict(batch=9, modalities=3, g=g, floor=f) for g in _G for f in (1e-25, 1e-3, 1e12)},
    **{
        f"reference {m} {g} {dependency}": dict(
            batch=9, modalities=m, g=g, reference=0.5, dependency=dependency, mask="sample"
        )
        for m in (1, 2, 4, 16) for g in _G for dependency in (None, "modality", "sample")
    },
    # A single modality's dependency is the mean, too, so it cancels.
    **{
        f"reference 1 inverse {dependency}": dict(
            batch=9, modalities=1, g="inverse", reference=0.5, dependency=dependency, mask="sample",
            cancels={"gradient of dependency": 1.0},
        )
        for dependency in ("modality", "sample")
    },
    "reference of the modality": dict(batch=33, modalities=3, g="inverse", reference=2.0, dependency="modality"),
    "reference, total and temperature": dict(
        batch=9, modalities=3, g="inverse", reference=2.0, total=2.5, temperature=2.0, dependency="sample"
    ),
    "reference and floor": dict(batch=9, modalities=3, g="inverse", reference=3.0, floor=1.0, dependency="modality"),
    **{
        f"reference and floor of {mask or 'all'} locations": dict(
            batch=3, modalities=3, spatial=(7, 9), g="inverse", reference=3.0, floor=1.0, mask=mask,
            dependency=dependency,
        )
        for mask, dependency in ((None, "modality"), ("sample", "sample"), ("location", "sample"), ("location", None))
    },
    **{
        f"reference {r}, {g} of 1e-8 to 1e8": dict(
            batch=9, modalities=3, g=g, powers=(-4, 4), dependency="wide", reference=r
        )
        for g in _G for r in (1e-8, 1e8)
    },
    "special reference": dict(
        batch=9, modalities=3, g="inverse", mask="sample", special=True, reference=1.0, floor=1.0
    ),
    **{f"{g} not positive": dict(batch=9, modalities=3, g=g, dependency="sample", spoil=(-1.0, 0.0)) for g in _G},
    # Equal gradients for weights of a fixed sum: the derivative is 0.
    **layouts(batch=5, modalities=3, spatial=(7, 3), mask="location", dependency="sample", cancels=_gradients(1.0)),
    **each("no locations", LAYOUTS, "layout", batch=5, modalities=3, dependency="modality"),
    **each("gradient of", (("uncertainty",), ("dependency",)), "wrt", batch=5, modalities=3, dependency="sample"),
}  # fmt: skip
ROWS: dict[str, Row] = {
    **{f"{n} rows": dict(batch=n, modalities=2) for n in SIZES},
    **WEIGHTINGS,
    "threads": dict(batch=4096, modalities=3, mask="sample", dependency="modality"),
}  # fmt: skip


def weighting(c: Choices, draw: Values, batch: int, modalities: int, spatial: tuple) -> dict[str, Any]:
    reach = c.pick(0.5, 4, 14)
    mask = c.pick(None, None, "sample", "location")
    arguments = sample(
        draw,
        batch,
        modalities,
        spatial,
        dependency=c.pick(None, "modality", "sample", "wide"),
        mask="sample" if batch == 0 and mask else mask,
        powers=c.powers(reach),
        g=c.pick("softmax", "inverse"),
        temperature=c.pick(1.0, 1.0, 0.25, 2.0, 1000.0, 1e-3, 0.7),
        total=c.pick(None, None, 1.0, 2.5, 0.0, -3.0),
        floor=c.pick(None, None, None, 0.0, 1.0, 1e-3),
        reference=c.pick(None, None, None, 1.0, 4.0, 1e-2),
    )
    if c.one_in(5):
        # Of any magnitude, and so are their products and quotients.
        arguments["uncertainty"] = draw.powers(*c.powers(38), *arguments["uncertainty"].shape)
        arguments["dependency"] = draw.levels(batch, -38, 38, (modalities,))
    return arguments


def generate(c: Choices, draw: Values) -> dict[str, Any]:
    budget = c.budget()
    modalities = c.modalities()
    batch = 0 if c.one_in(40) else c.size(min(257, budget // modalities))
    return weighting(c, draw, batch, modalities, c.spatial(budget // max(batch * modalities, 1), 3))


def base() -> Row:
    return {"uncertainty": values(B, M)}


FORMS: dict[str, Form] = {
    **forms("dependency", (M,), (B, M), numbers=False, none=True),
    "dependency list": lambda i: {"dependency": [number(i), 1.0]},
    "mask": lambda i: {"mask": mask(i)},
    "mask None": lambda i: {"mask": None},
    **forms("temperature"),
    **forms("total", none=True),
    **forms("floor", none=True),
    **forms("reference", none=True),
    "all": lambda i: {
        **dict.fromkeys(("temperature", "total", "floor", "reference"), number(i)),
        "dependency": values(M, key=i),
        "g": "inverse",
    },
}


def aot(of: Maker) -> Iterator[KernelWork]:
    s, a = of.wider(4096, 4), of.wider(4)
    yield of.work("fusion_weights", (4096, 4), (s, a, None, 0, 1.0, None, None, None), s.numel())
    backward = (s, s, a, None, 0, 1.0, None, None, None, True)
    yield of.work("fusion_weights_backward", (4096, 4), backward, s.numel())
    against = (s, a, None, 1, 1.0, None, 1.0, 4.0)
    yield of.work("fusion_weights", (4096, 4), against, s.numel(), note="reference")
    yield of.work("fusion_weights_backward", (4096, 4), (s, *against, True), s.numel(), note="reference")


_CROWDED = {"modalities": 16, "dependency": "sample", "mask": "sample"}
_MASKED = {"mask": "sample", "dependency": "modality"}
INFO = OpInfo(
    "fusion_weights",
    outputs=("weights",),
    wide=("weights",),
    sample=sample,
    rows=ROWS,
    generate=generate,
    file="fusion",
    aot=aot,
    checked=(
        *CHECKED_LAYOUTS,
        "1 modalities", "16 modalities", "inverse 16", "* masked", "masked total", "locations masked",
        "reference 2 inverse modality", "reference and floor*", "temperature *", "inverse of 1e4",
        "inverse of 1e-30", "special softmax", "empty batch",
    ),
    plain="dependency of the sample",
    base=base,
    forms=FORMS,
    small={"batch": 4, "modalities": 3, "g": "inverse", "mask": "sample", "dependency": "sample"},
    compiled=({"batch": 5, "modalities": 3, **_MASKED}, {"batch": 7, "modalities": 4, **_MASKED}),
    crowded=({"batch": 300, **_CROWDED}, {"batch": 3, "spatial": (17, 33), **_CROWDED}),
    gradchecked={
        **{
            f"{g} {mask}": {"batch": 4, "modalities": 3, "g": g, "mask": mask, "dependency": "sample"}
            for g in _G
            for mask in (None, "sample")
        },
        "locations": {"batch": 3, "modalities": 3, "spatial": (2,), "mask": "location", "dependency": "modality"},
        **{
            f"{g} reference": {
                "batch": 4, "modalities": 3, "g": g, "mask": "sample", "dependency": "sample", "floor": 0.5,
                "reference": 1.5,
            }
            for g in _G
        },
    },
    by_sample=({"batch": 21, "modalities": 3, "mask": "sample"}, ("uncertainty", "mask")),
)  # fmt: skip
