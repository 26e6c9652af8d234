"""The works of the suite, before they are measured: what varies, and what each work is compared with."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch

from udml_kernels.testing.works import Work

from .record import Sweep
from .shapes import Shape

FORWARD, BOTH = "forward", "forward+backward"
# Baselines. Compiling takes some seconds each, and the reference is slow: both are used where they are informative.
PLAIN, COMPILED, ALL = ("eager",), ("eager", "compile"), ("eager", "compile", "reference")
# Seconds of timing for each work; its checks and inputs take about a third more.
BUDGET = 1.5
SWEEP_BUDGET = 0.6
# The parts of the file names after bench_.
MODULES = (
    "random noise reparameterize noise_regression fusion modality_dropout evidential "
    "head_step training_step scaling overhead"
).split()


@dataclass(frozen=True)
class Case:
    """One work.

    Attributes:
        build: makes the work; called with `gradient` for forward+backward, and with `dtype` unless it is float32.
        threads: None for the number of threads of the run.
        baselines: some of "eager", "compile" and "reference".
        budget: seconds of timing.
    """

    op: str
    shape: str
    build: Callable[..., Work]
    dtype: str = "float32"
    direction: str = FORWARD
    cache: str = "warm"
    threads: int | None = None
    baselines: tuple[str, ...] = PLAIN
    sweep: Sweep | None = None
    budget: float = BUDGET

    @property
    def id(self) -> str:
        """The case's id, unique in the suite."""
        if self.sweep:
            return f"sweep/{self.sweep.series}/{self.sweep.axis}/{self.sweep.value}"
        parts = [self.op, self.shape, self.dtype, self.direction, self.cache]
        if self.threads is not None:
            parts.append(f"{self.threads}-thread")
        return "/".join(parts)

    def work(self) -> Work:
        """The work with its inputs."""
        options: dict = {"gradient": True} if self.direction == BOTH else {}
        if self.dtype != "float32":
            options["dtype"] = getattr(torch, self.dtype)
        return self.build(**options)


def cases(
    op: str,
    shapes: Sequence[Shape],
    build: Callable[[Shape], Callable[..., Work]],
    *,
    directions: Sequence[str] = (FORWARD, BOTH),
    dtypes: Sequence[str] = ("float32",),
    caches: Sequence[str] = ("warm",),
    threads: int | None = None,
    baselines: tuple[str, ...] = PLAIN,
) -> list[Case]:
    """One case for every combination of shapes, dtypes, directions and caches."""
    return [
        Case(op, shape.name, build(shape), dtype, direction, cache, threads, baselines)
        for shape, dtype, direction, cache in product(shapes, dtypes, directions, caches)
    ]


@cache
def all_cases() -> dict[str, Case]:
    """The whole suite, by id, in the order of its files."""
    modules = [importlib.import_module(f".bench_{name}", __package__) for name in MODULES]
    found = [case for module in modules for case in module.CASES]
    by_id = {case.id: case for case in found}
    if len(by_id) != len(found):
        raise ValueError("CASES: expected an id for each work, got some twice")
    return by_id
