"""One op, bound once for every backend.

`udml_kernels::<op>.<backend>` is the kernel of one cell of the op x backend matrix. The schema, the
fake and the gradient are the op's, so they are written once and registered for each column.

A call reaches its kernel by one of two roads that share the same gradient: a compiled or exported
graph holds the overload itself (`register_autograd`), an eager call goes through an
`autograd.Function`, which costs half as much. Only inputs are saved for backward.

Forward-mode derivatives, and all of torch.func's, are those of the op's reference, which is plain PyTorch.
`torch.vmap` calls the kernel once for each member.

An op whose schema has floats has a second overload, `<backend>_scalars`, which takes each of them as a
float64 tensor without dimensions on the CPU: a graph that holds it is not specialised to the numbers' values.
"""

import importlib
import re
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from ..backends import COLUMNS
from ..errors import raise_out_of_memory
from . import _transforms
from ._transforms import as_number, as_tensor, is_symbolic

_library = torch.library.Library("udml_kernels", "DEF")

# Columns written in Python: a kernel is the function of its op's name, in the file of the op's file's name.
_PYTHON_COLUMNS = ("triton",)
# Kinds of arguments that the overload for traced graphs takes as tensors.
_AS_TENSORS = ("float", "Optional[float]", "List[float]")


def _python_kernel(column: str, ops_module: str, name: str) -> Callable:
    package, _, file = ops_module.rpartition(".")
    kernel: Callable | None = None

    def call(*args):
        nonlocal kernel
        if kernel is None:
            # Only now: whoever never calls it need not have Triton, nor wait for its import.
            kernel = getattr(importlib.import_module(f"{package.rpartition('.')[0]}.{column}.{file}"), name)
        return kernel(*args)

    return call


class Op:
    """A kernel op.

    Args:
        name: op name; the overload is the backend.
        schema: its arguments and returns, e.g. "(Tensor x) -> Tensor". A Tensor[] comes first.
        fake: the outputs' shapes and dtypes, for tracing.
        backward: (kernel, args, needs, grads) -> a gradient (or None) for each argument; `kernel(op)` is
            another op on the same backend. None for an op without gradient.
        reference: the op in plain PyTorch on the same arguments, for derivatives of the gradient.
        saved_outputs: indices of outputs that backward gets behind the arguments.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        fake: Callable,
        *,
        backward: Callable | None = None,
        reference: Callable | None = None,
        saved_outputs: Sequence[int] = (),
    ):
        self.name, self._backward, self._reference = name, backward, reference
        self._saved_outputs = saved_outputs
        self.overloads, self._scalar_overloads = {}, {}
        arguments = torch._C.parse_schema(name + schema).arguments
        kinds = [str(argument.type) for argument in arguments]
        self.takes_list = kinds[0] == "List[Tensor]"
        # Where among the arguments tensors stand, but for the list, and where the rest does; and the way back.
        self.tensors = [i for i, kind in enumerate(kinds) if kind in ("Tensor", "Optional[Tensor]")]
        self.others = [i for i in range(self.takes_list, len(kinds)) if i not in self.tensors]
        self._order = [(self.tensors + self.others).index(i) for i in range(self.takes_list, len(kinds))]
        # Positions of the numbers that a traced graph may take as tensors.
        self._numbers = [i for i, kind in enumerate(kinds) if kind in _AS_TENSORS]
        for column in COLUMNS:
            kernel = _python_kernel(column, fake.__module__, name) if column in _PYTHON_COLUMNS else None
            self.overloads[column] = self._define(column, column, schema, fake, kernel)
            if self._numbers:
                scalars = re.sub(r"\bfloat(\[\]|\??) ", r"Tensor\1 ", schema)
                self._scalar_overloads[column] = self._define(
                    f"{column}_scalars", column, scalars, fake, self._from_scalars(column)
                )

    def _define(self, overload: str, column: str, schema: str, fake: Callable, kernel: Callable | None):
        qualified = f"{self.name}.{overload}"
        _library.define(qualified + schema, tags=(torch.Tag.pt2_compliant_tag,))
        qualname = f"udml_kernels::{qualified}"
        torch.library.register_fake(qualname, fake, lib=_library)
        torch.library.register_autograd(
            qualname, self._graph_backward(column), setup_context=self._graph_setup, lib=_library
        )
        torch.library.register_vmap(qualname, _transforms.vmap_rule(self, column), lib=_library)
        if kernel is not None:
            _library.impl(qualified, kernel, "CompositeExplicitAutograd")
        return getattr(getattr(torch.ops.udml_kernels, self.name), overload)

    def _from_scalars(self, column: str) -> Callable:
        """The kernel behind the overload that takes its numbers as tensors: it reads them."""

        def call(*args):
            return self.overloads[column](*self._replaced(args, as_number))

        return call

    def _replaced(self, args: Sequence, convert: Callable) -> list:
        return [convert(value) if i in self._numbers else value for i, value in enumerate(args)]

    def _dispatched(self, backend: str, *args):
        """The call through the dispatcher, with all of autograd and torch.func's transforms in it."""
        if any(is_symbolic(args[i]) for i in self._numbers):
            return self._scalar_overloads[backend](*self._replaced(args, as_tensor))
        return self.overloads[backend](*args)

    def __call__(self, backend: str, *args):
        if self._reference is not None and _transforms.by_reference():
            return self._reference(*args)
        if _transforms.traced_or_transformed():
            return self._dispatched(backend, *args)
        try:
            return self._eagerly(backend, args)
        except (MemoryError, RuntimeError) as error:
            raise_out_of_memory(error, self.name, args)
            raise

    def _eagerly(self, backend: str, args: Sequence):
        if torch.is_grad_enabled() and self._backward is not None:
            tensors = [args[i] for i in self.tensors]
            if self.takes_list:
                tensors = [*args[0], *tensors]
            for t in tensors:
                if t is not None and t.requires_grad:
                    return _nest(_Function.apply((self, backend, args), *tensors))
        with torch._C._AutoDispatchBelowAutograd():
            return self.overloads[backend](*args)

    def gradients(self, backend: str, args: Sequence, needs: Sequence, grads: Sequence) -> Sequence:
        """A gradient (or None) for each argument of the forward op; `args` ends with its saved outputs."""
        if self._backward is None:
            raise NotImplementedError(f"{self.name} is not differentiable")
        if not any(_came(grad) for grad in grads):
            return [[None] * len(n) if isinstance(n, (list, tuple)) else None for n in needs]
        if (
            _transforms.by_reference()
            or (torch.is_grad_enabled() and any(t.requires_grad for t in _flatten((*args, *grads))[0]))
            # torch.autograd.grad(is_grads_batched=True) has no rule for ops that take a list.
            or (
                self.takes_list
                and any(is_legacy_batchedtensor(g) for grad in grads for g in _tuple(grad) if g is not None)
            )
        ):
            return self._differentiable_gradients(args, needs, grads)
        if _transforms.traced_or_transformed():
            return self._backward(lambda op: partial(op._dispatched, backend), args, needs, grads)
        try:
            with torch._C._AutoDispatchBelowAutograd():
                return self._backward(lambda op: op.overloads[backend], args, needs, grads)
        except (MemoryError, RuntimeError) as error:
            raise_out_of_memory(error, f"{self.name}, backward", args)
            raise

    def arranged(self, listed: int, values: Sequence, others: Sequence) -> list:
        """The arguments, from a value for each of their tensors (the first `listed` are the list's) and the others.

        What values are left, the saved outputs, stand behind.
        """
        end = listed + len(self.tensors)
        rest = (*values[listed:end], *others)
        args = [list(values[:listed])] if self.takes_list else []
        args.extend([rest[i] for i in self._order])
        args.extend(values[end:])
        return args

    def kept(self, output) -> tuple[Tensor, ...]:
        return tuple([output[i] for i in self._saved_outputs])

    def _graph_setup(self, ctx, inputs, output) -> None:
        ctx.set_materialize_grads(False)
        tensors, ctx.layout = _flatten((*inputs, *self.kept(output)))
        ctx.save_for_backward(*tensors)

    def _graph_backward(self, backend: str) -> Callable:
        def backward(ctx, *grads):
            args = _unflatten(ctx.layout, ctx.saved_tensors)
            needs = ctx.needs_input_grad
            results = self.gradients(backend, args, needs, grads)
            # A list of tensors without gradients is answered by as many Nones.
            nones = [[None] * len(n) if isinstance(n, (list, tuple)) else None for n in needs]
            return tuple(none if r is None else r for r, none in zip(results, nones, strict=True))

        return backward

    def _differentiable_gradients(self, args: Sequence, needs: Sequence, grads: Sequence) -> Sequence:
        """The gradient as a differentiable function of the inputs: autograd through the reference."""
        assert self._reference is not None, f"{self.name} has a gradient but no reference"
        tensors, layout = _flatten(args[: len(needs)])
        flat = [g for grad in grads for g in _tuple(grad)]
        with torch.enable_grad():
            # Fresh views: an input that depends on another one must not lend it its gradient.
            tensors = [t.view_as(t) if t.is_floating_point() else t for t in tensors]
            wanted = [t for t, need in zip(tensors, _flatten_like(layout, needs), strict=True) if need]
            outputs = [t for o in _tuple(self._reference(*_unflatten(layout, tensors))) for t in _tuple(o)]
            used = [(o, g) for o, g in zip(outputs, flat, strict=True) if g is not None and o.requires_grad]
            results = torch.autograd.grad(
                [o for o, _ in used], wanted, [g for _, g in used], create_graph=True, materialize_grads=True
            )
        by_tensor = {id(t): g for t, g in zip(wanted, results, strict=True)}
        slots = [slot if isinstance(slot, _Slot) else None for slot in layout]
        return _unflatten(slots, [by_tensor.get(id(t)) for t in tensors])


class _Function(torch.autograd.Function):
    """The eager road: the tensors of a call are left to autograd, which so sees them change."""

    @staticmethod
    def forward(ctx, call: tuple, *tensors: Tensor | None):
        op, ctx.backend, args = call
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            outputs = op.overloads[ctx.backend](*args)
        ctx.save_for_backward(*tensors, *op.kept(outputs))
        ctx.op, ctx.others, ctx.first = op, [args[i] for i in op.others], None
        ctx.listed = len(tensors) - len(op.tensors)
        if isinstance(outputs, Tensor):
            return outputs
        if isinstance(outputs[0], Tensor):
            return tuple(outputs)
        ctx.first = len(outputs[0])
        return (ctx.first, *outputs[0], *outputs[1:])

    @staticmethod
    def backward(ctx, *grads):
        op = ctx.op
        if ctx.first is not None:
            grads = (grads[1 : ctx.first + 1], *grads[ctx.first + 1 :])
        args = op.arranged(ctx.listed, ctx.saved_tensors, ctx.others)
        needs = op.arranged(ctx.listed, ctx.needs_input_grad[1:], ctx.others)
        results = op.gradients(ctx.backend, args, needs, grads)
        features = results[0] if op.takes_list else ()
        return None, *features, *[results[i] for i in op.tensors]


class _Slot:
    """Where tensors stood among the arguments: a list of `count`, or one (`_TENSOR`)."""

    __slots__ = ("count",)

    def __init__(self, count: int):
        self.count = count


_TENSOR = _Slot(1)


def _flatten(args: Sequence) -> tuple[list[Tensor], list]:
    """The tensors of the arguments, and the arguments with slots in their place."""
    tensors: list[Tensor] = []
    layout: list = []
    for value in args:
        if isinstance(value, Tensor):
            tensors.append(value)
            layout.append(_TENSOR)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            tensors.extend(value)
            layout.append(_Slot(len(value)))
        else:
            layout.append(value)
    return tensors, layout


def _unflatten(layout: list, values: Sequence) -> list:
    """The arguments again, from one value for each tensor."""
    args: list = []
    at = 0
    for slot in layout:
        if slot is _TENSOR:
            args.append(values[at])
            at += 1
        elif isinstance(slot, _Slot):
            args.append(list(values[at : at + slot.count]))
            at += slot.count
        else:
            args.append(slot)
    return args


def _flatten_like(layout: list, values: Sequence) -> list:
    """One value for each tensor, from one value (or list of values) for each argument."""
    flat: list = []
    for slot, value in zip(layout, values, strict=False):
        if slot is _TENSOR:
            flat.append(value)
        elif isinstance(slot, _Slot):
            flat.extend(value)
    return flat


def _nest(outputs):
    """A leading count says how many of the outputs are the op's list."""
    if isinstance(outputs, Tensor) or isinstance(outputs[0], Tensor):
        return outputs
    count = outputs[0]
    return list(outputs[1 : count + 1]), *outputs[count + 1 :]


def _came(grad) -> bool:
    return any(g is not None for g in grad) if isinstance(grad, (list, tuple)) else grad is not None


def _tuple(value) -> tuple:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def wanted(gradient: Tensor, need: bool) -> Tensor | None:
    """A backward kernel returns an empty tensor for a gradient nobody asked for."""
    return gradient if need else None
