"""One generator per op: from random choices to the public function's keyword arguments, through `tests.builders`."""

import math
from collections.abc import Callable

import torch

from udml_kernels.checks import compute_dtype
from udml_kernels.reference.noise import KINDS
from udml_kernels.testing.ops import OPS

from .choices import Choices
from .draw import Values

LARGE = 60_000
STREAMS = (0, 1, 7, 2**24 - 1)


def _budget(c: Choices) -> int:
    """Number of elements of a tensor: few, as small sizes find most faults; sometimes enough for several threads."""
    return LARGE if c.one_in(250) else c.elements


def _batch(c: Choices) -> int:
    return 0 if c.one_in(40) else c.size(33)


def _spatial(c: Choices, budget: int, ranks: int = 4) -> tuple[int, ...]:
    sizes: list[int] = []
    for _ in range(c.below(ranks)):
        sizes.append(0 if c.one_in(60) else c.size(min(budget, 65)))
        budget //= max(sizes[-1], 1)
    return tuple(sizes)


def _shape(c: Choices, ranks: int = 4) -> tuple[int, ...]:
    """A shape (B, C, ...)."""
    budget = _budget(c)
    batch = _batch(c)
    channels = 0 if c.one_in(60) else c.size(budget // max(batch, 1))
    return (batch, channels, *_spatial(c, budget // max(batch * channels, 1), ranks))


def _modalities(c: Choices) -> int:
    return c.pick(1, 2, 2, 3, 3, 4, 5, 8, 15, 16)


def _noise(c: Choices, draw: Values, batch: int) -> dict:
    return {"stream": c.pick(*STREAMS), "sample_ids": draw.random_ids(batch) if c.one_in(4) else None}


def _levels(c: Choices, draw: Values, batch: int, low: float, high: float, shape: tuple = ()) -> torch.Tensor:
    """Positive numbers of any magnitude, one per sample, in the arithmetic's dtype."""
    wide = compute_dtype(draw.dtype)
    powers = c.number(low, high), c.number(low, high)
    exponents = torch.rand((batch, *shape), generator=draw.generator, dtype=torch.float64)
    value = 10 ** (min(powers) + exponents * abs(powers[1] - powers[0]))
    return draw.tensor(value.clamp(torch.finfo(wide).tiny, torch.finfo(wide).max), wide)


def reparameterize(c: Choices, draw: Values) -> dict:
    shape = _shape(c)
    low = c.pick(-2, -30, -60, -90, -210, 4, 20, 70, 85, 200)
    arguments = OPS["reparameterize"].sample(
        draw,
        shape,
        prior=c.pick("one", "number", "tensor", "sample", "narrow", "column"),
        logvar=(low, low + c.pick(4, 0, 1, 40)),
        mu_scale=c.pick(1.0, 1.0, 0.0, 1e-20, 1e4, 1e15) if draw.dtype != torch.float16 else 1.0,
        std_max=c.pick(None, None, 1.25, 0.5, 1e-3, 50.0, 1.0),
        sample=not c.one_in(5),
        **_noise(c, draw, shape[0]),
    )
    if c.one_in(4):
        arguments["prior_var"] = _levels(c, draw, shape[0], -37, 38)
    return arguments


def inject_noise(c: Choices, draw: Values) -> dict:
    shape = _shape(c) if not c.one_in(10) else (_batch(c),)
    image = c.one_in(5)
    ends = (0.0, 255.0) if image else c.pick((-1.0, 1.0), (0.0, 1.0), (-2.0, -2.0), (-1e30, 1e30), (0.25, 4.0))
    kind = c.pick(*KINDS, "mixed")
    clamp = ends if kind in ("salt_pepper", "mixed") or c.one_in(2) else None
    options = {"out_dtype": c.pick("float32", "float64", "bfloat16", "float16")} if c.one_in(6) else {}
    arguments = OPS["inject_noise"].sample(
        draw,
        shape,
        x="uint8" if image else c.pick("normal", "normal", "normal", "ends"),
        sigma=c.pick("number", "tensor", "sample", "positive", "column"),
        sigma_value=c.pick(0.25, 0.0, 0.5, 1.0, 0.0625),
        kind=kind,
        clamp=clamp,
        normalize=c.pick(None, "one", True) if len(shape) > 1 and shape[1] else None,
        **_noise(c, draw, shape[0]),
        **options,
    )
    if kind not in ("salt_pepper", "dropout", "mixed") and c.one_in(3):
        arguments["sigma"] = _levels(c, draw, shape[0], -30, 30) if shape[0] else 1e30
    return arguments


def noise_regression(c: Choices, draw: Values) -> dict:
    budget = 4 * _budget(c)
    groups = c.pick(None, None, 1, 2, 3, 16)
    budget //= groups or 1
    batch = _batch(c)
    features = c.size(4096 if c.one_in(30) else min(budget // max(batch, 1), 300))
    hidden = c.size(min(max(budget // max(batch, 1), 1), max(4 * budget // features, 1), 129))
    outputs = 0 if c.one_in(60) else c.pick(1, 1, 2, 3, 17)
    arguments = OPS["noise_regression"].sample(
        draw,
        batch,
        features,
        hidden,
        outputs,
        groups,
        target=c.pick("column", "none", "vector") if outputs == 1 else c.pick("column", "none"),
        scale=c.pick(1.0, 1.0, 0.0, 1e-6, 10.0),
        shift=c.pick(0.0, 0.0, 20.0, -60.0),
        activation=c.pick("identity", "relu", "gelu", "silu"),
        dropout_p=c.pick(0.0, 0.25, 0.0625, 0.5, 0.875, 1.0),
        **_noise(c, draw, batch),
    )
    if c.one_in(25):
        # No features, or no hidden units.
        features = c.one_in(2)
        names = ("std", "weight1") if features else ("bias1", "weight2")
        arguments |= {name: arguments[name][..., :0] for name in names}
        if not features:
            arguments["weight1"] = arguments["weight1"][..., :0, :]
    return arguments


def _weighting(c: Choices, draw: Values, batch: int, modalities: int, spatial: tuple) -> dict:
    reach = c.pick(0.5, 4, 14)
    mask = c.pick(None, None, "sample", "location")
    arguments = OPS["fusion_weights"].sample(
        draw,
        batch,
        modalities,
        spatial,
        dependency=c.pick(None, "modality", "sample", "wide"),
        mask="sample" if batch == 0 and mask else mask,
        powers=_powers(c, reach),
        g=c.pick("softmax", "inverse"),
        temperature=c.pick(1.0, 1.0, 0.25, 2.0, 1000.0, 1e-3, 0.7),
        total=c.pick(None, None, 1.0, 2.5, 0.0, -3.0),
    )
    if c.one_in(5):
        # Of any magnitude, and so are their products and quotients.
        arguments["uncertainty"] = draw.powers(*_powers(c, 38), *arguments["uncertainty"].shape)
        arguments["dependency"] = _levels(c, draw, batch, -38, 38, (modalities,))
    return arguments


def fusion_weights(c: Choices, draw: Values) -> dict:
    budget = _budget(c)
    modalities = _modalities(c)
    batch = 0 if c.one_in(40) else c.size(min(257, budget // modalities))
    return _weighting(c, draw, batch, modalities, _spatial(c, budget // max(batch * modalities, 1), 3))


def weighted_fusion(c: Choices, draw: Values) -> dict:
    budget = _budget(c)
    batch, modalities = _batch(c), _modalities(c)
    mode = c.pick("concat", "sum", "scale")
    spatial = _spatial(c, max(budget // max(batch * modalities, 1), 1), 3)
    room = max(budget // max(batch * modalities, 1), 1)
    for size in spatial:
        room = max(room // max(size, 1), 1)
    width = c.size(room)
    widths = [width] * modalities
    if mode != "sum" and c.one_in(2):
        widths = [0 if c.one_in(60) else c.size(room) for _ in range(modalities)]
    per_location = spatial if c.one_in(2) else ()
    features = draw.features(batch, modalities, widths, spatial)
    weighting = _weighting(c, draw, batch, modalities, per_location)
    return {"features": features, "mode": mode, "residual": c.one_in(2), **weighting}


def modality_dropout(c: Choices, draw: Values) -> dict:
    batch, modalities = _batch(c), _modalities(c)
    room = max(_budget(c) // max(batch * modalities, 1), 1)
    widths = [(c.size(room), *_spatial(c, 4, 3)) for _ in range(modalities)]
    if c.one_in(10):
        widths[0] = ()
    p = c.pick(0.5, 0.0, 1.0, 0.125, "tensor", tuple(c.below(17) / 16 for _ in range(modalities)))
    options = _noise(c, draw, batch)
    return OPS["modality_dropout"].sample(draw, batch, modalities, widths, p, keep_one=not c.one_in(2), **options)


def modality_dependency(c: Choices, draw: Values) -> dict:
    modalities, batch = _modalities(c), _batch(c)
    classes = 0 if c.one_in(60) else c.size(max(_budget(c) // max(modalities * batch, 1), 1))
    return OPS["modality_dependency"].sample(draw, (modalities, batch, classes), c.pick(1.0, 1e-6, 1e3, 0.0))


def _powers(c: Choices, reach: float) -> tuple[float, float]:
    """An interval of decimal exponents."""
    low, high = sorted((c.number(-reach, reach), c.number(-reach, reach)))
    return low, high


def evidential_fusion(c: Choices, draw: Values) -> dict:
    batch, views = _batch(c), _modalities(c)
    classes = c.size(max(_budget(c) // max(batch * views, 1), 1))
    # float64 has to hold a product over the views.
    powers = _powers(c, c.pick(2, 2, min(30, 250 // views)))
    return OPS["evidential_fusion"].sample(draw, (batch, views, classes), powers, mask=c.one_in(2))


def evidential_loss(c: Choices, draw: Values) -> dict:
    budget = _budget(c)
    batch = min(_batch(c), budget // 2)
    rows = (batch, *_spatial(c, min(budget // max(2 * batch, 1), 40), 3))
    return OPS["evidential_loss"].sample(
        draw,
        (*rows, c.size(budget // max(math.prod(rows), 1))),
        powers=_powers(c, c.pick(2, 2, 30)) if not c.one_in(20) else None,
        target=c.pick("row", "each"),
        kl_weight=c.pick(1.0, 0.0, 0.25, 3.0, 0.7),
        reduction=c.pick("mean", "sum", "none"),
    )


def normal(c: Choices, draw: Values) -> dict:
    shape = _shape(c) if not c.one_in(10) else (_batch(c),)
    return OPS["normal"].sample(draw, shape, **_noise(c, draw, shape[0]) | {"stream": c.pick(*STREAMS, 2**32 - 1)})


uniform = normal

GENERATORS: dict[str, Callable[[Choices, Values], dict]] = {
    "inject_noise": inject_noise,
    "reparameterize": reparameterize,
    "noise_regression": noise_regression,
    "fusion_weights": fusion_weights,
    "weighted_fusion": weighted_fusion,
    "modality_dropout": modality_dropout,
    "modality_dependency": modality_dependency,
    "evidential_fusion": evidential_fusion,
    "evidential_loss": evidential_loss,
    "normal": normal,
    "uniform": uniform,
}
