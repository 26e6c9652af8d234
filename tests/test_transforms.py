"""torch.func's transforms, forward mode, fake and meta tensors, make_fx: each op inside them, on every backend.

The truth is a loop, or the same transform of the float64 reference, which is plain PyTorch.
"""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import udml_kernels
from udml_kernels import reference
from udml_kernels.testing.cases import Case
from udml_kernels.testing.conformance import (
    as_leaves,
    evaluate,
    flat_outputs,
    incoming_gradients,
    same_bits,
    wanted_inputs,
)
from udml_kernels.testing.draw import mapped, named_tensors
from udml_kernels.testing.ops import OPS

from .backends import BACKENDS

MEMBERS = 3
DIFFERENTIABLE = [op for op, info in OPS.items() if info.differentiable]
everywhere = pytest.mark.parametrize("backend", (*BACKENDS, "reference"))


def _by_values(op: str, inputs: dict, names: list[str], module=udml_kernels):
    """The op as a function of the tensors called `names` alone, to a tuple of its floating point outputs."""

    def function(*values: Tensor):
        given = dict(zip(names, values, strict=True))
        outputs = flat_outputs(op, getattr(module, op)(**mapped(inputs, lambda n, t: given.get(n, t))))
        return tuple(value for value in outputs.values() if value.is_floating_point())

    return function


def _values(inputs: dict, names: list[str]) -> list[Tensor]:
    tensors = dict(named_tensors(inputs))
    return [tensors[name].detach() for name in names]


def _setting(op: str, dtype: torch.dtype = torch.float32, member: int = 0):
    case = Case(op, f"transformed {member}", OPS[op].small)
    inputs = case.inputs(dtype)
    return case, inputs, wanted_inputs(case, inputs)


def _pair(op: str, dtype: torch.dtype = torch.float64):
    """The op and its reference as functions of their float inputs, and those."""
    _, inputs, names = _setting(op, dtype)
    return _by_values(op, inputs, names), _by_values(op, inputs, names, reference), _values(inputs, names)


def _slopes(values: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.linspace(-1, 1, v.numel(), dtype=v.dtype).reshape(v.shape) for v in values)


def _weighed(function):
    """A scalar of all the outputs, no two of which count alike."""

    def scalar(*values: Tensor) -> Tensor:
        outputs = function(*values)
        return sum((s * o).sum() for s, o in zip(_slopes(list(outputs)), outputs, strict=True))

    return scalar


CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@everywhere
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_forward_mode(op, backend):
    function, truth, values = _pair(op)
    with udml_kernels.use_backend(backend):
        got = torch.func.jvp(function, tuple(values), _slopes(values))
        torch.testing.assert_close(got, torch.func.jvp(truth, tuple(values), _slopes(values)), **CLOSE)
        assert any(bool(tangent.any()) for tangent in got[1])
        every = tuple(range(len(values)))
        got = torch.func.jacfwd(function, argnums=every)(*values)
        # Against reverse mode, so that an error of the tangents shows.
        torch.testing.assert_close(got, torch.func.jacrev(truth, argnums=every)(*values), **CLOSE)


@everywhere
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_dual_tensors(op, backend):
    """Duals that require grad too, and duals whose tangent comes after: what a call inside a dual level sees."""
    function, truth, values = _pair(op)
    _, expected = torch.func.jvp(truth, tuple(values), _slopes(values))
    for requires_grad in (False, True):
        with udml_kernels.use_backend(backend), torch.autograd.forward_ad.dual_level():
            leaves = [v.clone().requires_grad_(requires_grad) for v in values]
            duals = [torch.autograd.forward_ad.make_dual(v, t) for v, t in zip(leaves, _slopes(values), strict=True)]
            for output, tangent in zip(function(*duals), expected, strict=True):
                got = torch.autograd.forward_ad.unpack_dual(output).tangent
                torch.testing.assert_close(torch.zeros_like(output) if got is None else got, tangent, **CLOSE)


@everywhere
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_func_grad(op, backend):
    function, truth, values = _pair(op)
    every = tuple(range(len(values)))
    with udml_kernels.use_backend(backend):
        got = torch.func.grad(_weighed(function), argnums=every)(*values)
        torch.testing.assert_close(got, torch.func.grad(_weighed(truth), argnums=every)(*values), **CLOSE)
        # Forward over reverse: the product of the Hessian with a vector.
        got, expected = (
            torch.func.jvp(torch.func.grad(_weighed(f), argnums=every), tuple(values), _slopes(values))[1]
            for f in (function, truth)
        )
        torch.testing.assert_close(got, expected, **CLOSE)


def _members(op: str) -> tuple[dict, list[str], list[Tensor]]:
    """The op's inputs, the names of those that are mapped, and these with the members along dimension 1."""
    names = _setting(op)[2] or ["seed"]
    drawn = [_values(_setting(op, member=i)[1], names) for i in range(MEMBERS)]
    if names == ["seed"]:
        drawn = [[torch.tensor([i])] for i in range(MEMBERS)]
    stacked = [torch.stack(values).movedim(0, -1) for values in zip(*drawn, strict=True)]
    return _setting(op)[1], names, stacked


@everywhere
@pytest.mark.parametrize("op", OPS)
def test_vmap_is_a_loop(op, backend):
    inputs, names, stacked = _members(op)
    function = _by_values(op, inputs, names)
    with udml_kernels.use_backend(backend):
        got = torch.vmap(function, in_dims=-1)(*stacked)
        members = [function(*(s[..., i] for s in stacked)) for i in range(MEMBERS)]
        for value, expected in zip(got, map(torch.stack, zip(*members, strict=True)), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
        # Mapped over one input alone.
        one = torch.vmap(function, in_dims=(-1, *[None] * (len(names) - 1)))(
            stacked[0], *(s[..., 0] for s in stacked[1:])
        )
        assert one[0].shape[0] == MEMBERS


@everywhere
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_vmap_of_tensors_that_require_grad(op, backend):
    """An ensemble: the loop's gradient reaches what was mapped and what was not."""
    inputs, names, stacked = _members(op)
    function = _by_values(op, inputs, names)
    mapped_leaf, *others = (s.clone().requires_grad_() for s in stacked)
    shared = [s[..., 0].detach().requires_grad_() for s in others]
    with udml_kernels.use_backend(backend):
        ensemble = torch.vmap(function, in_dims=(-1, *[None] * len(shared)))(mapped_leaf, *shared)
        loop = [function(mapped_leaf[..., i], *shared) for i in range(MEMBERS)]
        leaves = [mapped_leaf, *shared]
        results = []
        for outputs in (ensemble, [torch.stack(o) for o in zip(*loop, strict=True)]):
            total = sum((s * o).sum() for s, o in zip(_slopes(list(ensemble)), outputs, strict=True))
            results.append(torch.autograd.grad(total, leaves, retain_graph=True))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
        assert bool(results[0][0].any())


@everywhere
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradients_of_each_member(op, backend):
    """vmap of grad, as for gradients per sample, and grad of vmap."""
    inputs, names, stacked = _members(op)
    function, truth = (_weighed(_by_values(op, inputs, names, module)) for module in (udml_kernels, reference))
    every = tuple(range(len(names)))
    with udml_kernels.use_backend(backend):
        got = torch.vmap(torch.func.grad(function, argnums=every), in_dims=-1)(*stacked)
        for i in range(MEMBERS):
            expected = torch.func.grad(truth, argnums=every)(*(s[..., i] for s in stacked))
            torch.testing.assert_close(tuple(g[i] for g in got), expected, rtol=1e-4, atol=1e-5)
        total = torch.func.grad(lambda *s: torch.vmap(function, in_dims=-1)(*s).sum(), argnums=every)(*stacked)
        torch.testing.assert_close(total, tuple(g.movedim(0, -1) for g in got), rtol=1e-4, atol=1e-5)


@everywhere
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_batched_gradients(op, backend):
    """`is_grads_batched`, with which a Jacobian takes one backward pass: the kernels of the gradients under vmap."""
    _, inputs, names = _setting(op)
    with udml_kernels.use_backend(backend):
        leaves = as_leaves(inputs, names)
        outputs = {n: v for n, v in flat_outputs(op, getattr(udml_kernels, op)(**leaves)).items() if v.requires_grad}
        tensors = dict(named_tensors(leaves))
        wrt = [tensors[name] for name in names]
        grads = [torch.stack([g * k for k in range(1, MEMBERS + 1)]) for g in _slopes(list(outputs.values()))]
        options = {"allow_unused": True, "retain_graph": True}
        batched = torch.autograd.grad(list(outputs.values()), wrt, grads, is_grads_batched=True, **options)
        for i in range(MEMBERS):
            one = torch.autograd.grad(list(outputs.values()), wrt, [g[i] for g in grads], **options)
            for a, b in zip(batched, one, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a[i], b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("argument", ("sigma", "p"))
def test_values_are_checked_under_vmap(argument):
    bad = torch.tensor([[0.5, 0.5], [0.5, -2.0]])
    with pytest.raises(ValueError, match=f"^{argument}: "):
        if argument == "sigma":
            torch.vmap(lambda s: udml_kernels.inject_noise(torch.ones(2, 3), s, seed=torch.tensor([1])))(bad)
        else:
            torch.vmap(lambda p: udml_kernels.modality_dropout([torch.ones(2, 3)] * 2, p, seed=torch.tensor([1])))(bad)


@everywhere
@pytest.mark.parametrize("op", OPS)
def test_make_fx(op, backend):
    """Traced with real, with fake and with symbolic tensors, gradients included, the graph gives the call's bits."""
    case, inputs, names = _setting(op)
    with udml_kernels.use_backend(backend):
        outputs, _ = evaluate(getattr(udml_kernels, op), case, inputs, names)
        given = {**inputs, **incoming_gradients(case, outputs)}
        traced = [name for name, _ in named_tensors(given)]

        def step(*values: Tensor):
            now = mapped(given, lambda n, t: dict(zip(traced, values, strict=True))[n])
            leaves = as_leaves({n: now[n] for n in inputs}, names)
            gradients = {n: v for n, v in now.items() if n not in inputs}
            got, grads = evaluate(getattr(udml_kernels, op), case, leaves, names, gradients)
            return {**{k: v.detach() for k, v in got.items()}, **grads}

        values = [t.detach() for _, t in named_tensors(given)]
        expected = step(*values)
        for mode in ("real", "fake", "symbolic"):
            graph = make_fx(step, tracing_mode=mode)(*values)
            for name, value in graph(*values).items():
                if backend == "reference":
                    torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6, equal_nan=True)
                else:
                    assert same_bits(value, expected[name]), f"{mode}: {name}"


@everywhere
@pytest.mark.parametrize("op", OPS)
def test_fake_tensors(op, backend):
    case, inputs, names = _setting(op)
    with udml_kernels.use_backend(backend):
        real, _ = evaluate(getattr(udml_kernels, op), case, as_leaves(inputs, names), names, None)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            faked = mapped(as_leaves(inputs, names), lambda _, t: mode.from_tensor(t))
            fake, _ = evaluate(getattr(udml_kernels, op), case, faked, names, None)
    for name, value in real.items():
        assert (fake[name].shape, fake[name].stride(), fake[name].dtype) == (value.shape, value.stride(), value.dtype)


@pytest.mark.parametrize("op", OPS)
def test_meta_tensors(op):
    """Served by the reference, forward and backward; nothing asks a meta tensor for a value."""
    case, inputs, names = _setting(op)
    real, _ = evaluate(getattr(udml_kernels, op), case, inputs, names)
    gradients = {n: g.to("meta") for n, g in incoming_gradients(case, real).items()}
    leaves = as_leaves(mapped(inputs, lambda _, t: t.to("meta")), names)
    got, grads = evaluate(getattr(udml_kernels, op), case, leaves, names, gradients)
    for name, value in real.items():
        assert got[name].is_meta and (got[name].shape, got[name].dtype) == (value.shape, value.dtype)
    tensors = dict(named_tensors(inputs))
    for name, value in grads.items():
        assert value.shape == tensors[name.removeprefix("gradient of ")].shape


@everywhere
@pytest.mark.parametrize("op", OPS)
def test_the_default_device_does_not_matter(op, backend):
    """Lists and numbers become tensors on the inputs' device, whatever `torch.set_default_device` says."""
    case, inputs, names = _setting(op)
    results = []
    with udml_kernels.use_backend(backend):
        shapes, _ = evaluate(getattr(udml_kernels, op), case, inputs, names)
        gradients = incoming_gradients(case, shapes)
        for device in (torch.get_default_device(), torch.device("meta")):
            with device:
                results.append(evaluate(getattr(udml_kernels, op), case, as_leaves(inputs, names), names, gradients))
    for one, other in zip(*results, strict=True):
        assert all(same_bits(one[name], other[name]) for name in one)


@pytest.mark.parametrize("transform", ("jvp", "grad", "vmap"))
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_transforms_inside_a_compiled_function(op, transform):
    """What torch.compile traces of a transform is what the transform does eagerly."""
    torch._dynamo.reset()
    inputs, names, stacked = _members(op)
    function = _by_values(op, inputs, names)
    # Clones: torch 2.13 cannot compile the jvp of a primal that is itself a view.
    values = [s[..., 0].clone() for s in stacked]
    transformed, given = {
        "jvp": (
            lambda *v: torch.func.jvp(function, v[: len(values)], v[len(values) :]),
            [*values, *(s.clone() for s in _slopes(values))],
        ),
        "grad": (torch.func.grad(_weighed(function), argnums=tuple(range(len(names)))), values),
        "vmap": (torch.vmap(function, in_dims=-1), stacked),
    }[transform]
    compiled = torch.compile(transformed, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), transformed(*given), rtol=1e-5, atol=1e-6)
