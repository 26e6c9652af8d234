"""Derivatives against finite differences in float64: first order through the kernels, second through the reference."""

import pytest
import torch
from torch import Tensor

import udml_kernels
from udml_kernels.testing.cases import Case
from udml_kernels.testing.conformance import as_leaves, flat_outputs, wanted_inputs
from udml_kernels.testing.draw import mapped, named_tensors
from udml_kernels.testing.ops import OPS

from .backends import BACKENDS

GRADCHECKED = [
    Case(op, f"gradcheck {name}", options) for op, info in OPS.items() for name, options in info.gradchecked.items()
]


def _differentiable(case: Case):
    """The op as a function of its float inputs alone, and those inputs."""
    inputs = case.inputs(torch.float64)
    wanted = wanted_inputs(case, inputs)
    leaves = as_leaves(inputs, wanted)

    def function(*values: Tensor):
        given = dict(zip(wanted, values, strict=True))
        outputs = flat_outputs(case.op, getattr(udml_kernels, case.op)(**mapped(leaves, lambda n, t: given.get(n, t))))
        return tuple(value for value in outputs.values() if value.is_floating_point())

    tensors = dict(named_tensors(leaves))
    return function, [tensors[name] for name in wanted]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GRADCHECKED, ids=str)
def test_gradcheck(case, backend):
    with udml_kernels.use_backend(backend):
        function, values = _differentiable(case)
        assert torch.autograd.gradcheck(function, values, check_undefined_grad=True, check_forward_ad=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GRADCHECKED, ids=str)
def test_gradgradcheck(case, backend):
    with udml_kernels.use_backend(backend):
        function, values = _differentiable(case)
        assert torch.autograd.gradgradcheck(function, values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_graph_in_which_an_input_depends_on_another(backend):
    """Double backward must not count the path from logvar to mu twice."""
    base = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
    seed = torch.tensor([3])

    def function(x):
        z, std, kl = udml_kernels.reparameterize(x.sin(), x, x.exp().mean(1), seed=seed)
        return z.sum() + std.sum() + kl.sum()

    with udml_kernels.use_backend(backend):
        assert torch.autograd.gradcheck(function, [base])
        assert torch.autograd.gradgradcheck(function, [base])


@pytest.mark.parametrize("backend", BACKENDS)
def test_grad_of_grad_is_that_of_the_reference(backend):
    """A gradient penalty, as training code would write it."""
    results = []
    for name in (backend, "reference"):
        with udml_kernels.use_backend(name):
            s = torch.tensor([[0.5, 2.0, 1.0]], requires_grad=True)
            weights = udml_kernels.fusion_weights(s, g="inverse")
            (slope,) = torch.autograd.grad(weights[0, 0], s, create_graph=True)
            slope.square().sum().backward()
            results.append(s.grad)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)
