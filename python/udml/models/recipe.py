"""A checkpoint's description of a model, in plain types, from which the same model can be built again."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from .._arguments import arguments_of, plain, structure, structure_differences
from ..encoders import ENCODERS
from . import METHODS

# Maximum number of differences that a message lists.
_LISTED = 6


def method_of(model: nn.Module) -> str | None:
    """The name in METHODS of a model's class; None for a user's class."""
    return next((name for name, kind in METHODS.items() if type(model) is kind), None)


def recipe(model: nn.Module) -> dict[str, Any]:
    """A model's class, its arguments, its encoders' arguments and its structure.

    Returns:
        "class"; "method", or None for a user's class; "arguments" without the encoders, or None if they are not of
        plain types; "encoders" by name: for this package's {"module": class, "arguments": its arguments}, else None;
        "structure", with which a given model is compared.
    """
    encoders: dict[str, Any] = {}
    for name, encoder in getattr(model, "encoders", {}).items():
        encoders[name] = None
        if type(encoder) in ENCODERS.values():
            with suppress(TypeError):
                encoders[name] = plain(encoder)
    return {
        "class": type(model).__qualname__,
        "method": method_of(model),
        "arguments": arguments_of(model),
        "encoders": encoders,
        "structure": structure(model),
    }


def rebuild(saved: Mapping[str, Any], encoders: Mapping[str, nn.Module] | None = None) -> nn.Module:
    """The model of a recipe, newly initialised.

    Args:
        saved: a `recipe`.
        encoders: by name, instead of the recipe's; needed for those that are not this package's.

    Raises:
        ValueError: if the model or an encoder is the user's own and not given; the message says what to pass.
    """
    if saved["method"] is None or saved["arguments"] is None:
        raise ValueError(f"model: expected the {saved['class']} of the user's own that was trained, got None")
    if encoders is not None and not isinstance(encoders, Mapping | nn.ModuleDict):
        raise TypeError(f"encoders: expected modules by modality name, got {type(encoders).__name__}")
    given = dict(encoders or {})
    if not set(given) <= set(saved["encoders"]):
        raise ValueError(f"encoders: expected some of {', '.join(saved['encoders'])}, got {', '.join(map(str, given))}")
    missing = [name for name, made in saved["encoders"].items() if made is None and name not in given]
    if missing:
        kinds = ", ".join(f"{name} ({saved['structure'][f'encoders.{name}']['class']})" for name in missing)
        raise ValueError(f"encoders: expected modules of the user's own for {kinds}, got {', '.join(given) or None}")
    built = {name: given[name] if name in given else _built(made) for name, made in saved["encoders"].items()}
    return METHODS[saved["method"]](built, **saved["arguments"])


def check_recipe(saved: Mapping[str, Any], model: nn.Module, name: str = "model") -> None:
    """Raises ValueError, whose message begins with `name`, if a model does not match a recipe."""
    found = structure_differences(saved["structure"], structure(model))
    if found:
        listed = found[:_LISTED] + ([f"{len(found) - _LISTED} more"] if len(found) > _LISTED else [])
        raise ValueError(f"{name}: expected the {saved['class']} that was trained, got {'; '.join(listed)}")


def _built(made: Any) -> Any:
    """Arguments, with modules built from their descriptions."""
    if isinstance(made, dict) and set(made) == {"module", "arguments"}:
        return ENCODERS[made["module"]](**{name: _built(value) for name, value in made["arguments"].items()})
    return made
