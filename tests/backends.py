"""The backends under test: add a line, and that backend gets every test.

A listed backend that cannot run here makes the suite fail; nothing is skipped. UDML_TEST_BACKENDS
narrows or replaces the list for one run, e.g. `UDML_TEST_BACKENDS=triton`.

On the CPU tests/ptx executes the compiled GPU kernels: the backends `cuda` and `triton` are called `cuda-ptx` and
`triton-ptx` there.
"""

import importlib
import os

import torch

from udml_kernels.ops import _op

from . import DEVICE

BACKENDS: tuple[str, ...] = ("cpu", "triton", "cuda")
if DEVICE.type != "cpu":
    # Listed whether or not they load: a backend that fails to load must not leave the suite green.
    BACKENDS = ("cuda", "triton") if DEVICE.type == "cuda" and torch.version.hip is None else ("triton",)

if chosen := os.environ.get("UDML_TEST_BACKENDS"):
    BACKENDS = tuple(name.removesuffix("-ptx") for name in chosen.split(","))


def is_executed(backend: str) -> bool:
    """Whether tests/ptx executes the compiled kernels of a backend."""
    return DEVICE.type == "cpu" and backend in ("cuda", "triton")


def display_name(backend: str) -> str:
    return f"{backend}-ptx" if is_executed(backend) else backend


for name in filter(is_executed, BACKENDS):
    importlib.import_module(f"{__package__}.ptx.{name}").install()


# Every kernel-level op by its schema name, those of the backward passes included.
OPS = dict(_op.OPS)


def draws(backend: str, count: int) -> int:
    """How many random numbers a statistical test takes: tests/ptx makes them a few hundred times slower.

    The bounds of these tests are in standard errors, so they follow the count.
    """
    return count // 16 if is_executed(backend) else count
