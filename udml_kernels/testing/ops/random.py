"""normal and uniform: the random numbers themselves."""

# ruff: noqa: C408 - a row reads best as dict(shape=...).

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import udml_kernels

from ..aot_works import KernelWork, Maker
from ..choices import Choices
from ..draw import Draw
from ..forms import STREAM, B, C, seed
from ..opinfo import SIZES, VECTORS, OpInfo, Row, each
from ..values import STREAMS, Values
from ..works import Shape, Work, in_words

# Philox4x32-10: (counter, key, words).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def sample(draw: Draw, shape, stream=0, sample_ids=None) -> dict[str, Any]:
    return {"shape": shape, **draw.noise(stream, sample_ids), "dtype": draw.dtype}


ROWS: dict[str, Row] = {
    **{f"{n} wide": dict(shape=(3, n)) for n in (*SIZES, *VECTORS)},
    "vector": dict(shape=(17,)),
    "one element": dict(shape=(1,)),
    "empty batch": dict(shape=(0, 5)),
    "empty samples": dict(shape=(5, 0)),
    **each("nothing in", ((0,), (3, 0, 4), (0, 0)), "shape"),
    "image": dict(shape=(5, 3, 7, 9)),
    "threads": dict(shape=(17, 4099)),
    "sample ids": dict(shape=(4, 33), sample_ids=(7, -1, 2**40 + 3, 7)),
    "sliced sample ids": dict(shape=(4, 33), sample_ids=(7, -1, 2**40 + 3, 7), layout="sliced"),
    "last stream": dict(shape=(4, 33), stream=2**32 - 1),
}  # fmt: skip


def generate(c: Choices, draw: Values) -> dict[str, Any]:
    shape = c.shape() if not c.one_in(10) else (c.batch(),)
    return sample(draw, shape, **draw.noise_options(shape[0]) | {"stream": c.pick(*STREAMS, 2**32 - 1)})


def work(kind: str, shape: Shape) -> Work:
    """`normal` or `uniform` numbers."""
    draw = getattr(udml_kernels, kind)

    def fused(
        place: Tensor, seed: Tensor, sample_ids: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        rows = shape[0] if sample_ids is None else len(sample_ids)
        return draw((rows, *shape[1:]), seed, sample_ids=sample_ids, dtype=dtype)

    def baseline(place: Tensor) -> Tensor:
        return torch_draw(shape, device=place.device)

    torch_draw = torch.randn if kind == "normal" else torch.rand
    count = math.prod(shape)
    return Work(
        kind,
        in_words([shape]),
        count,
        4 * count,
        # An empty tensor, which only tells the device on which the numbers are drawn.
        [torch.empty(0)],
        {f"torch.{torch_draw.__name__}": baseline},
        fused,
        by_sample=True,
        float64_fused=partial(fused, dtype=torch.float64),
    )


def base() -> Row:
    return {"shape": (B, C), "seed": seed()}


def aot(op: str, of: Maker) -> Iterator[KernelWork]:
    shape = (64, 65536)
    yield of.work(op, shape, (shape, of.seed, 0, None, of.dtype), math.prod(shape))


NORMAL, UNIFORM = (
    OpInfo(
        name,
        outputs=("noise",),
        sample=sample,
        rows=ROWS,
        generate=generate,
        file="random",
        aot=partial(aot, name),
        tiny=partial(work, "normal", (1, 16)) if name == "normal" else None,
        checked=("1 wide", "1025 wide", "image", "empty *", "*sample ids", "last stream"),
        plain="image",
        base=base,
        forms=STREAM,
        small={"shape": (3, 5)},
        compiled=({"shape": (5, 7)}, {"shape": (6, 8)}),
        crowded=({"shape": (5, 3, 7, 99)},),
        gradchecked={},
    )
    for name in ("normal", "uniform")
)
