"""torch.compile, torch.export, opcheck and autocast: the ops inside torch's own machinery."""

import contextlib
from unittest import mock

import pytest
import torch
from torch import Tensor

import udml_kernels
from udml_kernels.testing.cases import Case
from udml_kernels.testing.conformance import as_leaves, evaluate, incoming_gradients, same_bits, wanted_inputs
from udml_kernels.testing.draw import Draw, mapped, named_tensors
from udml_kernels.testing.ops import OPS as INFOS

from . import DEVICE
from .backends import BACKENDS, OPS

KERNELS = [b for b in BACKENDS if b != "reference"]


def _case(op: str, which: int = 0) -> Case:
    return Case(op, f"compiled {which}", INFOS[op].compiled[which])


def _captured(op: str, backend: str, dtype: torch.dtype) -> list[tuple]:
    """(overload, arguments) of every kernel that a forward and backward of `op` reaches."""
    calls = []

    def recording(overload):
        def record(*args):
            calls.append((overload, args))
            return overload(*args)

        return record

    case = _case(op)
    inputs = case.inputs(dtype)
    wanted = wanted_inputs(case, inputs)
    with udml_kernels.use_backend(backend):
        function = getattr(udml_kernels, op)
        outputs, _ = evaluate(function, case, inputs, wanted)
        with contextlib.ExitStack() as patches:
            for bound in OPS.values():
                wrapped = {backend: recording(bound.overloads[backend])}
                patches.enter_context(mock.patch.dict(bound.overloads, wrapped))
            evaluate(function, case, as_leaves(inputs, wanted), wanted, incoming_gradients(case, outputs))
    return calls


def _differentiable(overload, args: tuple) -> tuple:
    """The arguments as fresh leaves; those of a forward op require gradients where they are floats."""
    backward = overload._schema.name.endswith("_backward")

    def leaf(name: str, value: Tensor) -> Tensor:
        floats = value.is_floating_point() and not backward and name != "p"
        return value.detach().clone().requires_grad_(floats)

    names = [a.name for a in overload._schema.arguments]
    return tuple(mapped(dict(zip(names, args, strict=True)), leaf).values())


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", INFOS)
def test_opcheck(op, backend):
    calls = _captured(op, backend, torch.float32)
    names = {overload._schema.name.split("::")[1] for overload, _ in calls}
    assert op in names and (f"{op}_backward" in names or f"{op}_backward" not in OPS)
    for overload, args in calls:
        torch.library.opcheck(overload, _differentiable(overload, args))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16), ids=str)
@pytest.mark.parametrize("op", INFOS)
def test_fakes_agree_with_kernels(op, dtype, backend):
    """Shapes, dtypes and strides, of forward and backward, from inputs in other memory orders too."""
    for overload, args in _captured(op, backend, dtype):
        names = [a.name for a in overload._schema.arguments]
        for layout in ("contiguous", "transposed", "channels_last"):
            draw = Draw("fakes", dtype, layout)

            def laid_out(name, value, draw=draw):
                # What a forward kernel keeps for its backward arrives as it left.
                return value if name == "o" else draw.tensor(value.detach(), value.dtype)

            given = mapped(dict(zip(names, args, strict=True)), laid_out)
            with torch.no_grad():
                real = dict(named_tensors({"": overload(*given.values())}))
            with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fake = mapped(given, lambda _, t, m=mode: m.from_tensor(t))
                faked = dict(named_tensors({"": overload(*fake.values())}))
            assert real.keys() == faked.keys()
            for name, value in real.items():
                other = faked[name]
                assert (value.shape, value.stride(), value.dtype) == (other.shape, other.stride(), other.dtype), name


def _both(op: str, which: int, backend: str, function, dtype=torch.float32):
    case = _case(op, which)
    inputs = case.inputs(dtype)
    wanted = wanted_inputs(case, inputs)
    with udml_kernels.use_backend(backend):
        outputs, _ = evaluate(function, case, inputs, wanted)
        return evaluate(function, case, as_leaves(inputs, wanted), wanted, incoming_gradients(case, outputs))


def _assert_same_bits(one: tuple, other: tuple) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert same_bits(a[name], b[name]), name


@pytest.mark.parametrize("compiler", ("aot_eager", "inductor"))
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", INFOS)
def test_compiled_equals_eager(op, backend, compiler):
    """fullgraph, dynamic, forward and backward, bit by bit; other sizes do not recompile."""
    torch._dynamo.reset()
    eager = getattr(udml_kernels, op)
    compiled = torch.compile(eager, backend=compiler, fullgraph=True, dynamic=True)
    _assert_same_bits(_both(op, 0, backend, compiled), _both(op, 0, backend, eager))
    with torch._dynamo.config.patch(error_on_recompile=compiler == "aot_eager"):
        _assert_same_bits(_both(op, 1, backend, compiled), _both(op, 1, backend, eager))


@pytest.mark.parametrize("compiler", ("aot_eager", "inductor"))
@pytest.mark.parametrize("pool", (False, True))
@pytest.mark.parametrize("backend", KERNELS)
def test_compiled_maps_keep_their_layout(backend, pool, compiler):
    torch._dynamo.reset()
    compiled = torch.compile(udml_kernels.reparameterize, backend=compiler, fullgraph=True, dynamic=True)
    draw = Draw("compiled layout", torch.float32, "channels_last")
    for shape in ((4, 5, 7, 9), (6, 3, 5, 11)):
        maps, seed = [draw.normal(*shape).requires_grad_() for _ in range(2)], draw.seed()
        found = []
        for function in (compiled, udml_kernels.reparameterize):
            with udml_kernels.use_backend(backend):
                z, std, kl = function(*maps, pool=pool, seed=seed)
                grads = torch.autograd.grad(z.square().sum() + std.sum() + kl.sum(), maps)
            assert pool or z.stride() == maps[0].stride()
            assert all(grad.stride() == maps[0].stride() for grad in grads)
            found.append((z, std, kl, *grads))
        assert all(same_bits(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("strict", (False, True))
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", INFOS)
def test_exported_equals_eager(op, backend, strict):
    case = _case(op)
    tensors = {k: v for k, v in case.inputs(torch.float32).items() if isinstance(v, (Tensor, list))}
    tensors.pop("shape", None)
    rest = {k: v for k, v in case.inputs(torch.float32).items() if k not in tensors}

    class Module(torch.nn.Module):
        def forward(self, inputs):
            return getattr(udml_kernels, op)(**inputs, **rest)

    with udml_kernels.use_backend(backend), torch.no_grad():
        program = torch.export.export(Module(), (tensors,), strict=strict)
        kernels = [str(node.target) for node in program.graph.nodes if "udml_kernels" in str(node.target)]
        assert kernels == [f"udml_kernels.{op}.{backend}"], "the graph must hold the kernel, not its parts"
        got, expected = program.module()(tensors), Module()(tensors)
    flat = torch.utils._pytree.tree_leaves
    assert all(same_bits(a, b) for a, b in zip(flat(got), flat(expected), strict=True) if isinstance(a, Tensor))


@pytest.mark.parametrize("compiler", ("aot_eager_decomp_partition", "inductor"))
@pytest.mark.parametrize("backend", KERNELS)
def test_a_memory_budget_recomputes_the_same_noise(backend, compiler):
    """The partitioner may run any op a second time in backward: with the seed an input, it sees the same noise."""

    def step(x, logvar, seed):
        noisy = udml_kernels.inject_noise(x.sin(), 0.5, seed=seed)
        z, std, kl = udml_kernels.reparameterize(noisy.tanh(), logvar.cos(), seed=seed)
        kept, _ = udml_kernels.modality_dropout([z.sin(), z.cos()], 0.5, seed=seed, stream=1)
        return (kept[0] * kept[1].exp()).sum() + std.square().sum() + kl.sum()

    def gradients(function):
        draw = Draw("budget", torch.float32)
        leaves = [draw.normal(5, 33).requires_grad_() for _ in range(2)]
        function(*leaves, draw.seed()).backward()
        return [leaf.grad for leaf in leaves]

    torch._dynamo.reset()
    with udml_kernels.use_backend(backend), torch._functorch.config.patch(activation_memory_budget=0.5):
        for got, expected in zip(gradients(torch.compile(step, backend=compiler)), gradients(step), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def _autocast(function):
    """The forward under autocast, as torch asks for it; its backward runs outside."""

    def wrapped(**inputs):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return function(**inputs)

    return wrapped


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize("op", INFOS)
def test_autocast_changes_nothing_for_inputs_of_one_dtype(op, backend):
    """kl, loss, weights and pooled std stay float32, computed as without autocast."""
    for dtype in (torch.float32, torch.bfloat16):
        plain = _both(op, 0, backend, getattr(udml_kernels, op), dtype)
        cast = _both(op, 0, backend, _autocast(getattr(udml_kernels, op)), dtype)
        _assert_same_bits(cast, plain)


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_autocast_promotes_mixed_dtypes(backend):
    low, high = torch.ones(3, 4, dtype=torch.bfloat16), torch.full((3, 4), 0.3)
    seed, s = torch.tensor([1]), torch.ones(3, 2)
    with udml_kernels.use_backend(backend):
        for mixed in ((low, high), (high, low)):
            with pytest.raises(TypeError):
                udml_kernels.reparameterize(*mixed, seed=seed)
            with pytest.raises(TypeError):
                udml_kernels.weighted_fusion(mixed, s)
            with torch.autocast(DEVICE.type, torch.bfloat16):
                z, std, kl = udml_kernels.reparameterize(*mixed, seed=seed)
                fused, weights = udml_kernels.weighted_fusion(mixed, s)
            assert {t.dtype for t in (z, std, kl, fused, weights)} == {torch.float32}
            expected = udml_kernels.reparameterize(*(t.float() for t in mixed), seed=seed)
            assert all(same_bits(a, b) for a, b in zip((z, std, kl), expected, strict=True))
