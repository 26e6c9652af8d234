"""noise_regression: the noise that two linear layers predict, and its mean squared error."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import udml_kernels

from ...checks import compute_dtype
from ...reference.random import op_stream
from ...reference.random import uniform as uniform_reference
from ..aot_works import KernelWork, Maker
from ..choices import Choices
from ..draw import LAYOUTS, Draw
from ..forms import STREAM, B, C, Form, K, forms, number, seed, values
from ..opinfo import CHECKED_LAYOUTS, SIZES, OpInfo, Row, each, layouts
from ..values import Values
from ..works import Work, generator


def sample(
    draw: Draw,
    batch=5,
    features=17,
    hidden=9,
    outputs=1,
    groups=None,
    target="column",
    scale=1.0,
    shift=0.0,
    dominant=None,
    listed=False,
    spatial=(),
    stream=0,
    sample_ids=None,
    **options,
) -> dict[str, Any]:
    group = () if groups is None else (groups,)
    targets = {
        "column": lambda: draw.between(0, 3, *group, batch, outputs, *spatial, dtype=compute_dtype(draw.dtype)),
        "vector": lambda: draw.between(0, 3, *group, batch, *spatial),
        "none": lambda: None,
    }
    tensors: dict[str, Any] = {
        "std": draw.normal(*group, batch, features, scale=scale, mean=scale),
        "weight1": draw.normal(*group, hidden, features, scale=max(features, 1) ** -0.5),
        "bias1": draw.normal(*group, hidden, scale=0.25 * scale),
        "weight2": draw.normal(*group, outputs, hidden, scale=max(hidden, 1) ** -0.5),
        "bias2": draw.normal(*group, outputs, scale=0.25, mean=shift),
    }
    noise = draw.noise(stream, sample_ids)
    if dominant is not None:
        u = uniform_reference((batch, hidden), noise["seed"], stream=op_stream("noise_regression", stream))
        _dominate(dominant, u < options["dropout_p"], **tensors)
    if listed:
        tensors["std"] = [draw.tensor(each) for each in tensors["std"].unbind(0)]
    if spatial:
        tensors["std"] = [draw.normal(batch, features, *spatial, scale=scale, mean=scale) for _ in range(groups or 0)]
    return {
        **tensors,
        "target": targets[target](),
        **noise,
        **options,
    }


def _dominate(what: str, lost: Tensor, std, weight1, bias1, weight2, bias2) -> None:
    """Of the first layer's sums, or of the batch's, one term is thousands of times as large as all the others.

    `lost`, (batch, units), is what dropout takes: tensors whose largest values come from that term hide the others.
    """
    features = weight1.shape[-1]
    weight1.copy_(torch.linspace(0.5, 1.5, weight1.numel()).reshape(weight1.shape))
    # Where the dominant unit is kept noise is 0, and its gradient too.
    weight2.fill_(1)[:, 0] = -1
    std.zero_()[:, 0] = 0.7321
    bias1.zero_()
    if what == "unit":
        weight1[0] = 0
        weight1[0, 0] = 0.9123 * features
    elif what == "bias":
        bias1[0] = 0.9123 * features
    else:
        std.fill_(0.5)
        std[lost.all(1).nonzero()[0]] = 0
        std[lost.all(1).nonzero()[0], 0] = 0.9123 * features
        weight1.div_(features)


ROWS: dict[str, Row] = {
    "list": dict(groups=3, listed=True, dropout_p=0.25),
    "list of one, transposed": dict(groups=1, listed=True, layout="transposed"),
    "list, gradient of one": dict(groups=2, listed=True, wrt=("std[1]",)),
    **each("maps", ((3,), (2, 3), (2, 1, 3)), "spatial", groups=2, dropout_p=0.25, outputs=2,
           sample_ids=(7, -1, 3, 2, 7)),
    **each("maps, layout", ("channels_last", "transposed"), "layout", groups=2, spatial=(2, 3), activation="gelu"),
    "maps, target without outputs": dict(groups=2, spatial=(2, 3), target="vector", wrt=("std[1]", "target")),
    "maps, no samples": dict(groups=2, spatial=(2, 3), batch=0),
    "maps, no locations": dict(groups=2, spatial=(2, 0)),
    **each("features", SIZES, "features", batch=3),
    **each("hidden", SIZES, "hidden", batch=3),
    **each("batch", (1, 2, 15, 16, 17, 63, 64, 65), "batch"),
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
    **each("groups", (1, 2, 3, 16), "groups", batch=5, dropout_p=0.25),
    # So many sums that a GPU forms them in large tiles; of odd sizes, and of sizes that it copies by 16 bytes.
    "many sums": dict(groups=16, batch=130, features=129, hidden=131, dropout_p=0.25, activation="gelu"),
    "many sums, even": dict(groups=16, batch=136, features=136, hidden=136, dropout_p=0.25),
    **each("outputs", (1, 2, 17), "outputs", batch=5),
    **each("activation", ("identity", "relu", "gelu", "silu"), "activation", batch=17, dropout_p=0.25),
    **{f"{a} in groups": dict(batch=9, groups=2, activation=a) for a in ("identity", "relu", "gelu", "silu")},
    **each("dropout", (0.0, 0.125, 0.875, 1.0), "dropout_p", batch=9, hidden=65),
    **each("few units, batch", (1, 2, 3, 33), "batch", features=5, hidden=3, dropout_p=0.25),
    **each("dropout, outputs", (1, 2, 3), "outputs", batch=67, features=300, hidden=131, groups=2, dropout_p=0.0625),
    **each("target", ("column", "vector", "none"), "target", batch=9),
    "no target in groups": dict(batch=9, groups=3, target="none"),
    "zeros at relu's corner": dict(batch=5, scale=0.0, activation="relu"),
    "sample ids": dict(batch=4, dropout_p=0.5, sample_ids=(7, -1, 2**40 + 3, 7)),
    "stream": dict(batch=4, dropout_p=0.5, stream=2**24 - 1),
    "large outputs": dict(batch=9, shift=40.0),
    "small outputs": dict(batch=9, shift=-60.0),
    **{f"wide {a}": dict(batch=9, activation=a, scale=10.0) for a in ("identity", "gelu", "silu")},
    # A unit, a sample or a bias that dwarfs the others: where it is dropped nothing of it may be left.
    **each("dominant", ("unit", "sample", "bias"), "dominant", batch=33, features=4096, hidden=2, dropout_p=0.25),
    **each("dominant, hidden", (3, 17), "hidden", dominant="unit", batch=33, features=65, dropout_p=0.125),
    "dominant sample, outputs": dict(dominant="sample", batch=65, features=4096, hidden=1, outputs=2, dropout_p=0.125),
    **each("special gradients", ("identity", "relu", "gelu", "silu"), "activation", batch=9, dropout_p=0.25,
            through=(0,), special_grads=True),
    "special": dict(batch=9, special=True),
    "special dropout": dict(batch=9, special=True, dropout_p=0.125),
    "special relu": dict(batch=9, special=True, activation="relu", dropout_p=0.25),
    # Where all inputs are equal, their gradients' sum over the batch nearly cancels.
    **layouts(
        batch=5, groups=2, outputs=3, dropout_p=0.25, activation="gelu", cancels={"gradient of weight2": 0.01}
    ),
    **{f"layout {name}, no groups": dict(batch=5, layout=name) for name in LAYOUTS},
    **each("through", ((0,), (1,)), "through", batch=5),
    **each("gradient of", (("std",), ("weight1",), ("bias1",), ("weight2",), ("bias2",), ("target",)), "wrt", batch=5),
    **each("dropout, gradient of", (("std",), ("weight1",), ("bias1",)), "wrt", batch=5, dropout_p=0.125),
}  # fmt: skip


def generate(c: Choices, draw: Values) -> dict[str, Any]:
    budget = 4 * c.budget()
    groups = c.pick(None, None, 1, 2, 3, 16)
    budget //= groups or 1
    batch = c.batch()
    features = c.size(4096 if c.one_in(30) else min(budget // max(batch, 1), 300))
    hidden = c.size(min(max(budget // max(batch, 1), 1), max(4 * budget // features, 1), 129))
    outputs = 0 if c.one_in(60) else c.pick(1, 1, 2, 3, 17)
    arguments = sample(
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
        **draw.noise_options(batch),
    )
    if c.one_in(25):
        # No features, or no hidden units.
        features = c.one_in(2)
        names = ("std", "weight1") if features else ("bias1", "weight2")
        arguments |= {name: arguments[name][..., :0] for name in names}
        if not features:
            arguments["weight1"] = arguments["weight1"][..., :0, :]
    return arguments


def eager_linear(
    std: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, target: Tensor, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Two calls of F.linear for each of the M estimators."""
    predictions = []
    for s, w1, b1, w2, b2 in zip(std, weight1, bias1, weight2, bias2, strict=True):
        predictions.append(torch.exp(F.linear(F.dropout(F.linear(s, w1, b1), dropout_p), w2, b2) / 2))
    noise = torch.stack(predictions)
    return noise, F.mse_loss(noise, target)


def eager_grouped(
    std: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, target: Tensor, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The M estimators as two batched products."""
    hidden = F.dropout(torch.baddbmm(bias1.unsqueeze(1), std, weight1.mT), dropout_p)
    noise = torch.exp(torch.baddbmm(bias2.unsqueeze(1), hidden, weight2.mT) / 2)
    return noise, F.mse_loss(noise, target)


def work(
    rows: int, width: int, *, groups: int = 2, hidden: int = 256, dropout: float = 0.1, gradient: bool = False
) -> Work:
    """One estimator per modality, on `rows` stds (width,) each; gradients to all inputs but the target."""
    g = generator()
    inputs = [
        torch.rand(groups, rows, width, generator=g) + 0.5,
        torch.randn(groups, hidden, width, generator=g) / width**0.5,
        torch.randn(groups, hidden, generator=g),
        torch.randn(groups, 1, hidden, generator=g) / hidden**0.5,
        torch.randn(groups, 1, generator=g),
        torch.rand(groups, rows, 1, generator=g),
    ]

    def fused(*values: Tensor) -> Any:
        return udml_kernels.noise_regression(*values[:6], dropout_p=dropout, seed=values[6])

    baselines = {"linear": eager_linear, "baddbmm": eager_grouped}
    return Work(
        "noise_regression",
        f"M={groups} B={rows} {width}->{hidden}->1 dropout {dropout}",
        groups * rows * width,
        (3 if gradient else 1) * sum(t.nbytes for t in inputs),
        inputs,
        {f"eager {name}": partial(call, dropout_p=dropout) for name, call in baselines.items()},
        fused,
        (0, 1, 2, 3, 4) if gradient else (),
        deterministic=dropout == 0,
    )


def base() -> Row:
    layers = {"weight1": values(K, C), "bias1": values(K), "weight2": values(1, K), "bias2": values(1)}
    return {"std": values(B, C), **layers, "target": values(B, 1), "dropout_p": 0.5, "seed": seed()}


FORMS: dict[str, Form] = {
    **forms("dropout_p"),
    **forms("target", (B,), (B, 1), numbers=False, none=True),
    "activation": lambda i: {"activation": "gelu", "dropout_p": number(i) / 2},
    **STREAM,
}


def aot(of: Maker) -> Iterator[KernelWork]:
    groups, batch, width, hidden = 2, 64, 512, 256
    for p in (0.0, 0.1):
        target, noise = of.wider(groups, batch, 1), of(groups, batch, 1)
        weights = (of(groups, hidden, width), of(groups, hidden), of(groups, 1, hidden), of(groups, 1))
        args = (of(groups, batch, width), *weights, target, 0, p, of.seed if p else None, 3, None)
        count, note = groups * batch * width, f"dropout {p}"
        yield of.work("noise_regression", (groups, batch, width, hidden), args, count, note=note)
        backward = (noise, of.wider(), *args, target, 31)
        yield of.work("noise_regression_backward", (), backward, count, note=note)


_GROUPS = {"dropout_p": 0.25, "activation": "gelu"}
INFO = OpInfo(
    "noise_regression",
    outputs=("noise", "loss"),
    wide=("loss",),
    sample=sample,
    rows=ROWS,
    generate=generate,
    file="noise_regression",
    aot=aot,
    tiny=partial(work, 1, 16, hidden=16),
    checked=(
        *CHECKED_LAYOUTS,
        "activation *", "groups 3", "dropout 1.0", "target none", "empty batch", "special", "stream",
    ),
    base=base,
    forms=FORMS,
    small={"batch": 3, "features": 4, "hidden": 3, "groups": 2, **_GROUPS},
    compiled=({"batch": 5, "groups": 2, **_GROUPS}, {"batch": 7, "groups": 3, **_GROUPS}),
    crowded=tuple(
        {"groups": 16, "batch": 33, "features": 65, "hidden": 65, "dropout_p": 0.125, "activation": activation}
        for activation in ("identity", "gelu")
    ),
    gradchecked={
        f"{a} {g}": {"batch": 3, "features": 4, "hidden": 3, "groups": g, "activation": a, "dropout_p": 0.25}
        for a in ("identity", "gelu", "silu", "relu")
        for g in (None, 2)
    },
    by_sample=({"batch": 21, "dropout_p": 0.25, "target": "none"}, ("std",)),
)  # fmt: skip
