"""How an op behaves inside torch's function transforms: forward-mode derivatives, vmap, and numbers while tracing."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import has_static_value


def _by_reference() -> bool:
    if forward_ad._current_level >= 0:
        return True
    if torch._C._functorch.peek_interpreter_stack() is None:
        return False
    kinds = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)
    return any(interpreter.key() in kinds for interpreter in torch._C._functorch.get_interpreter_stack())


# torch.compile enters the transforms that it traces and guards on them, so the answer is a constant of the graph.
_traced_by_reference = torch.compiler.assume_constant_result(_by_reference)


def by_reference() -> bool:
    """Whether a derivative is being taken that the kernels do not provide.

    These are forward mode (`torch.func.jvp`, `jacfwd`, an open dual level) and `torch.func.grad`, `vjp` and `jacrev`,
    which require each gradient to be differentiable again. The reference, plain PyTorch, provides them all.
    """
    return _traced_by_reference() if torch.compiler.is_compiling() else _by_reference()


def traced_or_transformed() -> bool:
    """Whether a call must go through torch's full dispatcher.

    It must while torch.compile traces, inside torch.func's transforms, and under a dispatch mode such as make_fx or
    FakeTensorMode.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _member(value, dims, i: int):
    """The i-th member of one argument of a vmapped call."""
    if dims is None:
        return value
    if isinstance(value, (list, tuple)):
        return [_member(v, d, i) for v, d in zip(value, dims, strict=True)]
    return value.select(dims, i)


def _stacked(members: Sequence):
    """The members' results (tensors or lists of them) stacked along a new dimension 0, and that dimension's index."""
    if isinstance(members[0], Tensor):
        return torch.stack(list(members)), 0
    pairs = [_stacked(parts) for parts in zip(*members, strict=True)]
    make = type(members[0])
    return make(value for value, _ in pairs), make(dim for _, dim in pairs)


def vmap_rule(op, backend: str) -> Callable:
    """`torch.vmap` of a kernel: one call for each member, as in a loop.

    The members share the seed, unless the seed is mapped too.
    """

    def rule(info, in_dims, *args):
        if info.batch_size == 0:
            raise NotImplementedError(
                f"{op.name}: torch.vmap over 0 members is not supported; call the op without vmap"
            )
        calls = [[_member(a, d, i) for a, d in zip(args, in_dims, strict=True)] for i in range(info.batch_size)]
        return _stacked([op(backend, *call) for call in calls])

    return rule


def is_symbolic(value) -> bool:
    """Whether a number changes between calls of one traced graph (a symbolic float, or a tensor that holds it)."""
    if isinstance(value, (list, tuple)):
        return any(is_symbolic(v) for v in value)
    if isinstance(value, (Tensor, torch.SymFloat)):
        return True
    return torch.compiler.is_compiling() and value is not None and not has_static_value(value)


def as_tensor(value):
    """A number as a float64 tensor without dimensions on the CPU; None stays None.

    Under torch.compile, a product with a symbolic float stays dynamic; every other constructor fixes the float's value.
    """
    if isinstance(value, (list, tuple)):
        return [as_tensor(v) for v in value]
    if value is None or isinstance(value, Tensor):
        return value
    return torch.ones((), dtype=torch.float64, device="cpu") * value


def as_number(value):
    """The inverse of `as_tensor`, applied just before a kernel runs."""
    if isinstance(value, (list, tuple)):
        return [as_number(v) for v in value]
    return value.item() if isinstance(value, Tensor) else value
