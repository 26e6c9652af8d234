"""What a reproduction runs: the rows of the tables, their hyper-parameters, and all jobs."""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from udml_kernels.streams import Seed

DATA = ("digits", "watch", "hog")
FUSIONS = ("concat", "sum", "gated", "film", "attention")
VIEWS = {"three": "fou,zer,mor", "six": "fou,fac,kar,pix,zer,mor"}


@dataclass(frozen=True)
class Range:
    """A log-uniform distribution on [low, high]."""

    low: float
    high: float

    def draw(self, generator: random.Random) -> float:
        return float(f"{math.exp(generator.uniform(math.log(self.low), math.log(self.high))):.3g}")


@dataclass(frozen=True)
class Choice:
    """One of the values, with equal probabilities."""

    values: tuple[float, ...]

    def draw(self, generator: random.Random) -> float:
        return generator.choice(self.values)


@dataclass(frozen=True)
class Row:
    """A method as a row of the tables.

    Attributes:
        method: a name in `udml.models.METHODS`.
        label: the name in tables and plots.
        space: the hyper-parameters to tune in addition to the learning rate and the weight decay.
        fixed: options that are part of the row's definition.
    """

    method: str
    label: str
    space: Mapping[str, Range | Choice] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


OPTIMIZER = {"learning_rate": Range(5e-4, 8e-3), "weight_decay": Range(1e-3, 1e-1)}
GAMMA, BETA = Choice((0.3, 1.0, 3.0)), Range(1e-5, 1e-2)
TEMPERATURE, FLOOR = Choice((2.0, 3.0, 4.0)), Choice((2.0, 4.0))
# Methods without unimodal losses in their own formula have gamma = 0 here; "+ γ" adds them, to show their effect.
ROWS = {
    "static": Row("static", "static", fixed={"gamma": 0.0}),
    "static-clean": Row("static-clean", "static-clean", fixed={"gamma": 0.0}),
    "static-gamma": Row("static", "static + γ", {"gamma": GAMMA}),
    "static-clean-gamma": Row("static-clean", "static-clean + γ", {"gamma": GAMMA}),
    "pe": Row("pe", "PE", {"beta": BETA}, {"gamma": 0.0}),
    "pe-gamma": Row("pe", "PE + γ", {"beta": BETA, "gamma": GAMMA}),
    "tmc": Row("tmc", "TMC", {"gamma": GAMMA, "annealing": Range(0.02, 1.0)}),
    "ogm-ge": Row("ogm-ge", "OGM-GE", {"alpha": Range(0.1, 0.8)}, {"gamma": 0.0}),
    "greedy": Row("greedy", "Greedy", {"gamma": GAMMA, "tolerance": Range(0.01, 1.0)}),
    "qmf": Row("qmf", "QMF", {"gamma": GAMMA}),
    # Not beta and lam, which shape the estimator: tuned for accuracy, they gave one that saturates above sigma = 10.
    "udml": Row("udml", "UDML", {"temperature": TEMPERATURE, "floor": FLOOR, "gamma": GAMMA}),
    # The authors' preset. Only gamma, the weight of the unimodal losses, is tuned: they choose it by data set too.
    "udml-authors": Row("udml", "UDML, authors", {"gamma": GAMMA}, {"preset": "authors"}),
    "oracle": Row("oracle", "oracle", {"beta": BETA, "temperature": TEMPERATURE, "floor": FLOOR, "gamma": GAMMA}),
}
SIDE_ROWS = ("static", "static-gamma", "pe", "pe-gamma", "udml")
# UDML's own hyper-parameters, except for what is changed here.
ABLATION: dict[str, tuple[str, dict[str, Any]]] = {
    "no-dependency": ("estimator, α off", {"dependency": False}),
    "no-probability": ("UDML without probabilistic representation", {"probabilistic": False}),
    "no-gamma": ("UDML, γ = 0", {"gamma": 0.0}),
}


@dataclass(frozen=True)
class Job:
    """One run, a pure function of the attributes.

    Attributes:
        group: tune, main, ablation, fusion, views or kinds.
        row: a key of ROWS or of ABLATION.
        variant: the trial, the fusion or the views; empty where the group has none.
        config: fields of `TrainConfig`, including the seed.
        options: keyword arguments of the model.
        draws: number of noise draws over which every accuracy is a mean.
    """

    group: str
    row: str
    variant: str
    config: dict[str, Any]
    options: dict[str, Any]
    draws: int

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.group, self.row, self.variant, f"s{self.seed}") if part)

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Trial:
    """One point of a row's space: fields of `TrainConfig` and options of the model."""

    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def trial(row: str, number: int) -> Trial:
    """Trial 0 is the default configuration; the others are drawn at random.

    A hyper-parameter's value depends only on its name and the trial, so rows that share one try the same values.
    """
    if number == 0:
        return Trial()

    def draw(space):
        return {name: what.draw(random.Random(f"{name} {number}")) for name, what in space.items()}

    return Trial(draw(OPTIMIZER), draw(ROWS[row].space))


@dataclass(frozen=True)
class Plan:
    """A reproduction.

    Attributes:
        data: digits, watch or hog.
        seeds: number of seeds of the main comparison and the ablation.
        trials: number of trials in each row's tuning.
        side_seeds: number of seeds of the other experiments.
        tuning_seeds: number of seeds of each trial.
        draws: number of draws of the test noise.
        epochs, batch_size, width: as in TrainConfig.
    """

    data: str
    seeds: int = 10
    trials: int = 6
    side_seeds: int = 5
    tuning_seeds: int = 1
    draws: int = 5
    epochs: int = 60
    batch_size: int = 64
    width: int = 64

    @classmethod
    def of(cls, data: str, seeds: int = 10, trials: int = 6, quick: bool = False) -> "Plan":
        """The plan of a full or a quick reproduction."""
        if quick:
            return cls(data, 2, 1, 2, 1, draws=1, epochs=3, batch_size=256, width=16)
        # Chosen so that each data set takes 40 to 60 minutes on two cores; a run on watch or hog costs twice as much.
        if data == "digits":
            return cls(data, seeds, trials, max(2, seeds // 2), 2, draws=5, epochs=60)
        if data == "hog":
            return cls(data, seeds, trials, max(2, seeds // 2), 1, draws=3, epochs=40)
        return cls(data, seeds, trials, max(2, seeds // 5), 1, draws=3, epochs=18)

    def job(self, group: str, row: str, seed: int, point: Trial, *, variant: str = "", **changes) -> Job:
        """A run of a row at a point of its space; `changes` are fields of TrainConfig."""
        config = {
            "data": self.data,
            "method": ROWS[row].method,
            "fusion": "concat",
            "views": None,
            "seed": seed,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "width": self.width,
        }
        options = {**ROWS[row].fixed, **point.options}
        return Job(group, row, variant, {**config, **point.config, **changes}, options, self.draws)

    def tuning(self) -> list[Job]:
        """The same number of trials for every row, with separate seeds and, where the split is free, own partitions."""
        return [
            self.job("tune", row, seed, trial(row, number), variant=f"t{number}", split_seed=seed)
            for row in ROWS
            for number in range(self.trials)
            for seed in range(Seed.TUNING, Seed.TUNING + self.tuning_seeds)
        ]

    def runs(self, chosen: Mapping[str, Trial]) -> list[Job]:
        """All runs that the report shows, each row at its chosen point."""
        main = [self.job("main", row, seed, chosen[row]) for row in ROWS for seed in range(self.seeds)]
        return main + list(self._ablation(chosen["udml"])) + list(self._side(chosen))

    def _ablation(self, point: Trial) -> Iterator[Job]:
        for name, (_, change) in ABLATION.items():
            changed = Trial(point.config, {**point.options, **change})
            for seed in range(self.seeds):
                job = self.job("ablation", "udml", seed, changed)
                yield Job("ablation", name, "", job.config, job.options, job.draws)

    def _side(self, chosen: Mapping[str, Trial]) -> Iterator[Job]:
        for seed in range(self.side_seeds):
            yield self.job("kinds", "udml", seed, chosen["udml"])
            # Only on the data set whose runs are cheap.
            for row in SIDE_ROWS if self.data == "digits" else ():
                for fusion in FUSIONS[1:]:
                    yield self.job("fusion", row, seed, chosen[row], variant=fusion, fusion=fusion)
                for name, views in VIEWS.items():
                    yield self.job("views", row, seed, chosen[row], variant=name, views=views)
