"""A builder per public function: from the words of a row in `cases` to keyword arguments."""

import torch
from torch import Tensor

from udml_kernels.checks import compute_dtype
from udml_kernels.reference.random import op_stream
from udml_kernels.reference.random import uniform as uniform_reference

from .data import Draw


def _noise_arguments(draw: Draw, stream: int, sample_ids) -> dict:
    ids = None if sample_ids is None else draw.tensor(torch.tensor(sample_ids), torch.int64)
    return {"seed": draw.seed(), "stream": stream, "sample_ids": ids}


def reparameterize(
    draw: Draw,
    shape,
    prior="sample",
    prior_var=None,
    logvar=(-2, 2),
    mu_scale=1.0,
    stream=0,
    sample_ids=None,
    **options,
) -> dict:
    batch, wide = shape[0], compute_dtype(draw.dtype)
    priors = {
        "one": lambda: 1.0,
        "number": lambda: 2.5,
        "tensor": lambda: draw.between(0.5, 4, dtype=wide),
        "sample": lambda: draw.between(0.5, 4, batch, dtype=wide),
        "narrow": lambda: draw.between(0.5, 4, batch),
        "column": lambda: draw.between(0.5, 4, batch, *[1] * (len(shape) - 1), dtype=wide),
    }
    value = priors[prior]() if prior_var is None else torch.full((batch,), prior_var, dtype=wide)
    mu = draw.normal(*shape, scale=mu_scale)
    low, high = logvar
    # normal, not between: it writes the special values.
    log_variance = draw.between(low, high, *shape) if not draw.special else draw.normal(*shape)
    noise = _noise_arguments(draw, stream, sample_ids)
    return {"mu": mu, "logvar": log_variance, "prior_var": value, **noise, **options}


def inject_noise(
    draw: Draw,
    shape,
    x="normal",
    sigma="sample",
    sigma_value=0.25,
    kind="gaussian",
    normalize=None,
    stream=0,
    sample_ids=None,
    **options,
) -> dict:
    batch = shape[0]
    values = {
        "normal": lambda: draw.normal(*shape),
        "uint8": lambda: draw.integers(256, *shape, dtype=torch.uint8),
        "ends": lambda: draw.integers(3, *shape).to(draw.dtype) - 1,
        "huge": lambda: draw.between(-1, 1, *shape) * torch.finfo(draw.dtype).max,
    }
    value = values[x]()
    sigmas = {
        "number": lambda: sigma_value,
        "tensor": lambda: draw.fractions(),
        "sample": lambda: draw.fractions(batch),
        "positive": lambda: draw.between(0.25, 0.75, batch),
        "column": lambda: draw.fractions(batch, *[1] * (len(shape) - 1)),
    }
    level = sigmas[sigma]()
    # Kind 3 is salt_pepper, 4 dropout: fractions, as all of sigma is here.
    options["kind"] = draw.tensor(torch.arange(batch) % 6, torch.int64) if kind == "mixed" else kind
    channels = 1 if normalize == "one" else shape[1] if normalize else 0
    if normalize:
        # Multiples of 1/16 reach every dtype unrounded, also as the Python numbers they are passed as.
        mean, std = ([(i % 5 + k) / 16 for i in range(channels)] for k in (1, 3))
        options["normalize"] = (4.0, mean[0], std[0]) if normalize == "one" else (4.0, mean, std)
    if "out_dtype" in options:
        options["out_dtype"] = getattr(torch, options["out_dtype"])
    return {"x": value, "sigma": level, **_noise_arguments(draw, stream, sample_ids), **options}


def noise_regression(
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
    stream=0,
    sample_ids=None,
    **options,
) -> dict:
    group = () if groups is None else (groups,)
    targets = {
        "column": lambda: draw.between(0, 3, *group, batch, outputs, dtype=compute_dtype(draw.dtype)),
        "vector": lambda: draw.between(0, 3, *group, batch),
        "none": lambda: None,
    }
    tensors = {
        "std": draw.normal(*group, batch, features, scale=scale, mean=scale),
        "weight1": draw.normal(*group, hidden, features, scale=max(features, 1) ** -0.5),
        "bias1": draw.normal(*group, hidden, scale=0.25 * scale),
        "weight2": draw.normal(*group, outputs, hidden, scale=max(hidden, 1) ** -0.5),
        "bias2": draw.normal(*group, outputs, scale=0.25, mean=shift),
    }
    noise = _noise_arguments(draw, stream, sample_ids)
    if dominant is not None:
        u = uniform_reference((batch, hidden), noise["seed"], stream=op_stream("noise_regression", stream))
        _dominate(dominant, u < options["dropout_p"], **tensors)
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


def fusion_weights(
    draw: Draw, batch, modalities, spatial=(), dependency=None, mask=None, powers=(-0.5, 0.5), spoil=(), **options
) -> dict:
    dependencies = {
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


def weighted_fusion(draw: Draw, batch, modalities, width=17, spatial=(), feature_spatial=None, **options) -> dict:
    where = spatial if feature_spatial is None else feature_spatial
    features = _features(draw, batch, modalities, width, where)
    return {"features": features, **fusion_weights(draw, batch, modalities, spatial, **options)}


def _features(draw: Draw, batch: int, modalities: int, width, where=()) -> list:
    widths = (width,) * modalities if isinstance(width, int) else width
    return [draw.normal(batch, *((w, *where) if isinstance(w, int) else w)) for w in widths]


def modality_dropout(draw: Draw, batch, modalities=2, width=17, p=0.5, stream=0, sample_ids=None, **options) -> dict:
    features = _features(draw, batch, modalities, width)
    if p == "tensor":
        p = torch.tensor(0.375, dtype=draw.dtype)
    elif isinstance(p, tuple):
        p = draw.tensor(torch.tensor(p))
    return {"features": features, "p": p, **_noise_arguments(draw, stream, sample_ids), **options}


def modality_dependency(draw: Draw, shape, scale=1.0) -> dict:
    return {"logits": draw.normal(*shape, scale=scale)}


def evidential_fusion(draw: Draw, shape, powers=(-2, 1), mask=False) -> dict:
    evidence = draw.tensor(torch.zeros(shape)) if powers is None else draw.powers(*powers, *shape)
    return {"evidence": evidence, "mask": draw.mask(*shape[:2]) if mask else None}


def evidential_loss(draw: Draw, shape=None, classes=7, powers=(-2, 1), target="row", **options) -> dict:
    shape = (9, classes) if shape is None else shape
    evidence = draw.tensor(torch.zeros(shape)) if powers is None else draw.powers(*powers, *shape)
    rows = shape[:1] if target == "row" else shape[:-1]
    return {"evidence": evidence, "target": draw.integers(shape[-1], *rows), **options}


def normal(draw: Draw, shape, stream=0, sample_ids=None) -> dict:
    return {"shape": shape, **_noise_arguments(draw, stream, sample_ids), "dtype": draw.dtype}


uniform = normal
