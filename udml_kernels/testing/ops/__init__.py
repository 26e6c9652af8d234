"""A file per op. `OPS` has every `OpInfo` in these files by its name: a new file is found without being named here."""

import importlib
import pkgutil

from ..opinfo import OpInfo

_MODULES = [importlib.import_module(f".{module.name}", __name__) for module in pkgutil.iter_modules(__path__)]
_FOUND = [value for module in _MODULES for value in vars(module).values() if isinstance(value, OpInfo)]
OPS: dict[str, OpInfo] = {info.name: info for info in _FOUND}
