"""Lists of modalities: bit for bit the results of a call for each, in one node of autograd; and their errors."""

import re

import pytest
import torch

import udml_kernels
from udml_kernels import inject_noise, modality_dropout, noise_regression, reparameterize, use_backend

from . import DEVICE
from .backends import BACKENDS

SEED = torch.tensor([2026], device=DEVICE)
SHAPES = ((4, 3, 5), (4, 6, 2, 2), (4, 7, 1))


def _maps(key: int = 0, gradient: bool = True) -> list[torch.Tensor]:
    draw = torch.Generator(DEVICE).manual_seed(key)
    return [torch.randn(s, generator=draw, device=DEVICE).requires_grad_(gradient) for s in SHAPES]


def _equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pool", [False, True])
def test_reparameterize(backend, pool):
    mu, logvar, prior_var = _maps(), _maps(1), torch.rand(4, 3, device=DEVICE) + 0.5
    prior_var.requires_grad_()
    with use_backend(backend):
        z, std, kl = reparameterize(mu, logvar, prior_var, pool=pool, seed=SEED, stream=5)
        calls = [
            reparameterize(a, b, prior_var[:, m], pool=pool, seed=SEED, stream=5 + m)
            for m, (a, b) in enumerate(zip(mu, logvar, strict=True))
        ]
        assert _equal((*z, *std, *kl.unbind(1)), [result for i in range(3) for result in [c[i] for c in calls]])
        inputs = (*mu, *logvar, prior_var)
        together = torch.autograd.grad([t.square().sum() for t in (*z, *std, kl)], inputs)
        alone = torch.autograd.grad([t.square().sum() for call in calls for t in call], inputs)
    assert _equal(together, alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inject_noise(backend):
    x, sigma = _maps(), torch.rand(4, 3, device=DEVICE, requires_grad=True)
    kinds = torch.tensor([[0, 1, 2], [3, 4, 5], [5, 4, 3], [2, 1, 0]], device=DEVICE)
    clamps = [(-1.0, 1.0), (0.0, 2.0), (-0.5, 0.5)]
    with use_backend(backend):
        noisy = inject_noise(x, sigma, kind=kinds, clamp=clamps, seed=SEED)
        alone = [
            inject_noise(a, sigma[:, m], kind=kinds[:, m], clamp=clamps[m], seed=SEED, stream=m)
            for m, a in enumerate(x)
        ]
        assert _equal(noisy, alone)
        gradients = [torch.autograd.grad([t.square().sum() for t in ts], (*x, sigma)) for ts in (noisy, alone)]
    assert _equal(*gradients)


def _weights(modalities: int, features: int) -> list[torch.Tensor]:
    shapes = ((modalities, 5, features), (modalities, 5), (modalities, 1, 5), (modalities, 1))
    return [torch.randn(s, device=DEVICE) for s in shapes]


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_regression_and_the_mask_alone(backend):
    std = [torch.rand(4, 6, device=DEVICE) for _ in range(3)]
    weights = _weights(3, 6)
    with use_backend(backend):
        assert torch.equal(noise_regression(std, *weights)[0], noise_regression(torch.stack(std), *weights)[0])
        options = {"p": 0.6, "seed": SEED, "stream": 2}
        assert torch.equal(modality_dropout(std, mask_only=True, **options), modality_dropout(std, **options)[1])


def test_one_node_serves_all_modalities():
    """A call for each would add a node for each; and a gradient that is not wanted is not computed."""
    mu, logvar = _maps(), _maps(1)
    logvar[1].requires_grad_(False)
    z, _, _ = reparameterize(mu, logvar, seed=SEED)
    assert len({t.grad_fn for t in z}) == 1
    z[0].sum().backward()
    assert mu[0].grad is not None and mu[1].grad is None and logvar[1].grad is None


@pytest.mark.parametrize("transform", ["compile", "vmap", "func", "jvp"])
def test_transforms(transform):
    mu, logvar = _maps(gradient=False), _maps(1, gradient=False)

    def total(*maps):
        return sum(t.square().sum() for t in reparameterize(maps[:3], maps[3:], pool=True, seed=SEED)[0])

    plain = torch.func.grad(total)(*mu, *logvar)
    if transform == "compile":
        compiled = torch.compile(total, fullgraph=True, dynamic=True)
        torch.testing.assert_close(compiled(*mu, *logvar), total(*mu, *logvar))
    elif transform == "vmap":
        pairs = [torch.stack((t, 2 * t)) for t in (*mu, *logvar)]
        looped = torch.stack([total(*[p[i] for p in pairs]) for i in range(2)])
        torch.testing.assert_close(torch.vmap(total)(*pairs), looped)
    elif transform == "func":
        leaves = [t.clone().requires_grad_() for t in (*mu, *logvar)]
        torch.testing.assert_close(torch.autograd.grad(total(*leaves), leaves)[0], plain)
    else:
        tangents = tuple(torch.ones_like(t) if i == 0 else torch.zeros_like(t) for i, t in enumerate((*mu, *logvar)))
        _, tangent = torch.func.jvp(total, (*mu, *logvar), tangents)
        torch.testing.assert_close(tangent, plain.sum())


MU, LOGVAR = (_maps(key, gradient=False) for key in (0, 1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: reparameterize(MU, LOGVAR[0]), TypeError, "logvar: expected a list of tensors, as mu is, got Tensor"),
        (lambda: reparameterize(MU, LOGVAR[:2]), ValueError, "logvar: expected 3 tensors, as mu has, got 2"),
        (lambda: reparameterize([], []), ValueError, "mu: expected 1 to 16 tensors, one a modality, got 0"),
        (
            lambda: reparameterize(MU[:1] * 17, LOGVAR),
            ValueError,
            "mu: expected 1 to 16 tensors, one a modality, got 17",
        ),
        (
            lambda: reparameterize([MU[0], MU[1].double()], LOGVAR[:2]),
            TypeError,
            "mu[1]: expected the dtype of mu[0], torch.float32, got torch.float64",
        ),
        (
            lambda: reparameterize([MU[0], MU[1][:2]], LOGVAR[:2]),
            ValueError,
            "mu[1]: expected a batch of 4, as mu[0] has, got shape (2, 6, 2, 2)",
        ),
        (
            lambda: reparameterize(MU[:2], [LOGVAR[0], LOGVAR[1].to("meta")]),
            ValueError,
            "logvar[1]: expected a tensor on cpu, got one on meta",
        ),
        (
            lambda: reparameterize(MU[:2], [LOGVAR[0], LOGVAR[1][:, :2]]),
            ValueError,
            "logvar[1]: expected shape (4, 6, 2, 2), got shape (4, 2, 2, 2)",
        ),
        (
            lambda: reparameterize(MU, LOGVAR, torch.ones(4, 2)),
            ValueError,
            "prior_var: expected a number, (4,) or (4, 3), got shape (4, 2)",
        ),
        (
            lambda: reparameterize(MU, LOGVAR, torch.tensor([[1.0, 1, 0]] * 4)),
            ValueError,
            "prior_var: expected positive variances (in float32 at least 1.2e-38), got 0.0 among its values",
        ),
        (
            lambda: inject_noise(MU, torch.ones(3, 3)),
            ValueError,
            "sigma: expected a number, (4,) or (4, 3), got shape (3, 3)",
        ),
        (lambda: inject_noise([MU[0], 3], 1.0), TypeError, "x[1]: expected a tensor, got int"),
        (
            lambda: inject_noise(MU, 1.0, clamp=[(0, 1), None, (3, 2)]),
            ValueError,
            "clamp[1]: expected a number of at least clamp[0], got 2.0",
        ),
        (
            lambda: noise_regression([MU[0][..., 0], MU[1][..., 0, 0]], *[torch.ones(1)] * 4),
            ValueError,
            "std[1]: expected shape (4, 3), got shape (4, 6)",
        ),
        (
            lambda: noise_regression([MU[0]] * 2, *_weights(2, 3), target=torch.ones(2, 4)),
            ValueError,
            "target: expected shape (2, 4, 1, 5) or (2, 4, 5), got shape (2, 4)",
        ),
        (
            lambda: noise_regression([MU[0]] * 2, *_weights(2, 4)),
            ValueError,
            "weight1: expected shape (2, H, 3), as std has it, got shape (2, 5, 4)",
        ),
        (
            lambda: noise_regression([MU[0]], *_weights(1, 3), sample_ids=torch.arange(20)),
            ValueError,
            "sample_ids: expected shape (4,), got shape (20,)",
        ),
    ],
)
@pytest.mark.skipif(DEVICE.type != "cpu", reason="the messages name the CPU")
def test_errors(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_the_reference_takes_lists_too():
    for function, args in ((inject_noise, (MU, 0.5)), (reparameterize, (MU, LOGVAR, torch.full((4, 3), 2.0)))):
        got = getattr(udml_kernels.reference, function.__name__)(*args, seed=SEED.cpu())
        expected = function(*args, seed=SEED.cpu())
        torch.testing.assert_close(list(got), list(expected))
