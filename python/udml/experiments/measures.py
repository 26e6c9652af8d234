"""What is measured on a trained model: numbers in plain types, ready for JSON."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from ..data import DataSpec, MultimodalData
from ..data.sets import Split
from ..training.evaluate import MIX, Evaluation, evaluate
from ..training.module import TrainingModule
from .statistics import slope, spearman

LEVELS = (0, 1, 2, 4, 6, 8, 12)
TUNING_LEVELS = (0, 2, 4, 6, 8)
TRUE_LEVELS = tuple(range(17))
WEIGHT_LEVELS = tuple(range(0, 17, 2))
BANDS = ((0, 4), (4, 10), (10, 16))
ALL = "all"
# `evaluate` of one model on one split; it takes the levels and the draw, which counts from 1 here.
Ask = Callable[..., Evaluation]


def on(model: nn.Module, split: Split, spec: DataSpec, weighting: bool) -> Ask:
    """`evaluate` of a model on a split as one batch."""
    return partial(evaluate, model, split, spec, weighting=weighting, batch_size=len(split))


def accuracy(ask: Ask, sigma: Sequence[float] | str, draws: int) -> float:
    """The mean accuracy at levels (M,), or on the mix, over draws of the noise."""
    clean = not isinstance(sigma, str) and not any(sigma)
    return fmean(ask(sigma, draw=1 + draw).score for draw in range(1 if clean else draws))


def tuning_score(ask: Ask, names: Sequence[str], draws: int) -> float:
    """The score that selects hyper-parameters: the mix counts as much as the levels on all modalities together."""
    levels = [accuracy(ask, levels_of(names, ALL, sigma), draws) for sigma in TUNING_LEVELS]
    return (accuracy(ask, MIX, draws) + sum(levels) / len(levels)) / 2


def measure(model: nn.Module, data: MultimodalData, *, weighting: bool, draws: int, brief: bool) -> dict[str, Any]:
    """All that the report shows of a run except its history; brief: only the accuracies with all modalities degraded.

    Returns:
        "accuracy": by what is degraded ("all" or a modality), one for each of LEVELS, and "mix", one number. Unless
        brief, also "weights": each modality's weight where it alone is degraded, by WEIGHT_LEVELS; "noise": see
        `predicted_noise`; "unimodal": the accuracy of each modality alone on clean validation samples.
    """
    ask, names = on(model, data.test, data.spec, weighting), data.spec.modalities
    degraded = (ALL,) if brief else (ALL, *names)
    scores = {name: [accuracy(ask, levels_of(names, name, sigma), draws) for sigma in LEVELS] for name in degraded}
    found: dict[str, Any] = {"accuracy": scores | {MIX: accuracy(ask, MIX, draws)}}
    if brief:
        return found
    return found | {
        "weights": {name: [_weight(ask, names, name, sigma) for sigma in WEIGHT_LEVELS] for name in names},
        "noise": predicted_noise(ask, names),
        "unimodal": on(model, data.validation, data.spec, weighting)(draw=1).unimodal,
    }


def levels_of(names: Sequence[str], degraded: str, sigma: float) -> list[float]:
    """Levels (M,) with one modality or ALL of them degraded."""
    return [float(sigma) if degraded in (ALL, name) else 0.0 for name in names]


def _weight(ask: Ask, names: Sequence[str], degraded: str, sigma: float) -> float:
    """The mean weight of the modality that alone is degraded."""
    weights = ask(levels_of(names, degraded, sigma), draw=1).weights
    assert weights is not None
    return float(weights[:, names.index(degraded)].mean())


def predicted_noise(ask: Ask, names: Sequence[str]) -> dict[str, Any] | None:
    """By modality, the predicted sigma with all modalities degraded to each of TRUE_LEVELS.

    Returns:
        The quantiles "low" (10%), "median", "high" (90%), the "mean" and the "mean_square" at each level, over
        samples; "spearman" over all samples and levels; "slopes" of the prediction on the truth in each of BANDS.
    """
    answers = [noise for sigma in TRUE_LEVELS if (noise := ask(levels_of(names, ALL, sigma), draw=1).noise) is not None]
    if not answers:
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
