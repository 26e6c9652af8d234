"""The backends under test: add a line, and that backend gets every test.

A listed backend that cannot run here makes the suite fail; nothing is skipped. UDML_TEST_BACKENDS
narrows or replaces the list for one run, e.g. `UDML_TEST_BACKENDS=triton TRITON_INTERPRET=1`.
"""

import importlib
import os
import pkgutil

import udml_kernels
import udml_kernels.ops
from udml_kernels.ops._op import Op

BACKENDS = ("cpu",)

if chosen := os.environ.get("UDML_TEST_BACKENDS"):
    BACKENDS = tuple(chosen.split(","))


def _bound_ops() -> dict[str, Op]:
    modules = (
        importlib.import_module(f"udml_kernels.ops.{m.name}") for m in pkgutil.iter_modules(udml_kernels.ops.__path__)
    )
    return {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Op)}


# Every kernel-level op by its schema name, those of the backward passes included.
OPS = _bound_ops()
