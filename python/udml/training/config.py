"""The settings of a training run."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..schedule import ProgressiveSchedule

# Fields that say where and how to run, not what is computed.
_NOT_SETTINGS = ("out", "resume", "overwrite", "root", "workers", "device", "compile", "cuda_graph")


@dataclass(frozen=True)
class TrainConfig:
    """One training run; every field is a flag of `python -m udml train` and a key of its YAML file.

    Attributes:
        data: the data set: watch, digits, hog, cremad, kinetics-sound or nyud; for the user's own data, its name.
        method: static, static-clean, pe, tmc, ogm-ge, greedy, qmf, udml or oracle.
        fusion: concat, sum, gated, film or attention.
        seed: seed of the data's order, the noise and the initialisation (not of a model that is given already built).
        epochs: epochs of all phases together; one or two are those of the last phases.
        phases: epochs of the clean, noisy and weighted phase; null for fractions of 3/8, 3/8 and the rest.
        batch_size: samples per step, over all processes; a smaller last batch is left out.
        optimizer: adamw, or sgd with momentum 0.9.
        learning_rate: learning rate at the start of each phase, from which it falls by half a cosine.
        weight_decay: weight decay of the optimizer.
        clip: maximum norm of the gradient.
        gamma: weight of the unimodal losses; null for the method's default, as for the next six.
        beta: weight of the KL.
        lam: weight of the noise estimator's loss.
        temperature: temperature of the fusion weights.
        floor: what the uncertainty has beside the predicted noise: s = noise^2 + floor^2.
        momentum: momentum of the dependency's moving average.
        preset: preset of UDML: default, or authors for the arithmetic of the authors' code.
        width: channels of the encoders' features.
        precision: 32-true, or bf16-mixed for autocast.
        compile: compile the forward pass and the losses of training with torch.compile: minutes at the start, then
            faster steps.
        cuda_graph: the same, and a CUDA device replays both passes as CUDA graphs (torch.compile's reduce-overhead), so
            the host launches two graphs a step and not each kernel.
        device: auto, cpu or cuda. Several processes: torchrun --nproc-per-node N -m udml train.
        root: folder of the data; null for that of the installed package, which only watch, digits and hog have.
        views: views of digits or hog, comma-separated, such as fou,zer; null for the data set's default.
        validation_draws: noise draws in validation; few samples under one draw make the selection random.
        split_seed: seed of the partition into training and validation, if the data set has no official one.
        workers: processes that read the data; 0 for none.
        out: folder for checkpoints, metrics and the result; null writes nothing.
        resume: continue after the last finished epoch in out.
        overwrite: replace the run in out.
    """

    data: str = "watch"
    method: str = "udml"
    fusion: str = "concat"
    seed: int = 0
    epochs: int = 40
    phases: tuple[int, int, int] | None = None
    batch_size: int = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    clip: float = 5.0
    gamma: float | None = None
    beta: float | None = None
    lam: float | None = None
    temperature: float | None = None
    floor: float | None = None
    momentum: float | None = None
    preset: str | None = None
    width: int = 64
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    compile: bool = False
    cuda_graph: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    root: Path | None = None
    views: str | None = None
    validation_draws: int = 4
    split_seed: int = 0
    workers: int = 0
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self):
        for name in ("root", "out"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        for name, least in (
            ("epochs", 1),
            ("batch_size", 2),
            ("width", 1),
            ("workers", 0),
            ("seed", 0),
            ("validation_draws", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("optimizer", "precision", "device"):
            choices = next(f.type for f in fields(self) if f.name == name).__args__
            expect(name, getattr(self, name), choices)
        if self.phases is not None and self.schedule.epochs != self.epochs:
            raise ValueError(f"phases: expected three that sum to epochs = {self.epochs}, got {list(self.phases)}")
        if self.resume and (self.out is None or self.overwrite):
            raise ValueError("resume: expected out, the run's folder, and no overwrite")

    @property
    def schedule(self) -> ProgressiveSchedule:
        """The epochs of each phase."""
        return ProgressiveSchedule.of(self.epochs) if self.phases is None else ProgressiveSchedule(*self.phases)

    def check_names(self, *, data: bool = True, model: bool = True) -> None:
        """Raise ValueError, listing the choices, for a data set, method, fusion or preset that does not exist.

        Args:
            data, model: whether to check the names of the data set and of the model; not if those are given as objects.
        """
        from ..data import DATASETS
        from ..fusion import FUSIONS
        from ..models import METHODS

        if data:
            expect("data", self.data, DATASETS)
        if model:
            expect("method", self.method, METHODS)
            expect("fusion", self.fusion, FUSIONS)
            expect("preset", self.preset, (None, "default", "authors"))

    def settings(self) -> dict[str, Any]:
        """The fields that decide the numbers, in plain types; a resumed run must have the same as the first one."""
        return {name: value for name, value in self.plain().items() if name not in _NOT_SETTINGS}

    def plain(self) -> dict[str, Any]:
        """The run in the types of YAML and JSON, without resume and overwrite, which concern a single call."""
        values = asdict(self) | {"phases": None if self.phases is None else list(self.phases)}
        plain = {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
        return {name: v for name, v in plain.items() if name not in ("resume", "overwrite")}


def expect(name: str, value: Any, choices) -> None:
    """Raise ValueError, listing the choices, unless the value is one of them."""
    if value not in choices:
        listed = ", ".join(choice for choice in choices if choice is not None)
        raise ValueError(f"{name}: expected one of {listed}, got {value!r}")
