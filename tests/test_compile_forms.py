"""Each form of each argument under torch.compile(fullgraph=True, dynamic=True), with twelve values one after another.

A second compilation is allowed, where a size or a number turns out to change; a third is not.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_leaves

import udml_kernels
from udml_kernels.testing.conformance import same_bits
from udml_kernels.testing.draw import named_tensors
from udml_kernels.testing.ops import OPS

from .backends import BACKENDS

VALUES = 12


def _run(function: Callable, arguments: dict) -> list[Tensor]:
    """Outputs and the gradients of all float inputs, those of the form under test among them."""
    numbers = ("temperature", "total", "kl_weight", "dropout_p", "std_max", "clamp", "normalize", "p")

    def leaf(value):
        if isinstance(value, Tensor):
            return value.clone().requires_grad_() if value.is_floating_point() and value.dim() else value
        return [leaf(v) for v in value] if isinstance(value, list) and isinstance(value[0], Tensor) else value

    given = {k: v if k in numbers else leaf(v) for k, v in arguments.items()}
    outputs = [v for v in tree_leaves(function(**given)) if isinstance(v, Tensor)]
    leaves = [v for _, v in named_tensors(given) if v.requires_grad]
    through = [o for o in outputs if o.requires_grad]
    grads = torch.autograd.grad([o.square().sum() for o in through], leaves, allow_unused=True) if through else ()
    # A gradient that is None is 0: a graph may know as little about it, or say 0.
    return [*outputs, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True))]


# What decides about a compilation is the same for all backends, so all forms run on the first of them. The others
# run the forms that reach a kernel through another overload.
FIRST = BACKENDS[0]
ROWS = [
    (op, form, backend)
    for op, info in OPS.items()
    for form in info.forms
    for backend in BACKENDS
    if backend == FIRST or form in ("all", "clamp", "dropout_p number", "std_max number", "kl_weight number tensor")
]


@pytest.mark.parametrize("op, form, backend", ROWS)
def test_values_change_without_a_third_compilation(op, form, backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    eager = getattr(udml_kernels, op)
    compiled = torch.compile(eager, backend=counter, fullgraph=True, dynamic=True)
    with udml_kernels.use_backend(backend):
        for i in range(VALUES):
            arguments = {**OPS[op].base(), **OPS[op].forms[form](i)}
            got, expected = _run(compiled, arguments), _run(eager, arguments)
            assert len(got) == len(expected)
            for one, other in zip(got, expected, strict=True):
                assert same_bits(one, other)
            assert counter.frame_count <= 2, f"call {i} compiled again"
