"""Callbacks: the progressive schedule, recording, selection and display."""

import math
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from .._arguments import unsaved_buffers
from .module import TrainingModule


class Progression(Callback):
    """Sets each epoch's phase and learning rate. A method that trains only on clean data stays in the clean phase.

    Source: UDML, arXiv 2603.19681 (progressive optimisation).
    """

    def on_train_epoch_start(self, trainer: Trainer, module: TrainingModule) -> None:
        config, epoch = module.config, trainer.current_epoch
        phase, _, _ = config.schedule.position(epoch)
        noisy = getattr(module.model, "noisy_training", True)
        module.phase = phase if noisy else replace(phase, noise=False, weighting=False)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.schedule.learning_rate(config.learning_rate, epoch)


class History(Callback):
    """A row of numbers for every epoch, which is logged and part of the checkpoint.

    Attributes:
        rows: epoch, phase, learning_rate, loss, loss_<term>, accuracy, weight_<modality> and alpha_<modality> as means
            over the epoch's steps, noise_rmse of the predicted sigma, validation_accuracy or validation_iou.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: Trainer, module: TrainingModule) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        phase, _, _ = module.config.schedule.position(trainer.current_epoch)
        row = {"epoch": trainer.current_epoch, "phase": phase.name, "learning_rate": rate} | module.fetch()
        self.rows.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.current_epoch)
        if not math.isfinite(row["loss"]):
            raise FloatingPointError(
                f"loss: expected a finite number, got {row['loss']} in epoch {row['epoch']};"
                f" a smaller learning_rate than {module.config.learning_rate} may help"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])


class Selection(Callback):
    """Keeps the weights of each phase's best epoch on the validation split; of equal epochs, the later.

    The score is measured on what the phase trains for: clean data in the clean phase, then the mix of levels.

    Attributes:
        epochs: by phase name, the selected epoch, counted from 0.
        scores: by phase name, its validation score.
        states: by phase name, the model's state dict of that epoch.
        buffers: by phase name, the buffers that the state dict does not contain.
    """

    def __init__(self, history: History):
        self.history = history
        self.epochs: dict[str, int] = {}
        self.scores: dict[str, float] = {}
        self.states: dict[str, dict[str, torch.Tensor]] = {}
        self.buffers: dict[str, dict[str, torch.Tensor]] = {}

    @property
    def last(self) -> str:
        """The last phase that has been reached."""
        return list(self.epochs)[-1]

    def on_train_epoch_end(self, trainer: Trainer, module: TrainingModule) -> None:
        row = self.history.rows[-1]
        phase, score = row["phase"], validation_score(row)
        if score >= self.scores.get(phase, -math.inf):
            self.epochs[phase], self.scores[phase] = row["epoch"], score
            self.states[phase] = {name: value.clone() for name, value in module.model.state_dict().items()}
            self.buffers[phase] = unsaved_buffers(module.model)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("epochs", "scores", "states", "buffers")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("epochs", "scores", "states", "buffers"):
            setattr(self, name, dict(state[name]))


class EpochLines(Callback):
    """Prints a short line for every epoch, for use without a terminal that can show a bar."""

    def __init__(self, history: History):
        self.history = history

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            row = self.history.rows[-1]
            numbers = f"loss {row['loss']:.4f} validation {validation_score(row):.4f}"
            print(f"epoch {row['epoch'] + 1}/{trainer.max_epochs} {row['phase']:<8} {numbers}", flush=True)


def validation_score(row: dict[str, Any]) -> float:
    """Accuracy or mean intersection over union of a row of the history."""
    return next(value for name, value in row.items() if name.startswith("validation_"))


def progress_bar(history: History) -> Callback:
    """Lightning's RichProgressBar, which also shows the last epoch's numbers."""
    from lightning.pytorch.callbacks import RichProgressBar

    class Bar(RichProgressBar):
        def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
            if not history.rows:
                return {}
            row = history.rows[-1]
            return {"loss": f"{row['loss']:.3f}", "validation": f"{validation_score(row):.3f}"}

    return Bar(leave=False)
