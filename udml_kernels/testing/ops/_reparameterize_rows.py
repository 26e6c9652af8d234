"""The conformance cases of reparameterize."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from ..draw import LAYOUTS
from ..opinfo import SIZES, VECTORS, Row, each, layouts

# Maps whose vectors of 16 bytes a GPU's threads share unequally.
_VECTORS = ((5, 8), (10, 12), (24, 7), (8, 15, 15), (6, 36), (2, 1036))

# Rows with pool=True: pooled by the op itself, with both memory orders of the channels.
_POOLED: dict[str, Row] = {
    **{f"pool {n} locations": dict(shape=(2, 3, n)) for n in (1, 3, 15, 17, 49, 64, 196, 1025)},
    **{f"pool {n} locations, channels last": dict(shape=(2, 21, n), layout="channels_last") for n in (1, 3, 49, 130)},
    **each("pool channels last", ((2, 1, 7), (3, 5, 4, 4), (2, 64, 7, 7), (1, 300, 9), (2, 33, 1)), "shape",
            layout="channels_last", grads="transposed"),
    **each("pool dense", ((2, 48, 7, 7), (2, 32, 3), (2, 8, 14, 14), (2, 2, 72, 72)), "shape"),
    **each("pool vectors", [(2, *row) for row in _VECTORS], "shape"),
    **each("pool long channels", ((1, 2, 200, 200), (1, 2, 199, 201)), "shape"),
    "pool long channels, channels last": dict(shape=(1, 2, 200, 200), layout="channels_last"),
    **each("pool std_max", ("contiguous", "channels_last"), "layout", shape=(2, 8, 7, 7), std_max=1.25),
    **each("pool no sample", ("contiguous", "channels_last"), "layout", shape=(2, 8, 7, 7), sample=False),
    "pool no sample, std_max": dict(shape=(4, 33, 3), sample=False, std_max=1.0),
    "pool no locations": dict(shape=(4, 33)),
    **each("pool nothing in", ((0, 5, 7, 7), (3, 0, 5), (3, 4, 0), (3, 4, 0, 5)), "shape"),
    "pool two locations": dict(shape=(4, 5, 2)),
    "pool threads": dict(shape=(16, 64, 14, 14)),
    "pool one long sample": dict(shape=(1, 40, 33, 33)),
    **each("pool prior", ("one", "tensor", "sample", "column"), "prior", shape=(5, 3, 7, 7)),
    "pool sample ids": dict(shape=(4, 5, 7), sample_ids=(7, -1, 2**40 + 3, 7)),
    "pool stream": dict(shape=(4, 5, 7), stream=2**24 - 1),
    **each("pool logvar", ((-81, -79), (-100, 60), (20, 22), (79, 80), (95, 120)), "logvar", shape=(3, 5, 7)),
    "pool logvar (95, 120), channels last": dict(shape=(3, 5, 7), logvar=(95, 120), layout="channels_last"),
    "pool logvar (-90, -80), channels last": dict(shape=(3, 5, 7), logvar=(-90, -80), layout="channels_last"),
    **each("pool prior var", (1.5e-38, 1e20, 3e38), "prior_var", shape=(2, 3, 5)),
    "pool huge mu": dict(shape=(3, 33, 2), mu_scale=1e15),
    **{f"pool special {name}": dict(shape=(4, 5, 9), special=True, layout=name)
       for name in ("contiguous", "channels_last")},
    "pool special no sample, through z": dict(shape=(4, 5, 9), special=True, sample=False, through=(0,)),
    "pool special std_max": dict(shape=(4, 5, 9), special=True, std_max=1.0),
    **layouts(shape=(4, 5, 7, 9)),
    **each("pool through", ((0,), (1,), (2,), (0, 1), (1, 2)), "through", shape=(3, 5, 7)),
    **each("pool gradient of", (("mu",), ("logvar",), ("prior_var",)), "wrt", shape=(3, 5, 7)),
}  # fmt: skip

# Maps with the channels last, which z and the gradients follow.
_CHANNELS_LAST: dict[str, Row] = {
    **{f"{n} locations": dict(shape=(2, 21, n)) for n in (2, 3, 4, 49, 130, 196)},
    # The terms of the prior's gradient add up to 1.1 in size, and to 0.02.
    "1 locations": dict(shape=(2, 21, 1), cancels={"gradient of prior_var": 1.1}),
    **each("", ((2, 1, 7), (3, 3, 5, 4), (2, 16, 7, 7), (1, 300, 9), (1, 300, 14, 14)), "shape", grads="channels_last"),
    **each("gradients", ("contiguous", "transposed", "expanded"), "grads", shape=(3, 21, 5, 4)),
    **each("long channels", ((1, 2, 200, 200), (1, 35, 33, 33), (2, 3, 513)), "shape"),
    **each("std_max", ((2, 16, 7, 7), (2, 3, 130)), "shape", std_max=1.25),
    **each("no sample", ((2, 16, 7, 7), (2, 3, 130)), "shape", sample=False),
    **each("through", ((0,), (1,), (2,)), "through", shape=(3, 16, 5)),
    **each("logvar", ((-81, -79), (79, 80), (200, 210)), "logvar", shape=(3, 5, 7)),
    "special": dict(shape=(4, 16, 9), special=True, grads="channels_last"),
    "special std_max": dict(shape=(4, 5, 9), special=True, std_max=1.0),
    "special gradients": dict(shape=(4, 16, 9), std_max=1.0, special_grads=True, wrt=("mu", "logvar")),
    "sample ids": dict(shape=(4, 5, 7), sample_ids=(7, -1, 2**40 + 3, 7)),
    "threads": dict(shape=(16, 64, 14, 14)),
    "list": dict(shape=((5, 3, 7, 7), (5, 4, 9), (5, 6)), prior="pair"),
}

_DENSE = ((64,), (48, 7, 7), (16, 4), (32, 3), (8, 14, 14))
ROWS: dict[str, Row] = {
    **{f"{n} wide": dict(shape=(3, n)) for n in (*SIZES, *VECTORS)},
    **{f"{n} locations": dict(shape=(2, 3, n)) for n in (1, 3, 15, 17, 49, 64, 196, 1025)},
    # Rows that whole vectors divide: a channel ends within one, with one, and many of them later.
    **each("dense", [(2, *row) for row in (*_DENSE, (16, 15, 15), (2, 72, 72))], "shape"),
    **each("dense std_max", [(2, *row) for row in (*_DENSE, (16, 15, 15))], "shape", std_max=1.25),
    **each("dense no sample", [(2, *row) for row in (*_DENSE, (16, 15, 15))], "shape", sample=False),
    **each("long channels", ((1, 2, 200, 200), (1, 2, 199, 201)), "shape"),
    **each("vectors", [(2, *row) for row in _VECTORS], "shape"),
    **each("vectors through z", [(2, *row) for row in _VECTORS], "shape", through=(0,), std_max=1.25),
    "dense special": dict(shape=(4, 16, 9), special=True),
    **each("dense through", ((0,), (1,), (2,)), "through", shape=(3, 16, 5)),
    **each("dense through z", ((3, 64), (3, 16, 3), (2, 16, 36)), "shape", through=(0,)),
    "no sample, long channels": dict(shape=(2, 3, 199), sample=False),
    "one element": dict(shape=(1, 1)),
    "empty batch": dict(shape=(0, 5, 7, 7)),
    **each("nothing in", ((3, 0), (3, 0, 5), (3, 4, 0), (0, 0), (3, 4, 0, 5)), "shape"),
    "nothing in a prior for all": dict(shape=(3, 0), prior="tensor"),
    "threads": dict(shape=(16, 64, 14, 14)),
    "one long sample": dict(shape=(1, 40, 33, 33)),
    **each("prior", ("one", "number", "tensor", "sample", "narrow", "column"), "prior", shape=(5, 3, 7, 7)),
    "std_max": dict(shape=(4, 5, 17), std_max=1.25),
    "std_max 49": dict(shape=(4, 5, 7, 7), std_max=0.5),
    "no sample": dict(shape=(4, 5, 7, 7), sample=False),
    "no sample, std_max": dict(shape=(4, 33), sample=False, std_max=1.0),
    "sample ids": dict(shape=(4, 5, 7), sample_ids=(7, -1, 2**40 + 3, 7)),
    "stream": dict(shape=(4, 5, 7), stream=2**24 - 1),
    **each("logvar", ((-81, -79), (-221, -210), (20, 22), (79, 80), (200, 210)), "logvar", shape=(3, 33)),
    **each("prior var", (1.5e-38, 1e-20, 1e20, 3e38), "prior_var", shape=(2, 3)),
    "huge mu": dict(shape=(3, 33), mu_scale=1e15),
    # The squares of mu and std are no float32 numbers, nor is the quotient of kl's gradient and the prior's variance.
    # In kl, logvar and the logarithm of the prior's variance cancel; both are near -70.8 (-88) for each element.
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
    "special no sample, through z": dict(shape=(4, 5, 9), special=True, sample=False, through=(0,)),
    # What is clipped passes no gradient on, not even an infinite one.
    **each("special gradients, through", ((0,), (1,), (2,)), "through", shape=(4, 16, 9), std_max=1.0,
            special_grads=True, wrt=("mu", "logvar")),
    "special gradients, no locations": dict(shape=(4, 33), std_max=1.0, special_grads=True, through=(0, 1)),
    **layouts(shape=(4, 5, 7, 9)),
    **{f"layout {name}, no locations": dict(shape=(5, 33), layout=name) for name in LAYOUTS},
    **each("through", ((0,), (1,), (2,), (0, 1), (1, 2)), "through", shape=(3, 5, 7)),
    **each("gradient of", (("mu",), ("logvar",), ("prior_var",)), "wrt", shape=(3, 5, 7)),
    **each("list", (False, True), "pool", shape=((5, 3, 7, 7), (5, 4, 9), (5, 6, 1)), prior="pair", stream=2**24 - 3),
    **each("list prior", ("one", "tensor", "sample"), "prior", shape=((5, 3), (5, 4)), std_max=1.25),
    "list of one": dict(shape=((5, 3, 7),), prior="pair", sample_ids=(7, -1, 2**40 + 3, 7, 0)),
    "list, pooled or not": dict(shape=((5, 3, 7), (5, 4)), pool=True, layout="channels_last"),
    "list without sample": dict(shape=((5, 3, 7), (5, 4)), sample=False),
    "list, empty batch": dict(shape=((0, 3, 7), (0, 4)), prior="pair"),
    "list, gradient of one": dict(shape=((5, 3, 7), (5, 4)), wrt=("mu[1]",), prior="pair"),
    **each("list, through", ((0,), (3,), (4,)), "through", shape=((5, 3, 7), (5, 4))),
    **each("std at locations", ("contiguous", "channels_last", "transposed"), "layout", shape=(4, 5, 7, 3),
           pool_std=False),
    "std at locations, std_max": dict(shape=(4, 5, 7), pool_std=False, std_max=1.25),
    "std at locations, no sample": dict(shape=(4, 16, 9), pool_std=False, sample=False),
    **each("std at locations, through", ((0,), (1,), (2,)), "through", shape=(3, 5, 7), pool_std=False),
    "std at locations, list": dict(shape=((5, 3, 7), (5, 4)), prior="pair", pool_std=False),
    "std at locations, empty batch": dict(shape=(0, 5, 7), pool_std=False),
    **{f"channels last {name}": {"layout": "channels_last", **row} for name, row in _CHANNELS_LAST.items()},
    **{name if name.startswith("pool") else f"pool {name}": {"pool": True, **row} for name, row in _POOLED.items()},
}  # fmt: skip
