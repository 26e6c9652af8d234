"""reparameterize(pool=True) against averaging a sampled map: the same law, less varying gradients. Layouts of maps."""

import math
from collections.abc import Sequence

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


KERNELS = [b for b in BACKENDS if b != "reference"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def _map_results(backend: str, formats: Sequence[torch.memory_format], pool: bool) -> tuple[torch.Tensor, ...]:
    """mu, z and the gradients of mu and logvar. The formats are those of mu and logvar."""
    mu, logvar = (torch.randn(3, 5, 4, 2, device=DEVICE).to(memory_format=f).requires_grad_() for f in formats)
    with use_backend(backend):
        z, std, kl = reparameterize(mu, logvar, pool=pool, seed=SEED)
        return mu, z, *torch.autograd.grad(z.square().sum() + std.sum() + kl.sum(), (mu, logvar))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_keep_the_layout_of_the_maps(backend, layout, pool):
    mu, _, *gradients = _map_results(backend, (layout, layout), pool)
    assert all(gradient.stride() == mu.stride() for gradient in gradients)


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_sampled_map_keeps_the_layout_of_the_maps(backend, layout):
    mu, z, *_ = _map_results(backend, (layout, layout), pool=False)
    assert z.stride() == mu.stride()


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("formats", [LAYOUTS, LAYOUTS[::-1]], ids=str)
def test_maps_of_two_layouts_give_contiguous_results(backend, formats, pool):
    _, *results = _map_results(backend, formats, pool)
    assert all(result.is_contiguous() for result in results)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("locations", [(3, 3), (5, 140)])
def test_the_layout_changes_no_noise_and_the_batch_no_sample(backend, locations):
    """z bit by bit; std, kl and the gradients of samples with the channels last, on their own or in a batch."""
    contiguous = [torch.randn(3, 21, *locations, device=DEVICE) for _ in range(2)]
    last = [t.to(memory_format=torch.channels_last) for t in contiguous]

    def results(mu, logvar, ids):
        leaves = [t.detach().requires_grad_() for t in (mu, logvar)]
        with use_backend(backend):
            z, std, kl = reparameterize(*leaves, seed=SEED, sample_ids=torch.tensor(ids, device=DEVICE))
            return z, std, kl, *torch.autograd.grad(z.square().sum() + std.square().sum() + kl.sum(), leaves)

    whole = results(*last, [4, 5, 6])
    assert torch.equal(whole[0], results(*contiguous, [4, 5, 6])[0])
    for i in range(3):
        alone = results(*(t[i : i + 1] for t in last), [4 + i])
        assert all(torch.equal(one, other[i : i + 1]) for one, other in zip(alone, whole, strict=True))
