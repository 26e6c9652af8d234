"""The layers against the same thing written in plain PyTorch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from udml.layers import (
    InputGuard,
    ModalityDependency,
    ModalityDropout,
    Noise,
    NoiseEstimator,
    NoiseInjector,
    NoiseTypeClassifier,
    ProbabilisticHead,
    SyncBatchNorm,
    UncertaintyWeighting,
    sync_batchnorm,
)
from udml.losses import LossWeights, udml_loss

import udml_kernels

BATCH, WIDTH = 5, 6
IDS = torch.tensor([7, 3, 40, 0, 12])


@pytest.fixture
def seed():
    torch.manual_seed(0)
    return torch.tensor([1234])


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


class PlainHead(nn.Module):
    def __init__(self, layer, norm):
        super().__init__()
        self.mu, self.logvar = ((nn.Sequential(layer(), norm()) if norm else layer()) for _ in range(2))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, None])
def test_probabilistic_head_loads_its_twin(norm):
    twin = PlainHead(lambda: nn.Conv2d(WIDTH, 4, 1), norm and (lambda: norm(4)))
    x = torch.randn(BATCH, WIDTH, 3, 2)
    for branch in (twin.mu, twin.logvar):
        branch(x)
    head = ProbabilisticHead(WIDTH, 4, spatial_dims=2, batch_norm=norm is not None)
    head.load_state_dict(twin.state_dict())
    for ours, theirs in zip(head.eval().distribution(x), (twin.eval().mu(x), twin.logvar(x)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_standard_deviation_has_a_limit(seed):
    head = ProbabilisticHead(WIDTH, 4, batch_norm=False, std_max=0.7)
    x = 10 * torch.randn(BATCH, WIDTH)
    expected = (head.logvar(x) / 2).exp().clamp(max=0.7)
    torch.testing.assert_close(head(x, seed=seed)[1], expected)
    assert bool((expected == 0.7).any() and (expected < 0.7).any())


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


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU])
def test_noise_estimator_loads_its_twin_with_an_activation(activation):
    twin = nn.Sequential(nn.Linear(WIDTH, 8), activation(), nn.Dropout(0.1), nn.Linear(8, 1)).eval()
    estimator = NoiseEstimator(1, WIDTH, hidden=8, activation=activation.__name__.lower())
    estimator.load_state_dict(nn.ModuleList([twin]).state_dict())
    std = torch.rand(BATCH, WIDTH)
    torch.testing.assert_close(estimator([std])[0], (twin(std) / 2).exp())


def test_noise_of_each_location(seed):
    estimator = NoiseEstimator(2, WIDTH, hidden=8, activation="gelu").eval()
    stds, sigma = [torch.rand(BATCH, WIDTH, 3, 2) for _ in range(2)], torch.rand(BATCH, 2)
    noise, loss = estimator(stds, sigma)
    assert noise.shape == (BATCH, 2, 3, 2)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(noise[..., i, j], estimator([s[..., i, j] for s in stds])[0])
    torch.testing.assert_close(loss, (noise - sigma[..., None, None]).square().mean())
    torch.testing.assert_close(estimator(stds, noise)[1], torch.tensor(0.0))
    estimator.train().dropout_p = 0.5
    whole = estimator(stds, seed=seed, sample_ids=IDS)[0]
    same = estimator([torch.ones_like(s) for s in stds], seed=seed, sample_ids=IDS)[0]
    assert len(same.unique()) > BATCH * 6, "each sample and location has dropout of its own"
    part = estimator([s[2:] for s in stds], seed=seed, sample_ids=IDS[2:])[0]
    torch.testing.assert_close(part, whole[2:], msg="the same samples in another batch")


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


def test_dependency_of_missing_modalities_locations_and_samples():
    logits = torch.randn(3, BATCH, 4, 3, 2)
    present = torch.rand(BATCH, 3) < 0.5
    present[:, 2] = False
    present[:2, :2] = torch.eye(2, dtype=torch.bool)
    own = logits.abs().sum(2).mean((2, 3)).mT
    logits[~present.mT] = torch.nan
    expected = torch.stack([own[present[:, m], m].mean() for m in range(2)])
    dependency = ModalityDependency(3, momentum=0.75)
    alpha = dependency(logits, present)
    torch.testing.assert_close(alpha[:2], expected)
    assert alpha[2] == 1, "never seen"
    later = torch.randn(3, BATCH, 4)
    moved = dependency(later)
    torch.testing.assert_close(moved[:2], 0.75 * expected + 0.25 * later.abs().sum(2).mean(1)[:2])
    torch.testing.assert_close(moved[2], later.abs().sum(2).mean(1)[2], msg="its first batch sets it")
    samples = ModalityDependency(3, per_sample=True)
    alpha = samples(logits, present)
    torch.testing.assert_close(alpha, torch.where(present, own, samples.alpha))
    torch.testing.assert_close(samples.alpha[:2], expected)
    torch.testing.assert_close(samples.eval()(later), later.abs().sum(2).mT)


def test_dependency_of_the_last_batch_alone_from_a_start():
    dependency = ModalityDependency(2, momentum=0, initial=(32.0, 10.0), persistent=False)
    assert not dependency.state_dict()
    torch.testing.assert_close(dependency.eval()(torch.zeros(2, 1, 3)), torch.tensor([32.0, 10.0]))
    for _ in range(2):
        logits = torch.randn(2, BATCH, 3)
        torch.testing.assert_close(dependency.train()(logits), logits.abs().sum(2).mean(1))
    moved = ModalityDependency(2, momentum=0.5, initial=4.0)(torch.zeros(2, 1, 3))
    torch.testing.assert_close(moved, torch.tensor([2.0, 2.0]))


def test_dependency_is_never_zero():
    assert bool((ModalityDependency(2)(torch.zeros(2, BATCH, 3)) > 0).all())
    assert bool((ModalityDependency(2, per_sample=True)(torch.zeros(2, BATCH, 3)) > 0).all())


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


def test_weights_alone_and_of_missing_modalities():
    weighting = UncertaintyWeighting(mode="sum")
    features, noise, alpha = [torch.randn(BATCH, 4, 3) for _ in range(3)], torch.rand(BATCH, 3), torch.rand(BATCH, 3)
    mask = torch.tensor([[True, False, True]] * BATCH)
    features[1].fill_(torch.nan)
    fused, weights = weighting(features, noise, alpha, mask=mask)
    torch.testing.assert_close(weighting.weights(noise, alpha, mask), weights)
    alone = UncertaintyWeighting().weights(noise[:, ::2], alpha[:, ::2])
    torch.testing.assert_close(weights, torch.stack((alone[:, 0], torch.zeros(BATCH), alone[:, 1]), 1))
    expected = alone[:, 0, None, None] * features[0] + alone[:, 1, None, None] * features[2]
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(weighting(features, None, mask=mask)[0], features[0] + features[2])
    scaled, _ = weighting(features, noise, alpha, mask=mask, mode="scale")
    torch.testing.assert_close(scaled[0] + scaled[2], fused)
    half = weighting.weights(torch.full((1, 2), 300.0, dtype=torch.float16))
    torch.testing.assert_close(half, torch.ones(1, 2), msg="300^2 is no float16")


def test_synced_batch_norm_alone_is_batch_norm():
    plain = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, momentum=None), nn.ModuleDict({"n": nn.BatchNorm2d(2)}))
    synced = sync_batchnorm(copy.deepcopy(plain))
    norms = [m for m in synced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 2 and all(isinstance(m, SyncBatchNorm) for m in norms)
    assert list(synced.state_dict()) == list(plain.state_dict())
    weights = [norm.weight for norm in norms]
    assert isinstance(sync_batchnorm(norms[0]), SyncBatchNorm) and sync_batchnorm(norms[0]).weight is weights[0]
    x = torch.randn(BATCH, 3, 9)
    for training in (True, True, False):
        expected, got = plain[:2].train(training)(x), synced[:2].train(training)(x)
        assert torch.equal(got, expected)
    synced.load_state_dict(plain.state_dict())


def test_bad_arguments_are_named(seed):
    x, sigma = torch.randn(2, 3), torch.ones(2, 2)
    expected = {
        r"unit: expected a number that is not negative, got -1": lambda: Noise(unit=-1),
        r"power: expected a positive number, got 0": lambda: Noise(power=0),
        r"inputs: expected 3, one a modality, got 2": lambda: NoiseInjector([1.0] * 3)([x, x], sigma, seed=seed),
        r"sigma: expected shape \(2, 2\), got shape \(2,\)": lambda: NoiseInjector()([x, x], sigma[0], seed=seed),
        r"spatial_dims: expected one of 0, 1, 2, 3, got 4": lambda: ProbabilisticHead(3, 3, spatial_dims=4),
        r"std\[1\]: expected std\[0\]'s shape \(2, 3\)": lambda: NoiseEstimator(2, 3)([x, x[:1]]),
        r"momentum: expected a number in \[0, 1\], got 2": lambda: ModalityDependency(2, 2),
        r"initial: expected None or 2 positive": lambda: ModalityDependency(2, initial=(1.0, 2.0, 3.0)),
        r"logits: expected shape \(2, B, K, ...\)": lambda: ModalityDependency(2)(torch.ones(3, 2, 4)),
        r"present: expected shape \(5, 2\)": lambda: ModalityDependency(2)(torch.ones(2, 5, 4), torch.ones(2, 5) > 0),
        r"p: expected probabilities in \[0, 1\], got 1.5": lambda: ModalityDropout(1.5),
        r"kinds: expected at least two different names": lambda: NoiseTypeClassifier(2, 3, ("a", "a")),
        r"normalize: expected \(scale, mean, std\) or None, got \(0.5, 0.5\)": lambda: Noise(normalize=(0.5, 0.5)),
        r"noises\[0\].clamp: expected \(low, high\)": lambda: NoiseInjector()([x, x], sigma, kind="salt_pepper"),
        r"std: expected 2 tensors, one a modality, got 3": lambda: NoiseEstimator(2, 3)([x, x, x]),
        r"sigma: expected shape \(2, 2\), got shape \(2, 1\)": lambda: NoiseEstimator(2, 3)([x, x], sigma[:, :1]),
        r"inputs: expected 2 tensors, one a modality, got 3": lambda: InputGuard(2)([x, x, x]),
        r"reference: expected a positive number or None, got -1": lambda: UncertaintyWeighting(reference=-1),
        r"g: expected one of softmax, inverse, got 'sum'": lambda: UncertaintyWeighting(g="sum"),
        r"mode: expected one of concat, sum, scale, got 'max'": lambda: UncertaintyWeighting(mode="max"),
        r"temperature: expected a positive number, got 0": lambda: UncertaintyWeighting(temperature=0),
        r"floor: expected a number that is not negative, or None, got -1": lambda: UncertaintyWeighting(floor=-1),
        r"modalities: expected a positive integer, got 0": lambda: NoiseEstimator(0, 3),
        r"activation: expected one of identity, .*, got 'tanh'": lambda: NoiseEstimator(2, 3, activation="tanh"),
        r"dropout_p: expected a probability in \[0, 1\], got 3": lambda: NoiseEstimator(2, 3, dropout_p=3),
        r"hidden: expected a positive integer, got 2.5": lambda: NoiseEstimator(2, 3, hidden=2.5),
    }
    of_another_type = {
        r"noises: expected Noise or numbers, .* got Tensor": lambda: NoiseInjector(torch.ones(2)),
        r"inputs: expected a list of tensors, .* got a tensor \(2, 3\)": lambda: NoiseInjector()(x, sigma),
        r"sigma: expected a tensor \(B, M\) of .*, got float": lambda: NoiseInjector()([x, x], 0.1),
        r"kind: expected a name or .*, got list": lambda: NoiseInjector()([x, x], sigma, kind=["gaussian"]),
        r"sigma: expected a tensor, got float": lambda: NoiseEstimator(2, 3)([x, x], 1.0),
        r"logits: expected a tensor \(2, B, K, ...\), got list": lambda: ModalityDependency(2)([x, x]),
        r"present: expected a bool tensor, True where": lambda: ModalityDependency(2)(
            torch.ones(2, 2, 4), sigma.long()
        ),
    }
    for error, calls in ((ValueError, expected), (TypeError, of_another_type)):
        for message, call in calls.items():
            with pytest.raises(error, match=message):
                call()


def test_a_second_injector_and_estimator_take_other_streams(seed):
    x, sigma = [torch.zeros(4, 3)] * 2, torch.ones(4, 2)
    first, second = NoiseInjector()(x, sigma, seed=seed), NoiseInjector()(x, sigma, seed=seed, stream=2)
    assert len({tuple(y.flatten().tolist()) for y in (*first, *second)}) == 4
    alone = udml_kernels.inject_noise(x[0], 1.0, seed=seed, stream=3)
    assert second[1].equal(alone)
    estimator = NoiseEstimator(2, 3, dropout_p=0.5)
    noise = [estimator(first, seed=seed, stream=stream)[0] for stream in (0, 0, 1)]
    assert noise[0].equal(noise[1]) and not noise[0].equal(noise[2])


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_running_means_of_a_half_precision_model_are_float32(dtype):
    dependency, guard = ModalityDependency(1).to(dtype), InputGuard(1).to(dtype)
    for value in (1.0, *[1.07] * 200):
        alpha = dependency(torch.full((1, 1, 1), value, dtype=dtype))
        guard([torch.tensor([[value, -value]], dtype=dtype)])
    assert alpha.dtype == torch.float32 and abs(alpha.item() - 1.07) < 0.01
    assert guard.center.dtype == guard.spread.dtype == torch.float32
    assert ModalityDependency(1).to(dtype)(torch.zeros(1, 4, 3, dtype=dtype)) > 0
    assert ModalityDependency(2).double().alpha.dtype == torch.float64


def test_layers_print_their_settings():
    layers = nn.ModuleList([NoiseInjector(), NoiseEstimator(2, 8), ModalityDropout(0.25), UncertaintyWeighting()])
    layers += [ModalityDependency(3), InputGuard(2)]
    shown = str(layers)
    for text in ("unit=1.0", "2, 8, hidden=256", "p=0.25", "floor=1.0", "3, momentum=0.95", "2, limit=6.0"):
        assert text in shown


def test_loss():
    logits, unimodal, kl = torch.randn(BATCH, 4), torch.randn(2, BATCH, 4), torch.rand(BATCH)
    target, noise_loss = torch.tensor([0, 1, 2, 3, 0]), torch.tensor(0.7)
    loss = udml_loss(logits, unimodal, kl, noise_loss, target, LossWeights(unimodal=0.5, kl=0.01, noise=0.1))
    alone = sum(F.cross_entropy(u, target) for u in unimodal)
    expected = F.cross_entropy(logits, target) + 0.5 * alone + 0.01 * kl.mean() + 0.1 * noise_loss
    torch.testing.assert_close(loss, expected)
    infinite = torch.full_like(kl, torch.inf)
    assert udml_loss(logits, unimodal, infinite, None, target, LossWeights(kl=0)).isfinite()
