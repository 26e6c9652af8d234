"""The training loop and the evaluation, in plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import udml_kernels

from .windows import MODALITIES, Windows
from ..layers import NoiseInjector, UncertaintyWeighting
from ..losses import LossWeights, accuracy, udml_loss
from .network import UDML, ConvEncoder, UDMLOutput
from ..schedule import PHASES, Phase, ProgressiveSchedule

# One sigma is this many standard deviations of the training signal: at sigma = 4 noise and signal are equally strong.
SIGMA_UNIT = 0.25
MAX_SIGMA = 12.0
MIX = "mix"
EVALUATION_SEED = 20260319


@dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
        schedule: epochs of each phase.
        seed: of the initialisation, the order of the data and the noise.
        batch_size: samples a step; a last smaller batch is left out.
        learning_rate, weight_decay: AdamW's.
        width: channels of the embeddings.
        losses: weights of the objective's terms.
    """

    schedule: ProgressiveSchedule = field(default_factory=lambda: ProgressiveSchedule.of(40))
    seed: int = 0
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    width: int = 64
    losses: LossWeights = field(default_factory=LossWeights)


@dataclass
class Run:
    """What a training run leaves behind.

    Attributes:
        model: with the parameters of the best validation epoch of the last phase.
        losses: the mean training loss of every epoch, and
        tasks: of its first term, the cross entropy of the fused logits.
        validation: the validation accuracy of every epoch, on what the phase trains for (clean data or the mix).
        best: by phase name, the state dict of its best validation epoch.
        selected: by phase name, that epoch, counted from 0.
    """

    model: UDML
    losses: list[float] = field(default_factory=list)
    tasks: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    selected: dict[str, int] = field(default_factory=dict)


def build_model(windows: Windows, width: int = 64) -> UDML:
    """A UDML network for windows, initialised from torch's generator."""
    encoders = {name: ConvEncoder(x.shape[1], width) for name, x in zip(MODALITIES, windows.inputs, strict=True)}
    return UDML(
        encoders,
        len(windows.classes),
        width=width,
        prior_unit=SIGMA_UNIT,
        prior_floor=SIGMA_UNIT,
        weighting=UncertaintyWeighting(g="inverse", temperature=2.0, floor=1.0),
    )


def mixed_sigma(batch: int, modalities: int, seed: Tensor, sample_ids: Tensor) -> Tensor:
    """Noise levels (B, M): each modality of a sample clean with probability 1/2, else uniform up to MAX_SIGMA."""
    u = udml_kernels.uniform((batch, modalities), seed, sample_ids=sample_ids)
    return (2 * u - 1).clamp(min=0) * MAX_SIGMA


def step_loss(
    model: UDML, injector: NoiseInjector, batch: Windows, phase: Phase, weights: LossWeights, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """The objective of one training step and its first term; one seed serves the noise of all its ops."""
    sigma = torch.zeros(len(batch), len(batch.inputs))
    inputs = batch.inputs
    if phase.noise:
        sigma = mixed_sigma(len(batch), len(inputs), seed, batch.index)
        inputs = injector(inputs, sigma, seed=seed, sample_ids=batch.index)
    output = model(inputs, sigma=sigma, weighting=phase.weighting, seed=seed, sample_ids=batch.index)
    # Clean data alone would teach the estimator to answer 0 to anything.
    noise_loss = output.noise_loss if phase.noise else None
    loss = udml_loss(output.logits, output.unimodal, output.kl, noise_loss, batch.target, weights)
    return loss, F.cross_entropy(output.logits.detach(), batch.target)


def train_epoch(model: UDML, optimizer: torch.optim.Optimizer, windows: Windows, phase: Phase, config: Config) -> float:
    """One pass over the windows in random order; returns the means of the loss and of its first term."""
    model.train()
    injector = NoiseInjector(SIGMA_UNIT)
    total, steps = torch.zeros(2), max(1, len(windows) // config.batch_size)
    order = torch.randperm(len(windows))
    for step in range(steps):
        batch = windows.select(order[step * config.batch_size : (step + 1) * config.batch_size])
        loss, task = step_loss(model, injector, batch, phase, config.losses, udml_kernels.draw_seed())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        total += torch.stack([loss.detach(), task])
    return (total / steps).tolist()


@torch.no_grad()
def predict(
    model: UDML, windows: Windows, sigma: float | Tensor | str, *, weighting: bool = True
) -> tuple[UDMLOutput, Tensor]:
    """The model's output on windows, and their noise levels (N, M).

    Sigma is one level, a level for each modality (M,), or MIX for the levels of training. The noise is the
    same for every model and every call.
    """
    model.eval()
    seed = torch.tensor([EVALUATION_SEED])
    if isinstance(sigma, str):
        levels = mixed_sigma(len(windows), len(windows.inputs), seed, windows.index)
    else:
        levels = torch.as_tensor(sigma, dtype=torch.float32).expand(len(windows), len(windows.inputs))
    noisy = NoiseInjector(SIGMA_UNIT)(windows.inputs, levels, seed=seed, sample_ids=windows.index)
    return model(noisy, weighting=weighting), levels


def train(
    windows: dict[str, Windows], config: Config, on_epoch: Callable[[int, Phase, float, float], None] | None = None
) -> Run:
    """Train a UDML network from config.seed; epochs are selected on the validation windows alone.

    Args:
        windows: standardised, with the keys train and validation.
        config: the run.
        on_epoch: called after every epoch with its number, phase, training loss and validation accuracy.
    """
    torch.manual_seed(config.seed)
    run = Run(build_model(windows["train"], config.width))
    optimizer = torch.optim.AdamW(
        run.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    for epoch in range(config.schedule.epochs):
        phase, inside, _ = config.schedule.position(epoch)
        for group in optimizer.param_groups:
            group["lr"] = config.schedule.learning_rate(config.learning_rate, epoch)
        loss, task = train_epoch(run.model, optimizer, windows["train"], phase, config)
        run.losses.append(loss)
        run.tasks.append(task)
        _validate(run, windows["validation"], epoch, phase, first=inside == 0)
        if on_epoch is not None:
            on_epoch(epoch, phase, run.losses[-1], run.validation[-1])
    last = next(phase.name for phase in reversed(PHASES) if phase.name in run.best)
    run.model.load_state_dict(run.best[last])
    return run


def _validate(run: Run, windows: Windows, epoch: int, phase: Phase, *, first: bool) -> None:
    output, _ = predict(run.model, windows, MIX if phase.noise else 0.0, weighting=phase.weighting)
    run.validation.append(accuracy(output.logits, windows.target))
    if first or run.validation[-1] >= run.validation[run.selected[phase.name]]:
        run.selected[phase.name] = epoch
        run.best[phase.name] = {name: value.clone() for name, value in run.model.state_dict().items()}
