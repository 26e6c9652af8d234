"""Names of modalities, which are also keys of module dictionaries."""

from collections.abc import Iterable

from torch import nn

from .fusion.base import MAX_MODALITIES

_EMPTY = nn.ModuleDict()


def modality_names(argument: str, names: Iterable[str]) -> tuple[str, ...]:
    """Check the names and return them as a tuple.

    Args:
        argument: the argument's name, for the error.
        names: 1 to 16 different strings that `nn.ModuleDict` accepts: not empty, no dot, no name of its methods.

    Raises:
        ValueError, TypeError: for any other names.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{argument}: expected 1 to {MAX_MODALITIES} names, got {names!r}")
    names = tuple(names)
    if not 1 <= len(names) <= MAX_MODALITIES:
        raise ValueError(f"{argument}: expected 1 to {MAX_MODALITIES} names, got {len(names)}")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{argument}: expected names that are strings, got {name!r}")
        if not name or "." in name or hasattr(_EMPTY, name):
            raise ValueError(
                f"{argument}: expected names without dots, unlike those of nn.ModuleDict's methods, got {name!r}"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"{argument}: expected different names, got {', '.join(names)}")
    return names
