"""The UDML authors' model and training step in plain PyTorch, to compare `UDML(preset="authors")` with.

It is written from a description of their code (github shicaiwei123/UDML) and imports nothing from this package. The
names of the state dict are theirs. The caller passes every random draw, and every operation keeps its inputs' dtype.

Shapes: B samples, T frames, C channels of the last feature map, K classes. Modality 0 is audio, 1 is visual.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Trunk = OrderedDict[str, nn.Module]
HIDDEN = 256  # hidden units of the noise estimator
NOISE_LOSS = 0.1  # factor of the sum of the two noise errors
CLEAN, REPLACED = 1, 11  # the levels that mean "no noise" and "noise instead of the input"


class Backbone(nn.Module):
    """A trunk of named layers, applied in order, then the probabilistic head on its feature map."""

    def __init__(self, trunk: Trunk, channels: int, max_std: float = float("inf")):
        super().__init__()
        self.trunk_names = list(trunk)
        for name, layer in trunk.items():
            self.add_module(name, layer)
        # Head: mu and logvar are each a 1x1 convolution and a batch norm on the feature map.
        self.mu_dul_backbone = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        self.logvar_dul_backbone = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        self.max_std = max_std

    def forward(self, x: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(sampled map, mu, std), each (N, C, H, W), of N images; `eps` is read in training alone."""
        for name in self.trunk_names:
            x = self.get_submodule(name)(x)
        mu = self.mu_dul_backbone(x)
        # Head: std = exp(logvar / 2), for audio alone clamped at a given maximum; sampling and KL use the clamped one.
        std = (0.5 * self.logvar_dul_backbone(x)).exp().clamp(max=self.max_std)
        # Probabilistic embedding: z = mu + std eps in training, z = mu in evaluation.
        return (mu + eps * std if self.training else mu), mu, std


class Fusion(nn.Module):
    """(logits, audio logits, visual logits), each (B, K), of the weighted features x and y (B, C)."""

    def __init__(self, kind: str, c: int, k: int):
        super().__init__()
        self.kind = kind
        sizes = {
            "concat": {"fc_out": (2 * c, k)},
            "sum": {"fc_x": (c, k), "fc_y": (c, k)},
            "gated": {"fc_x": (c, c), "fc_y": (c, c), "fc_out": (c, k)},
            "film": {"fc": (c * c, c), "fc_out": (c, k)},
        }
        for name, size in sizes[kind].items():
            self.add_module(name, nn.Linear(*size))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.kind == "sum":
            # Heads, sum: Linear_x + Linear_y, unimodal with its own bias alone.
            audio, visual = self.fc_x(x), self.fc_y(y)
            return audio + visual, audio, visual
        if self.kind == "concat":
            # Heads, concat: one Linear on [x; y], unimodal = the same with zeros in place of the other modality.
            pairs = (x, y), (x, torch.zeros_like(y)), (torch.zeros_like(x), y)
            hidden = [torch.cat(pair, 1) for pair in pairs]
        elif self.kind == "gated":
            # Heads, gated: fc_out(σ(fc_x x) fc_y y), the gate from x; unimodal: each modality gates itself.
            hx, hy = self.fc_x(x), self.fc_y(y)
            hidden = [gate.sigmoid() * value for gate, value in ((hx, hy), (hx, hx), (hy, hy))]
        else:
            # Heads, film: fc_out(fc(vec(x yᵀ))), row after row; unimodal with x xᵀ and y yᵀ.
            hidden = [self.fc((u[:, :, None] * v[:, None, :]).flatten(1)) for u, v in ((x, y), (x, x), (y, y))]
        both, audio, visual = (self.fc_out(h) for h in hidden)
        return both, audio, visual


class Output(NamedTuple):
    logits: Tensor  # (B, K)
    unimodal: tuple[Tensor, Tensor]  # (B, K) each
    weights: Tensor  # (B, 2), rows sum to 2
    noise: Tensor  # (B, 2), the estimated noise levels
    mu: tuple[Tensor, Tensor]  # (B, C, H, W) and (B*T, C, H, W)
    std: tuple[Tensor, Tensor]  # as mu; the audio one clamped


class AuthorsModel(nn.Module):
    """Two modalities; `trunk_audio` and `trunk_visual` are the layers below the heads, by their names."""

    def __init__(
        self,
        classes: int,
        channels: int,
        trunk_audio: Trunk,
        trunk_visual: Trunk,
        *,
        fusion: str = "concat",
        max_std_audio: float = float("inf"),
    ):
        super().__init__()
        self.audio_net = Backbone(trunk_audio, channels, max_std_audio)
        self.visual_net = Backbone(trunk_visual, channels)
        self.fusion_module = Fusion(fusion, channels, classes)
        # Estimator: Linear, Dropout(0.1), Linear, no activation. The caller passes the draws of the dropout.
        layers = [(nn.Linear(channels, HIDDEN), nn.Dropout(0.1), nn.Linear(HIDDEN, 1)) for _ in range(2)]
        self.audio_variance_estimator, self.visual_variance_estimator = (nn.Sequential(*each) for each in layers)
        # α: starts at 32 (audio) and 10 (visual); no part of the state dict.
        self.audio_depend, self.visual_depend = 32.0, 10.0

    def forward(
        self,
        audio: Tensor,
        visual: Tensor,
        *,
        eps_audio: Tensor | None = None,
        eps_visual: Tensor | None = None,
        keep_audio: Tensor | None = None,
        keep_visual: Tensor | None = None,
        uncertainty: bool,
    ) -> Output:
        """`audio` (B, 1, F, S), `visual` (B, channels, T, H, W); `eps_*` have the shape of the feature maps.

        `keep_*` (B, 256) multiply the hidden units of the estimators: 0 or 1 / 0.9, None for all ones. `uncertainty`
        is whether training has begun to weight by uncertainty; evaluation always does.
        """
        batch, frames = visual.shape[0], visual.shape[2]
        # Head: the frames are folded into the batch, all frames of a sample next to each other.
        folded = visual.transpose(1, 2).flatten(0, 1)
        z_a, mu_a, std_a = self.audio_net(audio, eps_audio)
        z_v, mu_v, std_v = self.visual_net(folded, eps_visual)
        # Features: the means of the sampled maps over space, for visual over frames and space.
        x_a = z_a.mean((2, 3))
        x_v = z_v.unflatten(0, (batch, frames)).mean((1, 3, 4))
        # Estimator: its input is the std, detached, averaged as the features are.
        s_a = _estimate(self.audio_variance_estimator, std_a.detach().mean((2, 3)), keep_audio)
        frames_of_std = std_v.detach().unflatten(0, (batch, frames))
        s_v = _estimate(self.visual_variance_estimator, frames_of_std.mean((1, 3, 4)), keep_visual)
        noise = torch.stack((s_a, s_v), 1)
        # Weights: the estimates are not detached here, so the task loss reaches the estimators.
        weights = self.weights(noise, uncertainty)
        # Fusion input: x + w x, for the joint and for the unimodal logits.
        logits, *unimodal = self.fusion_module(x_a + weights[:, :1] * x_a, x_v + weights[:, 1:] * x_v)
        return Output(logits, (unimodal[0], unimodal[1]), weights, noise, (mu_a, mu_v), (std_a, std_v))

    def weights(self, noise: Tensor, uncertainty: bool) -> Tensor:
        """(B, 2) weights of the (B, 2) estimated levels."""
        if self.training and not uncertainty:
            # Weights: both targets are 1 in training before the uncertainty phase, in evaluation never.
            target = torch.ones_like(noise)
        else:
            # Weights: u_a = 2 s_v² / (s_v² + s_a²), u_v = 2 s_a² / (s_v² + s_a²).
            target = 2 * noise.flip(1) ** 2 / (noise**2).sum(1, keepdim=True)
        # Weights: u / α, with α of the previous training batch, then normalised to sum to 2.
        scaled = target / target.new_tensor((self.audio_depend, self.visual_depend))
        return 2 * scaled / scaled.sum(1, keepdim=True)

    def update_dependency(self, output: Output) -> None:
        """After a training batch."""
        # α: Σ over classes of the batch mean of |unimodal logit|, detached; the last batch's, no averaging.
        self.audio_depend, self.visual_depend = (float(z.detach().abs().mean(0).sum()) for z in output.unimodal)


def _estimate(estimator: nn.Sequential, mean_std: Tensor, keep: Tensor | None) -> Tensor:
    """(B,) noise levels of (B, C) mean stds."""
    hidden = estimator[0](mean_std)
    # Estimator: s = exp(o / 2).
    return (estimator[2](hidden if keep is None else hidden * keep)[:, 0] * 0.5).exp()


class StepLoss(NamedTuple):
    """The four terms as they stand in the total, the total, and the parts without their factors (audio, visual)."""

    task: Tensor
    unimodal: Tensor
    kl: Tensor
    noise: Tensor
    total: Tensor
    unimodal_parts: tuple[Tensor, Tensor]
    kl_parts: tuple[Tensor, Tensor]
    noise_parts: tuple[Tensor, Tensor]


def kl_divergence(mu: Tensor, std: Tensor, level: Tensor) -> Tensor:
    """Of N(mu, std²) from N(0, level): maps (N, C, H, W), levels (B,), where B divides N."""
    # KL: with frames the level is repeated for each frame of its sample.
    t = level.to(mu).repeat_interleave(len(mu) // len(level))[:, None, None, None]
    # KL: 1e-8 joins the variance within the logarithm alone.
    each = 0.5 * (std**2 / t + mu**2 / t - ((std**2 + 1e-8) / t).log() - 1)
    # KL: summed over a sample's elements (with frames: a frame's), mean over the batch (with frames: the folded one).
    return each.sum((1, 2, 3)).mean()


def noise_error(estimate: Tensor, level: Tensor) -> Tensor:
    """The mean squared error of estimates (B,)."""
    return (estimate - level.to(estimate)).square().mean()


def step_loss(output: Output, levels: Tensor, target: Tensor, gamma: float, beta: float) -> StepLoss:
    """`levels` (B, 2) are the true noise levels, `target` (B,) the classes."""
    # Loss: CE + γ (CE_a + CE_v) + β (KL_a + KL_v) + 0.1 (MSE_a + MSE_v); the errors are added, not averaged.
    task = F.cross_entropy(output.logits, target)
    ce_a, ce_v = (F.cross_entropy(logits, target) for logits in output.unimodal)
    kl_a, kl_v = (kl_divergence(output.mu[m], output.std[m], levels[:, m]) for m in (0, 1))
    mse_a, mse_v = (noise_error(output.noise[:, m], levels[:, m]) for m in (0, 1))
    # Loss: where the sum of the errors is infinite it counts as 0, and has no gradient.
    errors = torch.zeros_like(mse_a) if bool((mse_a + mse_v).isinf()) else mse_a + mse_v
    unimodal, kl, noise = gamma * (ce_a + ce_v), beta * (kl_a + kl_v), NOISE_LOSS * errors
    return StepLoss(task, unimodal, kl, noise, task + unimodal + kl + noise, (ce_a, ce_v), (kl_a, kl_v), (mse_a, mse_v))


def train_step(model: AuthorsModel, optimizer: torch.optim.Optimizer, output: Output, loss: StepLoss) -> None:
    """One update of the parameters and of α. Theirs is SGD: lr 1e-3, momentum 0.9, weight decay 1e-4."""
    optimizer.zero_grad()
    loss.total.backward()
    # SGD: gradient clip 40, of the norm of all gradients together.
    nn.utils.clip_grad_norm_(model.parameters(), 40)
    optimizer.step()
    model.update_dependency(output)


def checkpoint(model: AuthorsModel, beta: float, gamma: float) -> dict[str, Any]:
    """What the authors' training script saves: the model is wrapped in DataParallel, α stands beside it."""
    state = OrderedDict((f"module.{name}", value.clone()) for name, value in model.state_dict().items())
    depend = {"audio_depend": model.audio_depend, "visual_depend": model.visual_depend}
    return {"model": state, **depend, "beta": beta, "gamma": gamma}


def authors_noise_image(image: Tensor, level: Tensor, eps: Tensor, *, wrap: bool) -> Tensor:
    """Images (B, 3, H, W) of whole numbers 0 to 255, levels (B,), one draw (B, 1, H, W) for the colour channels.

    `wrap` gives the authors' conversion to uint8, where what is below 0 wraps around; without it 0 is the least.
    """
    level = level[:, None, None, None]
    # Levels: σ = level² on 0..255; level 11 replaces the input by N / 10 · 255, where N is the noise of that level, as
    # their code has it; one draw for the three channels.
    drawn = level**2 * eps
    noisy = torch.where(level == REPLACED, drawn / 10 * 255, image + drawn).clamp(max=255)
    # Levels: cut to uint8. The conversion drops the fraction, towards zero.
    cut = noisy.trunc().remainder(256) if wrap else noisy.clamp(min=0).trunc()
    return torch.where(level == CLEAN, image, cut)


def authors_noise_audio(spectrogram: Tensor, level: Tensor, eps: Tensor) -> Tensor:
    """Log spectrograms (B, 1, F, S), levels (B,), draws of the shape of the spectrograms."""
    level = level[:, None, None, None]
    # Levels: σ = level; level 11 replaces the input by N / 10 · 255, N the noise of that level, cut at 255.
    drawn = level * eps
    noisy = torch.where(level == REPLACED, (drawn / 10 * 255).clamp(max=255), spectrogram + drawn)
    return torch.where(level == CLEAN, spectrogram, noisy)
