"""The reference implementation: every op in plain PyTorch, written directly from the formulas.

Differentiable by autograd to any order, correct in float64, and slow. Half-precision inputs are
computed in float32 and rounded once at the end, as every backend does.

The ops are what the files here name in `__all__`: a new file is found without being named here.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

_MODULES = [importlib.import_module(f".{module.name}", __name__) for module in pkgutil.iter_modules(__path__)]
_OPS = {name: vars(module)[name] for module in _MODULES for name in getattr(module, "__all__", ())}
# Some ops have the name of their file; after the imports, that name is the op's.
globals().update(_OPS)
__all__ = sorted(_OPS)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable: ...
