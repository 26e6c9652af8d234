"""The arguments that a module was built from, in types that `torch.load(weights_only=True)` reads."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor, nn

# Packages whose modules' attributes are known to be settings; attributes of a user's module may change.
_KNOWN = ("udml.", "torch.nn.")
_PLAIN: tuple[tuple[type, type], ...] = ((str, str), (Integral, int), (Real, float))


class Recorded:
    """Records the arguments of the constructor; a base class to be listed before `nn.Module`."""

    def __new__(cls, *args, **kwargs):
        module = super().__new__(cls)
        # copy and pickle first build an empty module, without arguments.
        with suppress(TypeError):
            module.__dict__["_arguments"] = _bound(cls, module, args, kwargs)
        return module


def _bound(cls: Any, module: Any, args: tuple, kwargs: dict) -> dict[str, Any] | None:
    signature = inspect.signature(cls.__init__)
    given: dict[str, Any] = {}
    for name, value in list(signature.bind_partial(module, *args, **kwargs).arguments.items())[1:]:
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            given |= value
        else:
            given[name] = value
    # A model's encoders are described separately.
    given.pop("encoders", None)
    try:
        return plain(given)
    except TypeError:
        return None


def arguments_of(module: "nn.Module | Recorded") -> dict[str, Any] | None:
    """The arguments that a `Recorded` module was built from, without `encoders`; None where they are not plain."""
    return getattr(module, "_arguments", None)


def plain(value: Any) -> Any:
    """A value in plain types; a `Recorded` module becomes {"module": its class, "arguments": its arguments}.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    for kind, build in _PLAIN:
        if isinstance(value, kind):
            return build(value)
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(plain(v) for v in value)
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().cpu().clone()
    if isinstance(value, Recorded) and arguments_of(value) is not None:
        return {"module": type(value).__name__, "arguments": arguments_of(value)}
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    raise TypeError(f"value: expected plain types, got {type(value).__name__}")


def structure(module: nn.Module) -> dict[str, dict[str, Any]]:
    """By path, the class and settings of each submodule; for a user's class only those that its torch base declares."""
    found = {}
    for path, m in module.named_modules():
        kind = type(m)
        found[path] = {"class": kind.__qualname__}
        known, declared = kind.__module__.startswith(_KNOWN), getattr(kind, "__constants__", ())
        found[path] |= {k: v for k, v in _settings(m) if k != "training" and (known or k in declared)}
    return found


def _settings(module: nn.Module):
    for key, value in vars(module).items():
        if not key.startswith("_") and not isinstance(value, Tensor):
            with suppress(TypeError):
                yield key, plain(value)


def structure_differences(saved: Mapping[str, Mapping], now: Mapping[str, Mapping]) -> list[str]:
    """Differences between two structures, such as "weighting.temperature 3.0 instead of 1.0"."""
    found = []
    for path in dict.fromkeys((*saved, *now)):
        first, second = saved.get(path), now.get(path)
        if first is None or second is None:
            here, there = ("nothing" if entry is None else entry["class"] for entry in (second, first))
            found.append(f"{path} {here} instead of {there}")
            continue
        # A setting that only one version of a library has is not a difference.
        for key in (key for key in first if key in second):
            a, b = first[key], second[key]
            if a != b and not (a != a and b != b):
                if key == "class":
                    found.append(f"{path or 'the model'} {b} instead of {a}")
                else:
                    found.append(f"{path}.{key}".lstrip(".") + f" {b!r} instead of {a!r}")
    return found


def unsaved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers that its state dict leaves out, such as the alpha of the authors' preset."""
    saved = set(module.state_dict())
    return {name: buffer.detach().cpu().clone() for name, buffer in module.named_buffers() if name not in saved}


def restore_buffers(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Restore buffers to the values that `unsaved_buffers` returned."""
    for name, value in values.items():
        module.get_buffer(name).copy_(value)
