"""One op, registered once for every backend.

`udml_kernels::<op>.<backend>` is the op's kernel on one backend. The schema, the fake implementation and the gradient
belong to the op: they are written once and registered for each backend.

Two paths lead to a kernel, and both use the same gradient. While PyTorch traces or transforms, a call goes through the
dispatcher, where `register_autograd` has registered the gradient. An eager call goes through an `autograd.Function`
instead, which takes half of the dispatcher's host time. Only inputs and `saved_outputs` are saved for backward.

Forward-mode derivatives, torch.func's derivatives and second derivatives are those of the op's reference, which is
plain PyTorch. `torch.vmap` calls the kernel once for each member.

An op whose schema has floats has a second overload, `<backend>_scalars`. It takes each float as a float64 tensor
without dimensions on the CPU, so that a traced graph is not specialised to the value of the number.
"""

import importlib
import re
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from ..backends import KERNEL_BACKENDS
from ..errors import raise_out_of_memory
from . import _transforms
from ._eager import Calls, Function, with_list
from ._launches import together
from ._layout import as_tuple, split, tensors_of
from ._transforms import as_number, as_tensor, is_symbolic

_library = torch.library.Library("udml_kernels", "DEF")

# Backends written in Python: a kernel is the function with the op's name, in the file with the name of the op's file.
_PYTHON_BACKENDS = ("triton",)
# Argument types that `<backend>_scalars` takes as tensors.
_AS_TENSORS = ("float", "Optional[float]", "List[float]")
# Every op by its name.
OPS: dict[str, "Op"] = {}


def _python_kernel(module: str, name: str) -> Callable:
    kernel: Callable | None = None

    def call(*args):
        nonlocal kernel
        if kernel is None:
            # Imported by the first call: Triton may not be installed, and its import takes long.
            kernel = getattr(importlib.import_module(module), name)
        return kernel(*args)

    return call


def _named(kind: str, names: list[str]) -> Any:
    return namedtuple(kind, names)


class Op:
    """A kernel op.

    Args:
        name: the op's name; its overloads are the backends.
        schema: arguments and returns, e.g. "(Tensor x) -> Tensor". An argument of type Tensor[] comes first.
        fake: returns empty outputs of the right shapes and dtypes, for tracing.
        backward: (kernel, args, needs, grads) -> the gradients by argument name. `args` are the arguments and then the
            saved outputs, by name; `needs` says by name which arguments want a gradient; `grads` are the gradients of
            the outputs, None for an output without one. `kernel(op)` is another op on the same backend. Gradients that
            are not needed are dropped. None for an op without a gradient.
        reference: the op in plain PyTorch on the same arguments, for forward mode, torch.func and derivatives of
            the gradient.
        saved_outputs: indices of the outputs that backward gets after the arguments; the schema names them.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        fake: Callable,
        *,
        backward: Callable[..., Mapping[str, Any]] | None = None,
        reference: Callable | None = None,
        saved_outputs: Sequence[int] = (),
    ):
        self.name, self._backward, self._reference = name, backward, reference
        self.kept_outputs = tuple(saved_outputs)
        self.overloads, self._scalar_overloads = {}, {}
        package, _, file = fake.__module__.rpartition(".")
        self._module = f"{package.rpartition('.')[0]}.{{}}.{file}"
        self._missing: dict[str, str | None] = {}
        OPS[name] = self
        parsed = torch._C.parse_schema(name + schema)
        names = [argument.name for argument in parsed.arguments]
        saved = [parsed.returns[i].name for i in saved_outputs]
        self._needs, self._args = _named("Needs", names), _named("Args", names + saved)
        self._position = {name: i for i, name in enumerate(names)}
        kinds = [str(argument.type) for argument in parsed.arguments]
        self.takes_list = kinds[0] == "List[Tensor]"
        # Positions of the single tensors and of all other arguments; the permutation that restores the schema's order.
        self.tensors = [i for i, kind in enumerate(kinds) if kind in ("Tensor", "Optional[Tensor]")]
        self.others = [i for i in range(self.takes_list, len(kinds)) if i not in self.tensors]
        self._order = [(self.tensors + self.others).index(i) for i in range(self.takes_list, len(kinds))]
        self._numbers = [i for i, kind in enumerate(kinds) if kind in _AS_TENSORS]
        for backend in KERNEL_BACKENDS:
            kernel = _python_kernel(self._module.format(backend), name) if backend in _PYTHON_BACKENDS else None
            self.overloads[backend] = self._define(backend, backend, schema, fake, kernel)
            if self._numbers:
                scalars = re.sub(r"\bfloat(\[\]|\??) ", r"Tensor\1 ", schema)
                self._scalar_overloads[backend] = self._define(
                    f"{backend}_scalars", backend, scalars, fake, self._from_scalars(backend)
                )

    @torch.compiler.assume_constant_result
    def why_missing(self, backend: str) -> str | None:
        """Why a backend that is loaded lacks this op; None when it has it, and the backward op that belongs to it."""
        if backend not in self._missing:
            parts = [OPS[name] for name in (self.name, f"{self.name}_backward") if name in OPS]
            self._missing[backend] = next((why for op in parts if (why := op._why_no_kernel(backend))), None)
        return self._missing[backend]

    def _why_no_kernel(self, backend: str) -> str | None:
        if backend not in _PYTHON_BACKENDS:
            qualname = f"udml_kernels::{self.name}.{backend}"
            has = [torch._C._dispatch_has_kernel_for_dispatch_key(qualname, key) for key in ("CPU", "CUDA")]
            return None if any(has) else f"no kernel is registered as {qualname}"
        module = self._module.format(backend)
        if find_spec(module) is None:
            return f"there is no module {module}"
        has_function = hasattr(importlib.import_module(module), self.name)
        return None if has_function else f"{module} has no function {self.name}"

    def _define(self, overload: str, backend: str, schema: str, fake: Callable, kernel: Callable | None):
        qualified = f"{self.name}.{overload}"
        _library.define(qualified + schema, tags=(torch.Tag.pt2_compliant_tag,))
        qualname = f"udml_kernels::{qualified}"
        torch.library.register_fake(qualname, fake, lib=_library)
        torch.library.register_autograd(
            qualname, self._traced_backward(backend), setup_context=self._traced_setup, lib=_library
        )
        torch.library.register_vmap(qualname, _transforms.vmap_rule(self, backend), lib=_library)
        if kernel is not None:
            _library.impl(qualified, kernel, "CompositeExplicitAutograd")
        return getattr(getattr(torch.ops.udml_kernels, self.name), overload)

    def _from_scalars(self, backend: str) -> Callable:
        """The kernel of `<backend>_scalars`: it reads the numbers out of their tensors."""

        def call(*args):
            return self.overloads[backend](*self._numbers_replaced(args, as_number))

        return call

    def _numbers_replaced(self, args: Sequence, convert: Callable) -> list:
        return [convert(value) if i in self._numbers else value for i, value in enumerate(args)]

    def __call__(self, backend: str, *args):
        if self._reference is not None and _transforms.by_reference():
            return self._reference(*args)
        if _transforms.traced_or_transformed():
            return self._dispatched(backend, *args)
        try:
            return self._eager(backend, args)
        except (MemoryError, RuntimeError) as error:
            raise_out_of_memory(error, self.name, args)
            raise

    def each(self, backend: str, calls: Sequence[tuple]) -> list[tuple]:
        """The outputs of several calls, which take and return no lists; one node of autograd serves them all."""
        if _transforms.by_reference() or _transforms.traced_or_transformed() or len(calls) == 1:
            return [as_tuple(self(backend, *args)) for args in calls]
        tensors = [args[i] for args in calls for i in self.tensors]
        needs_grad = any(t is not None and t.requires_grad for t in tensors)
        try:
            if needs_grad and torch.is_grad_enabled() and self._backward is not None:
                outputs = Calls.apply((self, backend, calls), *tensors)
                count = len(outputs) // len(calls)
                return [outputs[i : i + count] for i in range(0, len(outputs), count)]
            with torch._C._AutoDispatchBelowAutograd(), together(backend):
                return [as_tuple(self.overloads[backend](*args)) for args in calls]
        except (MemoryError, RuntimeError) as error:
            raise_out_of_memory(error, self.name, calls[0])
            raise

    def _dispatched(self, backend: str, *args):
        if any(is_symbolic(args[i]) for i in self._numbers):
            return self._scalar_overloads[backend](*self._numbers_replaced(args, as_tensor))
        return self.overloads[backend](*args)

    def _eager(self, backend: str, args: Sequence):
        if torch.is_grad_enabled() and self._backward is not None:
            tensors = [args[i] for i in self.tensors]
            if self.takes_list:
                tensors = [*args[0], *tensors]
            for t in tensors:
                if t is not None and t.requires_grad:
                    return with_list(Function.apply((self, backend, args), *tensors))
        with torch._C._AutoDispatchBelowAutograd():
            return self.overloads[backend](*args)

    def gradients(self, backend: str, args: Sequence, needs: Sequence, grads: Sequence) -> Sequence:
        """A gradient, or None, for each argument of the forward op; `args` ends with the saved outputs."""
        if self._backward is None:
            raise NotImplementedError(f"{self.name} is not differentiable")
        if not any(map(_any_given, grads)):
            return [[None] * len(n) if isinstance(n, (list, tuple)) else None for n in needs]
        if (
            _transforms.by_reference()
            or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors_of([*args, *grads])))
            # torch.autograd.grad(is_grads_batched=True) has no rule for ops that take a list.
            or (
                self.takes_list and any(is_legacy_batchedtensor(g) for o in grads for g in as_tuple(o) if g is not None)
            )
        ):
            return self._differentiable_gradients(args, needs, grads)
        if _transforms.traced_or_transformed():
            return self._needed(lambda op: partial(op._dispatched, backend), args, needs, grads)
        try:
            with torch._C._AutoDispatchBelowAutograd():
                return self._needed(lambda op: op.overloads[backend], args, needs, grads)
        except (MemoryError, RuntimeError) as error:
            raise_out_of_memory(error, f"{self.name}, backward", args)
            raise

    def _needed(self, kernel: Callable, args: Sequence, needs: Sequence, grads: Sequence) -> list:
        """The result of the op's `backward` in the order of the arguments, without gradients that are not needed."""
        assert self._backward is not None
        results: list = [None] * len(needs)
        for name, grad in self._backward(kernel, self._args(*args), self._needs(*needs), grads).items():
            i = self._position[name]
            if isinstance(grad, list):
                results[i] = [g if need else None for g, need in zip(grad, needs[i], strict=True)]
            elif needs[i]:
                results[i] = grad
        return results

    def arranged(self, listed: int, values: Sequence, others: Sequence) -> list:
        """The arguments in the schema's order, followed by the saved outputs.

        Args:
            listed: how many tensors the list has.
            values: the list's tensors, the other tensors, the saved outputs.
            others: the arguments that are not tensors.
        """
        end = listed + len(self.tensors)
        rest = (*values[listed:end], *others)
        args = [list(values[:listed])] if self.takes_list else []
        args.extend([rest[i] for i in self._order])
        args.extend(values[end:])
        return args

    def kept(self, output) -> tuple[Tensor, ...]:
        """The outputs that are saved for backward."""
        return tuple([output[i] for i in self.kept_outputs])

    def _traced_setup(self, ctx, inputs, output) -> None:
        ctx.set_materialize_grads(False)
        tensors, ctx.layout = split((*inputs, *self.kept(output)))
        ctx.save_for_backward(*tensors)

    def _traced_backward(self, backend: str) -> Callable:
        def backward(ctx, *grads):
            needs = ctx.needs_input_grad
            results = self.gradients(backend, ctx.layout.with_tensors(ctx.saved_tensors), needs, grads)
            # PyTorch expects a list for a list of tensors, even where none of them has a gradient.
            nones = [[None] * len(n) if isinstance(n, (list, tuple)) else None for n in needs]
            return tuple(none if r is None else r for r, none in zip(results, nones, strict=True))

        return backward

    def _differentiable_gradients(self, args: Sequence, needs: Sequence, grads: Sequence) -> Sequence:
        """The gradients of the reference, which are differentiable functions of the inputs."""
        assert self._reference is not None, f"{self.name} has a gradient but no reference"
        tensors, layout = split(args[: len(needs)])
        incoming = [g for grad in grads for g in as_tuple(grad)]
        with torch.enable_grad():
            # Views, so that an input that was computed from another input has a gradient of its own.
            tensors = [t.view_as(t) if t.is_floating_point() else t for t in tensors]
            wanted = [t for t, need in zip(tensors, layout.for_tensors(needs), strict=True) if need]
            outputs = [t for o in as_tuple(self._reference(*layout.with_tensors(tensors))) for t in as_tuple(o)]
            used = [(o, g) for o, g in zip(outputs, incoming, strict=True) if g is not None and o.requires_grad]
            results = torch.autograd.grad(
                [o for o, _ in used], wanted, [g for _, g in used], create_graph=True, materialize_grads=True
            )
        by_tensor = {id(t): g for t, g in zip(wanted, results, strict=True)}
        found = layout.with_tensors([by_tensor.get(id(t)) for t in tensors])
        positions = {*self.tensors, *([0] if self.takes_list else [])}
        return [g if i in positions else None for i, g in enumerate(found)]


def _any_given(grad) -> bool:
    return any(g is not None for g in grad) if isinstance(grad, (list, tuple)) else grad is not None
