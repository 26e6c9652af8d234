"""The files that a run writes while it trains: metrics.csv, last.ckpt, best.ckpt and TensorBoard's files."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from .callbacks import History, Selection
from .folder import BEST, BOARD, LAST, read_checkpoint, write_atomically, write_text
from .module import TrainingModule


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoints, written atomically in their own folder and read as plain tensors and numbers only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path, map_location="cpu", weights_only=True) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class MetricsFile(Logger):
    """metrics.csv, one row per epoch. Lightning's CSVLogger would delete the first rows of a resumed run."""

    def __init__(self, path: Path, history: History):
        super().__init__()
        self.path, self.history = path, history

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        """Does nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Write all rows of the history."""
        columns = list(dict.fromkeys(name for row in self.history.rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history.rows)
        write_text(self.path, text.getvalue())


class BoardLogger(TensorBoardLogger):
    """TensorBoard's files; a resumed run hides entries that an unfinished epoch may have left."""

    def __init__(self, folder: Path, history: History):
        super().__init__(folder, name=BOARD, version="")
        self.history = history

    @property
    @rank_zero_only
    def experiment(self):
        if self._experiment is None:
            self._kwargs["purge_step"] = len(self.history.rows) - 1
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics({n: v for n, v in metrics.items() if not isinstance(v, str) and n != "epoch"}, step)


class Checkpoints(Checkpoint):
    """Writes last.ckpt after every epoch, and best.ckpt if the current phase has a new best epoch."""

    def __init__(self, folder: Path, selection: Selection):
        self.folder, self.selection = folder, selection

    def on_train_epoch_end(self, trainer: Trainer, module: TrainingModule) -> None:
        chosen = self.selection
        if chosen.epochs[chosen.last] == trainer.current_epoch and trainer.is_global_zero:
            write_best(self.folder / BEST, module, chosen)
        trainer.save_checkpoint(self.folder / LAST)

    def on_save_checkpoint(self, trainer: Trainer, module: TrainingModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = module.config.settings()


def write_best(path: Path, module: TrainingModule, chosen: Selection) -> None:
    """Write the selected weights of the last phase with all that `load_model` needs: tensors and plain types."""
    phase = chosen.last
    best = {
        "state_dict": {name: value.cpu() for name, value in chosen.states[phase].items()},
        "buffers": chosen.buffers[phase],
        "config": module.config.plain(),
        "phase": phase,
        "epoch": chosen.epochs[phase],
        "score": chosen.scores[phase],
        "modalities": list(module.spec.modalities),
        "classes": list(module.spec.classes),
        **module.saved,
    }
    write_atomically(path, lambda file: torch.save(best, file))
