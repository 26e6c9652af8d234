"""One op, bound once for every backend.

`udml_kernels::<op>.<backend>` is the kernel of one cell of the op x backend matrix. The schema, the
fake and the gradient are the op's, so they are written once and registered for each column.

A call reaches its kernel by one of two roads that share the same gradient: a compiled or exported
graph holds the overload itself (`register_autograd`), an eager call goes through an
`autograd.Function`, which costs half as much. Only inputs are saved for backward.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backends import COLUMNS

_library = torch.library.Library("udml_kernels", "DEF")


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
        self.overloads = {}
        for column in COLUMNS:
            qualified = f"{name}.{column}"
            _library.define(qualified + schema, tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.register_fake(f"udml_kernels::{qualified}", fake, lib=_library)
            torch.library.register_autograd(
                f"udml_kernels::{qualified}", self._graph_backward(column), setup_context=self.save, lib=_library
            )
            self.overloads[column] = getattr(getattr(torch.ops.udml_kernels, name), column)

    def __call__(self, backend: str, *args):
        overload = self.overloads[backend]
        if torch.compiler.is_compiling():
            return overload(*args)
        if torch.is_grad_enabled() and self._backward is not None and _any_requires_grad(args):
            first = args[0]
            if isinstance(first, Tensor):
                return _Function.apply(self, backend, None, *args)
            return _nested(*_Function.apply(self, backend, len(first), *first, *args[1:]))
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)

    def gradients(self, backend: str, args: Sequence, needs: Sequence, grads: Sequence) -> Sequence:
        if self._backward is None:
            raise NotImplementedError(f"{self.name} is not differentiable")
        if torch.is_grad_enabled() and _any_requires_grad((*args, *grads)):
            return self._differentiable_gradients(args, needs, grads)
        return self._backward(lambda op: op.overloads[backend], args, needs, grads)

    def save(self, ctx, inputs, output) -> None:
        """Keep the op's inputs: tensors where autograd tracks them, the rest as they are."""
        ctx.set_materialize_grads(False)
        tensors, layout = [], []
        for value in (*inputs, *(output[i] for i in self._saved_outputs)):
            if isinstance(value, Tensor):
                layout.append((0, None))
                tensors.append(value)
            elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
                layout.append((len(value), None))
                tensors.extend(value)
            else:
                layout.append((-1, value))
        ctx.save_for_backward(*tensors)
        ctx.layout = layout

    def _graph_backward(self, backend: str) -> Callable:
        def backward(ctx, *grads):
            return tuple(self.gradients(backend, _saved(ctx), ctx.needs_input_grad, grads))

        return backward

    def _differentiable_gradients(self, args: Sequence, needs: Sequence, grads: Sequence) -> Sequence:
        """The gradient as a differentiable function of the inputs: autograd through the reference."""
        if self._reference is None:
            raise NotImplementedError(f"{self.name} is not differentiable twice")
        # Fresh views: an input that depends on another one must not lend it its gradient.
        args = [_map(lambda t: t.view_as(t) if t.is_floating_point() else t, a) for a in args[: len(needs)]]
        wanted = [t for a, need in zip(args, needs, strict=True) for t, n in _pairs(a, need) if n]
        outputs = [t for o in _tuple(self._reference(*args)) for t in _tuple(o)]
        flat = [t for g in grads for t in _tuple(g)]
        used = [(o, g) for o, g in zip(outputs, flat, strict=True) if g is not None and o.requires_grad]
        results = iter(
            torch.autograd.grad(
                [o for o, _ in used], wanted, [g for _, g in used], create_graph=True, materialize_grads=True
            )
        )

        def pick(argument, need):
            if isinstance(argument, (list, tuple)) and isinstance(need, (list, tuple)):
                return [next(results) if n else None for n in need]
            return next(results) if need is True else None

        return [pick(a, n) for a, n in zip(args, needs, strict=True)]


class _Function(torch.autograd.Function):
    """The eager road. A leading list argument of `count` tensors arrives, and leaves, unpacked."""

    @staticmethod
    def forward(ctx, op: Op, backend: str, count: int | None, *flat):
        args = flat if count is None else (list(flat[:count]), *flat[count:])
        ctx.op, ctx.backend, ctx.count = op, backend, count
        with torch._C._AutoDispatchBelowAutograd():
            outputs = op.overloads[backend](*args)
        op.save(ctx, args, outputs)
        if count is None:
            return outputs
        ctx.outputs = len(outputs[0])
        return (ctx.outputs, *outputs[0], *outputs[1:])

    @staticmethod
    def backward(ctx, *grads):
        needs = ctx.needs_input_grad[3:]
        if ctx.count is None:
            return None, None, None, *ctx.op.gradients(ctx.backend, _saved(ctx), needs, grads)
        needs = (list(needs[: ctx.count]), *needs[ctx.count :])
        grads = (list(grads[1 : ctx.outputs + 1]), *grads[ctx.outputs + 1 :])
        first, *rest = ctx.op.gradients(ctx.backend, _saved(ctx), needs, grads)
        return None, None, None, *first, *rest


def _saved(ctx) -> list:
    tensors = iter(ctx.saved_tensors)
    return [
        value if count < 0 else next(tensors) if count == 0 else [next(tensors) for _ in range(count)]
        for count, value in ctx.layout
    ]


def _any_requires_grad(values: Sequence) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            if value.requires_grad:
                return True
        elif isinstance(value, (list, tuple)) and any(isinstance(t, Tensor) and t.requires_grad for t in value):
            return True
    return False


def _nested(count: int, *flat):
    return list(flat[:count]), *flat[count:]


def _tuple(value) -> tuple:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _map(function: Callable, value):
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
        return [function(t) for t in value]
    return value


def _pairs(value, need):
    if isinstance(value, Tensor):
        return [(value, need)]
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
        return list(zip(value, need, strict=True))
    return []


def wanted(gradient: Tensor, need: bool) -> Tensor | None:
    """A backward kernel returns an empty tensor for a gradient nobody asked for."""
    return gradient if need else None
