"""reparameterize(pool=True) against averaging a sampled map: the same law, and gradients that vary less."""

import math

import pytest
import torch

from udml_kernels import reparameterize, use_backend

from . import DEVICE
from .backends import BACKENDS, draws

SEED = torch.tensor([77], device=DEVICE)
# One channel: 6 locations of unequal mean and std.
MU = torch.tensor([-1.0, 0.0, 0.5, 2.0, 3.0, 0.25])
LOGVAR = torch.tensor([-2.0, 0.0, 1.0, 2.0, -6.0, 0.5])

# Kolmogorov's distribution: D sqrt(n) exceeds 1.95 with probability 1e-3. The seed is fixed: this cannot flake.
KS_LIMIT = 1.95


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two empirical distribution functions."""
    both = torch.cat((one, other))
    functions = [torch.searchsorted(x.sort().values, both, right=True).double() / len(x) for x in (one, other)]
    return float((functions[0] - functions[1]).abs().max())


def _samples(backend: str, count: int, pool: bool, gradient: bool = False):
    """`count` samples of the channel's mean; with `gradient` also those of its square, to mu and logvar."""
    mu, logvar = (t.to(DEVICE).expand(count, 1, -1).contiguous().requires_grad_(gradient) for t in (MU, LOGVAR))
    with use_backend(backend):
        z, _, _ = reparameterize(mu, logvar, pool=pool, seed=SEED)
        z = z if pool else z.mean(2)
        if not gradient:
            return z.flatten().double()
        return tuple(g.squeeze(1).double() for g in torch.autograd.grad(z.square().sum(), (mu, logvar)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_law_is_that_of_the_pooled_map(backend):
    count = draws(backend, 400_000)
    z = _samples(backend, count, pool=True)
    mean, std = float(MU.mean()), float(LOGVAR.exp().sum().sqrt()) / len(MU)
    standardized = ((z - mean) / std).cpu()
    assert abs(float(standardized.mean())) < 4.5 / math.sqrt(count)
    assert abs(float(standardized.var()) - 1) < 4.5 * math.sqrt(2 / count)
    steps = torch.arange(count + 1).double() / count
    law = torch.special.ndtr(standardized.sort().values)
    assert float(torch.maximum(law - steps[:-1], steps[1:] - law).max()) * math.sqrt(count) < KS_LIMIT
    assert _distance(z, _samples(backend, count, pool=False)) * math.sqrt(count / 2) < KS_LIMIT


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_have_the_same_mean_and_no_larger_variance(backend):
    count = draws(backend, 400_000)
    pooled, of_map = (_samples(backend, count, pool, gradient=True) for pool in (True, False))
    for one, other in zip(pooled, of_map, strict=True):
        error = ((one.var(0) + other.var(0)) / count).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() < 4.5 * error).all()
        # A twentieth for the error of the two variances: where they are equal, a ratio of 1 is expected.
        assert (one.var(0) <= 1.05 * other.var(0)).all()
    # The variance of logvar's gradient falls to about a location's share of the variance of z.
    share = LOGVAR.exp() / LOGVAR.exp().sum()
    assert (pooled[1].var(0) < 1.5 * share.to(DEVICE) * of_map[1].var(0)).all()


def _map_results(backend: str, formats: tuple[torch.memory_format, ...], pool: bool) -> list[torch.Tensor]:
    """mu, its gradient, that of logvar and, if it is a map, z. The formats are those of mu and logvar."""
    mu, logvar = (torch.randn(3, 5, 4, 2, device=DEVICE).to(memory_format=f).requires_grad_() for f in formats)
    with use_backend(backend):
        z, std, kl = reparameterize(mu, logvar, pool=pool, seed=SEED)
        grads = torch.autograd.grad(z.square().sum() + std.sum() + kl.sum(), (mu, logvar))
    return [mu, *grads] if pool else [mu, *grads, z]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_results_keep_the_layout_of_the_maps(backend, layout, pool):
    mu, *results = _map_results(backend, (layout, layout), pool)
    for result in results:
        assert result.stride() == mu.stride()


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("pool", [False, True])
def test_maps_of_two_layouts_give_contiguous_results(backend, pool):
    formats = (torch.contiguous_format, torch.channels_last)
    for given in (formats, formats[::-1]):
        assert all(result.is_contiguous() for result in _map_results(backend, given, pool)[1:])
