"""Train on the fused ops and on the reference, and measure the results of both runs."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

import udml_kernels
from udml_kernels import backends

from ..data import DataSpec, MultimodalData
from ..schedule import PHASES
from ..training import MIX, Result, TrainConfig, evaluate, train
from ..training.callbacks import History
from .op_timing import Timing, time_ops

LEVELS = (0, 1, 2, 4, 8, 12)
REFERENCE = "reference"
# Two runs that differ in the rounding of their ops diverge, slowly at first: training is chaotic. Measured over 40
# epochs with seeds 0 to 12: up to 5e-6 in the first epoch (3e-5 for the task's term), where other noise gives at least
# 9e-5 (8e-4); then up to 2.9e-2 (3.7e-2), the most in the first noisy epoch, where the estimator's error is large.
FIRST_EPOCH_BOUND, TASK_FIRST_EPOCH_BOUND = 5e-5, 3e-4
EPOCH_BOUND = 1e-1
TASK_BOUND = 1.5e-1


@dataclass
class Measured:
    """One backend's training run and the results of its models on the test people.

    Attributes:
        backend: the backend's name.
        result: the result of `train`.
        seconds: training time, validation included.
        accuracy: by phase name, at LEVELS and then on the mix.
        predicted: the last phase's prediction per modality and level (M, levels, 3): 10th, 50th, 90th percentile.
        shares: (M, levels), the fraction of the weights that a modality has if it alone is degraded.
        rmse: error of the predicted sigma on the mix, in units of sigma.
    """

    backend: str
    result: Result
    seconds: float
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    predicted: list = field(default_factory=list)
    shares: list[list[float]] = field(default_factory=list)
    rmse: float = 0.0

    def curve(self, name: str = "loss") -> list[float]:
        """One column of the run's history."""
        return [row[name] for row in self.result.history]


@dataclass
class Report:
    """Everything that is printed and drawn: a run on the fused ops (on the reference if there are none), one on the
    reference, the relative differences of their losses, and the times of the ops."""

    runs: list[Measured]
    differences: list[float]
    task_differences: list[float]
    timings: list[Timing]

    @property
    def config(self) -> TrainConfig:
        """The config of both runs."""
        return self.runs[0].result.config

    @property
    def spec(self) -> DataSpec:
        """The spec of the data."""
        return self.runs[0].result.data.spec

    @property
    def agree(self) -> bool:
        """Whether the losses of every epoch differ by no more than their bounds."""
        return not self.disagreements

    @property
    def disagreements(self) -> list[tuple[str, int, float, float]]:
        """(curve, epoch counted from 0, difference, bound) wherever a bound is exceeded."""
        curves = (("loss", self.differences, curve_bound), ("task loss", self.task_differences, task_bound))
        return [
            (name, epoch, difference, bound(epoch))
            for name, differences, bound in curves
            for epoch, difference in enumerate(differences)
            if difference > bound(epoch)
        ]


def curve_bound(epoch: int) -> float:
    """The allowed relative difference of the two runs' mean losses in an epoch counted from 0."""
    return FIRST_EPOCH_BOUND if epoch == 0 else EPOCH_BOUND


def task_bound(epoch: int) -> float:
    """The same for the task's term alone, which is small and therefore differs by more."""
    return TASK_FIRST_EPOCH_BOUND if epoch == 0 else TASK_BOUND


def relative_differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """|a - b| / |b| of two curves; NaN counts as infinite."""
    pairs = zip(first, second, strict=True)
    return [d if (d := abs(a - b) / max(abs(b), 1e-12)) == d else float("inf") for a, b in pairs]


def assess(measured: Measured) -> None:
    """Fill in the results of the run's models on the test people."""
    result = measured.result
    model, test, spec = result.model, result.data.test, result.data.spec
    for phase in PHASES:
        if phase.name not in result.best:
            continue
        model.load_state_dict(result.best[phase.name])
        answers = [evaluate(model, test, spec, level, weighting=phase.weighting) for level in (*LEVELS, MIX)]
        measured.accuracy[phase.name] = [answer.score for answer in answers]
    *by_level, mix = answers
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    predicted = [a.noise.quantile(quantiles, 0) for a in by_level if a.noise is not None]
    measured.predicted = torch.stack(predicted).permute(2, 0, 1).tolist()
    assert mix.noise is not None
    measured.rmse = (mix.noise - mix.sigma).square().mean().sqrt().item()
    for m, alone in enumerate(F.one_hot(torch.arange(len(spec.modalities)))):
        weights = [evaluate(model, test, spec, level * alone).weights for level in LEVELS]
        measured.shares.append([(w[:, m] / w.sum(1)).mean().item() for w in weights if w is not None])


class EachEpoch(Callback):
    """Calls a function with each epoch's row of the history."""

    def __init__(self, function: Callable[[dict[str, Any]], None]):
        self.function = function

    def on_train_epoch_end(self, trainer, module) -> None:
        self.function(next(c for c in trainer.callbacks if isinstance(c, History)).rows[-1])


def compare(
    data: MultimodalData, config: TrainConfig, on_epoch: Callable[[str, dict[str, Any]], None] = lambda *_: None
) -> Report:
    """Make both runs with the same seed, and time the ops on tensors of the first run; all on one thread.

    Args:
        data: the data for training and testing.
        config: the config of both runs, for the CPU.
        on_epoch: called after every epoch with the backend and the row of the history.

    Raises:
        FloatingPointError: if a loss is no longer finite.
    """
    fused = backends.select(torch.device("cpu"))
    runs = []
    with _one_thread():
        for name in (fused, REFERENCE):
            with udml_kernels.use_backend(name):
                start = time.perf_counter()
                result = train(config, data, callbacks=[EachEpoch(partial(on_epoch, name))], progress=False)
                runs.append(Measured(name, result, time.perf_counter() - start))
                assess(runs[-1])
        timings = time_ops(runs[0].result, (fused, REFERENCE))
    whole, task = (relative_differences(*(run.curve(name) for run in runs)) for name in ("loss", "loss_task"))
    return Report(runs, whole, task, timings)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    # The network is too small for two threads: an epoch takes 0.8 s of processor time on one and 1.6 s on two, and when
    # other processes kept the cores busy, the threads' waiting for each other made it 10 times slower.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
