"""The layers that draw noise, drop modalities and tell kinds of noise apart, against plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from udml.layers import ModalityDropout, Noise, NoiseInjector, NoiseTypeClassifier

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
    noisy = NoiseInjector(0.5)(inputs, sigma, seed=seed, sample_ids=IDS)
    for m, (x, y) in enumerate(zip(inputs, noisy, strict=True)):
        eps = udml_kernels.normal(x.shape, seed, stream=1 + 256 * m, sample_ids=IDS)
        torch.testing.assert_close(y, x + 0.5 * sigma[:, m].reshape(-1, 1, 1) * eps, rtol=1e-5, atol=1e-5)


def test_a_level_of_each_modality_in_its_own_units(seed):
    image, sound = torch.randint(0, 256, (BATCH, 3, 4, 4), dtype=torch.uint8), torch.randn(BATCH, 9)
    noises = (Noise(unit=2.0, power=2.0, clamp=(0, 255), normalize=(255, 0.5, 0.25)), 0.5)
    sigma = torch.tensor([[0.0, 1], [1, 0], [2, 3], [4, 2], [11, 11]])
    noisy = NoiseInjector(noises)([image, sound], sigma, seed=seed, sample_ids=IDS)
    eps = udml_kernels.normal(image.shape, seed, stream=1, sample_ids=IDS)
    expected = (image + 2 * sigma[:, 0].reshape(-1, 1, 1, 1) ** 2 * eps).clamp(0, 255)
    torch.testing.assert_close(noisy[0], (expected / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-5)
    eps = udml_kernels.normal(sound.shape, seed, stream=257, sample_ids=IDS)
    torch.testing.assert_close(noisy[1], sound + 0.5 * sigma[:, 1:] * eps, rtol=1e-5, atol=1e-5)


def test_kinds_by_name_by_sample_and_by_modality(seed):
    x = torch.randn(BATCH, 2000)
    inject = NoiseInjector(Noise(unit=2.0, clamp=(-50, 50)))
    sigma = torch.full((BATCH, 2), 0.25)
    gaussian, dropout = (inject([x, x], sigma, kind=kind, seed=seed) for kind in ("gaussian", "dropout"))
    assert abs((gaussian[0] - x).std() - 0.5) < 0.02, "in units"
    assert abs((dropout[1] == 0).float().mean() - 0.25) < 0.02, "a fraction has no units"
    codes = torch.tensor([udml_kernels.KINDS.index(kind) for kind in ("gaussian", "dropout")])
    kind = codes[torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0], [1, 0]])]
    mixed = inject([x, x], sigma, kind=kind, seed=seed)
    for m in range(2):
        expected = torch.where((kind[:, m] == codes[0]).unsqueeze(1), gaussian[m], dropout[m])
        torch.testing.assert_close(mixed[m], expected)
        torch.testing.assert_close(inject([x, x], sigma, kind=kind[:, m], seed=seed)[m], expected)


def test_modality_dropout(seed):
    features = [torch.randn(BATCH, 4), torch.randn(BATCH, 3, 2), torch.randn(BATCH, 1)]
    dropout = ModalityDropout((0.9, 0.5, 0.0))
    kept, mask = dropout(features, seed=seed, stream=3, sample_ids=IDS)
    uniforms = udml_kernels.uniform((BATCH, 3), seed, stream=4 + 256 * 3, sample_ids=IDS)
    assert torch.equal(mask, uniforms >= torch.tensor([0.9, 0.5, 0.0]))
    for m, (x, y) in enumerate(zip(features, kept, strict=True)):
        torch.testing.assert_close(y, x * mask[:, m].reshape(-1, *[1] * (x.dim() - 1)))
    kept, mask = dropout.eval()(features)
    assert all(x is y for x, y in zip(features, kept, strict=True)) and bool(mask.all())


def test_two_modalities_dropped_as_the_authors_do(seed):
    x = torch.ones(30_000, 1)
    _, mask = ModalityDropout(1 - (1 / 3) ** 0.5)([x, x], seed=seed)
    for kept in ((True, False), (False, True), (True, True)):
        share = (mask == torch.tensor(kept)).all(1).float().mean()
        assert abs(share - 1 / 3) < 0.01


def statistics(signals, features):
    maps = features(signals)
    return maps.std(2), maps.mean(2)


def test_noise_type_classifier_tells_kinds_apart(seed):
    """Two modalities of smooth signals, each hit by one of three kinds; pooled statistics of random features."""
    kinds = ("gaussian", "salt_pepper", "dropout")
    samples, codes = 384, torch.tensor([udml_kernels.KINDS.index(kind) for kind in kinds])
    times = torch.linspace(0, 6, 64)
    clean = [torch.sin(times * (1 + torch.rand(samples, 1)) + 6 * torch.rand(samples, 1)) for _ in range(2)]
    kind = torch.randint(0, 3, (samples, 2))
    sigma = 0.1 + 0.3 * torch.rand(samples, 2)
    noisy = NoiseInjector(Noise(clamp=(-3, 3)))(clean, sigma, kind=codes[kind], seed=seed)
    features = nn.Sequential(nn.Conv1d(1, 16, 5), nn.ReLU()).requires_grad_(False)
    std, mean = zip(*(statistics(x.unsqueeze(1), features) for x in noisy), strict=True)
    classifier = NoiseTypeClassifier(2, 16, kinds, hidden=32)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-2)
    train, test = slice(0, 256), slice(256, None)
    for _ in range(150):
        optimizer.zero_grad()
        classifier.loss(classifier([s[train] for s in std], [x[train] for x in mean]), kind[train]).backward()
        optimizer.step()
    answers = classifier([s[test] for s in std], [x[test] for x in mean]).argmax(2)
    right = (answers == kind[test]).float().mean(0)
    assert bool((right > 0.8).all()), f"chance is 1/3, got {right.tolist()}"


def test_noise_type_classifier_loads_its_twin():
    twin = nn.ModuleList(nn.Sequential(nn.Linear(2 * WIDTH, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
    classifier = NoiseTypeClassifier(2, WIDTH, ("clean", "gaussian", "dropout"), hidden=8)
    classifier.load_state_dict(twin.state_dict())
    std, mean = ([torch.randn(BATCH, WIDTH, requires_grad=True) for _ in range(2)] for _ in range(2))
    logits = classifier(std, [m[..., None, None].expand(-1, -1, 3, 2) for m in mean])
    expected = [net(torch.cat(pair, 1)) for net, *pair in zip(twin, std, mean, strict=True)]
    torch.testing.assert_close(logits, torch.stack(expected, 1))
    kind = torch.tensor([[0, 1], [2, -100], [-100, -100], [1, 1], [0, 2]])
    loss = classifier.loss(logits, kind)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), kind.flatten()))
    loss.backward()
    assert std[0].grad is None, "its input is detached"
    torch.testing.assert_close(
        classifier.loss(logits, kind[:, 0]), F.cross_entropy(logits.mT, kind[:, :1].expand(-1, 2))
    )
    assert classifier.loss(logits, torch.full((BATCH,), -100)) == 0
