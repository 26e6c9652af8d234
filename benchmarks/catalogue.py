"""The works by which two revisions are compared: those of the suite that need only the public functions."""

import importlib

from .case import MODULES, Case

# The other modules need more of the package than its library, or do not measure ratios.
_MODULES = [name for name in MODULES if name not in ("training_step", "scaling")]


def catalogue() -> dict[str, Case]:
    """Cases by id: at the named shapes, from a warm cache, with the threads of the run."""
    modules = (importlib.import_module(f".bench_{name}", __package__) for name in _MODULES)
    found = (case for module in modules for case in module.CASES)
    return {case.id: case for case in found if case.sweep is None and case.cache == "warm" and case.threads is None}
