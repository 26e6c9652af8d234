"""What the designs of the estimator are judged by."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import MultimodalData
from ..data.sets import Split
from ..training.evaluate import MIX
from .measures import ALL, accuracy, levels_of, on, predicted_noise


def measured(model: nn.Module, data: MultimodalData, split: Split, weighting: bool, draws: int) -> dict[str, Any]:
    """On a split: accuracies, Spearman's correlation of the estimate, and each modality's probe."""
    scores = accuracies(model, data, split, weighting, draws)
    ask, names = on(model, split, data.spec, weighting), data.spec.modalities
    noise = predicted_noise(ask, names)
    spearman = {} if noise is None else {f"spearman {name}": noise[name]["spearman"] for name in names}
    return scores | spearman | named_probes(model, data, split)


def accuracies(model: nn.Module, data: MultimodalData, split: Split, weighting: bool, draws: int) -> dict[str, float]:
    """On a split: clean, on the mix of levels, and with all modalities at 4 and at 8."""
    ask, names = on(model, split, data.spec, weighting), data.spec.modalities
    scores = {f"all at {s}": accuracy(ask, levels_of(names, ALL, s), draws) for s in (4, 8)}
    return scores | {"clean": accuracy(ask, levels_of(names, ALL, 0), 1), MIX: accuracy(ask, MIX, draws)}


def named_probes(model: nn.Module, data: MultimodalData, split: Split) -> dict[str, float]:
    """`probes`, with "probe NAME" for NAME, as a part of a row."""
    return {f"probe {name}": value for name, value in probes(model, data, split).items()}


def probes(model: nn.Module, data: MultimodalData, split: Split) -> dict[str, float]:
    """By modality, the accuracy of a linear classifier of the frozen encoder's features, on a split's clean samples.

    The classifier is a ridge regression of the classes' indicators.
    """
    train, test = (part.__getitems__(range(len(part))) for part in (data.train, split))
    found = {}
    for name, encoder in model.encoders.items():  # type: ignore[union-attr, operator]
        x, y = (_features(encoder, part.inputs[name]) for part in (train, test))
        classes = F.one_hot(train.target, len(data.spec.classes)).double()
        gram = x.mT @ x
        ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        answer = y @ torch.linalg.solve(gram + ridge, x.mT @ classes)
        found[name] = float((answer.argmax(1) == test.target).double().mean())
    return found


@torch.no_grad()
def _features(encoder: nn.Module, x: Tensor) -> Tensor:
    was = encoder.training
    features = encoder.eval()(x)
    encoder.train(was)
    rows = features.flatten(2).mean(2) if features.dim() > 2 else features
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1).double()
