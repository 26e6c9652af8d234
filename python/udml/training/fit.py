"""Train from a config."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .._arguments import restore_buffers
from ..data import MultimodalData
from ..layers import sync_batchnorm
from ..models import MultimodalModel
from ..models.recipe import check_recipe, recipe
from .build import Encoders, check_model, make_model, of_model, own_generator, read_data
from .callbacks import CheckpointFiles, EpochLines, History, LastCheckpoint, Selection
from .config import TrainConfig
from .folder import BOARD, check_folder, read_checkpoint, start_folder
from .forward import NoisyPass
from .loaders import EpochBatches, make_loader, stripes
from .module import TrainingModule

EVALUATION_BATCH = 1024


@dataclass
class Result:
    """The result of a run.

    Attributes:
        model: with the weights of the last phase's best validation epoch, in evaluation mode, on the CPU.
        history: one row per epoch, as in `History.rows`.
        best: by phase name, the state dict of its best validation epoch.
        selected: by phase name, that epoch, counted from 0.
        scores: by phase name, its validation score.
        config: the config of the run.
        data: the data it trained on.
    """

    model: MultimodalModel
    history: list[dict[str, Any]]
    best: dict[str, dict[str, Tensor]]
    selected: dict[str, int]
    scores: dict[str, float]
    config: TrainConfig
    data: MultimodalData

    @property
    def weighting(self) -> bool:
        """Whether the modalities were weighted in the model's last phase."""
        return list(self.selected)[-1] == "weighted"


def train(
    config: TrainConfig,
    data: MultimodalData | None = None,
    encoders: Encoders | None = None,
    *,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    forward_pass: NoisyPass | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Result:
    """Train a method; epochs are selected on the validation split only.

    torch's generator is restored at the end. Under torchrun every process calls this, and only the first one writes.

    Args:
        config: the config of the run.
        data: the data to train on; None loads config.data.
        encoders: by modality, or a function that returns them; None uses the data's own, of config.width.
        model: a MultimodalModel to train as it is, or a function that builds it; None builds config.method's from the
            encoders. Only what a function builds is initialised from config.seed.
        forward_pass: degrades the batches of training and validation; None degrades them as the data's spec says.
        callbacks: Lightning's, after this package's own.
        progress: show a bar, or without a terminal that has room for it one line per epoch.

    Raises:
        ValueError, DataError: for a config or data that cannot be trained on, before anything is written.
        FloatingPointError: if the loss is no longer finite.
    """
    return prepare(
        config, data, encoders, model=model, forward_pass=forward_pass, callbacks=callbacks, progress=progress
    ).fit()


def prepare(
    config: TrainConfig,
    data: MultimodalData | None = None,
    encoders: Encoders | None = None,
    *,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    forward_pass: NoisyPass | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> "Run":
    """All of `train` that can fail because of its arguments: it writes nothing and trains nothing."""
    config.check_names(data=data is None, model=model is None)
    if model is not None and encoders is not None:
        raise ValueError("encoders: expected None where a model is given, which has its own")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected auto or cpu where torch finds no CUDA device, got 'cuda'")
    if config.cuda_graph and (config.device == "cpu" or not torch.cuda.is_available()):
        raise ValueError("cuda_graph: expected False without a CUDA device, got True")
    checkpoint = check_folder(config)
    if data is None:
        data = read_data(config)
    elif not isinstance(data, MultimodalData):
        raise TypeError(f"data: expected a MultimodalData, got {type(data).__name__}")
    with quiet(), own_generator():
        torch.manual_seed(config.seed)
        if model is None:
            model = make_model(config, data, encoders)
        else:
            # check_model verifies this below.
            model = cast(MultimodalModel, model if isinstance(model, nn.Module) else model())
            config = of_model(config, model)
        config = replace(config, data=data.spec.name)
        check_model(model, data.spec)
        # Before layers are replaced for training with several processes.
        saved = {"model": recipe(model), "samples": {name: len(part) for name, part in data.splits.items()}}
        finished = 0 if checkpoint is None else check_resumed(checkpoint, config, model, saved["samples"])
        history = History(config.out)
        selection = Selection(history)
        trainer = make_trainer(config, history, selection, callbacks, progress, finished)
    if trainer.world_size > 1:
        sync_batchnorm(model)
    loaders = make_loaders(config, data, trainer)
    module = TrainingModule(model, data.spec, config, saved, forward_pass)
    return Run(config, data, module, trainer, loaders, history, selection, checkpoint)


def check_resumed(path: Path, config: TrainConfig, model: nn.Module, samples: Mapping[str, int]) -> int:
    """The number of epochs that the run of a last.ckpt has finished.

    Raises:
        ValueError: if it began with other settings, another model or other data.
    """
    before = read_checkpoint(path)
    settings, now = before.get("config", {}), config.settings()
    if not {"model", "samples"} <= set(before):
        raise ValueError(f"{path}: expected the checkpoint of a run, got one with {', '.join(map(str, before))}")
    pairs = {name: (settings.get(name), value) for name, value in now.items()}
    pairs["samples"] = (before["samples"], dict(samples))
    differing = [f"{name} {old!r} instead of {new!r}" for name, (old, new) in pairs.items() if old != new]
    if differing:
        expected = f"the settings that the run in {path.parent} began with"
        raise ValueError(f"resume: expected {expected}: {', '.join(differing)}")
    check_recipe(before["model"], model, "resume")
    return before["epoch"] + 1


@dataclass
class Run:
    """A run that is ready to start, or to continue from a checkpoint."""

    config: TrainConfig
    data: MultimodalData
    module: TrainingModule
    trainer: Trainer
    loaders: tuple[DataLoader, DataLoader]
    history: History
    selection: Selection
    checkpoint: Path | None

    def fit(self) -> Result:
        """Train to the end.

        Raises:
            FloatingPointError: if the loss is no longer finite.
            KeyboardInterrupt: after Ctrl-C; the finished epochs are in `config.out`.
        """
        if self.config.out is not None and self.trainer.is_global_zero:
            start_folder(self.config)
        with quiet(), own_generator(), interruptible(self.trainer):
            self.trainer.fit(self.module, *self.loaders, ckpt_path=self.checkpoint, weights_only=True)
        model, chosen = self.module.model, self.selection
        model.load_state_dict(chosen.states[chosen.last])
        restore_buffers(model, chosen.buffers[chosen.last])
        return Result(
            model.eval(), self.history.rows, chosen.states, chosen.epochs, chosen.scores, self.config, self.data
        )


def has_room() -> bool:
    """Whether standard output is a terminal that can show a progress bar."""
    console = Console()
    return console.is_terminal and not console.is_dumb_terminal and console.width >= 60


def make_trainer(
    config: TrainConfig,
    history: History,
    selection: Selection,
    callbacks: Sequence[Callback],
    progress: bool,
    finished: int,
) -> Trainer:
    """Lightning's Trainer for a run of which some epochs may be finished: its optional features are off."""
    own: list[Callback] = [history, selection]
    terminal = has_room()
    if progress:
        own.append(RichProgressBar(leave=False) if terminal else EpochLines(history))
    loggers = []
    if config.out is not None:
        own.append(LastCheckpoint(config.out))
        # The purge hides entries that an unfinished epoch may have left.
        loggers.append(TensorBoardLogger(config.out, name=BOARD, version="", purge_step=finished))
    world = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # The parameters in use change with the phase. Buffers need no broadcast: they are the same in all processes.
    shared = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False) if world > 1 else "auto"
    return Trainer(
        accelerator=config.device,
        devices=local,
        num_nodes=world // local,
        strategy=shared,
        precision=config.precision,
        max_epochs=config.epochs,
        callbacks=[*own, *callbacks],
        logger=loggers or False,
        plugins=[CheckpointFiles()],
        enable_checkpointing=config.out is not None,
        enable_progress_bar=progress and terminal,
        enable_model_summary=False,
        enable_autolog_hparams=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=config.out,
    )


def make_loaders(config: TrainConfig, data: MultimodalData, trainer: Trainer) -> tuple[DataLoader, DataLoader]:
    """The loaders of training and validation, with each process's share.

    Raises:
        ValueError: if the processes cannot share a batch, or validation has fewer samples than there are processes.
    """
    if len(data.train) < 2:
        raise ValueError(f"data: expected at least 2 samples to train on, got {len(data.train)}")
    if len(data.validation) < trainer.world_size:
        expected = f"at least {trainer.world_size} samples in validation, one for each process"
        raise ValueError(f"data: expected {expected}, got {len(data.validation)}")
    share = {"rank": trainer.global_rank, "world": trainer.world_size}
    # Lightning's declared type is a tracker without a count of processed items.
    progress: Any = trainer.fit_loop.epoch_progress.current
    batches = EpochBatches(
        len(data.train), config.batch_size, seed=config.seed, epoch=lambda: progress.processed, **share
    )
    return make_loader(data.train, batches, config.workers), make_loader(
        data.validation, stripes(len(data.validation), EVALUATION_BATCH, **share), config.workers
    )


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Raise KeyboardInterrupt after Ctrl-C: Lightning would exit with code 1, and ignore Ctrl-C from then on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Lightning's hints on hardware, loaders and logging intervals."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        # PyTorch warns when the scheduler of an older version's checkpoint steps before the optimizer.
        warnings.filterwarnings("ignore", message="Detected call of .lr_scheduler.step")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
