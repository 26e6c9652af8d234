"""How the cost grows with the batch B, the channels D, the modalities M and the threads, and what the dtypes cost."""

import os
from collections.abc import Callable, Iterable
from functools import partial

from udml_kernels.testing.ops import (
    evidential_fusion,
    inject_noise,
    noise_regression,
    random,
    reparameterize,
    weighted_fusion,
)
from udml_kernels.testing.works import Work

from .case import BOTH, FORWARD, SWEEP_BUDGET, Case
from .head_step import head_step
from .record import Sweep
from .shapes import CREMAD, LARGE, MAP14, Shape

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def _sweep(
    op: str, axis: str, values: Iterable, build: Callable[..., Callable[..., Work]], *, direction: str = BOTH
) -> list[Case]:
    """One case for each value; `build` makes the case's builder from the value."""
    return [
        Case(
            op,
            f"{axis}={value}",
            build(value),
            direction=direction,
            sweep=Sweep(op, axis, value),
            dtype=value if axis == "dtype" else "float32",
            threads=value if axis == "threads" else None,
            budget=SWEEP_BUDGET,
        )
        for value in values
    ]


def _threads() -> list[int]:
    """1, 2, 4 and so on, up to all processors."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({1 << n for n in range(count.bit_length())} & set(range(1, count)) | {count})


def _head(batch: int = 64, modalities: int = 2) -> partial:
    return partial(head_step, Shape("sweep", ((batch, 512, 7, 7),) * modalities))


_normal = partial(random.work, "normal", MAP14.maps[0])
CASES = [
    *_sweep("inject_noise", "B", (32, 64, 128, 256), lambda b: partial(inject_noise.work, [(b, 512, 7, 7)])),
    *_sweep("reparameterize", "B", (32, 64, 128, 256), lambda b: partial(reparameterize.work, [(b, 512, 7, 7)])),
    *_sweep("reparameterize", "D", (256, 512, 1024, 2048), lambda d: partial(reparameterize.work, [(64, d, 49)])),
    *_sweep("noise_regression", "B", (1024, 2048, 4096, 8192), lambda b: partial(noise_regression.work, b, 512)),
    *_sweep("weighted_fusion", "B", (4096, 8192, 16384), lambda b: partial(weighted_fusion.work, [(b, 512)] * 2)),
    *_sweep("weighted_fusion", "M", (2, 4, 8, 16), lambda m: partial(weighted_fusion.work, [(4096, 512)] * m)),
    *_sweep("evidential_fusion", "B", (2048, 4096, 8192), lambda b: partial(evidential_fusion.work, b, 3, 34)),
    *_sweep("head_step", "B", (32, 64, 128), lambda b: _head(batch=b)),
    *_sweep("head_step", "M", (2, 4, 8), lambda m: _head(modalities=m)),
    *_sweep("normal", "threads", _threads(), lambda n: _normal, direction=FORWARD),
    *_sweep("reparameterize", "threads", _threads(), lambda n: partial(reparameterize.work, MAP14.maps)),
    *_sweep("head_step", "threads", _threads(), lambda n: partial(head_step, CREMAD)),
    *_sweep("reparameterize", "dtype", _DTYPES, lambda d: partial(reparameterize.work, MAP14.maps)),
    *_sweep("weighted_fusion", "dtype", _DTYPES, lambda d: partial(weighted_fusion.work, LARGE.maps)),
]  # fmt: skip


def test_scaling(case, measure):
    measure(case)
