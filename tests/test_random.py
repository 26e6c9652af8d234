"""The randomness contract: the noise of a sample depends on (seed, stream, sample id, element) alone."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import udml_kernels
from udml_kernels import draw_seed, normal, reference, uniform, use_backend
from udml_kernels.reference.random import OP_IDS, philox
from udml_kernels.testing.cases import CASES, Case
from udml_kernels.testing.conformance import as_leaves, evaluate, incoming_gradients, same_bits, wanted_inputs
from udml_kernels.testing.ops import OPS
from udml_kernels.testing.ops.random import KNOWN_ANSWERS

from . import DEVICE
from .backends import BACKENDS
from .tolerances import normal_bound

EVERY = (*BACKENDS, "reference")
SEEDS = (0, 1, -1, 2**63 - 1, -(2**63), 0x9E3779B97F4A7C15 - 2**64)


def _seed(value: int) -> torch.Tensor:
    return torch.tensor([value])


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter, key, words):
    result = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(map(int, result)) == words


@pytest.mark.parametrize("backend", EVERY)
def test_known_answers_through_the_public_function(backend):
    """The first one; the others' block words are out of reach of a tensor that fits in memory."""
    with use_backend(backend):
        got = uniform((1, 4), _seed(0))
    words = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], dtype=torch.float64)
    assert torch.equal(got[0].double(), (words / 256).floor() * 2.0**-24)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stream", (0, 1, 2**31, 2**32 - 1))
def test_noise_is_the_references(backend, seed, stream):
    ids = torch.tensor([0, 1, -1, 2**32, 2**32 + 1, 2**63 - 1, -(2**63), 5])
    arguments = {"stream": stream, "sample_ids": ids}
    for shape in ((8, 1), (8, 3, 37)):
        with use_backend(backend):
            u, n = uniform(shape, _seed(seed), **arguments), normal(shape, _seed(seed), **arguments)
        assert torch.equal(u, reference.uniform(shape, _seed(seed), **arguments))
        exact = reference.normal(shape, _seed(seed), **arguments, dtype=torch.float64)
        assert ((n - exact).abs() <= normal_bound(backend) * exact.abs().clamp(min=1)).all()


@pytest.mark.parametrize("backend", EVERY)
def test_noise_dtypes(backend):
    with use_backend(backend):
        single, double = (normal((3, 257), _seed(4), dtype=d) for d in (torch.float32, torch.float64))
        for dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(normal((3, 257), _seed(4), dtype=dtype), single.to(dtype))
            # Rounded down: not above the float32 value, which is below the next number of the dtype.
            exact, narrow = uniform((3, 257), _seed(4)), uniform((3, 257), _seed(4), dtype=dtype)
            following = (narrow.view(torch.int16) + 1).view(dtype)
            assert bool((narrow.float() <= exact).all()) and bool((exact < following.float()).all())
        assert torch.equal(uniform((3, 257), _seed(4)).double(), uniform((3, 257), _seed(4), dtype=torch.float64))
    assert (single - double).abs().max() < 1e-5
    assert not torch.equal(single.double(), double)


@pytest.mark.parametrize("backend", EVERY)
def test_seeds_streams_samples_and_elements_differ(backend):
    with use_backend(backend):
        ids = torch.tensor([0, 1, -1, 2**32, 2**32 + 1, -(2**63), 5, 6])
        rows = [
            uniform((8, 64), _seed(seed), stream=stream, sample_ids=ids)
            for seed in SEEDS
            for stream in (0, 1, 256, 2**31)
        ]
    everything = torch.cat(rows).flatten()
    # 24-bit values: collisions happen by chance, 8.9 expected among these 12,288.
    expected = len(everything) ** 2 / 2**25
    assert len(everything) - len(everything.unique()) < expected + 5 * expected**0.5


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("values", (normal, uniform))
def test_sample_ids_order_and_splits(backend, values):
    with use_backend(backend):
        whole = values((37, 5, 13), _seed(9))
        order = torch.randperm(37, generator=torch.Generator(DEVICE).manual_seed(0))
        assert torch.equal(values((37, 5, 13), _seed(9), sample_ids=order), whole[order])
        for start, stop in ((0, 1), (1, 4), (4, 36), (36, 37)):
            part = values((stop - start, 5, 13), _seed(9), sample_ids=torch.arange(start, stop))
            assert torch.equal(part, whole[start:stop])
        # A longer sample begins with the shorter one: elements are counted, not blocks of work.
        assert torch.equal(values((37, 1000), _seed(9))[:, :65], whole.flatten(1))


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("stream", (0, 1, 2**24 - 1))
def test_ops_use_op_id_plus_256_stream(backend, stream):
    shape, seed, ids = (5, 3, 7), _seed(-3), torch.tensor([3, -1, 2**40, 8, 9])
    arguments = {"seed": seed, "stream": stream, "sample_ids": ids}
    zeros = torch.zeros(shape)

    def word(op: str) -> dict:
        return {"seed": seed, "stream": OP_IDS[op] + 256 * stream, "sample_ids": ids}

    with use_backend(backend):
        assert torch.equal(udml_kernels.inject_noise(zeros, 1.0, **arguments), normal(shape, **word("inject_noise")))
        z, _, _ = udml_kernels.reparameterize(zeros, zeros, **arguments)
        assert torch.equal(z, normal(shape, **word("reparameterize")))
        kept = udml_kernels.modality_dropout([zeros] * 16, 0.5, keep_one=False, **arguments)[1]
        assert torch.equal(kept, uniform((5, 16), **word("modality_dropout")) >= 0.5)
        # One input, unit weights: every hidden unit is 1, and the sum counts those that dropout kept.
        ones = torch.ones(9, 1)
        noise, _ = udml_kernels.noise_regression(
            torch.ones(5, 1), ones, torch.zeros(9), ones.mT / 4, torch.zeros(1), dropout_p=0.5, **arguments
        )
        count = (uniform((5, 9), **word("noise_regression")) >= 0.5).sum(1, keepdim=True)
        torch.testing.assert_close(noise, (count / 4).exp())


def test_draw_seed_obeys_torchs_generators():
    torch.manual_seed(7)
    first, second = draw_seed(), draw_seed()
    torch.manual_seed(7)
    assert torch.equal(draw_seed(), first)
    assert not torch.equal(first, second)
    assert first.dtype == torch.int64 and first.shape == (1,)
    generators = [torch.Generator().manual_seed(11) for _ in range(2)]
    assert torch.equal(draw_seed(generator=generators[0]), draw_seed(generator=generators[1]))
    many = torch.cat([draw_seed() for _ in range(64)])
    assert len(many.unique()) == 64 and many.abs().max() > 2**55, "the seed does not use its 64 bits"


def test_an_op_without_seed_draws_one():
    x = torch.zeros(3, 4)
    torch.manual_seed(1)
    first, second = udml_kernels.inject_noise(x, 1.0), udml_kernels.inject_noise(x, 1.0)
    torch.manual_seed(1)
    assert torch.equal(udml_kernels.inject_noise(x, 1.0), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if "threads" in c.name], ids=str)
def test_thread_count_changes_no_bit(case, dtype, backend):
    inputs = case.inputs(dtype)
    wanted = wanted_inputs(case, inputs)
    results, before = [], torch.get_num_threads()
    try:
        with use_backend(backend):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                leaves = as_leaves(inputs, wanted)
                outputs, _ = evaluate(getattr(udml_kernels, case.op), case, leaves, wanted)
                gradients = incoming_gradients(case, outputs)
                results.append(evaluate(getattr(udml_kernels, case.op), case, leaves, wanted, gradients))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            for name in one:
                assert same_bits(one[name], two[name]), name


ROWS = {op: info.by_sample for op, info in OPS.items() if info.by_sample}


def _part(inputs: dict, names: tuple[str, ...], rows: slice) -> dict:
    def cut(value):
        return [v[rows] for v in value] if isinstance(value, list) else value[rows]

    part = {name: cut(value) if name in names else value for name, value in inputs.items()}
    return part | ({"sample_ids": torch.arange(rows.start, rows.stop)} if "sample_ids" in part else {})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ROWS)
def test_batch_splits_change_no_bit(op, backend):
    options, names = ROWS[op]
    case = Case(op, "batch split", options)
    inputs = case.inputs(torch.float32)
    wanted = [n for n in wanted_inputs(case, inputs) if n.split("[")[0] in names]
    function = getattr(udml_kernels, op)
    with use_backend(backend):
        shapes, _ = evaluate(function, case, inputs, wanted)
        gradients = incoming_gradients(case, {k: v for k, v in shapes.items() if v.dim()})
        whole = evaluate(function, case, as_leaves(inputs, wanted), wanted, gradients)
        for start, stop in ((0, 1), (1, 9), (9, 21)):
            rows = slice(start, stop)
            leaves = as_leaves(_part(inputs, names, rows), wanted)
            part = evaluate(function, case, leaves, wanted, {k: g[rows] for k, g in gradients.items()})
            for one, two in zip(part, whole, strict=True):
                for name in one:
                    assert same_bits(one[name], two[name][rows].contiguous()), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reentrant", (False, True))
@pytest.mark.parametrize("seed_inside", (False, True))
def test_a_recomputed_checkpoint_sees_the_same_noise(backend, reentrant, seed_inside):
    def step(mu, logvar, seed):
        seed = draw_seed(DEVICE) if seed_inside else seed
        noisy = udml_kernels.inject_noise(mu, 0.5, kind="speckle", seed=seed)
        z, std, kl = udml_kernels.reparameterize(noisy, logvar, seed=seed, stream=1)
        (kept, _), _ = udml_kernels.modality_dropout([z, z.sin()], 0.5, seed=seed)
        return (kept.square().sum() + std.sum() + kl.sum()).reshape(1)

    results = []
    with use_backend(backend):
        for wrap in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=reentrant)):
            torch.manual_seed(3)
            draw = torch.Generator(DEVICE).manual_seed(1)
            mu, logvar = (torch.randn(5, 3, 7, generator=draw).requires_grad_() for _ in range(2))
            wrap(step, mu, logvar, _seed(8)).sum().backward()
            results.append((mu.grad, logvar.grad))
    assert same_bits(results[0][0], results[1][0]) and same_bits(results[0][1], results[1][1])
