"""Train on the fused ops and on the reference, and measure what both runs give."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

import udml_kernels
from udml_kernels import backends

from .windows import MODALITIES, Windows
from ..losses import accuracy
from .op_timing import Timing, time_ops
from ..schedule import PHASES, Phase
from .loop import MIX, Config, Run, predict, train

LEVELS = (0, 1, 2, 4, 8, 12)
# Two runs that differ in the rounding of their ops drift apart, slowly at first: training is chaotic. Measured over
# 40 epochs: 1e-6 in the first epoch (4e-5 for the task's term), then up to 6e-3 (3e-2). Other noise shows in the first.
FIRST_EPOCH_BOUND = 1e-4
EPOCH_BOUND = 3e-2
TASK_BOUND = 1.5e-1
REFERENCE = "reference"


@dataclass
class Measured:
    """One backend's training run and what its models do on the test people.

    Attributes:
        backend: its name.
        run: losses and selected models.
        seconds: of training, validation included.
        accuracy: by phase name, at LEVELS and then on the mix.
        predicted: the last model's answer per modality and level (M, levels, 3): 10th, 50th, 90th percentile.
        weights: (M, levels), the weight of a modality that alone is degraded; empty without a weighted phase.
        rmse: of the predicted sigma on the mix, in units of sigma.
    """

    backend: str
    run: Run
    seconds: float
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    predicted: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    rmse: float = 0.0


@dataclass
class Report:
    """All that is printed and drawn; fused is None where no kernel backend serves this machine."""

    config: Config
    runs: list[Measured]
    differences: list[float]
    task_differences: list[float]
    timings: list[Timing]

    @property
    def agree(self) -> bool:
        """Whether every epoch's losses differ by no more than their bounds."""
        return not self.disagreements

    @property
    def disagreements(self) -> list[tuple[str, int, float, float]]:
        """The curve, the epoch counted from 0, the difference and the bound, where a bound is exceeded."""
        curves = (("loss", self.differences, curve_bound), ("task loss", self.task_differences, task_bound))
        return [
            (name, epoch, difference, bound(epoch))
            for name, differences, bound in curves
            for epoch, difference in enumerate(differences)
            if difference > bound(epoch)
        ]


def curve_bound(epoch: int) -> float:
    """The largest relative difference of the two runs' mean losses in an epoch counted from 0."""
    return FIRST_EPOCH_BOUND if epoch == 0 else EPOCH_BOUND


def task_bound(epoch: int) -> float:
    """The same for the task's term alone, which is small and so differs by more."""
    return 10 * FIRST_EPOCH_BOUND if epoch == 0 else TASK_BOUND


def relative_differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """|a - b| / |b| of two curves; NaN counts as infinite."""
    pairs = zip(first, second, strict=True)
    return [d if (d := abs(a - b) / max(abs(b), 1e-12)) == d else float("inf") for a, b in pairs]


def evaluate(measured: Measured, test: Windows) -> None:
    """Fill in what the run's models do on the test people."""
    model = measured.run.model
    for phase in PHASES:
        if phase.name not in measured.run.best:
            continue
        model.load_state_dict(measured.run.best[phase.name])
        outputs = [predict(model, test, level, weighting=phase.weighting)[0] for level in (*LEVELS, MIX)]
        measured.accuracy[phase.name] = [accuracy(o.logits, test.target) for o in outputs]
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    measured.predicted = torch.stack([o.noise.quantile(quantiles, 0) for o in outputs[:-1]]).permute(2, 0, 1).tolist()
    output, levels = predict(model, test, MIX)
    measured.rmse = (output.noise - levels).square().mean().sqrt().item()
    for m in range(len(MODALITIES)):
        alone = torch.nn.functional.one_hot(torch.tensor(m), len(MODALITIES))
        rows = [predict(model, test, (level * alone).tolist())[0].weights[:, m].mean().item() for level in LEVELS]
        measured.weights.append(rows)


def measure(
    backend: str, windows: dict[str, Windows], config: Config, on_epoch: Callable[[int, Phase, float, float], None]
) -> Measured:
    """Train and evaluate with every op served by one backend."""
    with udml_kernels.use_backend(backend):
        start = time.perf_counter()
        run = train(windows, config, on_epoch)
        measured = Measured(backend, run, time.perf_counter() - start)
        evaluate(measured, windows["test"])
    return measured


def compare(windows: dict[str, Windows], config: Config, on_epoch: Callable) -> Report:
    """Both runs, from the same seed, and the ops' times on tensors of the first one; all on one thread."""
    fused = backends.select(torch.device("cpu"))
    with _one_thread():
        runs = [
            measure(name, windows, config, lambda *state, name=name: on_epoch(name, *state))
            for name in (fused, REFERENCE)
        ]
        timings = time_ops(runs[0].run.model, windows["train"], config.batch_size, (fused, REFERENCE))
    first, second = (m.run for m in runs)
    differences = relative_differences(first.losses, second.losses)
    return Report(config, runs, differences, relative_differences(first.tasks, second.tasks), timings)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    # The network is too small for two: an epoch takes 0.8 s of processor time on one thread and 1.6 s on two, and
    # where other processes keep the cores busy the threads' waiting for each other made it 10 times slower.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
