"""What is measured on a trained model: numbers in plain types, ready for JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from ..data import DataSpec, MultimodalData
from ..data.sets import Split
from ..training.evaluate import MIX, NoisyPass
from ..training.module import TrainingModule
from ..training.randomness import evaluation_seed, mixed_sigma
from .statistics import slope, spearman

LEVELS = (0, 1, 2, 4, 6, 8, 12)
TUNING_LEVELS = (0, 2, 4, 6, 8)
TRUE_LEVELS = tuple(range(17))
WEIGHT_LEVELS = tuple(range(0, 17, 2))
BANDS = ((0, 4), (4, 10), (10, 16))
ALL = "all"


class Tester:
    """A model on a split that fits in memory, under noise that is the same for every model.

    Args:
        model: a MultimodalModel, in evaluation mode.
        split: a split of the data that `spec` describes.
        weighting: whether the model weights the modalities.
    """

    def __init__(self, model: nn.Module, split: Split, spec: DataSpec, *, weighting: bool = True):
        self.model, self.spec, self.weighting = model, spec, weighting
        self.batch = split.__getitems__(list(range(len(split))))
        self.forward = NoisyPass(spec)

    @torch.no_grad()
    def output(self, sigma: Sequence[float] | str, draw: int = 0) -> Any:
        """The Output for the whole split at levels (M,), or on the mix; every draw has different noise."""
        seed = evaluation_seed(1 + draw)
        size, modalities = len(self.batch), len(self.spec.modalities)
        if isinstance(sigma, str):
            levels = mixed_sigma(size, modalities, self.spec.max_sigma, seed, self.batch.index)
        else:
            levels = torch.tensor(sigma, dtype=torch.float32).expand(size, modalities)
        return self.forward(self.model, self.batch, levels, seed=seed, weighting=self.weighting)

    def right(self, logits: Tensor) -> float:
        """The fraction of logits (N, K) whose prediction is correct."""
        return float((logits.argmax(1) == self.batch.target).float().mean())

    def accuracy(self, sigma: Sequence[float] | str, draws: int) -> float:
        """The mean accuracy over draws of the noise."""
        clean = not isinstance(sigma, str) and not any(sigma)
        scores = [self.right(self.output(sigma, draw).logits) for draw in range(1 if clean else draws)]
        return sum(scores) / len(scores)


def tuning_score(tester: Tester, draws: int) -> float:
    """The score that selects hyper-parameters: the mix counts as much as the levels on all modalities together."""
    names = tester.spec.modalities
    levels = [tester.accuracy(_levels(names, ALL, sigma), draws) for sigma in TUNING_LEVELS]
    return (tester.accuracy(MIX, draws) + sum(levels) / len(levels)) / 2


def measure(model: nn.Module, data: MultimodalData, *, weighting: bool, draws: int, brief: bool) -> dict[str, Any]:
    """All that the report shows of a run except its history; brief: only the accuracies with all modalities degraded.

    Returns:
        "accuracy": by what is degraded ("all" or a modality), one for each of LEVELS, and "mix", one number. Unless
        brief, also "weights": each modality's weight where it alone is degraded, by WEIGHT_LEVELS; "noise": see
        `predicted_noise`; "unimodal": the accuracy of each modality alone on clean validation samples.
    """
    tester = Tester(model, data.test, data.spec, weighting=weighting)
    names = data.spec.modalities
    degraded = (ALL,) if brief else (ALL, *names)
    accuracy = {
        name: [tester.accuracy(_levels(names, name, sigma), draws) for sigma in LEVELS] for name in degraded
    } | {MIX: tester.accuracy(MIX, draws)}
    if brief:
        return {"accuracy": accuracy}
    validation = Tester(model, data.validation, data.spec, weighting=weighting)
    alone = validation.output([0.0] * len(names)).unimodal
    return {
        "accuracy": accuracy,
        "weights": {name: [_weight(tester, names, name, sigma) for sigma in WEIGHT_LEVELS] for name in names},
        "noise": predicted_noise(tester),
        "unimodal": {name: validation.right(logits) for name, logits in zip(names, alone, strict=True)},
    }


def _levels(names: Sequence[str], degraded: str, sigma: float) -> list[float]:
    return [float(sigma) if degraded in (ALL, name) else 0.0 for name in names]


def _weight(tester: Tester, names: Sequence[str], degraded: str, sigma: float) -> float:
    """The mean weight of the modality that alone is degraded."""
    return float(tester.output(_levels(names, degraded, sigma)).weights[:, names.index(degraded)].mean())


def predicted_noise(tester: Tester) -> dict[str, Any] | None:
    """By modality, the predicted sigma with all modalities degraded to each of TRUE_LEVELS.

    Returns:
        The quantiles "low" (10%), "median", "high" (90%), the "mean" and the "mean_square" at each level, over
        samples; "spearman" over all samples and levels; "slopes" of the prediction on the truth in each of BANDS.
    """
    names = tester.spec.modalities
    answers = [tester.output(_levels(names, ALL, sigma)).noise for sigma in TRUE_LEVELS]
    if answers[0] is None:
        return None
    return {name: _of_noise(torch.stack([a[:, m] for a in answers]).double().numpy()) for m, name in enumerate(names)}


def _of_noise(predicted: np.ndarray) -> dict[str, Any]:
    """The statistics of predictions (levels, N)."""
    true = np.broadcast_to(np.array(TRUE_LEVELS, float)[:, None], predicted.shape)
    low, median, high = np.quantile(predicted, (0.1, 0.5, 0.9), axis=1)
    slopes = []
    for first, last in BANDS:
        inside = slice(first, last + 1)
        slopes.append(slope(true[inside].ravel(), predicted[inside].ravel()))
    return {
        "low": low.tolist(),
        "median": median.tolist(),
        "high": high.tolist(),
        "mean": predicted.mean(1).tolist(),
        "mean_square": np.square(predicted).mean(1).tolist(),
        "spearman": spearman(true.ravel(), predicted.ravel()),
        "slopes": slopes,
    }


class GradientNorms(Callback):
    """The norm of each encoder's gradient as the optimizer gets it, but before clipping; a mean for every epoch.

    Attributes:
        epochs: for every epoch, one number per modality.
    """

    def __init__(self) -> None:
        self.epochs: list[list[float]] = []
        self._norms: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: TrainingModule, optimizer) -> None:
        encoders = module.model.encoders.values()
        grads = [[p.grad for p in encoder.parameters() if p.grad is not None] for encoder in encoders]
        self._norms.append(torch.stack([nn.utils.get_total_norm(g) for g in grads]))

    def on_train_epoch_end(self, trainer: Trainer, module: TrainingModule) -> None:
        self.epochs.append(torch.stack(self._norms).mean(0).tolist())
        self._norms = []
