"""Inputs that every backend must handle: random ones and adversarial ones, a few for every op."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Values = dict[str, Any]


@dataclass
class Case:
    """One call of an op. `inputs` are float64 tensors, or lists of them, to be cast to the dtype under test, laid out
    and differentiated.

    `options` are passed unchanged. `layout` gives the op a view of a tensor that the op may not assume to be dense.
    """

    op: str
    name: str
    inputs: Values
    options: Values = field(default_factory=dict)
    layout: Callable[[Tensor], Tensor] = lambda t: t


def dense(t: Tensor) -> Tensor:
    return t


def transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(t: Tensor) -> Tensor:
    """Every second element of a wider buffer, with a storage offset."""
    return torch.stack((t, t), -1).flatten(-2)[..., 1::2] if t.dim() else t


def expanded(t: Tensor) -> Tensor:
    return t[:1].expand(t.shape)


LAYOUTS = {"dense": dense, "transposed": transposed, "sliced": sliced, "expanded, stride 0": expanded}


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=g)


def _spread(g: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Log-uniform random numbers."""
    u = torch.rand(shape, dtype=torch.float64, generator=g)
    return (math.log(low) + u * math.log(high / low)).exp()


def _with_specials(t: Tensor) -> Tensor:
    flat = t.clone().flatten()
    flat[:3] = torch.tensor([math.nan, math.inf, -math.inf], dtype=t.dtype)
    return flat.reshape(t.shape)


def _reparameterize(g: torch.Generator, seed: Values) -> Iterator[Case]:
    def inputs(*shape: int, scale: float = 1.0) -> Values:
        return {
            "mu": _normal(g, *shape),
            "logvar": scale * _normal(g, *shape),
            "prior_var": _spread(g, shape[:1], 0.1, 10),
        }

    op = "reparameterize"
    for name, layout in LAYOUTS.items():
        yield Case(op, name, inputs(5, 3, 9, 7), seed, layout)
    yield Case(op, "one element", inputs(1, 1), seed)
    yield Case(op, "odd sizes", inputs(7, 13, 67), {**seed, "std_max": 1.1})
    yield Case(op, "empty batch", inputs(0, 4, 5), seed)
    yield Case(op, "no sampling", inputs(4, 33), {"sample": False})
    yield Case(op, "huge and tiny variances", inputs(6, 40, scale=6.0), seed)
    special = inputs(6, 5, 5)
    yield Case(op, "NaN and infinity", {**special, "mu": _with_specials(special["mu"])}, seed)
    yield Case(op, "sample ids and stream", inputs(4, 6, 5), {**seed, "stream": 7, "sample_ids": _ids(4)})


def _ids(count: int) -> Tensor:
    return torch.arange(count) * 1_000_003 + 2**33


def _inject_noise(g: torch.Generator, seed: Values) -> Iterator[Case]:
    from .. import KINDS

    def inputs(*shape: int) -> Values:
        return {"x": _normal(g, *shape), "sigma": _spread(g, shape[:1], 0.05, 0.9)}

    op, clamp = "inject_noise", (-1.5, 1.25)
    for kind in KINDS:
        yield Case(op, kind, inputs(5, 3, 17), {**seed, "kind": kind, "clamp": clamp})
    for name, layout in LAYOUTS.items():
        yield Case(op, name, inputs(5, 3, 9, 7), seed, layout)
    mixed = torch.arange(12) % len(KINDS)
    normalize = (2.0, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    options = {**seed, "kind": mixed, "clamp": clamp, "normalize": normalize}
    yield Case(op, "mixed kinds, normalised", inputs(12, 3, 31), options)
    yield Case(op, "empty batch", inputs(0, 4, 5), seed)
    yield Case(op, "huge and tiny sigma", {**inputs(6, 41), "sigma": _spread(g, (6,), 1e-6, 1e4)}, seed)
    yield Case(op, "NaN and infinity", {**inputs(6, 7), "x": _with_specials(_normal(g, 6, 7))}, seed)
    image = torch.randint(0, 256, (4, 3, 9, 11), generator=g).to(torch.uint8)
    pipeline = {"x": image, "clamp": (0, 255), "normalize": (255.0, *normalize[1:])}
    yield Case(op, "uint8 image", {"sigma": _spread(g, (4,), 1, 80)}, {**seed, **pipeline})


def _noise_regression(g: torch.Generator, seed: Values) -> Iterator[Case]:
    def inputs(batch: int, features: int, hidden: int, out: int, *group: int, target: bool = True) -> Values:
        values = {
            "std": _spread(g, (*group, batch, features), 0.1, 3),
            "weight1": _normal(g, *group, hidden, features) / features**0.5,
            "bias1": _normal(g, *group, hidden),
            "weight2": _normal(g, *group, out, hidden) / hidden**0.5,
            "bias2": _normal(g, *group, out),
        }
        return {**values, "target": _spread(g, (*group, batch, out), 0.1, 3)} if target else values

    op = "noise_regression"
    for activation in ("identity", "relu", "gelu", "silu"):
        yield Case(op, activation, inputs(9, 33, 17, 1), {"activation": activation})
    for name, layout in LAYOUTS.items():
        yield Case(op, name, inputs(7, 19, 11, 3, 2), {}, layout)
    yield Case(op, "dropout, 3 groups", inputs(6, 40, 23, 2, 3), {**seed, "dropout_p": 0.4, "activation": "silu"})
    yield Case(op, "everything dropped", inputs(6, 8, 5, 1), {**seed, "dropout_p": 1.0})
    yield Case(op, "no target", inputs(5, 8, 6, 1, target=False))
    yield Case(op, "empty batch", inputs(0, 8, 6, 1))
    special = inputs(5, 8, 6, 1)
    yield Case(op, "NaN and infinity", {**special, "target": _with_specials(special["target"])})


def _weights(g: torch.Generator, seed: Values) -> Iterator[Case]:
    op = "fusion_weights"

    def inputs(*shape: int, low: float = 0.3, high: float = 3) -> Values:
        return {"uncertainty": _spread(g, shape, low, high), "dependency": _spread(g, shape[1:2], 0.5, 2)}

    for weighting in ("softmax", "inverse"):
        for name, layout in LAYOUTS.items():
            values = inputs(7, 3)
            if layout is expanded:
                # "inverse" weights do not depend on a factor common to all modalities: one shared alpha has gradient
                # 0, and the computed value would consist of rounding errors.
                del values["dependency"]
            yield Case(op, f"{weighting}, {name}", values, {"g": weighting, "temperature": 0.7}, layout)
        mask = torch.rand(9, 16, generator=g) < 0.5
        mask[0] = False
        yield Case(op, f"{weighting}, 16 modalities, mask", inputs(9, 16), {"g": weighting, "mask": mask})
        yield Case(op, f"{weighting}, per location", inputs(4, 3, 5, 3), {"g": weighting, "total": 1.0})
    yield Case(op, "inverse, 1e-6 to 1e4", inputs(9, 4, low=1e-6, high=1e4), {"g": "inverse"})
    yield Case(op, "one modality", inputs(5, 1))
    yield Case(op, "empty batch", inputs(0, 3))


def _fusion(g: torch.Generator, seed: Values) -> Iterator[Case]:
    op = "weighted_fusion"

    def inputs(batch: int, widths: tuple[int, ...], *spatial: int, per_location: bool = False) -> Values:
        count = len(widths)
        return {
            "features": [_normal(g, batch, width, *spatial) for width in widths],
            "uncertainty": _spread(g, (batch, count, *(spatial if per_location else ())), 0.3, 3),
            "dependency": _spread(g, (count,), 0.5, 2),
        }

    for name, layout in LAYOUTS.items():
        yield Case(op, f"concat, {name}", inputs(5, (7, 33)), {}, layout)
    for mode in ("concat", "sum", "scale"):
        yield Case(op, f"{mode}, residual", inputs(6, (9, 9, 9), 5), {"mode": mode, "residual": True, "g": "inverse"})
        location = inputs(3, (6, 6), 5, 3, per_location=True)
        yield Case(op, f"{mode}, per location", location, {"mode": mode, "g": "inverse"})
    mask = torch.rand(9, 16, generator=g) < 0.5
    mask[0] = False
    yield Case(op, "16 modalities, mask", inputs(9, tuple(range(1, 17))), {"mask": mask})
    yield Case(op, "empty batch", inputs(0, (4, 5)))
    absent = inputs(4, (6, 3))
    absent["features"][0] = _with_specials(absent["features"][0])
    mask = torch.ones(4, 2, dtype=torch.bool)
    mask[0, 0] = False
    yield Case(op, "absent NaN and infinity", absent, {"mask": mask})


def _modality_dropout(g: torch.Generator, seed: Values) -> Iterator[Case]:
    op = "modality_dropout"
    for name, layout in LAYOUTS.items():
        features = [_normal(g, 9, 7), _normal(g, 9, 3, 5)]
        yield Case(op, name, {"features": features}, {**seed, "p": 0.5}, layout)
    features = [_normal(g, 33, 5) for _ in range(16)]
    yield Case(op, "16 modalities", {"features": features}, {**seed, "p": torch.linspace(0, 1, 16)})
    yield Case(op, "p = 1, none kept", {"features": features[:3]}, {**seed, "p": 1.0, "keep_one": False})
    yield Case(op, "NaN and infinity", {"features": [_with_specials(features[0]), features[1]]}, {**seed, "p": 0.5})
    yield Case(op, "empty batch", {"features": [_normal(g, 0, 5)]}, {**seed, "p": 0.5})


def _dependency(g: torch.Generator, seed: Values) -> Iterator[Case]:
    for name, layout in LAYOUTS.items():
        yield Case("modality_dependency", name, {"logits": _normal(g, 3, 17, 11)}, {}, layout)
    yield Case("modality_dependency", "16 modalities", {"logits": 1e3 * _normal(g, 16, 65, 3)})
    yield Case("modality_dependency", "empty batch", {"logits": _normal(g, 2, 0, 3)})
    yield Case("modality_dependency", "NaN and infinity", {"logits": _with_specials(_normal(g, 3, 5, 7))})


def _evidential_fusion(g: torch.Generator, seed: Values) -> Iterator[Case]:
    op = "evidential_fusion"
    for name, layout in LAYOUTS.items():
        yield Case(op, name, {"evidence": _spread(g, (7, 3, 34), 1e-3, 10)}, {}, layout)
    mask = torch.rand(9, 16, generator=g) < 0.5
    yield Case(op, "16 views, mask", {"evidence": _spread(g, (9, 16, 5), 1e-3, 1)}, {"mask": mask})
    yield Case(op, "tiny evidence", {"evidence": _spread(g, (9, 3, 5), 1e-7, 1e-3)})
    yield Case(op, "empty batch", {"evidence": _spread(g, (0, 3, 5), 1e-3, 1)})
    yield Case(op, "NaN and infinity", {"evidence": _with_specials(_spread(g, (5, 2, 4), 0.1, 1))})


def _evidential_loss(g: torch.Generator, seed: Values) -> Iterator[Case]:
    op = "evidential_loss"

    def target(*shape: int, classes: int = 34) -> Values:
        return {"target": torch.randint(0, classes, shape, generator=g), "kl_weight": 0.6}

    for name, layout in LAYOUTS.items():
        yield Case(op, name, {"evidence": _spread(g, (7, 34), 1e-3, 20)}, target(7), layout)
    yield Case(op, "views apart", {"evidence": _spread(g, (7, 3, 34), 1e-3, 20)}, {**target(7), "reduction": "none"})
    yield Case(op, "two classes", {"evidence": _spread(g, (9, 2), 1e-5, 100)}, target(9, classes=2))
    yield Case(op, "empty batch", {"evidence": _spread(g, (0, 34), 1e-3, 20)}, target(0))


def _generators(g: torch.Generator, seed: Values) -> Iterator[Case]:
    for op in ("normal", "uniform"):
        for shape in ((1,), (5, 3, 67), (3, 4096), (0, 4)):
            yield Case(op, "x".join(map(str, shape)), {}, {**seed, "shape": shape})
        yield Case(op, "sample ids, stream", {}, {**seed, "shape": (4, 9), "sample_ids": _ids(4), "stream": 2**32 - 1})


OPS: dict[str, Callable[[torch.Generator, Values], Iterator[Case]]] = {
    "inject_noise": _inject_noise,
    "reparameterize": _reparameterize,
    "noise_regression": _noise_regression,
    "fusion_weights": _weights,
    "weighted_fusion": _fusion,
    "modality_dropout": _modality_dropout,
    "modality_dependency": _dependency,
    "evidential_fusion": _evidential_fusion,
    "evidential_loss": _evidential_loss,
    "normal": _generators,
    "uniform": _generators,
}


def cases(op: str, seed: int) -> Iterator[Case]:
    """The cases of one op; equal seeds give equal cases."""
    generator = torch.Generator().manual_seed(seed)
    values = {"seed": torch.tensor([seed * 0x9E3779B97F4A7C15 % 2**63], dtype=torch.int64)}
    return (case for case in OPS[op](generator, values) if case.op == op)
