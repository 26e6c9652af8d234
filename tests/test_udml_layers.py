"""The layers against the same thing written in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from udml import (
    UDML,
    ConvEncoder,
    LossWeights,
    ModalityDependency,
    NoiseEstimator,
    NoiseInjector,
    ProbabilisticHead,
    UncertaintyWeighting,
    udml_loss,
)

import udml_kernels

BATCH, WIDTH = 5, 6
IDS = torch.tensor([7, 3, 40, 0, 12])


@pytest.fixture
def seed():
    torch.manual_seed(0)
    return torch.tensor([1234])


def test_noise_injector(seed):
    inputs = [torch.randn(BATCH, 3, 8), torch.randn(BATCH, 2, 9)]
    sigma = torch.rand(BATCH, 2)
    noisy = NoiseInjector(unit=0.5)(inputs, sigma, seed=seed, sample_ids=IDS)
    for m, (x, y) in enumerate(zip(inputs, noisy, strict=True)):
        eps = udml_kernels.normal(x.shape, seed, stream=1 + 256 * m, sample_ids=IDS)
        torch.testing.assert_close(y, x + 0.5 * sigma[:, m].reshape(-1, 1, 1) * eps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spatial", [(), (4,), (4, 3)])
def test_probabilistic_head(spatial, seed):
    head = ProbabilisticHead(WIDTH, 4, spatial_dims=len(spatial)).train()
    x, prior = torch.randn(BATCH, WIDTH, *spatial), torch.rand(BATCH) + 0.5
    z, std, kl = head(x, prior, seed=seed, stream=1, sample_ids=IDS)
    mu, logvar = head.mu(x), head.logvar(x)
    eps = udml_kernels.normal(mu.shape, seed, stream=2 + 256, sample_ids=IDS)
    expected_std = (logvar / 2).exp()
    torch.testing.assert_close(z, mu + expected_std * eps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, expected_std.reshape(BATCH, 4, -1).mean(2), rtol=1e-5, atol=1e-6)
    p = prior.reshape(-1, *[1] * (1 + len(spatial)))
    terms = 0.5 * (expected_std**2 / p + mu**2 / p - (expected_std**2 / p).log() - 1)
    torch.testing.assert_close(kl, terms.flatten(1).sum(1), rtol=1e-4, atol=1e-4)
    head.eval()
    torch.testing.assert_close(head(x, prior)[0], head.mu(x))


def test_noise_estimator_loads_its_twin():
    twin = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.1), nn.Linear(8, 1)) for _ in range(3)).eval()
    estimator = NoiseEstimator(3, WIDTH, hidden=8).eval()
    estimator.load_state_dict(twin.state_dict())
    stds, sigma = [torch.rand(BATCH, WIDTH, requires_grad=True) for _ in range(3)], torch.rand(BATCH, 3)
    noise, loss = estimator(stds, sigma)
    expected = torch.cat([(net(s) / 2).exp() for net, s in zip(twin, stds, strict=True)], 1)
    torch.testing.assert_close(noise, expected)
    torch.testing.assert_close(loss, F.mse_loss(expected, sigma))
    loss.backward()
    assert stds[0].grad is None, "the estimator's input is detached"
    NoiseEstimator(3, WIDTH, hidden=8).load_state_dict(estimator.state_dict())


def test_dependency_is_a_running_mean_in_the_state_dict():
    dependency = ModalityDependency(2, momentum=0.75)
    first, second = torch.randn(2, BATCH, 4), torch.randn(2, BATCH, 4)
    alpha = [logits.abs().sum(2).mean(1) for logits in (first, second)]
    torch.testing.assert_close(dependency(first), alpha[0])
    moved = 0.75 * alpha[0] + 0.25 * alpha[1]
    torch.testing.assert_close(dependency(second), moved)
    dependency.eval()
    torch.testing.assert_close(dependency(100 * first), moved)
    reloaded = ModalityDependency(2).eval()
    reloaded.load_state_dict(dependency.state_dict())
    torch.testing.assert_close(reloaded(first), moved)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_uncertainty_weighting(temperature):
    features = [torch.randn(BATCH, 4), torch.randn(BATCH, 3)]
    noise, alpha = torch.rand(BATCH, 2) * 5, torch.tensor([2.0, 3.0])
    fused, weights = UncertaintyWeighting(temperature=temperature, floor=0.5)(features, noise, alpha)
    inverse = (1 / ((noise**2 + 0.25) * alpha)) ** (1 / temperature)
    expected = 2 * inverse / inverse.sum(1, keepdim=True)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(fused, torch.cat([expected[:, :1] * features[0], expected[:, 1:] * features[1]], 1))
    fused, weights = UncertaintyWeighting()(features, None, alpha)
    torch.testing.assert_close(weights, torch.ones(BATCH, 2))
    torch.testing.assert_close(fused, torch.cat(features, 1))


def test_unimodal_logits_are_the_head_with_the_others_zeroed():
    model = UDML({"a": ConvEncoder(3, 8), "b": ConvEncoder(2, 8)}, 5, width=8)
    a, b = torch.randn(BATCH, 8), torch.randn(BATCH, 8)
    expected = [model.classifier(torch.cat(pair, 1)) for pair in ((a, 0 * b), (0 * a, b))]
    torch.testing.assert_close(model.unimodal_logits([a, b]), torch.stack(expected))


def test_loss():
    logits, unimodal, kl = torch.randn(BATCH, 4), torch.randn(2, BATCH, 4), torch.rand(BATCH)
    target, noise_loss = torch.tensor([0, 1, 2, 3, 0]), torch.tensor(0.7)
    loss = udml_loss(logits, unimodal, kl, noise_loss, target, LossWeights(unimodal=0.5, kl=0.01, noise=0.1))
    alone = sum(F.cross_entropy(u, target) for u in unimodal)
    expected = F.cross_entropy(logits, target) + 0.5 * alone + 0.01 * kl.mean() + 0.1 * noise_loss
    torch.testing.assert_close(loss, expected)
    infinite = torch.full_like(kl, torch.inf)
    assert udml_loss(logits, unimodal, infinite, None, target, LossWeights(kl=0)).isfinite()
