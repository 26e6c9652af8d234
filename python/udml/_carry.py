"""Carry a module's weights, modes and hooks over to another module."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# The attribute that says whether the backward hooks are full backward hooks.
_HOOK_KIND = "_is_full_backward_hook"
# A parameter of ModuleList(Sequential(Linear, ..., Linear)), whose parameters a grouped module holds stacked.
_GROUPED = re.compile(r"(.*\.)?(\d+)\.(\d+)\.(weight|bias)")

# Maximum number of keys that a message lists.
_LISTED = 6


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that the state dict holds, not detached."""
    state = {}
    for path, m in module.named_modules(remove_duplicate=False):
        for key, tensor in (*m._parameters.items(), *m._buffers.items()):
            if tensor is not None and key not in m._non_persistent_buffers_set:
                state[f"{path}.{key}" if path else key] = tensor
    return state


def identities(tensors: Iterable[Tensor | None]) -> set[int]:
    return {id(tensor) for tensor in tensors if tensor is not None}


def hold(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a module's tensor by this one, if it has one of that name, kind and shape."""
    path, _, key = name.rpartition(".")
    owner = dict(module.named_modules(remove_duplicate=False)).get(path)
    if owner is not None:
        table = owner._parameters if isinstance(tensor, nn.Parameter) else owner._buffers
        if table.get(key) is not None and table[key].shape == tensor.shape:
            table[key] = tensor


def as_twin(state: Mapping[str, Tensor], keys: Iterable[str]) -> dict[str, Tensor]:
    """A state under its twin's keys, as far as it has them; for twins see `udml.layers.NoiseEstimator`."""
    found = {}
    for key in keys:
        match = _GROUPED.fullmatch(key)
        if key in state:
            found[key] = state[key]
        elif match:
            prefix, m, place, kind = match.groups()
            stacked = state.get(f"{prefix or ''}{kind}{1 if place == '0' else 2}")
            if stacked is not None and int(m) < len(stacked):
                found[key] = stacked[int(m)]
    return found


def differences(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> str:
    """A description of the differences between the keys and shapes of two states."""
    twin = as_twin(new, old)
    pairs = [(key, tuple(old[key].shape), tuple(tensor.shape)) for key, tensor in twin.items()]
    found = [f"{key} is {a} in the old module, {b} in the new one" for key, a, b in pairs if a != b]
    grouped = twin.keys() - new.keys()
    alone = {"old": old.keys() - twin.keys(), "new": set() if grouped else new.keys() - old.keys()}
    for which, state in (("old", old), ("new", new)):
        keys = [f"{key} {tuple(tensor.shape)}" for key, tensor in state.items() if key in alone[which]]
        more = [f"{len(keys) - _LISTED} more"] if len(keys) > _LISTED else []
        found += [f"the {which} one alone has {', '.join(keys[:_LISTED] + more)}"] if keys else []
    return "; ".join(found)


def carry_modes(source: nn.Module, target: nn.Module) -> None:
    """Copy train or eval mode module by module where names agree; other modules change if the whole module does."""
    modes = {name: m.training for name, m in source.named_modules(remove_duplicate=False)}
    changed = source.training != target.training
    for name, m in target.named_modules(remove_duplicate=False):
        if name in modes or changed:
            m.training = modes.get(name, source.training)


def hooked(module: nn.Module) -> bool:
    """Whether a module has forward or backward hooks."""
    return any(getattr(module, kind) for kind in _HOOKS)


def hooks_of(module: nn.Module) -> dict[str, Any]:
    return {kind: getattr(module, kind) for kind in (*_HOOKS, _HOOK_KIND)}


def hang(module: nn.Module, hooks: Mapping[str, Any]) -> None:
    """Make a module share these dictionaries of hooks, so that a hook's handle still removes the hook."""
    for kind, value in hooks.items():
        setattr(module, kind, value)
