"""`tests/authors_model.py` against values worked out by hand."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from .authors_model import (
    AuthorsModel,
    Fusion,
    Output,
    authors_noise_audio,
    authors_noise_image,
    checkpoint,
    kl_divergence,
    step_loss,
    train_step,
)

C, K, B, T = 2, 3, 4, 2


def f64(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


def trunk(inputs: int) -> "OrderedDict[str, nn.Module]":
    layers = [("conv1", nn.Conv2d(inputs, C, 3)), ("bn1", nn.BatchNorm2d(C)), ("relu", nn.ReLU())]
    return OrderedDict(layers)


def small(fusion: str = "concat", **options) -> AuthorsModel:
    torch.manual_seed(0)
    return AuthorsModel(K, C, trunk(1), trunk(3), fusion=fusion, **options).double()


def batch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inputs and the draws of one step; maps of 5x4 (audio) and 3x3 (visual)."""
    g = torch.Generator().manual_seed(1)
    shapes = {
        "audio": (B, 1, 7, 6),
        "visual": (B, 3, T, 5, 5),
        "eps_audio": (B, C, 5, 4),
        "eps_visual": (B * T, C, 3, 3),
    }
    values = {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()}
    keep = {f"keep_{m}": (torch.rand(B, 256, generator=g) > 0.1).double() / 0.9 for m in ("audio", "visual")}
    return values, keep


def set_linear(layer: nn.Linear, weight: list[list[float]], bias: list[float]) -> None:
    layer.weight.data, layer.bias.data = f64(*weight), f64(*bias)


def test_weights() -> None:
    model = small()
    noise = f64([1, 2], [3, 3])
    # u = (8/5, 2/5) and (1, 1); u / α = (1/20, 1/25) and (1/32, 1/10).
    close(model.weights(noise, True), f64([10 / 9, 8 / 9], [20 / 42, 64 / 42]))
    # 1 / α = (1/32, 1/10) before the uncertainty phase, but not in evaluation.
    close(model.weights(noise, False), f64([20 / 42, 64 / 42], [20 / 42, 64 / 42]))
    close(model.eval().weights(noise, False), f64([10 / 9, 8 / 9], [20 / 42, 64 / 42]))


X, Y = f64([1.0, 2.0]), f64([-1.0, 3.0])


def test_concat_and_sum() -> None:
    concat = Fusion("concat", 2, 1)
    set_linear(concat.fc_out, [[1, 2, 3, 4]], [10])
    for got, expected in zip(concat(X, Y), (10 + 5 + 9, 10 + 5, 10 + 9), strict=True):
        close(got, f64([expected]))
    added = Fusion("sum", 2, 1)
    set_linear(added.fc_x, [[1, 2]], [10])
    set_linear(added.fc_y, [[3, 4]], [20])
    for got, expected in zip(added(X, Y), (15 + 29, 15, 29), strict=True):
        close(got, f64([expected]))


def test_gated() -> None:
    gated = Fusion("gated", 2, 1)
    set_linear(gated.fc_x, [[1, 1], [0, -1]], [0, 2])  # fc_x x = (3, 0)
    set_linear(gated.fc_y, [[1, 0], [0, 1]], [1, 2])  # fc_y y = (0, 5)
    set_linear(gated.fc_out, [[1, 10]], [100])
    gate = 1 / (1 + math.exp(-3))
    close(gated(X, Y)[0], f64([100 + 10 * 5 / 2]))
    close(gated(X, Y)[1], f64([100 + 3 * gate]))
    close(gated(X, Y)[2], f64([100 + 10 * 5 / (1 + math.exp(-5))]))


def test_film() -> None:
    film = Fusion("film", 2, 1)
    # The first row reads entry (0, 1) of the product, x0 y1, the second (1, 0), x1 y0.
    set_linear(film.fc, [[0, 1, 0, 0], [0, 0, 1, 0]], [0.5, 0])
    set_linear(film.fc_out, [[1, 10]], [100])
    # x yᵀ: 3 and -2. x xᵀ: 2 and 2. y yᵀ: -3 and -3.
    for got, expected in zip(film(X, Y), (100 + 3.5 - 20, 100 + 2.5 + 20, 100 - 2.5 - 30), strict=True):
        close(got, f64([expected]))


def test_kl() -> None:
    # One frame: mu 2, std 3, level 4: (9/4 + 4/4 - log((9 + 1e-8)/4) - 1) / 2 for each of 2 elements.
    one = 0.5 * (9 / 4 + 1 - math.log((9 + 1e-8) / 4) - 1)
    mu, std = torch.full((1, 2, 1, 1), 2, dtype=torch.float64), torch.full((1, 2, 1, 1), 3, dtype=torch.float64)
    close(kl_divergence(mu, std, f64(4)), f64(2 * one)[0])
    # Samples of two frames, std 1e-4, mu 0: the 1e-8 doubles the variance in the logarithm. Levels: 1, 1, 4, 4.
    mu, std = torch.zeros(4, 1, 1, 1, dtype=torch.float64), torch.full((4, 1, 1, 1), 1e-4, dtype=torch.float64)
    mu[1] = 2  # the second frame of the first sample: 2 more
    levels = [0.5 * (1e-8 / t - math.log(2e-8 / t) - 1) for t in (1, 1, 4, 4)]
    close(kl_divergence(mu, std, f64(1, 4)), f64((sum(levels) + 2) / 4)[0])


def test_an_infinite_error_counts_as_zero() -> None:
    mu = std = torch.ones(2, 1, 1, 1, dtype=torch.float64)
    logits = f64([0, 0], [0, 0])
    for last, expected in ((2, 0.1 * (1 + (4 + 1) / 2)), (1e200, 0)):
        noise = f64([2, 3], [2, last]).requires_grad_()
        output = Output(logits, (logits, logits), noise, noise, (mu, mu), (std, std))
        loss = step_loss(output, f64([1, 1], [1, 1]), torch.tensor([0, 1]), gamma=4, beta=0.5)
        close(loss.noise.detach(), f64(expected)[0])


def test_dependency() -> None:
    model = small()
    unimodal = f64([1, -2, 3], [3, 0, -5]), f64([0, 0, 1], [0, 0, 0])
    model.update_dependency(Output(unimodal[0], unimodal, *[unimodal[0]] * 2, unimodal, unimodal))
    assert (model.audio_depend, model.visual_depend) == (2 + 1 + 4, 0.5)


def test_loss_adds_its_terms() -> None:
    mu = torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.ones(4, 1, 1, 1, dtype=torch.float64)
    std = torch.ones_like(mu[0]), torch.ones_like(mu[1])
    logits = f64([0, 0], [0, 0])
    noise = f64([1, 2], [3, 4])
    output = Output(logits, (logits, f64([0, math.log(3)], [math.log(3), 0])), noise, noise, mu, std)
    loss = step_loss(output, f64([1, 1], [1, 1]), torch.tensor([0, 1]), gamma=4, beta=0.5)
    # Cross entropies: log 2, log 2 and log 4. KL: 0 and 1/2, less 1e-8 / 2 each. Squared errors: 2 and 5.
    close(loss.task, f64(math.log(2))[0])
    close(loss.unimodal, f64(4 * math.log(8))[0])
    close(loss.kl, f64(0.5 * (0.5 - math.log1p(1e-8)))[0])
    close(loss.noise, f64(0.7)[0])
    close(loss.total, loss.task + loss.unimodal + loss.kl + loss.noise)
    assert loss.noise_parts == (2, 5)


def test_forward_by_hand() -> None:
    """Heads that give constants: mu = m, logvar = v, in evaluation; estimators that give e."""
    model = small(max_std_audio=2.0).eval()
    for net, mu, logvar in ((model.audio_net, 1.0, math.log(9)), (model.visual_net, -1.0, math.log(9))):
        for head, value in ((net.mu_dul_backbone, mu), (net.logvar_dul_backbone, logvar)):
            nn.init.zeros_(head[1].weight)
            nn.init.constant_(head[1].bias, value)
    for estimator in (model.audio_variance_estimator, model.visual_variance_estimator):
        for layer, weight in ((estimator[0], 1 / C), (estimator[2], 2 / 256)):  # o = 2 mean(std)
            nn.init.constant_(layer.weight, weight)
            nn.init.zeros_(layer.bias)
    output = model(*(batch()[0][name] for name in ("audio", "visual")), uncertainty=False)
    # The audio std, 3, is clamped at 2, the visual one is not.
    close(output.noise, f64([math.exp(2), math.exp(3)]).expand(B, 2))
    u = f64(math.exp(6) / 32, math.exp(4) / 10)
    w = 2 * u / u.sum()
    close(output.weights, w.expand(B, 2))
    x, y = (1 + w[0]).expand(B, C), -(1 + w[1]).expand(B, C)
    for got, expected in zip((output.logits, *output.unimodal), model.fusion_module(x, y), strict=True):
        close(got, expected)


def test_frames_stay_with_their_sample() -> None:
    model, (values, _) = small().eval(), batch()
    mu = model(values["audio"], values["visual"], uncertainty=True).mu[1]
    one = model(values["audio"][2:3], values["visual"][2:3, :, 1:], uncertainty=True).mu[1]
    close(mu[2 * T + 1], one[0])


def test_training_samples_with_the_std() -> None:
    model, (values, keep) = small(), batch()
    drawn = model(**values, **keep, uncertainty=False)
    x = (drawn.mu[0] + values["eps_audio"] * drawn.std[0]).mean((2, 3))
    y = torch.stack([m.mean((0, 2, 3)) for m in (drawn.mu[1] + values["eps_visual"] * drawn.std[1]).split(T)])
    # The weights are 2/32 / (1/32 + 1/10) and 2/10 / (1/32 + 1/10).
    for got, expected in zip(drawn.unimodal, model.fusion_module(x * 62 / 42, y * 106 / 42)[1:], strict=True):
        close(got, expected)


@pytest.mark.parametrize("fusion", ["concat", "sum", "gated", "film"])
def test_gradients_and_step(fusion: str) -> None:
    """In the uncertainty phase the task loss reaches the estimators; through them it does not reach the std."""
    model, (values, keep) = small(fusion), batch()
    values["eps_audio"], values["eps_visual"] = (torch.zeros_like(values[e]) for e in ("eps_audio", "eps_visual"))
    target, levels = torch.tensor([0, 1, 2, 0]), f64([1, 5], [4, 1], [1, 1], [11, 2])
    for uncertainty in (False, True):
        output = model(**values, **keep, uncertainty=uncertainty)
        model.zero_grad()
        step_loss(output, levels, target, 4, 0).task.backward()
        for estimator in (model.audio_variance_estimator, model.visual_variance_estimator):
            reached = estimator[0].weight.grad
            assert (reached is not None and bool(reached.any())) == uncertainty
        for net in (model.audio_net, model.visual_net):
            assert not net.logvar_dul_backbone[0].weight.grad.any()
    output = model(**values, **keep, uncertainty=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    train_step(model, optimizer, output, step_loss(output, levels, target, 4, 1e-5))
    assert model.visual_depend == pytest.approx(float(output.unimodal[1].detach().abs().sum() / B), rel=1e-13)


def test_dropout_multiplies_the_hidden_units() -> None:
    model, (values, keep) = small(), batch()
    output = model(**values, **keep, uncertainty=True)
    visual = torch.stack([std.mean((0, 2, 3)) for std in output.std[1].split(T)])
    for m, (name, mean) in enumerate((("audio", output.std[0].mean((2, 3))), ("visual", visual))):
        first, _, last = getattr(model, f"{name}_variance_estimator")
        close(output.noise[:, m], torch.exp(last(first(mean) * keep[f"keep_{name}"])[:, 0] / 2))


def test_checkpoint() -> None:
    saved = checkpoint(small(), beta=1e-5, gamma=4)
    assert set(saved) == {"model", "audio_depend", "visual_depend", "beta", "gamma"}
    assert (saved["audio_depend"], saved["visual_depend"], saved["beta"], saved["gamma"]) == (32, 10, 1e-5, 4)
    names = {name.removeprefix("module.") for name in saved["model"] if name.startswith("module.")}
    assert len(names) == len(saved["model"])
    assert {name for name in names if name.startswith("audio_net.mu_dul_backbone.0")} == {
        "audio_net.mu_dul_backbone.0.weight",
        "audio_net.mu_dul_backbone.0.bias",
    }
    assert {"audio_net.conv1.weight", "visual_net.bn1.running_var", "visual_net.logvar_dul_backbone.1.bias"} <= names
    assert {"fusion_module.fc_out.weight", "visual_variance_estimator.2.bias"} <= names


def test_image_noise() -> None:
    image = f64(100, 100, 100).reshape(1, 3, 1, 1).repeat(4, 1, 1, 1)
    eps = f64(9, -11.625, 20, 1 / 242).reshape(4, 1, 1, 1)
    level = torch.tensor([1, 3, 3, 11])
    # Clean; 100 - 9 * 11.625 = -4.625, of which -4 is kept: 252; 280: 255; 121 / 242 / 10 * 255 = 12.75.
    for wrap, below in ((True, 252), (False, 0)):
        got = authors_noise_image(image, level, eps, wrap=wrap)
        close(got, f64(100, below, 255, 12).reshape(4, 1, 1, 1).expand(4, 3, 1, 1))


def test_audio_noise() -> None:
    spectrogram, level = f64(-2, -2, -2, -2).reshape(4, 1, 1, 1), torch.tensor([1, 3, 11, 11])
    got = authors_noise_audio(spectrogram, level, f64(9, -1.5, -2, 1).reshape(4, 1, 1, 1))
    # 11 / 10 * 255 is cut.
    close(got.flatten(), f64(-2, -6.5, -561, 255))
