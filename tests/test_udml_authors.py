"""The preset "authors" against the same arithmetic written in plain PyTorch, number for number.

`Twin` knows nothing of udml; only its noise is the library's, so that both see the same.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from udml.encoders import Framewise
from udml.models import UDML, authors_levels

import udml_kernels

BATCH, FRAMES, WIDTH, CLASSES, HIDDEN, DROPPED = 6, 3, 5, 4, 256, 0.1
GAMMA, BETA, LAMBDA = 4.0, 1e-5, 0.1
IDS = torch.tensor([7, 3, 40, 0, 12, 9])
TERMS = ("task", "unimodal", "kl", "noise")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Twin(nn.Module):
    """Audio (B, 2, H, W) and frames (B, T, 3, H, W), folded into the batch."""

    def __init__(self):
        super().__init__()

        def pointwise() -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH))

        def estimator() -> nn.Sequential:
            return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Dropout(DROPPED), nn.Linear(HIDDEN, 1))

        self.audio, self.visual = encoder(2), encoder(3)
        self.mu = nn.ModuleList([pointwise(), pointwise()])
        self.logvar = nn.ModuleList([pointwise(), pointwise()])
        self.estimator = nn.ModuleList([estimator(), estimator()])
        self.classifier = nn.Linear(2 * WIDTH, CLASSES)
        self.alpha = torch.tensor([32.0, 10.0], dtype=torch.float64)

    def embed(self, m: int, features: Tensor, level: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.mu[m](features), self.logvar[m](features)
        std = (logvar / 2).exp()
        z = mu + std * eps
        t = level.reshape(-1, 1, 1, 1)
        kl = 0.5 * (std**2 / t + mu**2 / t - torch.log((std**2 + 1e-8) / t) - 1)
        return z, std, kl.sum((1, 2, 3)).mean()

    def noise(self, m: int, std: Tensor, dropout: Tensor) -> Tensor:
        first, _, second = self.estimator[m]
        hidden = first(std.detach()) * dropout[:, m] / (1 - DROPPED)
        return (second(hidden) / 2).exp()

    def step(self, audio: Tensor, frames: Tensor, level: Tensor, target: Tensor, seed: Tensor) -> dict[str, Tensor]:
        fa, fv = self.audio(audio), self.visual(frames.flatten(0, 1))
        eps_a = udml_kernels.normal(fa.shape, seed, stream=2, sample_ids=IDS, dtype=torch.float64)
        clip = (BATCH, WIDTH, FRAMES, *fv.shape[2:])
        eps_v = udml_kernels.normal(clip, seed, stream=2 + 256, sample_ids=IDS, dtype=torch.float64)
        za, std_a, kl_a = self.embed(0, fa, level[:, 0], eps_a)
        folded = level[:, 1].repeat_interleave(FRAMES)
        zv, std_v, kl_v = self.embed(1, fv, folded, eps_v.transpose(1, 2).flatten(0, 1))
        a, v = za.mean((2, 3)), zv.unflatten(0, (BATCH, FRAMES)).mean((1, 3, 4))
        pooled = std_a.mean((2, 3)), std_v.unflatten(0, (BATCH, FRAMES)).mean((1, 3, 4))

        uniform = udml_kernels.uniform((BATCH, 2, HIDDEN), seed, stream=3, sample_ids=IDS)
        dropout = (uniform >= torch.tensor(DROPPED)).double()
        s_a, s_v = (self.noise(m, std, dropout) for m, std in enumerate(pooled))
        var_a, var_v = s_a.detach() ** 2, s_v.detach() ** 2
        w_a, w_v = var_v / (var_v + var_a) / self.alpha[0], var_a / (var_v + var_a) / self.alpha[1]
        w_a, w_v = 2 * w_a / (w_a + w_v), 2 * w_v / (w_a + w_v)

        logits = self.classifier(torch.cat((a + w_a * a, v + w_v * v), 1))
        alone_a = self.classifier(torch.cat((a, torch.zeros_like(v)), 1))
        alone_v = self.classifier(torch.cat((torch.zeros_like(a), v), 1))
        self.alpha = torch.stack([x.detach().abs().sum(1).mean() for x in (alone_a, alone_v)])
        noise = torch.cat((s_a, s_v), 1)
        return {
            "logits": logits,
            "weights": torch.cat((w_a, w_v), 1),
            "sigma": noise,
            "task": F.cross_entropy(logits, target),
            "unimodal": GAMMA * (F.cross_entropy(alone_a, target) + F.cross_entropy(alone_v, target)),
            "kl": BETA * (kl_a + kl_v),
            "noise": LAMBDA * F.mse_loss(noise, level),
        }

    def as_udml(self) -> UDML:
        encoders = {"audio": self.audio, "visual": Framewise(self.visual, WIDTH)}
        model = UDML(encoders, CLASSES, preset="authors").double()
        parameters = dict(model.named_parameters())
        for name, mine, _ in self.pairs(model):
            parameters[name].data.copy_(mine)
        return model

    def pairs(self, model: UDML, of=lambda p: p.data):
        """(name, of the twin's parameter in the model's shape, of the model's), but for the shared encoders."""
        mine = {}
        for m, name in enumerate(model.modalities):
            for branch in ("mu", "logvar"):
                for place, parameter in getattr(self, branch)[m].named_parameters():
                    value = of(parameter)
                    mine[f"heads.{name}.{branch}.{place}"] = value.flatten(1) if value.dim() == 4 else value
        for layer, place in ((1, 0), (2, 2)):
            for kind in ("weight", "bias"):
                values = [of(getattr(net[place], kind)) for net in self.estimator]
                mine[f"estimator.{kind}{layer}"] = torch.stack(values)
        mine |= {f"fusion.{kind}": of(getattr(self.classifier, kind)) for kind in ("weight", "bias")}
        theirs = {n: p for n, p in model.named_parameters() if not n.startswith("encoders.")}
        assert set(mine) == set(theirs)
        return [(name, mine[name], of(theirs[name])) for name in mine]


def encoder(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, WIDTH, 3, stride=2, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())


def test_three_training_steps_are_the_authors_arithmetic():
    torch.manual_seed(0)
    twin = Twin().double().train()
    other = Twin().double()
    other.load_state_dict(twin.state_dict())
    model = other.as_udml().train()
    optimizers = [torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4) for net in (twin, model)]
    close = {"rtol": 1e-9, "atol": 1e-12}
    for step in range(3):
        seed = torch.tensor([100 + step])
        level = authors_levels(BATCH, 2, seed, IDS).level.double()
        audio, frames = torch.randn(BATCH, 2, 6, 8).double(), torch.randn(BATCH, FRAMES, 3, 4, 6).double()
        target = torch.randint(CLASSES, (BATCH,))
        expected = twin.step(audio, frames, level, target, seed)
        # (B, 3, T, H, W), as Framewise takes them.
        inputs = {"audio": audio, "visual": frames.transpose(1, 2)}
        output = model(inputs, sigma=level, seed=seed, sample_ids=IDS)
        terms = model.loss(output, target)
        assert set(terms) == set(TERMS)
        torch.testing.assert_close(output.logits, expected["logits"], **close)
        torch.testing.assert_close(output.weights, expected["weights"], **close)
        torch.testing.assert_close(output.noise, expected["sigma"], **close)
        torch.testing.assert_close(model.dependency.alpha, twin.alpha, **close)
        for name in TERMS:
            torch.testing.assert_close(terms[name], expected[name], **close)
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(expected[name] for name in TERMS).backward()
        sum(terms.values()).backward()
        for name, mine, theirs in twin.pairs(model, lambda p: p.grad):
            torch.testing.assert_close(theirs, mine, **close, msg=lambda m, n=name, s=step: f"{n}, step {s}: {m}")
        for mine, theirs in zip(twin.audio.parameters(), model.encoders["audio"].parameters(), strict=True):
            torch.testing.assert_close(theirs.grad, mine.grad, **close)
        for mine, theirs in zip(twin.visual.parameters(), model.encoders["visual"].parameters(), strict=True):
            torch.testing.assert_close(theirs.grad, mine.grad, **close)
        for optimizer in optimizers:
            optimizer.step()


def test_alpha_starts_at_their_values_and_is_not_saved():
    model = UDML({name: encoder(2) for name in "avx"}, CLASSES, preset="authors")
    torch.testing.assert_close(model.dependency.alpha, torch.tensor([32.0, 10.0, 10.0]))
    assert not [name for name in model.state_dict() if name.startswith("dependency.")]
    inputs = {name: torch.randn(3, 2, 4, 4) for name in "avx"}
    first = model(inputs, sigma=torch.ones(3, 3), seed=torch.tensor([1]))
    torch.testing.assert_close(first.dependency, torch.tensor([32.0, 10.0, 10.0]))
    last = first.unimodal.detach().abs().sum(2).mean(1)
    torch.testing.assert_close(model.dependency.alpha, last)
    torch.testing.assert_close(model.eval()(inputs).dependency, last)


def test_authors_levels():
    seed, ids = torch.tensor([5]), torch.arange(20_000)
    levels = authors_levels(len(ids), 2, seed, ids)
    clean = (levels.level == 1).all(1)
    # Half are clean by design, of the others one in 121 by chance; 4 standard deviations of a mean are 0.015.
    assert abs(clean.double().mean() - (0.5 + 0.5 / 121)) < 0.015
    noisy = levels.level[~clean]
    assert noisy.unique().tolist() == list(range(1, 12))
    shares = torch.stack([(noisy == k).double().mean() for k in range(2, 12)])
    assert (shares - 1 / 11).abs().max() < 0.012
    names = [udml_kernels.KINDS[k] for k in levels.kind.unique().tolist()]
    assert sorted(names) == ["gaussian", "replace"]
    assert torch.equal(levels.kind == udml_kernels.KINDS.index("replace"), levels.level == 11)
    torch.testing.assert_close(levels.sigma, torch.where(levels.level == 1, 0, levels.level))
    part = authors_levels(3, 2, seed, ids[[70, 3, 900]])
    torch.testing.assert_close(part.level, levels.level[[70, 3, 900]])
