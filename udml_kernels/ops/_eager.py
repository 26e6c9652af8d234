"""The autograd functions of eager calls of an op."""

from contextlib import nullcontext

import torch
from torch import Tensor

from ._launches import together
from ._layout import as_tuple


class Function(torch.autograd.Function):
    """The function whose first argument is (op, backend, the op's arguments); its tensors follow."""

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
        # autograd.Function cannot return lists: the length of the op's list comes first, then its tensors.
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
        listed = results[0] if op.takes_list else ()
        return None, *listed, *[results[i] for i in op.tensors]


class Calls(torch.autograd.Function):
    """Several calls of an op as one function, whose host time autograd then costs once.

    The first argument is (op, backend, the arguments of each call). The tensors of the calls follow, call by call; so
    do the outputs. The op takes and returns no lists.
    """

    @staticmethod
    def forward(ctx, call: tuple, *tensors: Tensor | None):
        op, ctx.backend, calls = call
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd(), together(ctx.backend):
            outputs = [as_tuple(op.overloads[ctx.backend](*args)) for args in calls]
        ctx.save_for_backward(*tensors, *[kept for each in outputs for kept in op.kept(each)])
        ctx.op, ctx.others = op, [[args[i] for i in op.others] for args in calls]
        return tuple([output for each in outputs for output in each])

    @staticmethod
    def backward(ctx, *grads):
        op, calls, saved, needs = ctx.op, len(ctx.others), ctx.saved_tensors, ctx.needs_input_grad[1:]
        count, kept, outputs = len(op.tensors), len(op.kept_outputs), len(grads) // calls
        result: list[Tensor | None] = []
        # With create_graph, the reference may compute the gradients in plain PyTorch: launches must not wait for that.
        with nullcontext() if torch.is_grad_enabled() else together(ctx.backend):
            for m, others in enumerate(ctx.others):
                tensors = slice(m * count, (m + 1) * count)
                outputs_kept = saved[calls * count + m * kept : calls * count + (m + 1) * kept]
                args = op.arranged(0, (*saved[tensors], *outputs_kept), others)
                of_call = op.gradients(
                    ctx.backend, args, op.arranged(0, needs[tensors], others), grads[m * outputs : (m + 1) * outputs]
                )
                result.extend([of_call[i] for i in op.tensors])
        return None, *result


def with_list(outputs):
    """The outputs of `Function` with the op's list as a list again."""
    if isinstance(outputs, Tensor) or isinstance(outputs[0], Tensor):
        return outputs
    count = outputs[0]
    return list(outputs[1 : count + 1]), *outputs[count + 1 :]
