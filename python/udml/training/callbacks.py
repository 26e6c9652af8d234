"""Callbacks: recording, selection, checkpoints and display."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from .._arguments import unsaved_buffers
from .folder import BEST, LAST, METRICS, read_checkpoint, write_atomically, write_csv
from .module import TrainingModule


class History(Callback):
    """A row of numbers for every epoch, which is logged, part of the checkpoint, and a line of metrics.csv.

    Lightning's CSVLogger would delete the first rows of a resumed run, and log training and validation by steps.

    Args:
        folder: the run's folder; None writes nothing.

    Attributes:
        rows: epoch, phase, learning_rate, loss, loss_<term>, accuracy, weight_<modality> and alpha_<modality> as means
            over the epoch's steps, noise_rmse of the predicted sigma, validation_accuracy or validation_iou.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: Trainer, module: TrainingModule) -> None:
        config, epoch = module.config, trainer.current_epoch
        numbers = {"learning_rate": config.schedule.learning_rate(config.learning_rate, epoch)} | module.epoch_means()
        self.rows.append({"epoch": epoch, "phase": config.schedule.position(epoch)[0].name} | numbers)
        if self.folder is not None and trainer.is_global_zero:
            write_csv(self.folder / METRICS, self.rows)
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=epoch)
        if not math.isfinite(numbers["loss"]):
            raise FloatingPointError(
                f"loss: expected a finite number, got {numbers['loss']} in epoch {epoch};"
                f" a smaller learning_rate than {config.learning_rate} may help"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])


class Selection(Callback):
    """Keeps the weights of each phase's best epoch on the validation split, those of the last phase as best.ckpt.

    The score is measured on what the phase trains for: clean data in the clean phase, then the mix of levels. A
    ModelCheckpoint has one best epoch for the whole run, and of equal epochs the earlier; this takes the later.

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
        row, folder = self.history.rows[-1], self.history.folder
        phase, score = row["phase"], validation_score(row)
        if score >= self.scores.get(phase, -math.inf):
            self.epochs[phase], self.scores[phase] = row["epoch"], score
            self.states[phase] = {name: value.clone() for name, value in module.model.state_dict().items()}
            self.buffers[phase] = unsaved_buffers(module.model)
            if folder is not None and trainer.is_global_zero:
                self.write_best(folder / BEST, module)

    def write_best(self, path: Path, module: TrainingModule) -> None:
        """Write the selected weights of the last phase with all that `load_model` needs: tensors and plain types."""
        phase = self.last
        best = {
            "state_dict": {name: value.cpu() for name, value in self.states[phase].items()},
            "buffers": self.buffers[phase],
            "config": module.config.plain(),
            "phase": phase,
            "epoch": self.epochs[phase],
            "score": self.scores[phase],
            "modalities": list(module.spec.modalities),
            "classes": list(module.spec.classes),
            **module.saved,
        }
        write_atomically(path, lambda file: torch.save(best, file))

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("epochs", "scores", "states", "buffers")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("epochs", "scores", "states", "buffers"):
            setattr(self, name, dict(state[name]))


class LastCheckpoint(ModelCheckpoint):
    """Writes last.ckpt after every epoch. Its state, the folder's path, stays out: a run can be moved."""

    def __init__(self, folder: Path):
        super().__init__(folder, Path(LAST).stem, save_on_train_epoch_end=True, enable_version_counter=False)

    def state_dict(self) -> dict[str, Any]:
        return {}


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints that are written beside their place and moved there, and read as tensors and plain types alone.

    Lightning's own are written to the temporary folder and, from another disk, copied: a killed process leaves a part.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path, map_location="cpu", weights_only=True) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class EpochLines(Callback):
    """Where there is no terminal: one line per epoch, in the place of Lightning's progress bar."""

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
