"""The autograd function of an eager call of an op."""

import torch
from torch import Tensor


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


def with_list(outputs):
    """The outputs of `Function` with the op's list as a list again."""
    if isinstance(outputs, Tensor) or isinstance(outputs[0], Tensor):
        return outputs
    count = outputs[0]
    return list(outputs[1 : count + 1]), *outputs[count + 1 :]
