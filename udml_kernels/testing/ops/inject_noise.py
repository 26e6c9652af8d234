"""inject_noise: noise of each sample's level and kind, clamped and normalized."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import udml_kernels

from ...reference.noise import KINDS
from ..aot_works import KernelWork, Maker
from ..choices import Choices
from ..draw import LAYOUTS, Draw
from ..forms import STREAM, B, C, Form, M, each_form, forms, number, number_tensor, seed, values
from ..opinfo import CHECKED_LAYOUTS, SIZES, VECTORS, OpInfo, Row, each, layouts
from ..values import Values
from ..works import Shape, Work, by_row, for_each, generator, in_words, random_maps


def sample(
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
) -> dict[str, Any]:
    listed = bool(shape) and isinstance(shape[0], tuple)
    batch = shape[0][0] if listed else shape[0]
    values = {
        "normal": lambda *shape: draw.normal(*shape),
        "uint8": lambda *shape: draw.integers(256, *shape, dtype=torch.uint8),
        "ends": lambda *shape: draw.integers(3, *shape).to(draw.dtype) - 1,
        "huge": lambda *shape: draw.between(-1, 1, *shape) * torch.finfo(draw.dtype).max,
    }
    value = [values[x](*each) for each in shape] if listed else values[x](*shape)
    sigmas = {
        "number": lambda: sigma_value,
        "tensor": lambda: draw.fractions(),
        "sample": lambda: draw.fractions(batch),
        "positive": lambda: draw.between(0.25, 0.75, batch),
        "column": lambda: draw.fractions(batch, *[1] * (len(shape) - 1)),
        "pair": lambda: draw.fractions(batch, len(shape)),
    }
    level = sigmas[sigma]()
    # Kind 3 is salt_pepper, 4 dropout: fractions, as all of sigma is here.
    codes = {
        "mixed": lambda: torch.arange(batch) % 6,
        "pair": lambda: torch.arange(batch * len(shape)).view(batch, -1) % 6,
    }
    options["kind"] = draw.tensor(codes[kind](), torch.int64) if kind in codes else kind
    channels = 1 if normalize == "one" else shape[1] if normalize else 0
    if normalize:
        # Multiples of 1/16 reach every dtype unrounded, also as the Python numbers they are passed as.
        mean, std = ([(i % 5 + k) / 16 for i in range(channels)] for k in (1, 3))
        options["normalize"] = (4.0, mean[0], std[0]) if normalize == "one" else (4.0, mean, std)
    if normalizations := options.pop("normalizations", None):
        options["normalize"] = [(4.0, 0.25, 0.5) if given else None for given in normalizations]
    if "out_dtype" in options:
        options["out_dtype"] = getattr(torch, options["out_dtype"])
    return {"x": value, "sigma": level, **draw.noise(stream, sample_ids), **options}


HUGE, TINY = 2.0**100, 2.0**-100
ROWS: dict[str, Row] = {
    **{f"{n} wide": dict(shape=(3, n)) for n in (*SIZES, *VECTORS)},
    **{f"{kind} {n}": dict(shape=(3, n), kind=kind, clamp=(-1.0, 1.0)) for kind in KINDS for n in (17, 1025)},
    **{f"{kind} image": dict(shape=(4, 3, 7, 9), kind=kind, clamp=(-1.0, 1.0), normalize=True) for kind in KINDS},
    **each("uint8", KINDS, "kind", shape=(4, 3, 9, 7), x="uint8", clamp=(0.0, 255.0), normalize=True),
    # Rows that whole vectors divide.
    **{f"dense {kind}": dict(shape=(3, 3, 8, 6), kind=kind, clamp=(-1.0, 1.0), normalize=True) for kind in KINDS},
    **each("dense uint8", KINDS, "kind", shape=(4, 3, 8, 6), x="uint8", clamp=(0.0, 255.0), normalize=True),
    **each("dense uint8 plain", ("gaussian", "mixed"), "kind", shape=(4, 64), x="uint8", clamp=(0.0, 255.0)),
    **each("dense uint8 small channels", ("gaussian", "mixed"), "kind", shape=(4, 32, 5), x="uint8", clamp=(0.0, 255.0),
            normalize=True),
    **each("dense mixed kinds, long channels,", ("normal", "uint8"), "x", shape=(12, 3, 16, 33), kind="mixed",
            clamp=(0.0, 255.0), normalize=True),
    "dense mixed kinds": dict(shape=(24, 3, 4, 4), kind="mixed", clamp=(-1.0, 1.0), normalize=True),
    **{f"vectors {kind}": dict(shape=(3, 2, 28), kind=kind, clamp=(-1.0, 1.0), normalize=True) for kind in KINDS},
    **each("vectors, x", ("normal", "uint8"), "x", shape=(3, 3, 20, 70), kind="mixed", clamp=(0.0, 2.0),
           normalize=True),
    "dense normalize 2-D": dict(shape=(3, 32), normalize=True),
    "dense small channels": dict(shape=(3, 32, 5), kind="mixed", normalize=True, clamp=(-1.0, 1.0)),
    "vector": dict(shape=(17,)),
    "one element": dict(shape=(1,)),
    "empty batch": dict(shape=(0, 3, 4, 4), normalize=True),
    **each("nothing in", ((0,), (3, 0), (3, 4, 0), (0, 0)), "shape", clamp=(-1.0, 1.0)),
    **each("nothing to normalize in", ((3, 0), (3, 0, 5), (3, 4, 0)), "shape", normalize=True),
    "nothing of mixed kinds": dict(shape=(3, 0), kind="mixed", clamp=(-1.0, 1.0)),
    "nothing, one sigma": dict(shape=(3, 0), sigma="tensor"),
    "threads": dict(shape=(16, 3, 64, 64), clamp=(-2.0, 2.0), normalize=True),
    "threads uint8": dict(shape=(8, 3, 64, 64), x="uint8", clamp=(0.0, 255.0), normalize=True),
    "mixed kinds": dict(shape=(24, 3, 5, 7), kind="mixed", clamp=(-1.0, 1.0)),
    "mixed kinds normalized": dict(shape=(24, 3, 5, 7), kind="mixed", clamp=(-1.0, 1.0), normalize=True),
    "mixed kinds uint8": dict(shape=(24, 3, 5, 7), x="uint8", kind="mixed", clamp=(0.0, 255.0)),
    **each("sigma", ("number", "tensor", "sample", "column"), "sigma", shape=(5, 3, 7)),
    **each("sigma number", (0.0, HUGE, TINY), "sigma_value", shape=(3, 33), sigma="number"),
    **each("out", ("float32", "float64", "bfloat16", "float16"), "out_dtype", shape=(3, 33)),
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
    **each("cut", KINDS, "kind", shape=(4, 3, 9), clamp=(-1.0, 1.0), special=True, special_grads=True),
    **each("cut, normalized", KINDS, "kind", shape=(4, 3, 9), clamp=(-1.0, 1.0), normalize=True, special_grads=True),
    **each("cut, dense", KINDS, "kind", shape=(3, 3, 8, 6), clamp=(-1.0, 1.0), special_grads=True),
    **each("cut, no clamp", ("speckle", "dropout", "replace"), "kind", shape=(4, 3, 9), special_grads=True),
    "cut, mixed kinds": dict(shape=(24, 3, 9), kind="mixed", clamp=(-1.0, 1.0), special=True, special_grads=True),
    **each("cut, huge", (*KINDS, "mixed"), "kind", shape=(12, 3, 8), x="huge", clamp=(0.0, 1.0)),
    **layouts(shape=(4, 3, 7, 9), clamp=(-2.0, 2.0), normalize=True),
    **each("mixed", LAYOUTS, "layout", shape=(8, 3, 7), kind="mixed", clamp=(-1.0, 1.0)),
    **{f"layout {name}, uint8": dict(shape=(8, 3, 7), x="uint8", normalize=True, layout=name) for name in LAYOUTS},
    **each("gradient of", (("x",), ("sigma",)), "wrt", shape=(3, 5, 7), clamp=(-2.0, 2.0)),
    **each("list, sigma", ("number", "tensor", "sample", "pair"), "sigma", shape=((5, 3, 7), (5, 4))),
    "list of kinds": dict(shape=((12, 3, 7), (12, 5)), sigma="pair", kind="pair", clamp=(-1.0, 1.0)),
    "list of clamps": dict(shape=((3, 4), (3, 5), (3, 4)), clamp=[(-1.0, 1.0), None, (0.0, 2.0)], stream=2**24 - 3),
    "list of normalizations": dict(shape=((3, 4), (3, 5)), clamp=(-1.0, 1.0), normalizations=(True, False)),
    "list of uint8": dict(shape=((3, 4), (3, 5)), x="uint8", sigma="pair", clamp=(0.0, 255.0)),
    "list of one": dict(shape=((3, 4, 5),), sigma="pair"),
    "list, empty batch": dict(shape=((0, 4, 5), (0, 3)), sigma="pair"),
    **each("list, gradient of", (("x[1]",), ("sigma",)), "wrt", shape=((3, 4, 5), (3, 3)), sigma="pair"),
    **each("list, through", ((0,), (1,)), "through", shape=((3, 4, 5), (3, 3)), sigma="pair"),
}  # fmt: skip


def generate(c: Choices, draw: Values) -> dict[str, Any]:
    shape = c.shape() if not c.one_in(10) else (c.batch(),)
    image = c.one_in(5)
    ends = (0.0, 255.0) if image else c.pick((-1.0, 1.0), (0.0, 1.0), (-2.0, -2.0), (-1e30, 1e30), (0.25, 4.0))
    kind = c.pick(*KINDS, "mixed")
    clamp = ends if kind in ("salt_pepper", "mixed") or c.one_in(2) else None
    options = {"out_dtype": c.pick("float32", "float64", "bfloat16", "float16")} if c.one_in(6) else {}
    arguments = sample(
        draw,
        shape,
        x="uint8" if image else c.pick("normal", "normal", "normal", "ends"),
        sigma=c.pick("number", "tensor", "sample", "positive", "column"),
        sigma_value=c.pick(0.25, 0.0, 0.5, 1.0, 0.0625),
        kind=kind,
        clamp=clamp,
        normalize=c.pick(None, "one", True) if len(shape) > 1 and shape[1] else None,
        **draw.noise_options(shape[0]),
        **options,
    )
    if kind not in ("salt_pepper", "dropout", "mixed") and c.one_in(3):
        arguments["sigma"] = draw.levels(shape[0], -30, 30) if shape[0] else 1e30
    return arguments


def eager(x: Tensor, sigma: Tensor) -> Tensor:
    return x + by_row(sigma, x) * torch.randn_like(x)


def eager_image(image: Tensor, sigma: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 -> noise -> clamp -> normalised float32."""
    x = image.float()
    x = (x + by_row(sigma, x) * torch.randn_like(x)).clamp(0, 255)
    return (x / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def work(shapes: Sequence[Shape], *, dtype: torch.dtype = torch.float32, gradient: bool = False) -> Work:
    """Gaussian noise of each sample's level on each modality; gradients to the inputs and the levels."""
    g = generator()
    maps, elements, size = random_maps(shapes, dtype, g)
    # The levels have the maps' dtype for the baseline, which would otherwise promote the result.
    sigma = torch.rand(shapes[0][0], generator=g).to(dtype)

    def fused(maps: list[Tensor], sigma: Tensor, seed: Tensor, sample_ids: Tensor | None = None) -> list[Tensor]:
        noise = partial(udml_kernels.inject_noise, seed=seed, sample_ids=sample_ids)
        return [noise(x, sigma, stream=m) for m, x in enumerate(maps)]

    return Work(
        "inject_noise",
        in_words(shapes),
        elements,
        (4 if gradient else 2) * size,
        [maps, sigma],
        {"eager": for_each(eager, 1)},
        fused,
        (0, 1) if gradient else (),
        by_sample=True,
    )


def image_work(shape: Shape) -> Work:
    """uint8 images, noisy, clamped and normalised in one pass."""
    g = generator()
    image = torch.randint(0, 256, shape, generator=g).to(torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    sigma = 40 * torch.rand(shape[0], generator=g)

    def fused(
        image: Tensor, sigma: Tensor, mean: Tensor, std: Tensor, seed: Tensor, sample_ids: Tensor | None = None
    ) -> Tensor:
        pipeline = partial(udml_kernels.inject_noise, clamp=(0, 255), normalize=(255, mean, std))
        return pipeline(image, sigma, seed=seed, sample_ids=sample_ids)

    return Work(
        "inject_noise",
        f"{in_words([shape])} uint8",
        image.numel(),
        5 * image.numel(),
        [image, sigma, mean, std],
        {"eager": eager_image},
        fused,
        by_sample=True,
    )


def base() -> Row:
    return {"x": values(B, M, C), "sigma": 0.5, "seed": seed()}


FORMS: dict[str, Form] = {
    **forms("sigma", (B,), (B, 1, 1)),
    **each_form("sigma", "kind", KINDS, lambda i: {"sigma": number(i), "clamp": (0.0, 1.0)}),
    "kind (B,)": lambda i: {"kind": (torch.arange(B) + i) % 6, "clamp": (0.0, 1.0)},
    "clamp": lambda i: {"clamp": (-number(i), number(i))},
    "clamp tensors": lambda i: {"clamp": (number_tensor(-i), number_tensor(i))},
    "normalize numbers": lambda i: {"normalize": (number(i), number(i), number(i + 1))},
    "normalize lists": lambda i: {"normalize": (255.0, [number(i)] * M, [1.0, number(i)])},
    "normalize tensors": lambda i: {"normalize": (number(i), values(M, key=i), values(M, key=i + 1))},
    **STREAM,
}


def aot(of: Maker) -> Iterator[KernelWork]:
    shape = (64, 3, 128, 128)
    count, moments = 64 * 3 * 128 * 128, (of.wider(3), of.wider(3))
    plain: Sequence[Any] = (of(*shape), of.wider(64), None, 0, [], 1.0, None, None, of.dtype, of.seed, 1, None)
    image = (of(*shape), of.wider(64), None, 0, [0.0, 1.0], 1.0, *moments, of.dtype, of.seed, 1, None)
    mixed = (of(*shape), of.wider(64), torch.empty(64, dtype=torch.int64), -1, *image[4:])
    for note, args in (("gaussian", plain), ("clamped, normalised", image), ("mixed kinds, normalised", mixed)):
        yield of.work("inject_noise", shape, args, count, note=note)
        yield of.work("inject_noise_backward", (), (of(*shape), *args, True, True), count, note=note)
    if of.dtype == torch.float32:
        pixels = (torch.empty(shape, dtype=torch.uint8), *image[1:])
        yield of.work("inject_noise", shape, pixels, count, note="uint8 image")


_PIPELINE = {"clamp": (-1.0, 1.0), "normalize": True}
INFO = OpInfo(
    "inject_noise",
    outputs=("y",),
    sample=sample,
    rows=ROWS,
    generate=generate,
    file="noise",
    aot=aot,
    tiny=partial(work, [(1, 16)]),
    checked=(
        *CHECKED_LAYOUTS,
        "* image", "mixed kinds normalized", "uint8 gaussian", "out bfloat16", "empty batch", "sigma number *",
        "special plain", "sample ids", "stream",
    ),
    base=base,
    forms=FORMS,
    small={"shape": (6, 2, 5), "kind": "mixed", "sigma": "positive", **_PIPELINE},
    compiled=(
        {"shape": (4, 5, 7, 9), "kind": "mixed", **_PIPELINE}, {"shape": (6, 5, 8, 11), "kind": "mixed", **_PIPELINE},
    ),
    crowded=({"shape": (24, 3, 17, 33), "kind": "mixed", **_PIPELINE},),
    gradchecked={
        kind: {"shape": (3, 2, 3), "kind": kind, "sigma": "positive", **_PIPELINE} for kind in (*KINDS, "mixed")
    },
    by_sample=({"shape": (21, 3, 77), "clamp": (-2.0, 2.0), "normalize": True}, ("x", "sigma")),
)  # fmt: skip
