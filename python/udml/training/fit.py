"""Training from a config, and models read back."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data import DataSpec, MultimodalData, load_data
from ..layers import sync_batchnorm
from ..models import build_model
from .callbacks import EpochLines, History, Progression, Selection, progress_bar
from .config import TrainConfig
from .files import BoardLogger, CheckpointFiles, Checkpoints, MetricsFile
from .folder import METRICS, check_folder, read_checkpoint, start_folder
from .loaders import EpochBatches, Stripes, make_loader
from .module import TrainingModule

EVALUATION_BATCH = 1024


@dataclass
class Result:
    """What a run leaves behind.

    Attributes:
        model: with the weights of the last phase's best validation epoch, in evaluation mode, on the CPU.
        history: a row for every epoch, as `History.rows`.
        best: by phase name, the state dict of its best validation epoch.
        selected: by phase name, that epoch, counted from 0.
        scores: by phase name, its validation score.
        config: the run.
        data: what it trained on.
    """

    model: nn.Module
    history: list[dict[str, Any]]
    best: dict[str, dict[str, Tensor]]
    selected: dict[str, int]
    scores: dict[str, float]
    config: TrainConfig
    data: MultimodalData

    @property
    def weighting(self) -> bool:
        """Whether the model's last phase weighted the modalities."""
        return list(self.selected)[-1] == "weighted"


def train(
    config: TrainConfig,
    data: MultimodalData | None = None,
    encoders: Mapping[str, nn.Module] | None = None,
    *,
    model: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Result:
    """Train a method; epochs are selected on the validation split alone.

    torch's generator is left as it was. Under torchrun every process calls this, and the first one alone writes.

    Args:
        config: the run.
        data: what to train on; None loads config.data.
        encoders: by modality; None takes the data's own, of config.width.
        model: a MultimodalModel to train as it is; None builds config.method's from the encoders.
        callbacks: Lightning's, after this package's own.
        progress: show a bar, or without a terminal a line for every epoch.

    Raises:
        ValueError, DataError: for a config or data that cannot be trained on, before anything is written.
        FloatingPointError: when the loss is no longer finite.
    """
    return prepare(config, data, encoders, model=model, callbacks=callbacks, progress=progress).fit()


def prepare(
    config: TrainConfig,
    data: MultimodalData | None = None,
    encoders: Mapping[str, nn.Module] | None = None,
    *,
    model: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> "Run":
    """All of `train` that can fail for what it is given: nothing has been written, nothing trained."""
    config.check_names()
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected auto or cpu where torch finds no CUDA device, got 'cuda'")
    checkpoint = check_folder(config)
    data = read_data(config) if data is None else data
    with quiet(), _own_generator():
        torch.manual_seed(config.seed)
        model = make_model(config, data, encoders) if model is None else model
        _check_model(model, data.spec)
        history = History()
        selection = Selection(history)
        trainer = make_trainer(config, history, selection, callbacks, progress)
    if trainer.world_size > 1:
        sync_batchnorm(model)
    loaders = make_loaders(config, data, trainer)
    return Run(config, data, model, trainer, loaders, history, selection, checkpoint)


@dataclass
class Run:
    """A run that is ready to begin, or to go on from a checkpoint."""

    config: TrainConfig
    data: MultimodalData
    model: nn.Module
    trainer: Trainer
    loaders: tuple[DataLoader, DataLoader]
    history: History
    selection: Selection
    checkpoint: Path | None

    def fit(self) -> Result:
        """Train to the end."""
        if self.config.out is not None and self.trainer.is_global_zero:
            start_folder(self.config)
        module = TrainingModule(self.model, self.data.spec, self.config)
        with quiet(), _own_generator():
            self.trainer.fit(module, *self.loaders, ckpt_path=self.checkpoint, weights_only=True)
        chosen = self.selection
        self.model.load_state_dict(chosen.states[chosen.last])
        return Result(
            self.model.eval(), self.history.rows, chosen.states, chosen.epochs, chosen.scores, self.config, self.data
        )


def read_data(config: TrainConfig) -> MultimodalData:
    """The data set that the config names."""
    views = None if config.views is None else tuple(name.strip() for name in config.views.split(","))
    return load_data(config.data, config.root, seed=config.split_seed, views=views)


def make_model(config: TrainConfig, data: MultimodalData, encoders: Mapping[str, nn.Module] | None = None) -> nn.Module:
    """The config's method for the data's modalities and classes, initialised from torch's generator.

    Raises:
        ValueError: when the encoders are not for the data's modalities.
    """
    spec = data.spec
    encoders = data.encoders(config.width) if encoders is None else encoders
    if set(encoders) != set(spec.modalities):
        expected, got = ", ".join(spec.modalities), ", ".join(encoders)
        raise ValueError(f"encoders: expected one for each modality of {spec.name} ({expected}), got {got}")
    names = ("gamma", "beta", "lam", "temperature", "floor", "momentum", "preset")
    return build_model(
        config.method,
        {name: encoders[name] for name in spec.modalities},
        len(spec.classes),
        fusion=config.fusion,
        task=spec.task,
        **{name: getattr(config, name) for name in names},
    )


def _check_model(model: nn.Module, spec: DataSpec) -> None:
    for name, has, expected in (
        ("modalities", tuple(model.modalities), spec.modalities),
        ("num_classes", model.num_classes, len(spec.classes)),
        ("task", model.task, spec.task),
    ):
        if has != expected:
            raise ValueError(f"model: expected the {name} of {spec.name}, {expected}, got {has}")


def make_trainer(
    config: TrainConfig, history: History, selection: Selection, callbacks: Sequence[Callback], progress: bool
) -> Trainer:
    """Lightning's Trainer for a run: numbers once an epoch, nothing that is not asked for."""
    shown: list[Callback] = []
    terminal = os.isatty(1)
    if progress:
        shown = [progress_bar(history) if terminal else EpochLines(history)]
    written = [] if config.out is None else [Checkpoints(config.out, selection)]
    loggers = (
        [] if config.out is None else [MetricsFile(config.out / METRICS, history), BoardLogger(config.out, history)]
    )
    world = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # Which parameters take part changes with the phase. What else buffers hold is the same in all processes.
    shared = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False) if world > 1 else "auto"
    return Trainer(
        accelerator=config.device,
        devices=local,
        num_nodes=world // local,
        strategy=shared,
        precision=config.precision,
        max_epochs=config.epochs,
        callbacks=[Progression(), history, selection, *shown, *written, *callbacks],
        logger=loggers or False,
        plugins=[CheckpointFiles()],
        enable_checkpointing=bool(written),
        enable_progress_bar=progress and terminal,
        enable_model_summary=False,
        enable_autolog_hparams=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=config.out,
    )


def make_loaders(config: TrainConfig, data: MultimodalData, trainer: Trainer) -> tuple[DataLoader, DataLoader]:
    """The loaders of training and validation, each process its share."""
    share = {"rank": trainer.global_rank, "world": trainer.world_size}
    progress = trainer.fit_loop.epoch_progress.current
    batches = EpochBatches(
        len(data.train), config.batch_size, seed=config.seed, epoch=lambda: progress.processed, **share
    )
    stripes = Stripes(len(data.validation), EVALUATION_BATCH, **share)
    return make_loader(data.train, batches, config.workers), make_loader(data.validation, stripes, config.workers)


def load_model(
    path: Path | str, data: MultimodalData | None = None, encoders: Mapping[str, nn.Module] | None = None
) -> nn.Module:
    """The model of a best.ckpt, in evaluation mode, on the CPU; only tensors and plain types are unpickled.

    Args:
        path: the checkpoint.
        data: what it was trained on; None loads the data set that its config names.
        encoders: new ones of the kind it was trained with; None takes the data's own.

    Raises:
        ValueError: when the file is not such a checkpoint, or does not fit the data or the encoders.
    """
    best = read_checkpoint(Path(path))
    if not {"config", "state_dict", "modalities", "classes"} <= set(best):
        raise ValueError(f"{path}: expected a best.ckpt, got a checkpoint with {', '.join(map(str, best))}")
    config = TrainConfig.of(best["config"])
    data = data if data is not None else read_data(config)
    for name in ("modalities", "classes"):
        if list(getattr(data.spec, name)) != best[name]:
            raise ValueError(
                f"{path}: expected data with the {name} {best[name]}, got {list(getattr(data.spec, name))}"
            )
    with _own_generator():
        model = make_model(config, data, encoders)
    try:
        model.load_state_dict(best["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path}: expected the weights of this model: {error}") from error
    return model.eval()


def _own_generator():
    """torch's generator comes back as it was."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()))


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's hints on hardware, loaders and logging intervals."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
