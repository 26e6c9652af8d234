"""Replace modules of a model by their fused counterparts ("twins"), and undo it; docs/porting.md has examples."""

import difflib
import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor, nn

from ._carry import as_twin, carry_modes, differences, hang, hold, hooked, hooks_of, identities, state_of
from .twins import concat_fusion, noise_estimator, probabilistic_head

__all__ = ["Patch", "concat_fusion", "noise_estimator", "patch", "probabilistic_head"]

Replacement = nn.Module | Callable[[nn.Module], nn.Module]

# Class names of modules that cannot be patched. They are compared by name, so their packages need not be imported.
_CLOSED = {"FullyShardedDataParallel", "FSDPModule", "ScriptModule"}


def patch(model: nn.Module, replacements: Mapping[str, Replacement]) -> "Patch":
    """Swap submodules of a model for others with the same weights, at once; `with` or `.undo()` restores them.

        with udml.patch(model, {"audio.head": probabilistic_head, "visual.head": ProbabilisticHead(512, 512)}):
            train(model)

    Args:
        model: any module. For DistributedDataParallel, DataParallel or torch.compile's wrapper, the module inside
            is patched, by its own names; compiled code is compiled again at its next call.
        replacements: by the dotted names of `model.named_modules()`: a module, or a function that makes one from the
            old one. A module that is registered in several places is swapped in all of them.

    The state dict of the old module is loaded into the new one, strictly. Where names and shapes agree, the new one
    then shares the parameters and buffers of the old one, with their device, dtype, requires_grad and gradients, so
    that an optimizer, a tie to another layer and DDP's reduction keep working. Other parameters (`NoiseEstimator`
    stacks those of its twin) are copied, and copied back at the end, without gradients: they get the old ones' device
    and dtype, require a gradient if any of these did, and a warning says that an optimizer made before lacks them
    (`new_parameters`). A function may also build on all of the old module's own parameters, under any names.

    Train or eval mode is taken over, for inner modules by name, and so are forward and backward hooks of the swapped
    module; hooks of modules inside it, and of its state dict, are inactive meanwhile. At the end mode and hooks are
    moved back too; the new module keeps the weights that it shares.

    Raises:
        TypeError: for a replacement that is not a module and does not make one.
        ValueError: for a name that is unknown (similar ones are listed), or of a module inside or the same as another
            named one; a state that does not fit (keys and shapes are listed), cannot be copied back or belongs to
            another part of the model; copies of parameters that are tied, or under DDP; hooks on both modules; a model
            that is sharded or scripted. The model has not been changed then.
    """
    root, listed = _unwrapped(model)
    swaps: list[_Swap] = []
    for name, old in _found(root, replacements).items():
        new = _made(name, replacements[name], old)
        if any(new is swap.new for swap in swaps):
            raise ValueError(f"replacements[{name!r}]: expected a module of its own, got another name's")
        swaps.append(_Swap(name, old, new, _places(root, old)))
    for swap in swaps:
        swap.prepare(root, listed)
    for swap in swaps:
        swap.apply()
    return Patch(swaps)


class Patch:
    """The swaps that `patch` has made.

    Attributes:
        modules: the new modules by name.
    """

    def __init__(self, swaps: "list[_Swap]"):
        self.modules = {swap.name: swap.new for swap in swaps}
        self._swaps = swaps

    def new_parameters(self) -> list[nn.Parameter]:
        """The copied parameters, which an optimizer made before the patch does not hold."""
        return [p for swap in self._swaps for p in swap.copies.values()]

    def undo(self) -> None:
        """Put the old modules back, with the current weights; a second call does nothing.

        Raises:
            RuntimeError: if the new modules have been replaced since, or weights renamed or reshaped;
                nothing has been changed then.
        """
        for swap in self._swaps:
            swap.check()
        for swap in self._swaps:
            swap.undo()
        self._swaps = []

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *exception) -> None:
        self.undo()


@dataclass
class _Swap:
    """The swap of one module for another, in all its places: (parent, key).

    Attributes:
        shared: names of the tensors that both hold, (in the new module, in the old one).
        copies: the new module's other parameters.
        hooks: the new module's own hooks, while it holds the old one's.
    """

    name: str
    old: nn.Module
    new: nn.Module
    places: list[tuple[nn.Module, str]]
    shared: list[tuple[str, str]] = field(default_factory=list)
    copies: dict[str, nn.Parameter] = field(default_factory=dict)
    hooks: dict[str, Any] = field(default_factory=dict)

    def prepare(self, root: nn.Module, listed: bool) -> None:
        """Do everything that can fail; only the new module is changed."""
        own, given = state_of(self.old), state_of(self.new)
        others = identities(state_of(root).values()) - identities(own.values())
        foreign = [key for key, tensor in given.items() if id(tensor) in others]
        if foreign:
            self._fail(f"expected weights of its own or the old module's, got another part's: {', '.join(foreign)}")
        if hooked(self.old) and hooked(self.new):
            self._fail("expected hooks on the old or on the new module, got both")
        if identities(own.values()) != identities(given.values()):
            self._load(own, given)
        now = state_of(self.new)
        self.shared = [(a, b) for a, tensor in now.items() for b, mine in own.items() if tensor is mine]
        if self._apart(own):
            self._check_copies(root, listed)

    def _load(self, own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
        like = next((t for t in own.values() if t.is_floating_point()), None)
        if like is not None and not identities(own.values()) & identities(given.values()):
            self.new.to(device=like.device, dtype=like.dtype)
        try:
            self.new.load_state_dict(self.old.state_dict())
        except RuntimeError as error:
            self._fail(f"the state does not fit: {differences(own, state_of(self.new)) or error}")
        for key, tensor in own.items():
            hold(self.new, key, tensor)

    def _apart(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the old module's state that are copied in both directions."""
        shared = {key for _, key in self.shared}
        return {key: tensor for key, tensor in own.items() if key not in shared}

    def _check_copies(self, root: nn.Module, listed: bool) -> None:
        apart = self._apart(state_of(self.old))
        shared = {key for key, _ in self.shared}
        self.copies = {key: p for key, p in self.new.named_parameters() if key not in shared}
        keys, copies = ", ".join(apart), ", ".join(self.copies) or "the new module"
        if apart.keys() - as_twin(state_of(self.new), apart).keys():
            self._fail(f"{keys} could not be brought back from {copies}")
        if listed:
            self._fail(f"{keys} would be copied, and DDP would not reduce the copies' gradients: patch, then wrap")
        inside = set(self.old.modules())
        if identities(apart.values()) & identities(
            p for m in root.modules() if m not in inside for p in m._parameters.values()
        ):
            self._fail(f"{keys} would be copied, but other parts of the model share them")
        for parameter in self.copies.values():
            parameter.requires_grad_(any(t.requires_grad for t in apart.values()))
        message = f"{self.name}: {keys} are copied to {copies}, which an optimizer made before lacks"
        warnings.warn(f"{message}; Patch.new_parameters gives them", stacklevel=4)

    def apply(self) -> None:
        carry_modes(self.old, self.new)
        if not hooked(self.new):
            self.hooks = hooks_of(self.new)
            hang(self.new, hooks_of(self.old))
        self._put(self.new)

    def check(self) -> None:
        """Check everything that can fail in `undo`."""
        for parent, key in self.places:
            there = parent._modules.get(key)
            if there is not self.new:
                raise RuntimeError(f"{self.name}: expected the patch's module in its place, got {type(there).__name__}")
        own, now = state_of(self.old), state_of(self.new)
        back = {b: now.get(a) for a, b in self.shared} | as_twin(now, self._apart(own))
        lost = [key for key, tensor in own.items() if (value := back.get(key)) is None or value.shape != tensor.shape]
        if lost:
            raise RuntimeError(
                f"{self.name}: expected the names and shapes of the patch, got no more {', '.join(lost)}"
            )

    def undo(self) -> None:
        own, now = state_of(self.old), state_of(self.new)
        for key, value in as_twin(now, apart := self._apart(own)).items():
            # Through .data, as Module.to does: the dtype or device may have changed by now.
            apart[key].data = value.detach().clone()
        for key, old_key in self.shared:
            # Module.to replaces a module's buffers.
            hold(self.old, old_key, now[key])
        carry_modes(self.new, self.old)
        if self.hooks:
            hang(self.old, hooks_of(self.new))
            hang(self.new, self.hooks)
        self._put(self.old)

    def _put(self, module: nn.Module) -> None:
        for parent, key in self.places:
            parent._modules[key] = module

    def _fail(self, message: str) -> NoReturn:
        raise ValueError(f"replacements[{self.name!r}]: {message}") from None


def _unwrapped(model: nn.Module) -> tuple[nn.Module, bool]:
    """The module inside wrappers, and whether DDP holds a list of its parameters."""
    listed = any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules())
    while isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module  # type: ignore[assignment]
    for name, module in model.named_modules():
        closed = _CLOSED & {c.__name__ for c in type(module).__mro__}
        if closed:
            got = f"{' '.join(closed)} at {name!r}" if name else " ".join(closed)
            raise ValueError(f"model: expected one that is not yet sharded or scripted, got {got}")
    return model, listed


def _found(root: nn.Module, replacements: Mapping[str, Replacement]) -> dict[str, nn.Module]:
    if not isinstance(replacements, Mapping):
        raise TypeError(f"replacements: expected modules by name, got {type(replacements).__name__}")
    modules = dict(root.named_modules(remove_duplicate=False))
    # The model itself is not registered anywhere, so it cannot be swapped.
    del modules[""]
    for name in replacements:
        if name not in modules:
            near = difflib.get_close_matches(str(name), modules, n=5, cutoff=0.4) or root._modules
            known = ", ".join(near) or "none are there"
            raise ValueError(f"replacements: expected names of submodules ({known}), got {name!r}")
    for a, b in itertools.permutations(replacements, 2):
        if modules[b] in modules[a].modules():
            relation = "the same module as" if modules[a] is modules[b] else "inside"
            raise ValueError(f"replacements: expected modules apart from each other, got {b!r}, {relation} {a!r}")
    return {name: modules[name] for name in replacements}


def _made(name: str, replacement: Replacement, old: nn.Module) -> nn.Module:
    new = replacement if isinstance(replacement, nn.Module) or not callable(replacement) else replacement(old)
    if not isinstance(new, nn.Module):
        expected = "a module, or a function that makes one of the old module"
        raise TypeError(f"replacements[{name!r}]: expected {expected}, got {type(new).__name__}")
    if new is old:
        raise ValueError(f"replacements[{name!r}]: expected another module, got the old one, which could not go back")
    return new


def _places(root: nn.Module, old: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(parent, key) for parent in root.modules() for key, child in parent._modules.items() if child is old]
