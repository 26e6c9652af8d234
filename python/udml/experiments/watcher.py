"""What a model knows and which gradients it gets, epoch by epoch."""

import copy
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from ..data import MultimodalData
from ..training.fit import Result
from ..training.module import TrainingModule
from .judged import accuracies, named_probes

# Epochs at which the frozen features are probed: this many, evenly spaced.
PROBES = 8


class Watcher(Callback):
    """Measures a model at the end of epochs.

    Attributes:
        epochs: a row for each epoch: by term and modality, "gradient TERM NAME" is the norm of the term's gradient in
            the encoder's parameters on the first training samples; where it was probed, "probe NAME".
    """

    SAMPLES = 256

    def __init__(self, data: MultimodalData) -> None:
        self.data, self.epochs = data, []  # type: tuple[MultimodalData, list[dict[str, float]]]

    def on_train_epoch_end(self, trainer: Trainer, module: TrainingModule) -> None:
        epoch, count = trainer.current_epoch, module.config.epochs
        row = _gradients(module, self.data, self.SAMPLES)
        if (epoch + 1) * PROBES // count > epoch * PROBES // count:
            row |= named_probes(module.model, self.data, self.data.validation)
        self.epochs.append(row)


def _gradients(module: TrainingModule, data: MultimodalData, samples: int) -> dict[str, float]:
    """The norm of each term's gradient in each encoder, of a copy, so that nothing of the training changes."""
    model = copy.deepcopy(module.model).train()
    batch, phase = data.train.__getitems__(range(min(samples, len(data.train)))), module.phase_of(module.current_epoch)
    with torch.enable_grad():
        output, sigma = module.forward_pass.in_phase(model, batch, phase, torch.tensor([module.config.seed]))
        terms = model.loss(output, batch.target, epoch_fraction=1.0, sigma=sigma)
    found = {}
    for term, loss in terms.items():
        for name, encoder in model.encoders.items():
            parameters = [p for p in encoder.parameters() if p.requires_grad]
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norms = [g.norm() for g in grads if g is not None]
            found[f"gradient {term} {name}"] = float(torch.stack(norms).norm()) if norms else 0.0
    return found


def observed(result: Result, watcher: Watcher, data: MultimodalData, draws: int) -> dict[str, Any]:
    """What is kept of a run: the watcher's epochs with weights, alphas and phases, and the final accuracies."""
    kept = ("phase", "weight_", "alpha_")
    epochs = [
        row | {key: value for key, value in history.items() if key.startswith(kept)}
        for row, history in zip(watcher.epochs, result.history, strict=True)
    ]
    model: nn.Module = result.model
    final = accuracies(model, data, data.validation, result.weighting, draws)
    return {"epochs": epochs, "final": final | named_probes(model, data, data.validation)}
