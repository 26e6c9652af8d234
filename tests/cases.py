"""What the conformance suite runs: a table per op, a case per row.

A row names the arguments of the op's builder; `layout`, `grads`, `through`, `wrt` and `special` are the
case's own (see `Case`). Sizes straddle every plausible block and vector width.
"""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from . import builders
from .data import LAYOUTS, Draw

SIZES = (1, 3, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025)
KINDS = ("gaussian", "uniform", "speckle", "salt_pepper", "dropout", "replace")
HUGE, TINY = 2.0**100, 2.0**-100


@dataclass(frozen=True)
class Case:
    op: str
    name: str
    options: dict = field(hash=False)
    # Memory layout of every input, and of every incoming gradient.
    layout: str = "contiguous"
    grads: str = "contiguous"
    # What the incoming gradients are multiplied by.
    grad_scale: float = 1.0
    # The outputs that receive a gradient, and the inputs that want one; None for all.
    through: tuple[int, ...] | None = None
    wrt: tuple[str, ...] | None = None
    # NaN, inf and -inf among the inputs, and among the incoming gradients.
    special: bool = False
    special_grads: bool = False
    # By output or gradient, the size of the terms of a sum that cancels; see `tolerances.assert_close`.
    cancels: dict = field(default_factory=dict, hash=False)

    @property
    def builder(self) -> Callable:
        return getattr(builders, self.op)

    def __str__(self) -> str:
        return f"{self.op}: {self.name}".replace(" ", "_")

    def inputs(self, dtype: torch.dtype) -> dict:
        """The keyword arguments of the public function."""
        return self.builder(Draw(str(self), dtype, self.layout, self.special), **self.options)


def _table(op: str, rows: dict[str, dict]) -> list[Case]:
    own = ("layout", "grads", "grad_scale", "through", "wrt", "special", "special_grads", "cancels")
    return [
        Case(op, name, {k: v for k, v in row.items() if k not in own}, **{k: v for k, v in row.items() if k in own})
        for name, row in rows.items()
    ]


def _layouts(**row) -> dict:
    both = {f"layout {name}": dict(row, layout=name, grads=name) for name in LAYOUTS}
    return both | {f"{name} gradients": dict(row, grads=name) for name in ("transposed", "sliced", "expanded")}


def _each(word: str, values, argument: str, **row) -> dict:
    return {f"{word} {value}".replace(" ()", " scalar"): {**row, argument: value} for value in values}


_DENSE = ((64,), (48, 7, 7), (16, 4), (32, 3), (8, 14, 14))
REPARAMETERIZE = _table("reparameterize", {
    **{f"{n} wide": dict(shape=(3, n)) for n in SIZES},
    **{f"{n} locations": dict(shape=(2, 3, n)) for n in (1, 3, 15, 17, 49, 64, 196, 1025)},
    # Rows that whole vectors divide: a channel ends within one, with one, and many of them later.
    **_each("dense", [(2, *row) for row in (*_DENSE, (16, 15, 15), (2, 72, 72))], "shape"),
    **_each("dense std_max", [(2, *row) for row in _DENSE], "shape", std_max=1.25),
    **_each("dense no sample", [(2, *row) for row in _DENSE], "shape", sample=False),
    "dense special": dict(shape=(4, 16, 9), special=True),
    **_each("dense through", ((0,), (1,), (2,)), "through", shape=(3, 16, 5)),
    "one element": dict(shape=(1, 1)),
    "empty batch": dict(shape=(0, 5, 7, 7)),
    **_each("nothing in", ((3, 0), (3, 0, 5), (3, 4, 0), (0, 0), (3, 4, 0, 5)), "shape"),
    "nothing in a prior for all": dict(shape=(3, 0), prior="tensor"),
    "threads": dict(shape=(16, 64, 14, 14)),
    "one long sample": dict(shape=(1, 40, 33, 33)),
    **_each("prior", ("one", "number", "tensor", "sample", "narrow", "column"), "prior", shape=(5, 3, 7, 7)),
    "std_max": dict(shape=(4, 5, 17), std_max=1.25),
    "std_max 49": dict(shape=(4, 5, 7, 7), std_max=0.5),
    "no sample": dict(shape=(4, 5, 7, 7), sample=False),
    "no sample, std_max": dict(shape=(4, 33), sample=False, std_max=1.0),
    "sample ids": dict(shape=(4, 5, 7), sample_ids=(7, -1, 2**40 + 3, 7)),
    "stream": dict(shape=(4, 5, 7), stream=2**24 - 1),
    **_each("logvar", ((-81, -79), (-221, -210), (20, 22), (79, 80), (200, 210)), "logvar", shape=(3, 33)),
    **_each("prior var", (1.5e-38, 1e-20, 1e20, 3e38), "prior_var", shape=(2, 3)),
    "huge mu": dict(shape=(3, 33), mu_scale=1e15),
    # The squares of mu and std are no float32 numbers, nor is the quotient of kl's gradient and the prior's variance.
    # Of kl cancel logvar and the prior's logarithm, -70.8 of each element.
    "squares overflow": dict(shape=(3, 5, 7), mu_scale=1e22, logvar=(99, 102), prior_var=1e38),
    "squares underflow": dict(
        shape=(3, 5, 7), mu_scale=1e-19, logvar=(-88, -86), prior_var=1.2e-38, cancels={"kl": 88 * 35.0}
    ),
    **{
        f"gradients of {scale:.0e}, mu of {mu:.0e}": dict(
            shape=(3, 5, 7), mu_scale=mu, logvar=(-71, -70), prior_var=1.8e-31, grad_scale=scale,
            cancels={"kl": 70.8 * 35},
        )
        for scale, mu in ((1e30, 0.0), (1e30, 1e-24), (1e-30, 1e15))
    },
    "gradients of 1e-30, tiny prior": dict(shape=(3, 33), mu_scale=1e4, prior_var=1.2e-38, grad_scale=1e-30),
    "special": dict(shape=(4, 5, 9), special=True),
    "special std_max": dict(shape=(4, 5, 9), special=True, std_max=1.0),
    # What is clipped passes no gradient on, not even an infinite one.
    **_each("special gradients, through", ((0,), (1,), (2,)), "through", shape=(4, 16, 9), std_max=1.0,
            special_grads=True, wrt=("mu", "logvar")),
    "special gradients, no locations": dict(shape=(4, 33), std_max=1.0, special_grads=True, through=(0, 1)),
    **_layouts(shape=(4, 5, 7, 9)),
    **{f"layout {name}, no locations": dict(shape=(5, 33), layout=name) for name in LAYOUTS},
    **_each("through", ((0,), (1,), (2,), (0, 1), (1, 2)), "through", shape=(3, 5, 7)),
    **_each("gradient of", (("mu",), ("logvar",), ("prior_var",)), "wrt", shape=(3, 5, 7)),
})  # fmt: skip

INJECT_NOISE = _table("inject_noise", {
    **{f"{n} wide": dict(shape=(3, n)) for n in SIZES},
    **{f"{kind} {n}": dict(shape=(3, n), kind=kind, clamp=(-1.0, 1.0)) for kind in KINDS for n in (17, 1025)},
    **{f"{kind} image": dict(shape=(4, 3, 7, 9), kind=kind, clamp=(-1.0, 1.0), normalize=True) for kind in KINDS},
    **_each("uint8", KINDS, "kind", shape=(4, 3, 9, 7), x="uint8", clamp=(0.0, 255.0), normalize=True),
    # Rows that whole vectors divide.
    **{f"dense {kind}": dict(shape=(3, 3, 8, 6), kind=kind, clamp=(-1.0, 1.0), normalize=True) for kind in KINDS},
    **_each("dense uint8", KINDS, "kind", shape=(4, 3, 8, 6), x="uint8", clamp=(0.0, 255.0), normalize=True),
    "dense mixed kinds": dict(shape=(24, 3, 4, 4), kind="mixed", clamp=(-1.0, 1.0), normalize=True),
    "dense normalize 2-D": dict(shape=(3, 32), normalize=True),
    "dense small channels": dict(shape=(3, 32, 5), kind="mixed", normalize=True, clamp=(-1.0, 1.0)),
    "vector": dict(shape=(17,)),
    "one element": dict(shape=(1,)),
    "empty batch": dict(shape=(0, 3, 4, 4), normalize=True),
    **_each("nothing in", ((0,), (3, 0), (3, 4, 0), (0, 0)), "shape", clamp=(-1.0, 1.0)),
    **_each("nothing to normalize in", ((3, 0), (3, 0, 5), (3, 4, 0)), "shape", normalize=True),
    "nothing of mixed kinds": dict(shape=(3, 0), kind="mixed", clamp=(-1.0, 1.0)),
    "nothing, one sigma": dict(shape=(3, 0), sigma="tensor"),
    "threads": dict(shape=(16, 3, 64, 64), clamp=(-2.0, 2.0), normalize=True),
    "threads uint8": dict(shape=(8, 3, 64, 64), x="uint8", clamp=(0.0, 255.0), normalize=True),
    "mixed kinds": dict(shape=(24, 3, 5, 7), kind="mixed", clamp=(-1.0, 1.0)),
    "mixed kinds normalized": dict(shape=(24, 3, 5, 7), kind="mixed", clamp=(-1.0, 1.0), normalize=True),
    "mixed kinds uint8": dict(shape=(24, 3, 5, 7), x="uint8", kind="mixed", clamp=(0.0, 255.0)),
    **_each("sigma", ("number", "tensor", "sample", "column"), "sigma", shape=(5, 3, 7)),
    **_each("sigma number", (0.0, HUGE, TINY), "sigma_value", shape=(3, 33), sigma="number"),
    **_each("out", ("float32", "float64", "bfloat16", "float16"), "out_dtype", shape=(3, 33)),
    "uint8 plain": dict(shape=(3, 257), x="uint8"),
    "uint8 to bfloat16": dict(shape=(3, 257), x="uint8", out_dtype="bfloat16"),
    "one moment": dict(shape=(3, 5, 7), normalize="one"),
    "normalize 2-D": dict(shape=(3, 17), normalize=True),
    "sample ids": dict(shape=(4, 5, 7), sample_ids=(7, -1, 2**40 + 3, 7)),
    "stream": dict(shape=(4, 5, 7), stream=2**24 - 1),
    "on the clamp's ends": dict(shape=(4, 64), x="ends", sigma="number", sigma_value=0.0, clamp=(-1.0, 1.0)),
    **{f"special {kind}": dict(shape=(4, 3, 9), kind=kind, clamp=(-1.0, 1.0), special=True) for kind in KINDS},
    "special plain": dict(shape=(4, 3, 9), special=True),
    "special mixed kinds": dict(shape=(24, 3, 9), kind="mixed", clamp=(-1.0, 1.0), special=True),
    # Where noise or a clamp takes an element's place, or mixed kinds another one's: what it was has no part in a
    # gradient, be it infinite, or the gradient that comes in.
    **_each("cut", KINDS, "kind", shape=(4, 3, 9), clamp=(-1.0, 1.0), special=True, special_grads=True),
    **_each("cut, normalized", KINDS, "kind", shape=(4, 3, 9), clamp=(-1.0, 1.0), normalize=True, special_grads=True),
    **_each("cut, dense", KINDS, "kind", shape=(3, 3, 8, 6), clamp=(-1.0, 1.0), special_grads=True),
    **_each("cut, no clamp", ("speckle", "dropout", "replace"), "kind", shape=(4, 3, 9), special_grads=True),
    "cut, mixed kinds": dict(shape=(24, 3, 9), kind="mixed", clamp=(-1.0, 1.0), special=True, special_grads=True),
    **_each("cut, huge", (*KINDS, "mixed"), "kind", shape=(12, 3, 8), x="huge", clamp=(0.0, 1.0)),
    **_layouts(shape=(4, 3, 7, 9), clamp=(-2.0, 2.0), normalize=True),
    **_each("mixed", LAYOUTS, "layout", shape=(8, 3, 7), kind="mixed", clamp=(-1.0, 1.0)),
    **{f"layout {name}, uint8": dict(shape=(8, 3, 7), x="uint8", normalize=True, layout=name) for name in LAYOUTS},
    **_each("gradient of", (("x",), ("sigma",)), "wrt", shape=(3, 5, 7), clamp=(-2.0, 2.0)),
})  # fmt: skip

NOISE_REGRESSION = _table("noise_regression", {
    **_each("features", SIZES, "features", batch=3),
    **_each("hidden", SIZES, "hidden", batch=3),
    **_each("batch", (1, 2, 15, 16, 17, 63, 64, 65), "batch"),
    "empty batch": dict(batch=0),
    **{
        f"no {what}, {a} {p}": {what: 0, "activation": a, "dropout_p": p}
        for what in ("batch", "features", "hidden", "outputs", "groups")
        for a in ("identity", "relu")
        for p in (0.0, 0.25)
    },
    "no outputs in groups": dict(groups=2, outputs=0),
    "no features and units": dict(features=0, hidden=0),
    "one element": dict(batch=1, features=1, hidden=1),
    "threads": dict(batch=65, features=257, hidden=65, groups=2, dropout_p=0.125),
    **_each("groups", (1, 2, 3, 16), "groups", batch=5, dropout_p=0.25),
    **_each("outputs", (1, 2, 17), "outputs", batch=5),
    **_each("activation", ("identity", "relu", "gelu", "silu"), "activation", batch=17, dropout_p=0.25),
    **{f"{a} in groups": dict(batch=9, groups=2, activation=a) for a in ("identity", "relu", "gelu", "silu")},
    **_each("dropout", (0.0, 0.125, 0.875, 1.0), "dropout_p", batch=9, hidden=65),
    **_each("few units, batch", (1, 2, 3, 33), "batch", features=5, hidden=3, dropout_p=0.25),
    **_each("dropout, outputs", (1, 2, 3), "outputs", batch=67, features=300, hidden=131, groups=2, dropout_p=0.0625),
    **_each("target", ("column", "vector", "none"), "target", batch=9),
    "no target in groups": dict(batch=9, groups=3, target="none"),
    "zeros at relu's corner": dict(batch=5, scale=0.0, activation="relu"),
    "sample ids": dict(batch=4, dropout_p=0.5, sample_ids=(7, -1, 2**40 + 3, 7)),
    "stream": dict(batch=4, dropout_p=0.5, stream=2**24 - 1),
    "large outputs": dict(batch=9, shift=40.0),
    "small outputs": dict(batch=9, shift=-60.0),
    **{f"wide {a}": dict(batch=9, activation=a, scale=10.0) for a in ("identity", "gelu", "silu")},
    # A unit, a sample or a bias that dwarfs the others: where it is dropped nothing of it may be left.
    **_each("dominant", ("unit", "sample", "bias"), "dominant", batch=33, features=4096, hidden=2, dropout_p=0.25),
    **_each("dominant, hidden", (3, 17), "hidden", dominant="unit", batch=33, features=65, dropout_p=0.125),
    "dominant sample, outputs": dict(dominant="sample", batch=65, features=4096, hidden=1, outputs=2, dropout_p=0.125),
    **_each("special gradients", ("identity", "relu", "gelu", "silu"), "activation", batch=9, dropout_p=0.25,
            through=(0,), special_grads=True),
    "special": dict(batch=9, special=True),
    "special dropout": dict(batch=9, special=True, dropout_p=0.125),
    "special relu": dict(batch=9, special=True, activation="relu", dropout_p=0.25),
    # Where all inputs are equal, their gradients' sum over the batch nearly cancels.
    **_layouts(
        batch=5, groups=2, outputs=3, dropout_p=0.25, activation="gelu", cancels={"gradient of weight2": 0.01}
    ),
    **{f"layout {name}, no groups": dict(batch=5, layout=name) for name in LAYOUTS},
    **_each("through", ((0,), (1,)), "through", batch=5),
    **_each("gradient of", (("std",), ("weight1",), ("bias1",), ("weight2",), ("bias2",), ("target",)), "wrt", batch=5),
    **_each("dropout, gradient of", (("std",), ("weight1",), ("bias1",)), "wrt", batch=5, dropout_p=0.125),
})  # fmt: skip


def _gradients(size: float) -> dict:
    return {"gradient of uncertainty": size, "gradient of dependency": size}


_G = ("softmax", "inverse")
_WEIGHTINGS = {
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
    **{f"{g} not positive": dict(batch=9, modalities=3, g=g, dependency="sample", spoil=(-1.0, 0.0)) for g in _G},
    # Equal gradients for weights of a fixed sum: the derivative is 0.
    **_layouts(batch=5, modalities=3, spatial=(7, 3), mask="location", dependency="sample", cancels=_gradients(1.0)),
    **_each("no locations", LAYOUTS, "layout", batch=5, modalities=3, dependency="modality"),
    **_each("gradient of", (("uncertainty",), ("dependency",)), "wrt", batch=5, modalities=3, dependency="sample"),
}  # fmt: skip
FUSION_WEIGHTS = _table("fusion_weights", {
    **{f"{n} rows": dict(batch=n, modalities=2) for n in SIZES},
    **_WEIGHTINGS,
    "threads": dict(batch=4096, modalities=3, mask="sample", dependency="modality"),
})  # fmt: skip

_MODES = ("concat", "sum", "scale")
WEIGHTED_FUSION = _table("weighted_fusion", {
    **_WEIGHTINGS,
    **{f"{mode} {n}": dict(batch=3, modalities=2, width=n, mode=mode) for mode in _MODES for n in SIZES},
    **{f"{mode} residual": dict(batch=5, modalities=3, mode=mode, residual=True, mask="sample") for mode in _MODES},
    **{f"{mode} 16": dict(batch=5, modalities=16, width=5, mode=mode, dependency="modality") for mode in _MODES},
    **_each("maps", _MODES, "mode", batch=3, modalities=2, feature_spatial=(7, 7), mask="sample"),
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
    **_each("nothing to", _MODES, "mode", batch=5, modalities=2, width=0, dependency="modality"),
    **_each("no batch to", _MODES, "mode", batch=0, modalities=2),
    **_each("no width of locations to", _MODES, "mode", batch=3, modalities=2, width=0, spatial=(3,), mask="location"),
    **_each("no locations in maps to", _MODES, "mode", batch=3, modalities=2, feature_spatial=(0,)),
    # A masked modality passes no gradient on, and has none. Of an infinite gradient the weights' own is not a number
    # in the kernels, as torch.softmax has it, and infinite in the reference, so it is not compared.
    **_each("special gradients, masked", _MODES, "mode", batch=9, modalities=3, width=4, mask="sample",
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
    **_each("through", ((0,), (1,)), "through", batch=5, modalities=2),
    **_each("scale through", ((0,), (1,), (2,)), "through", batch=5, modalities=2, mode="scale"),
    **{
        f"gradient of {name}": dict(batch=5, modalities=2, dependency="sample", wrt=(name,))
        for name in ("features[0]", "features[1]", "uncertainty", "dependency")
    },
})  # fmt: skip

MODALITY_DROPOUT = _table("modality_dropout", {
    **{f"{n} wide": dict(batch=5, width=n) for n in SIZES},
    **_each("modalities", (1, 2, 3, 4, 5, 15, 16), "modalities", batch=17),
    **_each("p", (0.0, 0.125, 0.5, 1.0), "p", batch=17),
    **_each("keep any, p", (0.0, 0.125, 0.5, 1.0), "p", batch=17, keep_one=False),
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
    **_layouts(batch=9, width=((5, 7), (3, 4)), modalities=2),
    **_each("through", ((0,), (1,)), "through", batch=5, modalities=2),
    **_each("gradient of", (("features[0]",), ("features[1]",)), "wrt", batch=5, modalities=2),
})  # fmt: skip

MODALITY_DEPENDENCY = _table("modality_dependency", {
    **{f"{n} classes": dict(shape=(2, 3, n)) for n in SIZES},
    **{f"{m} modalities": dict(shape=(m, 9, 7)) for m in (1, 2, 3, 16)},
    "one element": dict(shape=(1, 1, 1)),
    "empty batch": dict(shape=(3, 0, 5)),
    **_each("nothing in", ((3, 4, 0), (3, 0, 0)), "shape"),
    "special gradients": dict(shape=(4, 3, 5), special_grads=True),
    "threads": dict(shape=(3, 513, 129)),
    "zeros": dict(shape=(2, 3, 5), scale=0.0),
    "special": dict(shape=(3, 9, 7), special=True),
    **_layouts(shape=(3, 5, 7)),
})  # fmt: skip

EVIDENTIAL_FUSION = _table("evidential_fusion", {
    **{f"{n} classes": dict(shape=(3, 2, n)) for n in SIZES},
    **{f"{m} views": dict(shape=(5, m, 7)) for m in (1, 2, 3, 15, 16)},
    "one element": dict(shape=(1, 1, 1)),
    "empty batch": dict(shape=(0, 3, 5), mask=True),
    "special gradients": dict(shape=(9, 3, 5), mask=True, special_grads=True),
    "threads": dict(shape=(513, 3, 34)),
    "masked": dict(shape=(9, 4, 17), mask=True),
    "zeros": dict(shape=(3, 2, 5), powers=None),
    **_each("evidence of 1e", ((-30, -29), (-8, -7), (-8, 2), (2, 4), (8, 9), (11, 12)), "powers", shape=(5, 3, 33)),
    "special": dict(shape=(9, 3, 17), special=True),
    "special masked": dict(shape=(9, 3, 17), special=True, mask=True),
    **_layouts(shape=(5, 3, 17), mask=True),
})  # fmt: skip

EVIDENTIAL_LOSS = _table("evidential_loss", {
    **{f"{n} classes": dict(shape=(3, n)) for n in SIZES},
    **{f"{n} rows": dict(shape=(n, 7)) for n in (1, 15, 16, 17, 65)},
    **_each("reduction", ("mean", "sum", "none"), "reduction", shape=(9, 7)),
    **_each("kl_weight", (0.0, 0.25, 3.0), "kl_weight", shape=(9, 7)),
    "one element": dict(shape=(1, 1)),
    "empty batch": dict(shape=(0, 5)),
    "empty batch none": dict(shape=(0, 5), reduction="none"),
    "threads": dict(shape=(513, 34)),
    "views": dict(shape=(9, 3, 7), reduction="none"),
    "views, own targets": dict(shape=(9, 3, 7), reduction="none", target="each"),
    "zeros": dict(shape=(3, 5), powers=None),
    # The kl of large evidence is a difference of log-gammas, its gradient one of trigammas.
    **_each(
        "evidence of 1e", ((-30, -29), (-4, -3), (-4, 4), (2, 4), (12, 12.5), (29, 30), (-30, 30)), "powers",
        shape=(5, 33),
    ),
    **_each("large evidence, classes", (2, 3, 64), "classes", powers=(12, 30), reduction="none"),
    **_each("large evidence, kl_weight", (0.0, 1.0), "kl_weight", shape=(9, 2), powers=(29, 38), reduction="none"),
    "special": dict(shape=(17, 9), special=True, reduction="none"),
    # lgamma of the strength, which the kl subtracts, is about 100 here.
    **_layouts(shape=(5, 3, 17), reduction="none", target="each", cancels={"loss": 50.0}),
})  # fmt: skip

_NOISE = {
    **{f"{n} wide": dict(shape=(3, n)) for n in SIZES},
    "vector": dict(shape=(17,)),
    "one element": dict(shape=(1,)),
    "empty batch": dict(shape=(0, 5)),
    "empty samples": dict(shape=(5, 0)),
    **_each("nothing in", ((0,), (3, 0, 4), (0, 0)), "shape"),
    "image": dict(shape=(5, 3, 7, 9)),
    "threads": dict(shape=(17, 4099)),
    "sample ids": dict(shape=(4, 33), sample_ids=(7, -1, 2**40 + 3, 7)),
    "sliced sample ids": dict(shape=(4, 33), sample_ids=(7, -1, 2**40 + 3, 7), layout="sliced"),
    "last stream": dict(shape=(4, 33), stream=2**32 - 1),
}
NORMAL = _table("normal", _NOISE)
UNIFORM = _table("uniform", _NOISE)

CASES = (
    *REPARAMETERIZE, *INJECT_NOISE, *NOISE_REGRESSION, *FUSION_WEIGHTS, *WEIGHTED_FUSION, *MODALITY_DROPOUT,
    *MODALITY_DEPENDENCY, *EVIDENTIAL_FUSION, *EVIDENTIAL_LOSS, *NORMAL, *UNIFORM,
)  # fmt: skip
